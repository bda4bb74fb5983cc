"""Answers that are words, times of day or numerals with a base: compared as written, whatever algebra would say."""

import re

from t3d.grading.answers.spelling import Tokens
from t3d.grading.answers.structure import flat, is_words, relation, words

_CLOCK = re.compile(r"(\d{1,2})((?::\d\d)*)(?:o'clock)?(?:([ap])\.?m\.?)?", re.IGNORECASE)
_BASED = re.compile(r"-?\(?-?(?:[0-9A-Z.]*\d[0-9A-Z.]*|[A-F]{2,})\)?_\{\(?[a-z\d]+\)?\}")
_BASES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_JOINS = re.compile(r"\s*(?:[,;&]\s*(?:(and|or)\b)?|\b(and|or)\b)\s*", re.IGNORECASE)
_ARTICLE = re.compile(r"\b(?:a|an|the)\s+(?!(?:and|or)\b)(?=[a-z]{3})", re.IGNORECASE)


def by_words(ours: Tokens, theirs: Tokens) -> bool | None:
    """Texts: without capitals, articles and punctuation; lists of words member by member, in their order."""
    if not is_words(theirs) and not is_words(ours):
        return None
    if words(ours) == words(theirs) != "":
        return True
    (mine, my_joins), (other, other_joins) = (_members(side) for side in (ours, theirs))
    if mine == other and all(mine) and len(my_joins | other_joins) < 2:
        return True
    return False if is_words(theirs) else None


def _members(tokens: Tokens) -> tuple[list[str], set[str]]:
    """The members of a list of words, and the words that join them."""
    text = _ARTICLE.sub("", " ".join(flat([token]) for token in tokens))
    joins = {(match[1] or match[2] or "").lower() for match in _JOINS.finditer(text)} - {""}
    members = [words([part]) for part in re.split(_JOINS.pattern.replace("(and|or)", "(?:and|or)"), text)]
    return members, joins


def by_clock(ours: Tokens, theirs: Tokens) -> bool | None:
    """Times of day: 05:00 is 5:00 and 17:00 is 5 p.m."""
    left, right = (_CLOCK.fullmatch(re.sub(r"\s", "", flat(side))) for side in (ours, theirs))
    if not any(match and (match[2] or match[3]) for match in (left, right)):
        return None
    if (
        left is None
        or right is None
        or not all(match[2] or match[3] or other[3] for match, other in ((left, right), (right, left)))
    ):
        return False
    parts = [[int(part) for part in (match[1] + match[2]).split(":")] for match in (left, right)]
    halves = [(match[3] or "").lower() for match in (left, right)]
    if any(halves):
        halves = [half or {0: "a"}.get(part[0], "p" * (part[0] > 12)) for part, half in zip(parts, halves, strict=True)]
        parts = [[part[0] % 12, *part[1:], 0, 0][:3] for part in parts]
    return parts[0] == parts[1] and (halves[0] == halves[1] or not all(halves))


def by_base(ours: Tokens, theirs: Tokens) -> bool | None:
    """Numerals with a base are equal as numerals only."""
    if relation(ours) or relation(theirs):
        return None
    left, right = flat(ours), flat(theirs)
    if not _BASED.fullmatch(left) and not _BASED.fullmatch(right):
        return None
    return _numeral(left) == _numeral(right)


def _numeral(text: str) -> str:
    digits, _, base = text.replace("(", "").replace(")", "").partition("_")
    base = base.strip("{}")
    base = str(_BASES.index(base) + 2) if base in _BASES else base
    return re.sub(r"^(-?)0+(?=[0-9A-Z])", r"\1", digits) + "_" + base
