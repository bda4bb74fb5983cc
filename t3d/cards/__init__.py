"""Cards: the README.md that a checkpoint or a set of rollouts is shared with."""
