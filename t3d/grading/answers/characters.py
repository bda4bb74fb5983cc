"""Plain text to LaTeX: Unicode, Markdown, programmers' notation, repeating decimals. Functions of raw strings."""

import re
from fractions import Fraction

from t3d.grading.answers.phrases import phrases

_UNICODE = {
    **dict.fromkeys("\u2212\u2013\u2014\u2010\u2011\ufe63\uff0d", "-"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u2007\u2008\u200a\u3000", " "),
    **dict.fromkeys("\0\u200b\u200c\u200d\u2060\ufeff\u2061\u2062", ""),
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u2219": r"\cdot ",
    "\u00f7": "/",
    "\u2044": "/",
    "\u2215": "/",
    "\u221e": r"\infty ",
    "\u00b0": r"^\circ ",
    "\u00ba": r"^\circ ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2216": r"\setminus ",
    "\u2208": r"\in ",
    "\u2209": r"\notin ",
    "\u2264": r"\leq ",
    "\u2a7d": r"\leq ",
    "\u2265": r"\geq ",
    "\u2a7e": r"\geq ",
    "\u2260": r"\neq ",
    "\u2248": r"\approx ",
    "\u2261": r"\equiv ",
    "\u00b1": r"\pm ",
    "\u2213": r"\mp ",
    "\u2205": r"\emptyset ",
    "\u00d8": r"\emptyset ",
    "\u211d": r"\mathbb{R}",
    "\u2124": r"\mathbb{Z}",
    "\u211a": r"\mathbb{Q}",
    "\u2115": r"\mathbb{N}",
    "\u2102": r"\mathbb{C}",
    "\u221a": r"\surd ",
    "\u221b": r"\cuberoot ",
    "\u221c": r"\fourthroot ",
    "\u2032": "'",
    "\u2019": "'",
    "\u2033": "''",
    "\u20ac": r"\text{€}",
    "\u00a3": r"\text{£}",
    "\u00a5": r"\text{¥}",
    r"\euro": r"\text{€}",
    r"\pounds": r"\text{£}",
    r"\yen": r"\text{¥}",
    "\u20b9": r"\text{₹}",
    "\u00a2": r"\text{¢}",
    "\u00b5": r"\mu ",
    "\u03bc": r"\mu ",
    "\u2126": r"\Omega ",
    "\u2220": r"\angle ",
    "\u25b3": r"\triangle ",
    "\u222b": r"\int ",
    "\u2211": r"\sum ",
    "\u220f": r"\prod ",
    "\u2202": r"\partial ",
    "\u2207": r"\nabla ",
    "\u2192": r"\to ",
    "\u21d2": r"\Rightarrow ",
    "\u2227": r"\land ",
    "\u2228": r"\lor ",
    "\u00ac": r"\neg ",
    "\u2200": r"\forall ",
    "\u2203": r"\exists ",
    "\u2223": "|",
    "\u2016": r"\|",
    "\u230a": r"\lfloor ",
    "\u230b": r"\rfloor ",
    "\u2308": r"\lceil ",
    "\u2309": r"\rceil ",
    "\u27e8": r"\langle ",
    "\u27e9": r"\rangle ",
    "\u2026": r"\ldots ",
    "\u2030": r"\text{‰}",
    "\u211c": r"\mathbb{R}",
    "\u212f": "e",
    "\u2147": "e",
    "\u2148": "i",
    "\uff05": "%",
    "\uff04": "$",
}
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi"
    " psi omega"
).split()
_GREEK_LETTERS = {letter: name for letter, name in zip("αβγδεζηθικλμνξοπρστυφχψω", _GREEK, strict=True)} | {
    "ϕ": "phi",
    "ϵ": "epsilon",
    "ϑ": "theta",
    "ς": "sigma",
    "Γ": "Gamma",
    "Δ": "Delta",
    "Θ": "Theta",
    "Λ": "Lambda",
}
_GREEK_LETTERS |= {"Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega", "∆": "Delta"}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢ", "0123456789+-ni", strict=True))
_FRACTIONS = dict(
    zip(
        "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒",
        "1/2 1/3 2/3 1/4 3/4 1/5 2/5 3/5 4/5 1/6 5/6 1/8 3/8 5/8 7/8 1/7 1/9 1/10".split(),
        strict=True,
    )
)
_OVERLINED = re.compile("((?:\\d\u0305|\\d\u0304)+)")
_DOTTED = re.compile("(\\d)\u0307")
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if code not in (0xFF04, 0xFF05, 0xFF0D)}

_MARKDOWN_WHOLE = re.compile(r"(\*{1,3}|_{1,3}|`{1,3}|~~)(?=\S)([^*`]+?)(?<=\S)\1", re.DOTALL)
_MARKDOWN_PART = re.compile(r"(?<![\w)}\]*^])\*\*(?=[^\s*])(.+?)(?<=[^\s*])\*\*(?![\w({\\*])", re.DOTALL)
_HTML = re.compile(r"</?(?:b|strong|i|em|u|mark|span|font|code|p)(?:\s[^<>]*)?>", re.IGNORECASE)
_HEADING = re.compile(r"^#{1,6}\s+")
_DISPLAY = re.compile(
    r"\\begin\{(equation|align|aligned|gather|gathered|displaymath|math|split|multline)\*?\}"
    r"((?:(?!\\\\|\\begin).)*)\\end\{\1\*?\}",
    re.DOTALL,
)
_HTML_SCRIPT = re.compile(r"<(su[pb])>(.*?)</\1>", re.IGNORECASE | re.DOTALL)

