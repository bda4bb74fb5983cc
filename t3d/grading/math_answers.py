"""Reads answers as mathematics books write them: canonical LaTeX, exact numbers, units, brackets.

Pure functions of strings, all fast; what needs algebra is the work of `math_grader`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_UNICODE = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u2014": "-",
        "\u00d7": r"\times ",
        "\u00b7": r"\cdot ",
        "\u00f7": "/",
        "\u03c0": r"\pi ",
        "\u221e": r"\infty ",
        "\u00b0": r"^\circ ",
        "\u222a": r"\cup ",
        "\u2208": r"\in ",
        "\u2264": r"\leq ",
        "\u2265": r"\geq ",
        "\u00b1": r"\pm ",
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\uff0c": ",",
        "\uff1a": ":",
        "\uff08": "(",
        "\uff09": ")",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
        "\0": "",
    }
)
_TEXT_COMMANDS = "text|mbox|textnormal|textrm|textbf|textit|mathrm|mathbf|mathit|mathsf|boldsymbol|bold|rm|operatorname"
_TOKEN = re.compile(rf"\\(?:{_TEXT_COMMANDS})\s*\{{[^{{}}]*\}}|\\[a-zA-Z]+|\\.|.", re.DOTALL)
_TEXT_TOKEN = re.compile(r"\\[a-z]+\s*\{([^{}]*)\}", re.DOTALL)
_SYNONYMS = {
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac"), r"\frac"),
    **dict.fromkeys((r"\le", r"\leqslant"), r"\leq"),
    **dict.fromkeys((r"\ge", r"\geqslant"), r"\geq"),
    r"\ne": r"\neq",
    r"\lt": "<",
    r"\gt": ">",
    r"\infin": r"\infty",
    r"\degree": r"^\circ",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\%": "%",
    r"\colon": ":",
}
_INVISIBLE = {
    *(r"\left", r"\right", r"\big", r"\Big", r"\bigg", r"\Bigg", r"\bigl", r"\bigr", r"\Bigl", r"\Bigr"),
    *(r"\displaystyle", r"\textstyle", r"\limits", r"\quad", r"\qquad"),
    *(r"\!", r"\,", r"\;", r"\:", r"\>", "\\ ", "\\\n", "~", "$", r"\$", r"\(", r"\)", r"\[", r"\]"),
}
_NUM_ARGUMENTS = {r"\frac": 2, r"\sqrt": 1, "^": 1, "_": 1}
_OPEN, _CLOSE = {"(": ")", "[": "]", r"\{": r"\}", "{": "}"}, {")", "]", r"\}", "}"}
_STRUCTURE = re.compile(r"\\begin\{[a-zA-Z*]+\}|\\end\{[a-zA-Z*]+\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)

_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
_NUMBER = re.compile(rf"([-+]?){_DECIMAL}")
_RATIO = re.compile(rf"([-+]?)(?:\\frac\{{([-+]?{_DECIMAL})\}}\{{([-+]?{_DECIMAL})\}}|({_DECIMAL})/({_DECIMAL}))")
_MIXED = re.compile(r"([-+]?)(\d+)\\frac\{(\d+)\}\{(\d+)\}")
_SPACED_MIXED = re.compile(r"(?<![\d.])(\d+)\s+(\d+)/(\d+)(?!\d)")
_MARKED_THOUSANDS = re.compile(r"(?<=\d)(?:,\s*\\!\s*|\{,\}|\\,)(?=\d{3})")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_BRACED_THOUSANDS = re.compile(r"(?<=\{)\d{1,3}(?:,\d{3})+(?=\})")
_MAX_DIGITS = 1000

_CONJUNCTION = re.compile(r"(?:,|\\text\{,?\s*(?:or|and)\s*\}|\\text\{\s*,\s*\}|\b(?:or|and)\b)+")
_PLAIN_WORDS = re.compile(r"(.*[\d})%])\s+([A-Za-z]{2,}(?:[ .]+[A-Za-z]+)*(?:\^\{?[23]\}?)?\.?)", re.DOTALL)
_UNIT = re.compile(r"(.+?)\\text\{([^{}]*)\}(?:\^\{(\d)\})?", re.DOTALL)
_UNIT_NAMES = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "s": "s sec second seconds",
    "min": "min minute minutes",
    "h": "h hr hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years",
    "usd": "dollar dollars usd",
    "cent": "cent cents",
    "g": "g gm gram grams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "l": "l liter liters litre litres",
    "ml": "ml milliliter milliliters",
    "gal": "gal gallon gallons",
    "deg": "degree degrees",
    "rad": "rad radian radians",
}
_UNITS = {word: unit for unit, words in _UNIT_NAMES.items() for word in words.split()}
_POWERS = {**dict.fromkeys(("square", "sq", "squared"), "2"), **dict.fromkeys(("cubic", "cu", "cubed"), "3")}


@dataclass(frozen=True)
class Quantity:
    """A value and the measure that its unit names ("" if there is none, or only words such as "ways")."""

    value: str
    measure: str


def canonical(answer: str) -> str:
    r"""Returns an answer's one spelling: no spaces, sizes, dollar or degree signs, every argument in braces.

    Thousands separators go where they cannot be a list's commas: between digits as `,\\!`, `{,}` or `\\,`,
    in a number without spaces that stands alone, or alone in braces.
    """
    text = _MARKED_THOUSANDS.sub("", answer.translate(_UNICODE).strip())
    text = _SPACED_MIXED.sub(r"\1\\frac{\2}{\3}", text)
    if words := _PLAIN_WORDS.fullmatch(text.rstrip(". ")):
        text = rf"{words.group(1)}\text{{{words.group(2)}}}"
    tokens = [token for raw in _TOKEN.findall(text) for token in _spell(raw)]
    text = _join(_brace_arguments(tokens)).replace(r"^{\circ}", "")
    text = text.rstrip(".,;")
    text = _BRACED_THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    value = split_unit(text).value.lstrip("+-")
    stands_alone = value in answer and _THOUSANDS.fullmatch(value)
    return text.replace(value, value.replace(",", ""), 1) if stands_alone else text


def _spell(token: str) -> list[str]:
    if token in _INVISIBLE or token.isspace():
        return []
    if len(token) > 1 and token.endswith("}") and (match := _TEXT_TOKEN.fullmatch(token)):
        words = match.group(1).strip()
        return list(words) if re.fullmatch(r"[\d.,:/+\-]*", words) else [rf"\text{{{words}}}"]
    spelt = _SYNONYMS.get(token, token)
    return ["^", r"\circ"] if spelt == r"^\circ" else [spelt]


def _brace_arguments(tokens: list[str]) -> list[str]:
    r"""Puts braces around arguments written without: `\\frac12`, `\\sqrt3`, `x^2`."""
    result: list[str] = []
    waiting: list[int] = []  # arguments still due at each open level; the last is the current level
    waiting.append(0)
    optional = False
    for token in tokens:
        due = waiting[-1]
        if optional and token == "]":
            optional = False
            result.append(token)
        elif optional or (due and result[-1] == r"\sqrt" and token == "["):
            optional = True
            result.append(token)
        elif token == "{":
            waiting[-1] = max(0, due - 1)
            waiting.append(0)
            result.append(token)
        elif token == "}":
            if len(waiting) > 1:
                waiting.pop()
            result.append(token)
        elif due and token not in _NUM_ARGUMENTS and token != "-":
            waiting[-1] = due - 1
            result += ["{", token, "}"]
        else:
            result.append(token)
            waiting[-1] = max(due - 1, 0) + _NUM_ARGUMENTS.get(token, 0) if token in _NUM_ARGUMENTS else due
    return result


def _join(tokens: list[str]) -> str:
    """Concatenates tokens, with a space only where a command's name would otherwise run on."""
    parts: list[str] = []
    for token in tokens:
        if parts and token[0].isalpha() and parts[-1][0] == "\\" and parts[-1][-1].isalpha():
            parts.append(" ")
        parts.append(token)
    return "".join(parts)


