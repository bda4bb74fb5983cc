r"""One spelling for what is written in many: an answer as a tuple of tokens.

A token is a number (`12.5`), a run of letters, a command, an environment's `\begin{...}`, words in `\text{...}`, or
one character. Sizes, spaces, colours and type faces are gone; every argument stands in braces.
"""

import re
from collections.abc import Sequence

from t3d.grading.answers.characters import plain
from t3d.grading.answers.names import FUNCTION_WORDS, GREEK_WORDS
from t3d.grading.answers.units import PLAIN_UNITS, unit_of

Tokens = tuple[str, ...]

_RAW = re.compile(r"\\(?:begin|end)\s*\{[a-zA-Z*]+\}|\\[a-zA-Z]+\*?|\\.|\d+(?:\.\d+)?|\.\d+|[A-Za-z]+|\s+|.", re.DOTALL)
_SYNONYMS = {
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac", r"\sfrac", r"\nicefrac"), r"\frac"),
    **dict.fromkeys((r"\dbinom", r"\tbinom"), r"\binom"),
    **dict.fromkeys((r"\le", r"\leqslant", r"\leqq"), r"\leq"),
    **dict.fromkeys((r"\ge", r"\geqslant", r"\geqq"), r"\geq"),
    **dict.fromkeys((r"\varnothing", r"\O"), r"\emptyset"),
    **dict.fromkeys((r"\backslash", r"\smallsetminus"), r"\setminus"),
    **dict.fromkeys((r"\lvert", r"\rvert", r"\vert", r"\mvert"), "|"),
    **dict.fromkeys((r"\lVert", r"\rVert", r"\Vert"), r"\|"),
    **dict.fromkeys((r"\rightarrow", r"\longrightarrow"), r"\to"),
    **dict.fromkeys((r"\implies", r"\Longrightarrow"), r"\Rightarrow"),
    **dict.fromkeys((r"\iff", r"\Longleftrightarrow"), r"\Leftrightarrow"),
    **dict.fromkeys((r"\dots", r"\cdots", r"\dotsc", r"\dotsb"), r"\ldots"),
    r"\ne": r"\neq",
    r"\lt": "<",
    r"\gt": ">",
    r"\infin": r"\infty",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\lparen": "(",
    r"\rparen": ")",
    r"\mod": r"\pmod",
    r"\colon": ":",
    r"\mid": "|",
    r"\middle": "",
    r"\%": "%",
    r"\#": "#",
    r"\&": "&",
    r"\_": "_",
    r"\cr": r"\\",
    r"\newline": r"\\",
    r"\wedge": r"\land",
    r"\vee": r"\lor",
    r"\lnot": r"\neg",
    r"\varepsilon": r"\epsilon",
    r"\varphi": r"\phi",
    r"\vartheta": r"\theta",
    r"\ast": "*",
    r"\div": "/",
    r"\R": r"\mathbb{R}",
    r"\prime": "'",
    r"\ell": r"\ell",
    r"\overbar": r"\overline",
    r"\triangleq": "=",
    r"\coloneqq": "=",
    r"\dag": r"\dagger",
    r"\owns": r"\ni",
}
_INVISIBLE = {
    *(r"\left", r"\right", r"\big", r"\Big", r"\bigg", r"\Bigg", r"\bigl", r"\bigr", r"\Bigl", r"\Bigr"),
    *(r"\biggl", r"\biggr", r"\Biggl", r"\Biggr", r"\bigm", r"\middle"),
    *(r"\displaystyle", r"\textstyle", r"\scriptstyle", r"\limits", r"\nolimits", r"\quad", r"\qquad", r"\hline"),
    *(r"\tiny", r"\scriptsize", r"\footnotesize", r"\small", r"\normalsize", r"\large", r"\Large", r"\LARGE"),
    *(r"\huge", r"\Huge", r"\bfseries", r"\itshape", r"\checkmark"),
    *(r"\bf", r"\it", r"\sf", r"\tt", r"\unboldmath", r"\boldmath", r"\thinspace", r"\medspace", r"\noindent"),
    *(r"\enspace", r"\enskip", r"\hfill", r"\nonumber", r"\centering", r"\mathstrut", r"\strut", r"\relax"),
    *(r"\!", r"\,", r"\;", r"\:", r"\>", "\\ ", "\\\n", "~", r"\(", r"\)", r"\[", r"\]", r"\/", "{}"),
}
_DROPPED_ARGUMENTS = {
    **dict.fromkeys((r"\color", r"\textcolor", r"\colorbox", r"\hspace", r"\vspace", r"\phantom", r"\hphantom"), 1),
    **dict.fromkeys((r"\vphantom", r"\label", r"\tag", r"\mspace", r"\kern", r"\raisebox", r"\hspace*"), 1),
    r"\fcolorbox": 2,
}
_TRANSPARENT = {
    *(
        r"\mathbf",
        r"\mathit",
        r"\mathnormal",
        r"\boldsymbol",
        r"\bm",
        r"\bold",
        r"\pmb",
        r"\boxed",
        r"\fbox",
        r"\uline",
    ),
    *(
        r"\overbrace",
        r"\underbrace",
        r"\underline",
        r"\ensuremath",
        r"\mathop",
        r"\mathord",
        r"\mathrel",
        r"\mathbin",
        r"\framebox",
        r"\mathstrut",
    ),
    *(r"\underbar", r"\uuline", r"\mathlarger", r"\smash", r"\mathclose", r"\mathopen", r"\symbf", r"\mathtt"),
}
_TEXT = {
    *(r"\text", r"\mbox", r"\textnormal", r"\textrm", r"\textbf", r"\textit", r"\texttt", r"\textsf", r"\hbox"),
    *(r"\emph", r"\textup", r"\textsl", r"\textmd", r"\textsc", r"\mathtext", r"\textdegree", r"\intertext"),
}
_UPRIGHT = {
    r"\mathrm",
    r"\operatorname",
    r"\operatorname*",
    r"\rm",
    r"\mathsf",
    r"\symrm",
    r"\mathup",
    r"\unit",
    r"\si",
}
_NUM_ARGUMENTS = {r"\frac": 2, r"\sqrt": 1, r"\pmod": 1, r"\binom": 2, "^": 1, "_": 1}
_ALPHABETS = {r"\mathbb", r"\Bbb", r"\mathcal", r"\mathfrak", r"\mathscr"}
_MODULO = {r"\bmod", r"\pmod", r"\text{mod}", "mod"}
_NAMES = re.compile(r"[A-Za-z]+")
_PLAIN_WORDS = re.compile(
    r"(.*[\d})%!])\s+((?:[A-Za-zµ]{2,}|[A-Za-z](?=/[A-Za-z]))(?:[ ./]+[A-Za-z]+)*(?:\^\{?-?[23]\}?)?\.?)", re.DOTALL
)
_NO_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
_DOLLAR = re.compile(r"\\\$|\$")


def spell(answer: str) -> Tokens:
    """Returns the tokens of an answer."""
    text = _NO_DELIMITER.sub(" ", _dollars(plain(answer)))
    trailing = _PLAIN_WORDS.fullmatch(text.rstrip(". \n"))
    if trailing and _is_unit(trailing[2]):
        text = rf"{trailing[1]}\text{{{trailing[2].replace('{', '').replace('}', '')}}}"
    tokens = _stripped(_read(_RAW.findall(text)))
    return tuple(_braced(_without_idle_braces(_moduli(tokens))))


def _moduli(tokens: list[str]) -> list[str]:
    r"""`(\bmod 5)` and `(\text{mod } 5)` as `\pmod{5}`."""
    result: list[str] = []
    inside = False
    for place, token in enumerate(tokens):
        if token == "(" and tokens[place + 1 : place + 2] and tokens[place + 1] in _MODULO:
            inside = True
            result += [r"\pmod", "{"]
        elif inside and token in _MODULO:
            continue
        else:
            result.append("}" if inside and token == ")" else token)
            inside = inside and token != ")"
    return result


def _stripped(tokens: list[str]) -> list[str]:
    """Without the braces around the whole and punctuation at the end."""
    while tokens and tokens[-1] in (".", ",", ";", ":"):
        tokens = tokens[:-1]
    if tokens[:1] != ["{"] or _group(tokens, 0) != (tokens[1:-1], len(tokens)):
        return tokens
    return _stripped(tokens[1:-1])


def _is_unit(words: str) -> bool:
    """Whether trailing words are a unit or counted things; two letters only if they can be nothing else."""
    first = re.split(r"[ ./^]", words)[0]
    short = len(first) == 2 and first not in PLAIN_UNITS
    return not short and first not in FUNCTION_WORDS and unit_of((rf"\text{{{words}}}",)) is not None


def _dollars(text: str) -> str:
    r"""Takes away the dollar signs that delimit mathematics; those that mean money become `\usd`."""
    text = re.sub(r"\bUS\s*\\?\$(?=\s*\d)", r"\\$", text)
    bare = text.replace(r"\$", "")
    money = bare.count("$") % 2 and re.match(r"\s*-?\s*\$\s*[\d.]", text)
    text = _DOLLAR.sub(lambda match: r"\usd " if match.group() == r"\$" else "$", text)
    return text.replace("$", r"\usd ", 1).replace("$", "") if money else text.replace("$", " ")


def _group(raw: Sequence[str], start: int) -> tuple[list[str], int]:
    """Returns the tokens of the argument that starts there (a group, or one token), and where it ends."""
    while start < len(raw) and raw[start].isspace():
        start += 1
    if start >= len(raw) or raw[start] != "{":
        return list(raw[start : start + 1]), start + 1
    depth = 0
    for position in range(start, len(raw)):
        depth += (raw[position] == "{") - (raw[position] == "}")
        if not depth:
            return list(raw[start + 1 : position]), position + 1
    return list(raw[start + 1 :]), len(raw)


def _read(raw: Sequence[str]) -> list[str]:
    """Spells raw tokens, one after the other."""
    result: list[str] = []
    position = 0
    while position < len(raw):
        token = raw[position]
        position += 1
        if token in _DROPPED_ARGUMENTS:
            while position < len(raw) and raw[position] == "[":
                position = raw.index("]", position) + 1 if "]" in raw[position:] else len(raw)
            for _ in range(_DROPPED_ARGUMENTS[token]):
                position = _group(raw, position)[1]
        elif token in _TEXT or token in _UPRIGHT or token in _ALPHABETS:
            argument, position = _group(raw, position)
            result += _worded(token, argument)
        elif token.startswith(r"\begin") or token == r"\\":
            position, spelt = _row_start(raw, position, token)
            result += spelt
        elif token in (r"\degree", r"\textdegree"):
            result += ["^", r"\circ"]
        elif token in _TRANSPARENT or token in _INVISIBLE or token.isspace():
            continue
        else:
            result += _one(token, raw[position] if position < len(raw) else "")
    return result


def _row_start(raw: Sequence[str], position: int, token: str) -> tuple[int, list[str]]:
    r"""Drops a table's column types and a row's extra space (`\\[2pt]`)."""
    token = re.sub(r"\s", "", token)
    if token in (r"\begin{array}", r"\begin{tabular}"):
        return _group(raw, position)[1], [token]
    if token.endswith("*}") and raw[position : position + 1] == ["["] and "]" in raw[position:]:
        return raw.index("]", position) + 1, [token]
    if token == r"\\" and raw[position : position + 1] == ["["]:
        inside = "".join(raw[position : position + 8])
        if match := re.match(r"\[-?[\d.]+\s*(?:pt|ex|em|mm|cm)\]", inside):
            length, used = 0, position
            while length < match.end():
                length, used = length + len(raw[used]), used + 1
            return used, [token]
    return position, [token]


def _one(token: str, following: str) -> list[str]:
    spelt = _SYNONYMS.get(token, token)
    if token.startswith("\\end"):
        return [re.sub(r"\s", "", token)]
    if not _NAMES.fullmatch(token):
        return [spelt] if spelt else []
    return _letters(token, following)


def _letters(run: str, following: str) -> list[str]:
    """A run of letters outside of commands: `pi`, `sin`, `xsin(`, `cosx` are mathematics."""
    for words in (FUNCTION_WORDS, GREEK_WORDS):
        if run in words:
            return [words[run]]
    if following == "(":
        for start in range(1, len(run) - 1):
            if run[start:] in FUNCTION_WORDS:
                return [*_letters(run[:start], ""), FUNCTION_WORDS[run[start:]]]
    for word in ("sin", "cos", "tan", "ln", "log", "sqrt"):
        rest = run.removeprefix(word)
        if rest != run and (len(rest) == 1 or rest in GREEK_WORDS):
            return [FUNCTION_WORDS[word], *_letters(rest, "")]
    if run[:2] == "pi" and run[2:] in ("r", "x", "i", "h"):
        return [r"\pi", run[2:]]
    return [run]


def _worded(command: str, argument: list[str]) -> list[str]:
    r"""The argument of `\text`, `\mathrm` and the like: words, or mathematics set in another face."""
    inside = re.sub(r"\$|~|\\[ ,;:!]", " ", "".join(argument))
    inside = re.sub(r"\\(?:cdot|times)\s*", "·", inside)
    inside = re.sub(r"\\mu\s*", "µ", re.sub(r"\\Omega\s*", "Ω", inside)).strip()
    if inside.isdecimal():
        return [inside]
    if command in _ALPHABETS:
        return [rf"\mathbb{{{inside}}}" if command == r"\Bbb" else rf"{command}{{{inside}}}"]
    if not re.search(r"[^\W\d_]|[€£¥₹¢‰]", inside) or (
        "\\" in inside and not re.search(r"[A-Za-z]{2}", _commandless(inside))
    ):
        return _read(_RAW.findall(inside))
    if inside in ("e", "i", "d"):
        return [inside]
    spoken = {run for run in _NAMES.findall(inside) if len(run) > 1}
    if re.search(r"[\d=]", inside) and spoken <= {"and", "or", "to"}:
        return _read(_RAW.findall(inside))
    if command in _UPRIGHT and (inside in FUNCTION_WORDS or inside in GREEK_WORDS):
        return _letters(inside, "")
    if joined := re.fullmatch(r"(.*\w)[,;]?\s+(and|or)", inside, re.DOTALL):
        return [rf"\text{{{joined[1]}}}", rf"\text{{{joined[2]}}}"]
    return [rf"\text{{{inside}}}"]


def _commandless(text: str) -> str:
    return re.sub(r"\\[A-Za-z]+", "", text)


def _without_idle_braces(tokens: list[str]) -> list[str]:
    """Drops the braces around one token that are no argument's, and empty ones: `{5}` is 5."""
    result: list[str] = []
    for position, token in enumerate(tokens):
        result.append(token)
        if token != "}":
            continue
        for length in (2, 3):
            if result[-length : -length + 1] == ["{"] and not _takes_argument(result[:-length]):
                inside = result[-length + 1 : -1]
                if inside or tokens[position + 1 : position + 2] not in (["^"], ["_"]):
                    result[-length:] = inside
                break
    return result


def _takes_argument(before: list[str]) -> bool:
    """Whether what comes next is an argument of what stands before."""
    if not before:
        return False
    if before[-1] in _NUM_ARGUMENTS or (
        before[-1][0] == "\\" and before[-1][1:2].isalpha() and not before[-1].endswith("}")
    ):
        return True
    return before[-1] in ("}", "]")


def _braced(tokens: list[str]) -> list[str]:
    r"""Puts braces around arguments written without: `\frac12`, `\sqrt3`, `x^2`."""
    result: list[str] = []
    waiting = [0]  # arguments still due at each open level; the last is the current level
    pending = list(reversed(tokens))
    optional = False
    while pending:
        token = pending.pop()
        due = waiting[-1]
        if optional or (due and result[-1] == r"\sqrt" and token == "["):
            optional = token != "]"
            result.append(token)
        elif token == "{":
            waiting[-1] = max(0, due - 1)
            waiting.append(0)
            result.append(token)
        elif token == "}":
            if len(waiting) > 1:
                waiting.pop()
            result.append(token)
        elif due and token in _NUM_ARGUMENTS:
            waiting[-1] = due - 1 + _NUM_ARGUMENTS[token]
            result.append(token)
        elif due and token != "-" and not (token == "'" and result[-1] != "^"):
            argument, rest = _first_argument(result, token)
            waiting[-1] = due - 1
            result += ["{", argument, "}"]
            pending += [rest] if rest else []
        else:
            result.append(token)
            waiting[-1] = _NUM_ARGUMENTS.get(token, 0) or due
    return result


def _first_argument(before: list[str], token: str) -> tuple[str, str]:
    r"""What of a token is an argument without braces: one digit for `\frac`, the whole number elsewhere."""
    pairs = {r"\frac", r"\binom"}
    fraction = before[-1] in pairs or (before[-1] == "}" and not pairs.isdisjoint(before[-4:]))
    if (fraction and len(token) > 1 and token.isdecimal()) or (
        len(token) > 1 and token.isalpha() and before[-1] != "_"
    ):
        return token[0], token[1:]
    return token, ""
