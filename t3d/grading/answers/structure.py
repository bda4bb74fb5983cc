"""How an answer is built: brackets, lists, relations, readings of what is ambiguous. Functions of tokens."""

import re
from collections.abc import Collection, Iterator, Sequence

from t3d.grading.answers.spelling import Tokens, spell

_OPEN = {"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"}
_CLOSE = {")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"}
_CONJUNCTION = re.compile(r"\\text\{[,;]?\s*(?:and|or|and also|or also|as well as)?\s*[,;]?\}", re.IGNORECASE)
_SEPARATORS = {",", ";", "&", "and", "or", r"\lor"}
RELATIONS = {"=", "<", ">", r"\leq", r"\geq", r"\neq", r"\in", r"\notin", r"\equiv", r"\approx", r"\sim", r"\cong"}
"""Signs between two sides."""
RELATIONS |= {r"\subset", r"\subseteq", r"\to", r"\Rightarrow", r"\Leftrightarrow", r"\propto", r"\ll", r"\gg"}

BUILDERS = {":", "|", r"\text{such that}", r"\text{where}"}
"""What stands between the two parts of a set builder."""

_THOUSANDS = re.compile(r"(?<![\d,.(\[{])\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d,])")
_UPRIGHT_SET = re.compile(
    r"(\\in\s*)?\\(?:mathbf|boldsymbol|bm|mathrm)\s*\{\s*([RZQNC])\s*\}|(?<=\\in)\s*([RZQNC])(?![A-Za-z(])"
)
_MARKED_THOUSANDS = re.compile(r"(?<=\d)(?:,\s*\\!\s*|\{,\}|\\,|\\;|\\ )(?=\d{3}(?!\d))")
_BRACED_THOUSANDS = re.compile(r"(?<=\{)\d{1,3}(?:,\d{3})+(?=\})")
_OPTION = re.compile(
    r"(?:\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|bf|rm)\s*\{?\s*)?"
    r"(?:\(\s*(?:\\(?:text|textbf|mathrm|mathbf|rm|bf)\s*\{?\s*)?([A-Z])\}?\s*\)\s*\}?|([A-Z])[).:](?=[\s~\\}])\}?)"
    r"(?:[\s~:.,;]|\\[ ,;:!]|\\q?quad(?![a-z]))*(.*?)\}?",
    re.DOTALL,
)


def readings(answer: str) -> list[Tokens]:
    """Returns what an answer may mean: once or, where commas may group digits or a letter may label, twice."""
    text = _MARKED_THOUSANDS.sub("", answer.strip())
    text = _BRACED_THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    found = [spell(text)]
    for other in _others(text):
        found.append(spell(other))
    return list(dict.fromkeys(tokens for tokens in found if tokens))


def _others(text: str) -> Iterator[str]:
    """Other readings: commas or spaces that group digits, an upright R that is the set of the real numbers."""
    if _THOUSANDS.search(text):
        yield _THOUSANDS.sub(lambda match: re.sub("[, ]", "", match.group()), text)
    if _UPRIGHT_SET.search(text):
        yield _UPRIGHT_SET.sub(lambda match: rf"{match[1] or ''} \mathbb{{{match[2] or match[3]}}} ", text)


def option(answer: str) -> tuple[str, str] | None:
    r"""Splits `\textbf{(B)}\ 7` into its letter and its content ("" if there is none)."""
    match = _OPTION.fullmatch(answer.strip().strip("$").strip())
    if match is None:
        return None
    content = match[3].strip()
    content += "}" * (content.count("{") - content.count("}"))
    if content.count("{") < content.count("}") or content[:1] in ("^", "_", "=", "+", "-/", "*"):
        return None
    if match[1] and content and not re.match(r".*(?:\}|\)[\s~\\:.])", answer[: len(answer) - len(content)], re.DOTALL):
        return None
    return match[1] or match[2], content