def split_unit(text: str) -> Quantity:
    r"""Separates a canonical answer from a trailing percent sign or `\\text{...}`."""
    text = text.removesuffix("%")
    match = _UNIT.fullmatch(text)
    if match is None or re.search(r"[\d:]", match.group(2)) or match.group(1)[-1] in ",:=<>":
        return Quantity(text, "")
    value, words, power = match.groups()
    names = re.findall(r"[a-z]+", words.lower())
    known = [_UNITS[name] for name in names if name in _UNITS]
    exponent = next((_POWERS[name] for name in names if name in _POWERS), power or "")
    return Quantity(value.removesuffix("%"), "/".join(known) + exponent if known else "")


def number(text: str) -> Fraction | None:
    """Returns the exact value of a canonical integer, decimal, fraction or mixed number, otherwise None."""
    if len(text) > _MAX_DIGITS:
        return None
    if _NUMBER.fullmatch(text):
        return Fraction(text)
    if match := _MIXED.fullmatch(text):
        sign, whole, above, below = match.groups()
        return _signed(sign, int(whole) + Fraction(int(above), int(below))) if int(below) else None
    if match := _RATIO.fullmatch(text):
        sign, *parts = match.groups()
        above, below = (Fraction(part) for part in parts if part is not None)
        return _signed(sign, above / below) if below else None
    return None


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def brackets(text: str) -> tuple[str, str, str] | None:
    """Returns (opening bracket, inside, closing bracket) of an answer that one pair of brackets encloses."""
    tokens = _STRUCTURE.findall(text)
    if len(tokens) < 2 or tokens[0] not in ("(", "[", r"\{") or tokens[-1] not in (")", "]", r"\}"):
        return None
    depth = 0
    for position, token in enumerate(tokens):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0 and position < len(tokens) - 1:
            return None
    return (tokens[0], "".join(tokens[1:-1]), tokens[-1]) if depth == 0 else None


def split_top_level(text: str, separators: tuple[str, ...]) -> list[str]:
    """Splits at separators that stand outside of all brackets, braces and environments; drops empty parts."""
    parts: list[str] = []
    current: list[str] = []
    depth = 0
    for token in _STRUCTURE.findall(text):
        depth += (token in _OPEN or token.startswith(r"\begin{")) - (token in _CLOSE or token.startswith(r"\end{"))
        if depth == 0 and token in separators:
            parts.append("".join(current))
            current = []
        else:
            current.append(token)
    parts.append("".join(current))
    return [part for part in map(str.strip, parts) if part]


def elements(text: str) -> list[str]:
    """Splits a canonical list at its commas, semicolons and conjunctions."""
    return split_top_level(_CONJUNCTION.sub(",", text), (",", ";"))


def words(text: str) -> str:
    """Returns the letters and digits of a text answer, in lower case."""
    return re.sub(r"[^0-9a-z]", "", re.sub(r"\\text\{([^{}]*)\}", r"\1", text).casefold())


def is_words(text: str) -> bool:
    r"""Whether a canonical answer is text and not mathematics: `\\text{Evelyn}`, `Evelyn`, `\\text{A,C}`."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    if "\\" in plain or re.search(r"[=<>+*/^_]", plain):
        return False
    return (r"\text{" in text and not re.match(r"[-\d]", text)) or re.fullmatch(
        r"[A-Za-z]{4,}[A-Za-z .'-]*", plain
    ) is not None


def nesting(text: str) -> int:
    """Returns how deeply brackets and braces are nested."""
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest
