"""The commands of every stage: what the scripts beside the package and `t3d NAME` run."""
