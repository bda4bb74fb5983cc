r"""Finds the last `\boxed{...}`."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_WORD = re.compile(r"[^\s${}]*")


def extract_boxed(text: str) -> str | None:
    r"""Returns the content of the last balanced \\boxed{...} (or \\fbox{...}) that is not empty, stripped.

    `\\boxed 5` means its next word. A box that never closes is passed over for the one before it; "" if all
    boxes are empty.
    """
    closing: dict[int, int] | None = None
    found: str | None = None
    for match in reversed(list(_BOX.finditer(text))):
        start = match.end()
        if text[start : start + 1] == "{":
            closing = _matching_braces(text) if closing is None else closing
            if start not in closing:
                continue
            found = text[start + 1 : closing[start]].strip()
        elif (word := _WORD.match(text, start, start + 1000)) and word[0].rstrip(".,;"):
            found = word[0].rstrip(".,;")
        if found:
            break
    return found


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
