"""Finds the answer in a model's output; grading it is another module's work."""

from collections.abc import Callable, Mapping
from typing import Any

from t3d.errors import DataError
from t3d.grading.boxes import extract_boxed
from t3d.grading.code_blocks import extract_code
from t3d.grading.options import LETTERS, extract_option

__all__ = ["extract", "extract_boxed", "extract_code", "extract_option"]


def _code(output: str, item: Mapping[str, Any], code_block: str) -> str | None:
    prefix = item.get("prefix") if item.get("test_method") == "function" else None
    return extract_code(output, code_block, prefix or "")


_EXTRACTORS: dict[str, Callable[[str, Mapping[str, Any], str], str | None]] = {
    "math": lambda output, item, code_block: extract_boxed(output),
    "option": lambda output, item, code_block: extract_option(output, LETTERS),
    "code": _code,
}


def extract(output: str, item: Mapping[str, Any], data_type: str, code_block: str = "last") -> str:
    """Returns the answer in `output`, or "" if there is none.

    Args:
        output: what the model wrote.
        item: the data set's record (its `prefix` is part of a function's code).
        data_type: math, code or option.
        code_block: which fenced block is the program: last, first or longest.

    Raises:
        DataError: if `data_type` is unknown.
    """
    if data_type not in _EXTRACTORS:
        raise DataError("evaluation.data_type", "one of " + ", ".join(_EXTRACTORS), repr(data_type))
    return _EXTRACTORS[data_type](output, item, code_block) or ""
