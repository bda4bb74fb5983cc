"""Grading what models wrote: answers to mathematics and programs."""

from t3d.grading.code_grader import run_tests
from t3d.grading.math_grader import grade_math

__all__ = ["grade_math", "run_tests"]
