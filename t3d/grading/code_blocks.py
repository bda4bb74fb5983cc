"""Finds the program in a model's output: a fenced block."""

import ast
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_FENCE = re.compile(
    r"^\ufeff?(?P<quote>(?:[ \t]*>)*)(?P<indent>[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?)(?P<marks>`{3,}|~{3,})"
    r"[ \t]*\{?\.?(?P<tag>[\w+#-]*)(?P<rest>[^\n`]*)$\n?",
    re.MULTILINE,
)
_BEHIND_TEXT = re.compile(r"(?<=\S)[ \t]+(?=```(?:python|python3|py)[ \t]*\r?$)", re.IGNORECASE | re.MULTILINE)
_SPECIAL_TOKEN = re.compile(r"\s*<\|")
_GLUED_END = re.compile(r"(?:`{3,50}|~{3,50})\s{0,50}\Z")
_PYTHON = {"python", "python3", "py"}
_CHOICES: dict[str, Callable[[Sequence[str]], str]] = {
    "last": lambda blocks: blocks[-1],
    "first": lambda blocks: blocks[0],
    "longest": lambda blocks: max(blocks, key=len),
}


@dataclass(frozen=True)
class _Block:
    is_python: bool
    code: str


def extract_code(text: str, choice: str = "last", prefix: str = "") -> str | None:
    """Returns one of the blocks fenced as Python or, failing that, one of all fenced blocks.

    A fence is three or more backticks or tildes at the start of a line, indented or not, or after a list's or a
    quotation's mark; it ends with as many or more. A block in a list item loses that item's indentation. Empty blocks
    are none. An unclosed block runs to the next fence with a language, or to the end. Only where no fence at a line's
    start opens Python, one counts that does so at a line's end, behind text.

    Args:
        text: what the model wrote.
        choice: which of several: last (as the release takes), first or longest.
        prefix: the end of the prompt, which may open the block that the output goes on with.
    """
    if prefix and _opens_anew(text, prefix):
        return extract_code(text, choice)
    blocks = _full_blocks(prefix + text)
    if not any(block.is_python for block in blocks):
        behind = _full_blocks(_BEHIND_TEXT.sub("\n", prefix + text))
        blocks = [block for block in behind if block.is_python] or blocks
    chosen = [block.code for block in blocks if block.is_python] or [block.code for block in blocks]
    return _CHOICES[choice](chosen) if chosen else None


def _full_blocks(text: str) -> list[_Block]:
    return [block for block in _blocks(text) if block.code.strip()]


def _opens_anew(text: str, prefix: str) -> bool:
    """Whether the output's first fence opens a block and does not close the prefix's.

    A fence without a language is told by what stands before it: nothing, or what is no Python after the prefix
    (and then the block itself must be).
    """
    fence = _FENCE.search(text)
    opened = list(_FENCE.finditer(prefix))
    own = next((block.code for block in _blocks(text) if block.code.strip()), None)
    if fence is None or fence["tag"] or not opened or own is None:
        return False
    before = text[: fence.start()]
    return not before.strip() or (not _is_python(prefix[opened[-1].end() :] + before) and _is_python(own))


def _is_python(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _blocks(text: str) -> Iterator[_Block]:
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence["marks"].startswith(opened["marks"]):
            if not fence["tag"] and fence["rest"].strip() and not _SPECIAL_TOKEN.match(fence["rest"]):
                continue  # text after the marks: no closing fence
            yield _block(opened, text[opened.end() : fence.start()])
            opened = fence if fence["tag"] else None
    if opened is not None:
        yield _block(opened, _GLUED_END.sub("", text[opened.end() :]))


def _block(fence: re.Match[str], inside: str) -> _Block:
    indent = len(fence["indent"])
    if fence["quote"]:
        inside = re.sub(rf"^(?:[ \t]*>){{1,{fence['quote'].count('>')}}}", "", inside, flags=re.MULTILINE)
    lines = [line[min(indent, len(line) - len(line.lstrip(" \t"))) :] for line in inside.splitlines(keepends=True)]
    code = "".join(lines)
    if indent and code[:1] in (" ", "\t"):
        code = textwrap.dedent(code)
    return _Block(fence["tag"].lower() in _PYTHON, code)
