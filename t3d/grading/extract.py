"""Finds the answer in a model's output; grading it is another module's work."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from t3d.errors import DataError

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n`]*\n?")
_PYTHON = {"python", "python3", "py"}
_WORD = re.compile(r"[^\s${}]*")
_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?(?![A-Za-z])")
_STATED_OPTION = re.compile(
    r"(?:answer|option|choice) ?(?:is|:)? ?(?:option )?[*$( ]{0,5}([A-Z])(?![A-Za-z])", re.IGNORECASE
)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


def extract_boxed(text: str) -> str | None:
    r"""Returns the content of the last balanced \\boxed{...} (or \\fbox{...}), stripped.

    `\\boxed 5` means its next word. A box that never closes is passed over for the one before it.
    """
    closing: dict[int, int] | None = None
    for match in reversed(list(_BOX.finditer(text))):
        start = match.end()
        if text[start : start + 1] == "{":
            closing = _matching_braces(text) if closing is None else closing
            if start in closing:
                return text[start + 1 : closing[start]].strip()
        elif word := _WORD.findall(text, start, start + 1000)[0].rstrip(".,;"):
            return word
    return None


def _matching_braces(text: str) -> dict[int, int]:
    """Returns the position of the closing brace of each balanced opening one; escaped braces do not count."""
    pairs: dict[int, int] = {}
    open_at: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match.group() == "{":
            open_at.append(match.start())
        elif match.group() == "}" and open_at:
            pairs[open_at.pop()] = match.start()
    return pairs


def extract_code(text: str) -> str | None:
    """Returns the last block fenced as Python or, failing that, the last fenced block.

    An unclosed block runs to the end. For a prompt whose `prefix` opens the block, pass prefix + output.
    """
    blocks: dict[bool, str] = {}  # tagged as Python or not: the last of each
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        tagged = fence.group(1).lower() in _PYTHON
        if opened is not None:
            blocks[opened.group(1).lower() in _PYTHON] = text[opened.end() : fence.start()]
        opened = fence if opened is None or tagged else None
    if opened is not None and (rest := text[opened.end() :]).strip():
        blocks[opened.group(1).lower() in _PYTHON] = rest
    return blocks.get(True, blocks.get(False))


def extract_option(text: str) -> str | None:
    """Returns the letter chosen: the boxed one, otherwise the last one stated as the answer."""
    boxed = extract_boxed(text)
    if boxed is not None:
        letter = _LETTER.match(_TEXT.sub(r"\1", boxed).strip())
        return letter.group(1) if letter else None
    if alone := _LETTER.fullmatch(text.strip()):
        return alone.group(1)
    stated = _STATED_OPTION.findall(" ".join(text.split()))
    return stated[-1].upper() if stated else None


def _code_after_prefix(output: str, item: Mapping[str, Any]) -> str | None:
    prefix = item.get("prefix") if item.get("test_method") == "function" else None
    return extract_code((prefix or "") + output)


_EXTRACTORS: dict[str, Callable[[str, Mapping[str, Any]], str | None]] = {
    "math": lambda output, item: extract_boxed(output),
    "option": lambda output, item: extract_option(output),
    "code": _code_after_prefix,
}


def extract(output: str, item: Mapping[str, Any], data_type: str) -> str:
    """Returns the answer in `output`, or "" if there is none.

    Args:
        output: what the model wrote.
        item: the data set's record (its `prefix` is part of a function's code).
        data_type: math, code or option.

    Raises:
        DataError: if `data_type` is unknown.
    """
    if data_type not in _EXTRACTORS:
        raise DataError("evaluation.data_type", "one of " + ", ".join(_EXTRACTORS), repr(data_type))
    return _EXTRACTORS[data_type](output, item) or ""
