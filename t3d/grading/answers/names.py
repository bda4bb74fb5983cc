"""Words that are mathematics when written without a backslash, and the commands that they stand for."""

_FUNCTIONS = (
    "sin cos tan cot sec csc cis arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch"
    " ln log exp gcd lcm max min lim det"
).split()
FUNCTION_WORDS = {
    **{name: "\\" + name for name in _FUNCTIONS},
    **{"a" + name: "\\arc" + name for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{"Arc" + name: "\\arc" + name for name in ("sin", "cos", "tan")},
    **{prefix + name + "h": f"\\ar{name}h" for prefix in ("ar", "arc", "a") for name in ("sin", "cos", "tan")},
    "tg": r"\tan",
    "ctg": r"\cot",
    "cosec": r"\csc",
    "sqrt": r"\surd",
    "cbrt": r"\cuberoot",
    "abs": r"\abs",
    "floor": r"\floor",
    "ceil": r"\ceil",
    "binom": r"\binomial",
    "infinity": r"\infty",
    "inf": r"\infty",
    "oo": r"\infty",
    "Infinity": r"\infty",
    "union": r"\cup",
}
"""Functions as words."""

GREEK_WORDS = {
    name: "\\" + name
    for name in (
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi"
        " omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"
    ).split()
} | {"Pi": r"\pi", "PI": r"\pi"}
"""Greek letters as words."""

GREEK = frozenset(GREEK_WORDS.values()) | {r"\Pi", r"\Upsilon", r"\ell", r"\hbar", r"\aleph", r"\nabla", r"\partial"}
"""Commands that are letters (`\\pi` is a number, see the parser)."""

FUNCTIONS = frozenset("\\" + name for name in _FUNCTIONS if name not in ("lim",)) | {
    r"\arsinh",
    r"\arcosh",
    r"\artanh",
    r"\lg",
}
"""Commands that take an operand."""
