r"""Units of measure: a closed table (SI with prefixes, US, money, time), their products, quotients and powers.

A unit is read only from upright text (`\text{ cm}`, `\mathrm{m}`), from words after a number, from marks (%, degree,
currency), never from a letter: in `4t`, t is a variable. Things that are counted (`210\text{ ways}`) are units of
their own: a plural that is no number word.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True)
class Unit:
    """A factor and the powers of base units that it multiplies; no powers: a bare number (`million`).

    `scale` is the part of the factor that number words make.
    """

    factor: Fraction = Fraction(1)
    powers: Mapping[str, int] = field(default_factory=dict)
    scale: Fraction = Fraction(1)

    def times(self, other: "Unit", exponent: int = 1) -> "Unit":
        """This unit times a power of another."""
        powers = Counter(self.powers)
        for base, power in other.powers.items():
            powers[base] += power * exponent
        kept = {base: power for base, power in sorted(powers.items()) if power}
        return Unit(self.factor * other.factor**exponent, kept, self.scale * other.scale**exponent)


_PREFIXES = {"Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "d": -1, "c": -2}
_PREFIXES |= {"m": -3, "µ": -6, "u": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24}
_LONG_PREFIXES = {"peta": 15, "tera": 12, "giga": 9, "mega": 6, "kilo": 3, "hecto": 2, "deca": 1, "deka": 1, "deci": -1}
_LONG_PREFIXES |= {"centi": -2, "milli": -3, "micro": -6, "nano": -9, "pico": -12, "femto": -15, "atto": -18, "exa": 18}

# Factor and base units: symbols that take prefixes; words that take prefixes.
_SI = {
    "1 m": ("m", "meter metre"),
    "1 g": ("g", "gram gramme"),
    "1 s": ("s", "second"),
    "1 A": ("A", "ampere amp"),
    "1 K": ("K", "kelvin"),
    "1 mol": ("mol", "mole"),
    "1 cd": ("cd", "candela"),
    "1 rad": ("rad", "radian"),
    "1 sr": ("sr", "steradian"),
    "1 s-1": ("Hz", "hertz"),
    "1000 g m s-2": ("N", "newton"),
    "1000 g m-1 s-2": ("Pa", "pascal"),
    "1000 g m2 s-2": ("J", "joule"),
    "1000 g m2 s-3": ("W", "watt"),
    "1 s A": ("C", "coulomb"),
    "1000 g m2 s-3 A-1": ("V", "volt"),
    "1/1000 g-1 m-2 s4 A2": ("F", "farad"),
    "1000 g m2 s-3 A-2": ("Ω", "ohm"),
    "1/1000 g-1 m-2 s3 A2": ("S", "siemens"),
    "1000 g m2 s-2 A-1": ("Wb", "weber"),
    "1000 g s-2 A-1": ("T", "tesla"),
    "1000 g m2 s-2 A-2": ("H", "henry"),
    "1 cd sr": ("lm", "lumen"),
    "1 cd sr m-2": ("lx", "lux"),
    "1 decay s-1": ("Bq", "becquerel"),
    "1 m2 s-2": ("Gy Sv", "gray sievert"),
    "1/1000 m3": ("L l", "liter litre"),
    "1602176634/10000000000000000000000000 g m2 s-2": ("eV", "electronvolt"),
    "100000000 g m-1 s-2": ("bar", ""),
    "4184 g m2 s-2": ("cal", "calorie"),
    "1/10000 g m2 s-2": ("erg", ""),
    "1/100 g m s-2": ("dyn", "dyne"),
    "1/10 g s-2 A-1": ("G", "gauss"),
    "1000000 g": ("t", "tonne"),
    "1 bit": ("b", "bit"),
    "8 bit": ("B", "byte"),
    "1 pc": ("pc", "parsec"),
}
# Without prefixes.
_OTHERS = {
    "60 s": "min minute",
    "3600 s": "h hr hour",
    "86400 s": "day",
    "604800 s": "week wk",
    "1 month": "month mo",
    "12 month": "year yr",
    "120 month": "decade",
    "1200 month": "century centuries",
    "254/10000 m": "in inch inches",
    "3048/10000 m": "ft foot feet",
    "9144/10000 m": "yd yard",
    "1609344/1000 m": "mi mile",
    "1852 m": "nmi",
    "149597870700 m": "au AU",
    "9460730472580800 m": "ly lightyear",
    "1/10000000000 m": "Å angstrom",
    "1/1000000 m": "micron",
    "45359237/100000 g": "lb lbs pound lbm",
    "45359237/1600000 g": "oz ounce",
    "907184740/1000 g": "ton",
    "1000 g": "kilo",
    "1/5 g": "carat",
    "1609344/3600000 m s-1": "mph",
    "1000/3600 m s-1": "kph kmph",
    "463/900 m s-1": "knot",
    "40468564224/10000000 m2": "acre",
    "10000 m2": "ha hectare",
    "3785411784/1000000000000 m3": "gal gallon",
    "946352946/1000000000000 m3": "qt quart",
    "473176473/1000000000000 m3": "pt pint",
    "2365882365/10000000000000 m3": "cup",
    "295735295625/10000000000000000 m3": "floz",
    "1/1000000 m3": "cc",
    "101325000 g m-1 s-2": "atm atmosphere",
    "1 psi": "psi",
    "20265000/152 g m-1 s-2": "torr",
    "1 hp": "hp horsepower",
    "1 rpm": "rpm",
    "1 usd": "USD usd dollar buck",
    "1/100 usd": "cent ¢",
    "1 eur": "€ EUR eur euro",
    "1 gbp": "£ GBP gbp",
    "1 jpy": "¥ JPY jpy yen",
    "1 inr": "₹ INR rupee",
    "1 yuan": "CNY RMB yuan",
    "1 dB": "dB decibel",
    "1 percent": "% percent pct",
    "1 point": "pp",
    "1/10 percent": "‰",
    "1 degree": "° deg degree",
    "1/60 degree": "arcmin arcminute",
    "1/3600 degree": "arcsec arcsecond",
    "1 turn": "revolution rev turn",
    "1 celsius": "°C degC celsius",
    "1 fahrenheit": "°F degF fahrenheit",
    "1000 mol m-3": "M",
    "1 unit": "unit",
    "100": "hundred",
    "1000": "thousand",
    "1000000": "million",
    "1000000000": "billion",
    "1000000000000": "trillion",
    "12": "dozen",
}


def _parse(text: str) -> Unit:
    """Reads `1000 g m s-2`."""
    factor, *parts = text.split()
    powers = {
        match[1]: int(match[2] or 1)
        for match in (re.fullmatch(r"([A-Za-z_]+)(-?\d)?", part) for part in parts)
        if match
    }
    return Unit(Fraction(factor), powers, Fraction(1) if powers else Fraction(factor))


def _table() -> tuple[dict[str, Unit], dict[str, Unit]]:
    """Returns the units by symbol (capitals matter) and by word (they do not)."""
    marks: dict[str, Unit] = {}
    words: dict[str, Unit] = {}
    for text, (short, long) in _SI.items():
        unit = _parse(text)
        for name, prefixes, table in ((short, _PREFIXES, marks), (long, _LONG_PREFIXES, words)):
            for word in name.split():
                scaled = {prefix + word: Unit(Fraction(10) ** power) for prefix, power in prefixes.items()}
                table |= {key: scale.times(unit) for key, scale in scaled.items() if key not in table}
                table[word] = unit
    for text, names in _OTHERS.items():
        for name in names.split():
            (marks if len(name) < 4 or not name.islower() else words)[name] = _parse(text)
    return marks, words


_MARKS, _WORDS = _table()
_LENIENT = {
    "kg",
    "km",
    "cm",
    "mm",
    "ml",
    "ft",
    "in",
    "lb",
    "lbs",
    "oz",
    "hr",
    "mph",
    "min",
    "yd",
    "mi",
    "usd",
    "gm",
    "sec",
}
_MARKS |= {"sec": _MARKS["s"], "secs": _MARKS["s"], "gm": _MARKS["g"], "gms": _MARKS["g"], "hrs": _MARKS["h"]}
_MARKS |= {"mins": _MARKS["min"], "yrs": _MARKS["yr"], "sqft": _MARKS["ft"].times(_MARKS["ft"]), "cms": _MARKS["cm"]}
_MARKS |= {
    "kgs": _MARKS["kg"],
    "kms": _MARKS["km"],
    "kWh": _MARKS["kW"].times(_MARKS["h"]),
    "Wh": _MARKS["W"].times(_MARKS["h"]),
}
_MARKS |= {"Kcal": _MARKS["kcal"], "Mpc": _MARKS["Mpc"], "mi.": _MARKS["mi"]}
PLAIN_UNITS = frozenset(
    "mm cm dm km nm mg kg mL ml cL cl dL dl kL lb lbs oz ft in yd mi mph kph hr hrs min mins sec secs sq cu kW kWh MW"
    " Hz kHz MHz GHz kJ MJ kPa Pa psi eV keV MeV GeV MB GB TB KB gal qt USD EUR rpm dB gm gms cms kms kgs Kg KM".split()
)
"""Abbreviations that are units without `\\text` too, where other letters are variables."""
_POWER_WORDS = {**dict.fromkeys(("square", "sq", "squared"), 2), **dict.fromkeys(("cubic", "cu", "cubed"), 3)}
_PIECE = re.compile(r"[A-Za-zµΩÅ°€£¥₹¢‰]+|%|\^\{?(-?\d)\}?|[/·*()]|\$")
_SIGNS = {sign: sign for sign in "{}-°%/^()1234"} | dict.fromkeys((r"\cdot", r"\times", "*"), "·")
_SIGNS |= {r"\mu": "µ", r"\Omega": "Ω", r"\usd": " USD ", r"\frac": "\2", ".": " "}
_NUMBER_WORDS = set(
    "million billion trillion quadrillion thousand hundred dozen score pair half halves third thirds quarter quarters"
    " fourth fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths millionths ones tens hundreds"
    " thousands millions billions trillions dozens twos threes pairs times plus minus less more fewer most least over"
    " under or and not pi e percent factorial mod modulo squared cubed is equals equal than about roughly to by of"
    " per each if when where with without at from up down twice thrice double triple infinity infinitely remainder"
    " base negative positive plus-minus radicals logs powers roots squares cubes multiples_of versus vs divided"
    " multiplied added subtracted s sines cosines this yes unless always besides perhaps else units_of".split()
)
_IRREGULAR = set(
    "people children men women mice geese teeth feet fish sheep dice data vertices indices matrices axes".split()
)


def unit_of(tokens: Sequence[str]) -> Unit | None:
    """Reads tokens that may be a unit as a whole; None if they are none."""
    text = _flatten(tokens)
    if text is None:
        return None
    first, _, rest = text.strip().partition(" ")
    scale = _compound(first) if rest else None
    counted = _counted(rest) if scale and not scale.powers else None
    return scale.times(counted) if scale and counted else _compound(text) or _counted(text)


def _flatten(tokens: Sequence[str]) -> str | None:
    r"""The unit's text, `\frac{a}{b}` as a/b; None where a token can be no part of a unit."""
    parts: list[str] = []
    for token in "\1".join(tokens).replace("^\1{\1\\circ\1}", "°").split("\1"):
        part = _part(token)
        if part is None and not (token in ("C", "F") and parts and parts[-1] == "°"):
            return None
        parts.append(token if part is None else part)
    text = re.sub(r"°\s+([CF])\b", r"°\1", re.sub(r"µ\s+", "µ", "".join(parts)))
    return re.sub("\2\\{([^{}\2]*)\\}\\{([^{}\2]*)\\}", r"(\1)/(\2)", text)