_SCIENTIFIC = re.compile(r"(?<![\w\\.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d{1,6})(?![\w.])")
_STAR_POWER = re.compile(r"\*\*\s*(\(\s*-?[\w.]+\s*\)|-?\w+(?:\.\d+)?)|\*\*")
_PAREN_POWER = re.compile(r"\^\s*\(([^()]*)\)")
_X_TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)|(?<=\d)\s+x\s+(?=\d)")
_SPACED_MIXED = re.compile(r"(?<![\d.^_{])(\d+)(?:\s+|\s*\\ \s*|(?<=\d)-)(\d+)/(\d+)(?![\d.])")

_BAR = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*(?:\{\s*(\d+)\s*\}|(\d))")
_DOTS = re.compile(r"(\d*)\.(\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?")
_PARENTHESIS = re.compile(r"(?<![\w.])(\d*)\.(\d*)\((\d+)\)(?!\d)")
_ELLIPSIS = re.compile(r"(?<![\w.])(\d*)\.(\d+)\s*(?:\.{2,}|\\(?:l|c)?dots(?:[bcmio](?![a-z]))?)(?!\w)")


def plain(text: str) -> str:
    r"""Returns the answer without typographic characters: LaTeX in ASCII, and a few marks within `\text`."""
    text = _HTML_SCRIPT.sub(lambda match: ("^" if match[1].lower() == "sup" else "_") + f"{{{match[2]}}}", text)
    text = _markdown(_HEADING.sub("", _HTML.sub("", text).strip(), count=1))
    text = _DISPLAY.sub(lambda match: match[2].replace("&", " "), text)
    text = _OVERLINED.sub(lambda match: rf"\overline{{{re.sub('[^0-9]', '', match[1])}}}", text)
    text = _DOTTED.sub(r"\\dot{\1}", text).translate(_FULL_WIDTH)
    text = text.replace("³√", "∛").replace("⁴√", "∜")
    text = "".join(_character(letter) for letter in _scripts(text))
    text = text.replace(r"\euro", r"\text{€}").replace(r"\pounds", r"\text{£}").replace(r"\yen", r"\text{¥}")
    return repeating(programming(phrases(text)))


def _character(letter: str) -> str:
    if letter in _FRACTIONS:
        above, below = _FRACTIONS[letter].split("/")
        return rf"\frac{{{above}}}{{{below}}}"
    if letter in _GREEK_LETTERS:
        return "\\" + _GREEK_LETTERS[letter] + " "
    return _UNICODE.get(letter, letter)


def _scripts(text: str) -> str:
    """Raised and lowered characters as `^{...}` and `_{...}`."""
    for characters, mark in ((_SUPERSCRIPTS, "^"), (_SUBSCRIPTS, "_")):
        run = "[" + re.escape("".join(characters)) + "]+"
        text = re.sub(run, lambda match: mark + "{" + "".join(map(characters.__getitem__, match.group())) + "}", text)  # noqa: B023
    return text


def _markdown(text: str) -> str:
    while whole := _MARKDOWN_WHOLE.fullmatch(text.rstrip(". ")):
        text = whole[2].strip()
    return _MARKDOWN_PART.sub(r"\1", text)


def programming(text: str) -> str:
    r"""`1.5e3`, `x**2`, `x^(2)`, `2 1/2`, `<=` as LaTeX."""
    text = text.replace("+/-", r"\pm ")
    text = _SCIENTIFIC.sub(r"\1\\times10^{\2}", text)
    text = _X_TIMES.sub(r"\\times ", text)
    text = _STAR_POWER.sub(lambda match: "^" + (f"{{{match[1].strip('() ')}}}" if match[1] else ""), text)
    text = _PAREN_POWER.sub(r"^{(\1)}", text)
    text = _SPACED_MIXED.sub(r"\1\\frac{\2}{\3}", text)
    for sign, command in (("<=", r"\leq "), (">=", r"\geq "), ("!=", r"\neq "), ("==", "="), ("=<", r"\leq ")):
        text = text.replace(sign, command)
    return text


def repeating(text: str) -> str:
    r"""Repeating decimals as exact fractions: `0.\overline{3}`, `0.\dot{3}`, `0.(3)`, `0.333...`."""
    text = _BAR.sub(lambda match: _repeating(match[1], match[2], match[3] or match[4]), text)
    text = _DOTS.sub(lambda match: _repeating(match[1], match[2], match[3] + (match[4] or "") + (match[5] or "")), text)
    text = _PARENTHESIS.sub(lambda match: _repeating(match[1], match[2], match[3]), text)
    return _ELLIPSIS.sub(_continued, text)


def _repeating(whole: str, fixed: str, period: str) -> str:
    value = Fraction(int(whole + fixed or "0") + Fraction(int(period), 10 ** len(period) - 1), 10 ** len(fixed))
    return rf"{{\frac{{{value.numerator}}}{{{value.denominator}}}}}"


def _continued(match: re.Match[str]) -> str:
    """`0.1666...`: the shortest block that ends the digits twice (a single digit: too) goes on forever."""
    whole, digits = match[1], match[2]
    for length in range(1, len(digits) // 2 + 1):
        block = digits[-length:]
        if digits.endswith(block * 2):
            return _repeating(whole, digits[: len(digits) - length], block)
    return match.group()
