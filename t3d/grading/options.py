"""Finds the option that a model chose."""

import re

from t3d.grading.boxes import extract_boxed

LETTERS = ("A", "B", "C", "D")
"""What an option problem's answer may be: the prompt offers these letters."""

_MAX_CHARACTERS = 100_000
_DRESS = r"(?:[*_`$\"'({\[]|\\[(\[]|\\(?:text|textbf|textrm|mathrm|mathbf|boxed|bf|rm)\b ?){0,8}"
_COMMANDS = re.compile(
    r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|bf|rm|boxed)(?![a-z])|\\[()\[\] ,;:!]|[$*_`{}\"~]"
)
_AFTER_ARTICLE = "because|since|as|and|which|with|is|for|due|in|by|on|given|where|based|but|not|or|would|will|has|so|if"


_QUOTES = "'\u2019"
_TAGS = re.compile(r"<answer>(.{0,1000}?)</answer>|</?[a-z]{1,10}>", re.IGNORECASE | re.DOTALL)
_WIDE = str.maketrans({"\uff1a": ": ", "\u3002": ". ", "\uff0c": ", "})
_NOUN = "answer|ans|option|choice|solution|letter|statement|correct one|is"
_SUBJECT = (
    "that|which|and|but|so|thus|hence|therefore|because|since|while|as|only|is|think|believe|say|conclude|clearly"
    "|option|choice|answer|letter|statement|response|alternative"
)
_VERB = "is|are|was|be|would be|should be|must be|being|[:=]|->|\u2192|[-\u2013\u2014]"
_FILLER = (
    "(?:therefore|thus|clearly|definitely|indeed|simply|then|likely|probably|most likely"
    "|option|choice|answer|letter|the)"
)
_PRAISE = "correct|right|best|answer|true|accurate|appropriate"
_CHOOSE = "choose|select|pick|go with|chose|selected|picked|choosing|selecting|answer with"


def _letter(letters: str) -> str:
    """One of the letters as a word of its own, in brackets and the like or not; a lone A is no article."""
    whole = rf"(?<![\w{_QUOTES}\-]){_DRESS}([{letters}])(?!_?[^\W_]|[{_QUOTES}]\w|-)"
    return whole + rf"(?!(?<=A) (?!(?:{_AFTER_ARTICLE})\b)[a-z])"


def _statements(letters: str) -> re.Pattern[str]:
    """Sentences that give the answer: `The answer is: B`, `B is correct`, `I choose (B)`."""
    letter, mark = _letter(letters), "[*_`]{0,3}"
    named = rf"\b(?i:{_NOUN})\b(?:,[^,.]{{1,20}},)?{mark}(?: ?(?i:{_VERB}){mark}){{1,3}}"
    named += rf"(?: ?(?i:{_FILLER})\b[:,]?){{0,3}} ?{letter}"
    subject = rf"(?:(?:^|[^\w\s{_QUOTES}]) ?|(?<!\w)(?i:{_SUBJECT}) )"
    praised = rf"{subject}{letter}[*_`)}}\].]{{0,4}} (?i:is|seems|looks|must be|would be|remains) "
    praised += rf"(?:(?i:the|clearly|indeed|definitely|therefore|thus|most|our)\W)*(?i:{_PRAISE})\b"
    chosen = rf"\b(?i:{_CHOOSE}) (?:(?i:{_FILLER}) ){{0,2}}{letter}"
    instead = rf"\b(?i:not) \(?[{letters}]\)?,? (?i:but)(?: (?i:rather|{_FILLER}))? {letter}"
    concluded = rf"\b(?i:hence|thus|therefore|so|it is|it's|it must be),? {letter}(?=[)*_`}}\]]{{0,4}}(?:[.!]|$))"
    return re.compile(f"{named}|{praised}|{chosen}|{instead}|{concluded}")


def _mentions(letters: str) -> re.Pattern[str]:
    bold = rf"\*\*\(?([{letters}])\)?[.:]?\*\*"
    return re.compile(rf"(?i:\b(?:option|choice|answer))\b:? ?{_letter(letters)}|{bold}")


def extract_option(text: str, letters: tuple[str, ...] = LETTERS) -> str | None:
    r"""Returns the letter chosen: boxed, otherwise stated as the answer, otherwise alone, otherwise mentioned last.

    Args:
        text: what the model wrote; outside of boxes the last 100 000 characters are read.
        letters: the options there are, capitals.
    """
    every = "".join(letters)
    boxed = extract_boxed(text)
    if boxed and (letter := _alone(boxed, every)):
        return letter
    text = _TAGS.sub(_untagged, text[-_MAX_CHARACTERS:].translate(_WIDE))
    words = " ".join(text.split())
    if stated := list(_statements(every).finditer(words)):
        return next(group for group in stated[-1].groups() if group)
    lines = text.strip().splitlines()
    for line, content in ((text, len(lines) == 1), *((line, False) for line in (*lines[-1:], *lines[:1]))):
        if letter := _alone(line, every, content):
            return letter
    mentioned = list(_mentions(every).finditer(words))
    return next(group for group in mentioned[-1].groups() if group) if mentioned else None


def _alone(text: str, letters: str, content: bool = True) -> str | None:
    r"""The letter that a text is: `(B)`, `**B**`; with what it stands for too, if allowed: `\textbf{(D) } 12`."""
    plain = _COMMANDS.sub("", text[:1000]).strip()
    found = re.match(rf"\(?([{letters}])(?:\s*\)?[.:]?\s*(?P<end>$)|\s*[.:)](?P<rest>.))", plain, re.DOTALL)
    return found[1] if found and (content or found["end"] is not None) else None


def _untagged(match: re.Match[str]) -> str:
    return "" if match[1] is None else f"\nThe answer is: {match[1].strip()}\n"