def _part(token: str) -> str | None:
    """One token of a unit's text; None if it is no part of any."""
    if token.startswith(r"\text{"):
        return f" {token[6:-1].replace('^', ' ^')} "
    if token in PLAIN_UNITS or (token.isalpha() and len(token) > 3 and _lookup(token)):
        return f" {token} "
    return _SIGNS.get(token)


def _compound(text: str) -> Unit | None:
    """Products, quotients and powers of units of the table: `m/s^{2}`, `square feet`, `miles per hour`."""
    if "\2" in text or _PIECE.sub("", text.replace(".", " ")).strip():
        return None
    text = re.sub(r"\bper cent\b", "percent", text.replace(".", " ").replace("$", " USD "))
    text = re.sub(r"\bfl\s*oz\b|\bfluid ounces?\b", "floz", re.sub(r"\bper\b", "/", text))
    text = re.sub(r"\b([kMGmµ])\s+Ω", r"\1Ω", text)
    text = re.sub(r"\bdegrees?\s+(celsius|fahrenheit)", r"\1", text, flags=re.IGNORECASE)
    text = re.sub(r"\bdegrees?\s+([CF])\b", r"°\1", text)
    result, exponent, pending, last, inside = Unit(), 1, 1, None, False
    for match in _PIECE.finditer(text):
        piece = match.group()
        if piece == "/":
            exponent = -1
        elif piece in "()":
            inside = piece == "("
        elif match[1] or piece.lower() in ("squared", "cubed"):
            if last is None:
                return None
            power = int(match[1]) if match[1] else _POWER_WORDS[piece.lower()]
            result, last = result.times(last[0], last[1] * (power - 1)), None
        elif piece.lower() in _POWER_WORDS:
            pending = _POWER_WORDS[piece.lower()]
        elif piece in "·*":
            continue
        else:
            unit = _lookup(piece)
            if unit is None:
                return None
            result, last = result.times(unit, pending * exponent), (unit, pending * exponent)
            exponent, pending = (exponent if inside else 1), 1
    return None if pending != 1 or not (result.powers or result.factor != 1) else result


def _lookup(name: str) -> Unit | None:
    if name in _MARKS:
        return _MARKS[name]
    lower = name.lower()
    for word in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if word in _WORDS:
            return _WORDS[word]
    if lower in _LENIENT and name not in _MARKS:
        return _MARKS[lower]
    singular = name.removesuffix("s")
    return _MARKS[singular] if singular != name and len(singular) > 2 and singular in _MARKS else None


def _counted(text: str) -> Unit | None:
    """A noun in the plural that is no number word, with its adjectives: `distinct integers`."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", text.strip(" .").lower())
    if not words or len(words) > 4 or re.sub(r"[a-z\s.\-]", "", text.strip().lower()):
        return None
    head = words[-1]
    plural = (head.endswith("s") and not head.endswith("ss") and len(head) > 3) or head in _IRREGULAR
    if not plural or not _NUMBER_WORDS.isdisjoint(words) or any(_lookup(word) for word in words):
        return None
    return Unit(Fraction(1), {f"#{head}": 1})
