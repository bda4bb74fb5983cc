"""Grading what models wrote: answers to mathematics and programs."""

from t3d.evaluation.code_grader import run_tests
from t3d.evaluation.math_grader import grade_math

__all__ = ["grade_math", "run_tests"]