def steps(tokens: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yields each token with how many brackets and environments are open around it."""
    depth = 0
    for token in tokens:
        closes = token in _CLOSE or token.startswith(r"\end{")
        depth -= closes
        yield depth, token
        depth += token in _OPEN or token.startswith(r"\begin{")


def split(tokens: Sequence[str], separators: Collection[str]) -> list[Tokens]:
    """Splits at separators outside of all brackets; drops empty parts."""
    parts: list[list[str]] = [[]]
    for depth, token in steps(tokens):
        if depth <= 0 and token in separators:
            parts.append([])
        else:
            parts[-1].append(token)
    return [tuple(part) for part in parts if part]


def elements(tokens: Sequence[str]) -> list[Tokens]:
    r"""The members of a bare list: between commas, semicolons and conjunctions; `a \pm b` is two."""
    plain = ["," if _CONJUNCTION.fullmatch(token) else token for token in tokens]
    return [signed for part in split(plain, _SEPARATORS) for signed in _signs(part)]


def alternatives(tokens: Sequence[str]) -> list[Tokens]:
    """What stands between "or"s."""
    plain = ["or" if re.fullmatch(r"\\text\{[,;]?\s*or\s*[,;]?\}", token) else token for token in tokens]
    return split(plain, ("or", r"\lor"))


def _signs(tokens: Tokens) -> list[Tokens]:
    r"""Both readings of `\pm` (with `\mp` its opposite), of several all combinations."""
    places = [place for place, token in enumerate(tokens) if token in (r"\pm", r"\mp")]
    if not places or len(places) > 4:
        return [tokens]
    together = any(tokens[place] == r"\mp" for place in places)
    choices = (0, 2 ** len(places) - 1) if together else range(2 ** len(places))
    result = []
    for choice in choices:
        signed = list(tokens)
        for bit, place in enumerate(places):
            minus = (choice >> bit & 1) ^ (tokens[place] == r"\mp")
            signed[place] = "-" if minus else "+"
        result.append(tuple(signed))
    return result


def bracketed(tokens: Sequence[str]) -> tuple[str, Tokens, str] | None:
    """Returns (opening bracket, inside, closing bracket) of what one pair of brackets encloses."""
    if len(tokens) < 2 or tokens[0] not in _OPEN or tokens[-1] not in _CLOSE:
        return None
    depths = [depth for depth, _ in steps(tokens)]
    if any(depth <= 0 for depth in depths[1:-1]) or depths[-1] != 0:
        return None
    return tokens[0], tuple(tokens[1:-1]), tokens[-1]


def environment(tokens: Sequence[str]) -> tuple[str, Tokens] | None:
    """Returns (name, inside) of what is one environment, in brackets or not: `[array]` is a bmatrix."""
    inside = tuple(tokens)
    while (enclosed := bracketed(inside)) and enclosed[1] and enclosed[1][0].startswith(r"\begin"):
        inside = enclosed[1]
    if not inside or not inside[0].startswith(r"\begin") or not inside[-1].startswith(r"\end"):
        return None
    if any(depth <= 0 for depth, _ in list(steps(inside))[1:-1]):
        return None
    return inside[0][7:-1].rstrip("*"), inside[1:-1]


def relation(tokens: Sequence[str]) -> tuple[list[Tokens], list[str]] | None:
    """Returns (sides, signs between them), or None if there is no sign outside of brackets."""
    signs: list[str] = []
    sides: list[list[str]] = [[]]
    for depth, token in steps(tokens):
        if depth <= 0 and token in RELATIONS:
            signs.append(token)
            sides.append([])
        else:
            sides[-1].append(token)
    if not signs:
        return None
    return [tuple(side) for side in sides], signs


def flat(tokens: Sequence[str]) -> str:
    r"""The tokens as one string, without `\text{}`."""
    return "".join(token[6:-1] if token.startswith(r"\text{") else token for token in tokens)


def words(tokens: Sequence[str]) -> str:
    """The letters and digits of a text answer; without capitals, unless it is one letter."""
    kept = re.sub(r"[\W_]", "", flat(tokens))
    return kept if len(kept) == 1 else kept.casefold()


def is_words(tokens: Sequence[str]) -> bool:
    r"""Whether an answer is text and not mathematics: `\text{Evelyn}`, `Evelyn`, `\text{A,C}`."""
    if any(token[0] == "\\" and not token.startswith(r"\text{") for token in tokens):
        return False
    plain = flat(tokens)
    if re.search(r"[=<>+*/^_]", plain):
        return False
    if any(
        token.startswith(r"\text{") and re.search(r"[^\W\d_]", token[6:]) and not _CONJUNCTION.fullmatch(token)
        for token in tokens
    ):
        return tokens[0] not in ("-", "+") and not tokens[0][0].isdecimal()
    return re.fullmatch(r"[A-Za-z]{4,}[A-Za-z .'\-]*", plain) is not None
