"""Decoding a benchmark with a checkpoint, grading it, and the figures of the results."""

from t3d.grading import grade_math, run_tests

__all__ = ["grade_math", "run_tests"]
