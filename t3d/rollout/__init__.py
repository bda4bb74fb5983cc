"""Stage 1: decode a data set with a checkpoint into a rollout file, durably."""

from t3d.rollout.run import rollout, rollout_path

__all__ = ["rollout", "rollout_path"]
