r"""What is said in words or in another country's notation, as LaTeX: `332 in base 4`, `]1,2[`, `no solution`."""

import re
from collections.abc import Callable
from fractions import Fraction

_TEXT = r"\\(?:text|textrm|mathrm|mbox|operatorname|textbf)\s*\{"
_NUMBER = r"\d+(?:\.\d+)?"
_BASES = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\\d{1,2}"

_BASE = re.compile(
    rf"(?<![\w.])([0-9A-Z.]*\d[0-9A-Z.]*)[\s~]*(?:{_TEXT})?\s*\(?(?:in )?base[\s~-]*\}}?\s*({_BASES})\)?\}}?"
)
_ORDINAL = re.compile(rf"(?:{_TEXT})?\s*(\d+)\s*\^?\{{?\s*(?:{_TEXT})?\s*(?:st|nd|rd|th)\s*\}}{{0,3}}")
_NO_SOLUTION = re.compile(
    rf"(?:{_TEXT})?\s*(?:there\s+(?:is|are|exists?)\s+|has\s+|have\s+)?no\s+(?:real\s+|such\s+|valid\s+|possible\s+)?"
    r"(?:solutions?|roots?)(?:\s+exists?)?\s*\.?\s*\}?\.?",
    re.IGNORECASE,
)
_ALL_REALS_BUT = re.compile(
    rf"(?:{_TEXT})?\s*all\s+(?:the\s+)?real\s+(?:numbers|values)(?:\s+of\s+\$?\w\$?)?,?\s+"
    rf"(?:except(?:\s+for)?|other\s+than|but|excluding|not\s+equal\s+to)\s*\}}?\s*\$?(?:[a-z]\s*=)?\s*([^{{}}$=]+?)\$?\s*\}}?",
    re.IGNORECASE,
)
_ARC = re.compile(
    rf"({_NUMBER})\s*\^\s*\{{?\s*\\circ\s*\}}?\s*({_NUMBER})\s*\^?\{{?(?:'|\\prime)(?![\\'])\}}?"
    rf"(?:\s*({_NUMBER})\s*\^?\{{?(?:''|\\prime\s*\\prime|\")\}}?)?"
)
_CHOOSE = re.compile(
    r"(?<![\w)}\]])(?<![\w)}\]]\s)(?:\{\})?[_^]\{?(\w+)\}?\s*C\s*_\{?(\w+)\}?"
    r"|(?<![\w\\])\(?(\w+) choose (\w+)\)?(?!\w)"
)
_LOGARITHM = re.compile(r"(?<![A-Za-z\\])log(2|10)\s*(?=\()")
_SLASHED = re.compile(r"(?<![A-Za-z\\])d(\^\{?\d\}?)?([a-zA-Z])\s*/\s*d([a-zA-Z])(\^\{?\d\}?)?(?![A-Za-z])")
_LEFT, _RIGHT = r"(?:\\left\s*)?", r"(?:\\right\s*)?"
_OPENS, _CLOSES = r"(^|\\cup|\\cap|\\in(?![a-z])|=)\s*", r"\s*(?=$|\\cup|\\cap|[.,]?\$)"
_OUTWARD = re.compile(rf"{_OPENS}{_LEFT}([\](\[])([^\[\]]*?[,;][^\[\]]*?){_RIGHT}([\[\])]){_CLOSES}")
_EMPHASES = re.compile(
    r"(^|[=,:;(<>]\s*|\b(?:and|or)\s+)(\*\*?|__?)(?=[^\s*_])([^*_]*)(?<=[^\s*_])\2(?=\s*(?:$|[=,:;)<>.]))"
)
_QUOTED = re.compile(r"([\"'\u201c\u2018]|``)([^\"'`\u201c\u201d\u2018\u2019]+)(?:[\"'\u201d\u2019]|'')\.?")


def phrases(text: str) -> str:
    """Returns the answer with every phrase that this module knows in LaTeX."""
    for whole, becomes in _WHOLES:
        if match := whole.fullmatch(text.strip()):
            text = becomes(match)
    for part, becomes in _PARTS:
        text = part.sub(becomes, text)
    return text


def _outward(match: re.Match[str]) -> str:
    """`]1,2[` as `(1,2)`; brackets that look inwards stay."""
    before, opening, inside, closing = match.groups()
    if opening != "]" and closing != "[":
        return match.group()
    opening = "(" if opening == "]" else opening
    return f"{before} {opening}{inside}{')' if closing == '[' else closing}"


def _arc(match: re.Match[str]) -> str:
    """Degrees, minutes and seconds of arc."""
    whole, minutes, seconds = (Fraction(part or 0) for part in match.groups())
    value = whole + minutes / 60 + seconds / 3600
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}^\circ"


def _chosen(match: re.Match[str]) -> str:
    above, below = match[1] or match[3], match[2] or match[4]
    return rf"\binom{{{above}}}{{{below}}}"


_Becomes = Callable[[re.Match[str]], str]
_WHOLES: tuple[tuple[re.Pattern[str], _Becomes], ...] = (
    (_QUOTED, lambda match: match[2]),
    (_NO_SOLUTION, lambda match: r"\emptyset"),
    (_ORDINAL, lambda match: rf"{match[1]}\text{{th in order}}"),
    (_ALL_REALS_BUT, lambda match: rf"\mathbb{{R}}\setminus\{{{match[1]}\}}"),
)
_PARTS: tuple[tuple[re.Pattern[str], _Becomes], ...] = (
    (_EMPHASES, lambda match: match[1] + match[3]),
    (_BASE, lambda match: f"{match[1]}_{{{match[2]}}}"),
    (_ARC, _arc),
    (_CHOOSE, _chosen),
    (_LOGARITHM, lambda match: rf"\log_{{{match[1]}}}"),
    (_SLASHED, lambda match: rf"\frac{{d{match[1] or ''}{match[2]}}}{{d{match[3]}{match[4] or ''}}}"),
    (_OUTWARD, _outward),
)
