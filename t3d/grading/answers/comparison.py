r"""Whether two answers are the same.

Structure is compared here (order in tuples, kinds of brackets, entries of matrices, members of lists and unions in
any order), units by the table of `units`, numbers and expressions by `algebra`; what algebra does not know, as
written. Nothing is dropped: a unit may be left out on one side, but is never another one, and only what the table
names (or a counted plural) is a unit.

One rule for decimals: a decimal is the exact number that it writes. 0.5 is 1/2; 0.333 is not 1/3; 1.41 is not
\sqrt{2}; 0.0 is not 10^{-8}.

A percent sign is a unit: `50\%` equals 50 and never 0.5. Bare lists are sets of answers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from t3d.grading.answers import algebra, relations, sets, tables, texts
from t3d.grading.answers.nodes import Node, NotAlgebraError, has_constant, number, symbols, walk
from t3d.grading.answers.parser import parse
from t3d.grading.answers.quantities import Quantity, bare_quantity, is_compound, quantity
from t3d.grading.answers.spelling import Tokens
from t3d.grading.answers.structure import (
    BUILDERS,
    bracketed,
    elements,
    environment,
    option,
    readings,
    relation,
    split,
    words,
)

_ALL_REALS = re.compile(r"(?:thesetof)?(?:all)?(?:the)?real(?:s|numbers)")


def same(prediction: str, truth: str) -> bool:
    """Whether two answers, as written, are the same: in any reading of what is ambiguous, or as options."""
    if any(_same(ours, theirs) for ours in readings(prediction) for theirs in readings(truth)):
        return True
    mine, other = option(prediction), option(truth)
    if mine and other:
        return mine[0] == other[0] and (not mine[1] or not other[1] or same(mine[1], other[1]))
    labelled, answer = (mine, truth) if mine else (other, prediction)
    if not labelled:
        return False
    return answer.strip() == labelled[0] or (bool(labelled[1]) and same(labelled[1], answer))


def _same(ours: Tokens, theirs: Tokens) -> bool:
    """Compares spelt answers: the first rule that applies decides."""
    ours, theirs = _normal(ours), _normal(theirs)
    if ours == theirs:
        return bool(ours)
    if not ours or not theirs:
        return False
    for rule in _RULES:
        if (decision := rule(ours, theirs)) is not None:
            return decision
    return False


def _normal(tokens: Tokens) -> Tokens:
    """Without a leading equals sign or plus, without brackets around one number; names of sets as signs."""
    while tokens and tokens[0] in ("=", r"\approx", "+", r"\therefore"):
        tokens = tokens[1:]
    if tokens == (r"\{", r"\}"):
        return (r"\emptyset",)
    if tokens and (tokens[0].isalpha() or tokens[0].startswith(r"\text{")):
        if _ALL_REALS.fullmatch(words(tokens)):
            return (sets.REALS,)
        if words(tokens) in ("emptyset", "theemptyset"):
            return (r"\emptyset",)
    system = environment(tokens)
    if system and system[0] == "cases" and "&" not in system[1]:
        return _normal(tuple("," if token == r"\\" else token for token in system[1]))
    enclosed = bracketed(tokens)
    if enclosed and enclosed[0] in "({" and enclosed[2] in ")}" and len(split(enclosed[1], (",", ";"))) == 1:
        return _normal(enclosed[1])
    return tokens


def _by_ratio(ours: Tokens, theirs: Tokens) -> bool | None:
    """Ratios, as written: 2:4 is not 1:2."""
    if relation(ours) or relation(theirs):
        return None
    left, right = (split(side, (":", "to", r"\text{to}")) for side in (ours, theirs))
    if len(left) == len(right) == 1:
        return None
    return len(left) == len(right) and all(map(_same, left, right))


def _by_sets(ours: Tokens, theirs: Tokens) -> bool | None:
    """Sets of real numbers, where one is a union, a difference, the whole line or an inequality."""
    pairs = [(side, other) for side, other in ((ours, theirs), (theirs, ours)) if _is_set_like(side)]
    if not pairs:
        return None
    try:
        named = [sets.names(side) for side in (ours, theirs)]
        return sets.same_sets(sets.real_set(ours), sets.real_set(theirs)) and (named[0] == named[1] or not all(named))
    except sets.NotRealSetError:
        return None


def _is_set_like(tokens: Tokens) -> bool:
    sides = relation(tokens)
    if sides is not None:
        return not {"=", r"\approx", r"\equiv"} & set(sides[1])
    enclosed = bracketed(tokens)
    if enclosed and enclosed[0] == r"\{" and len(split(enclosed[1], BUILDERS)) > 1:
        return True
    return sets.REALS in tokens or bool({r"\cup", r"\cap", r"\setminus"} & set(tokens))


def _by_union(ours: Tokens, theirs: Tokens) -> bool | None:
    """Unions whose ends cannot be compared: the same members in any order."""
    left, right = (split(side, (r"\cup",)) for side in (ours, theirs))
    return _same_members(left, right) if len(left) > 1 or len(right) > 1 else None


def _by_list(ours: Tokens, theirs: Tokens) -> bool | None:
    if is_compound(ours) or is_compound(theirs):
        return None
    left, right = elements(ours), elements(theirs)
    for side, other in ((ours, theirs), (theirs, ours)):
        sides = relation(side)
        value = relations.stated(sides) if sides and not (relation(other) and len(elements(other)) == 1) else None
        if value and _braced(value) is not None and len(elements(side)) == 1:
            return _same(value, other)
    named = [_named(side) for side in (left, right)]
    if named[0] and named[1] and named[0].keys() == named[1].keys() and len(named[0]) > 1:
        return all(_same(value, named[1][name]) for name, value in named[0].items())
    if len(left) == 1 and len(right) == 1:
        return None
    for names, other in ((named[0], theirs), (named[1], ours)):
        if names and len(names) > 1:
            enclosed = bracketed(other)
            pair = enclosed and enclosed[0] == "("
            entries = split(enclosed[1], (",", ";")) if enclosed and pair else elements(other)
            if not pair and len(elements(ours if other is theirs else theirs)) == 1:
                return False  # a tuple is no list
            if len(entries) == len(names) and not any(map(relation, entries)):
                return all(map(_same, names.values(), entries))
    return _same_members(left, right)


def _named(members: Sequence[Tokens]) -> dict[Tokens, Tokens] | None:
    """The values by name of `x=1, y=2` or `(x,y)=(1,2)`; None if it is no such list of different names."""
    found = [relation(member) for member in members]
    if len(members) == 1 and found[0] and relations.stated(found[0]):
        pair = [bracketed(side) for side in (found[0][0][0], found[0][0][-1])]
        if pair[0] and pair[1] and pair[0][0] == pair[1][0] == "(":
            names, values = (split(side[1], (",", ";")) for side in pair if side)
            return dict(zip(names, values, strict=True)) if len(names) == len(values) else None
        return None
    if not all(sides and sides[1] == ["="] and relations.is_name(sides[0][0]) for sides in found):
        return None
    result = {sides[0][0]: sides[0][1] for sides in found if sides}
    return result if len(result) == len(members) else None


def _same_members(ours: Sequence[Tokens], theirs: Sequence[Tokens]) -> bool:
    if len(ours) != len(theirs):
        return False
    left = list(ours)
    for member in theirs:
        match = next((candidate for candidate in left if _same(candidate, member)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _by_relation(ours: Tokens, theirs: Tokens) -> bool | None:
    """`x=5` is 5, but not `y=5`; a chain of equal numbers, `0.56=56%`, is each of them."""
    left, right = relation(ours), relation(theirs)
    if left and right:
        return relations.same_relations(left, right, _same)
    if not left and not right:
        return None
    sides, other = (left, theirs) if left else (right, ours)
    assert sides is not None
    value = relations.stated(sides)
    if value is not None:
        return _same(value, other)
    if set(sides[1]) != {"="} or not all(map(_is_number, sides[0])):
        return False
    chain = any(quantity(part).unit for part in sides[0]) or all(map(_same, sides[0], sides[0][1:]))
    return chain and any(_same(part, other) for part in sides[0])


def _is_number(tokens: Tokens) -> bool:
    try:
        node = parse(quantity(tokens).value) if tokens else None
    except NotAlgebraError:
        return False
    return node is not None and not tables.is_table(node) and not symbols(node)


def _by_table(ours: Tokens, theirs: Tokens) -> bool | None:
    """Matrices, cases and systems, entry by entry."""
    left, right = (environment(side) or _nested(side) for side in (ours, theirs))
    if left and right and left[0] == right[0] == "nested":
        return None
    left, right = (("array", side[1]) if side and side[0] == "nested" else side for side in (left, right))
    if not left or not right or (left[0] in tables.MATRICES) != (right[0] in tables.MATRICES):
        return None
    if {left[0], right[0]} & tables.DETERMINANTS or (left[0] not in tables.MATRICES and left[0] != right[0]):
        return None
    rows = [tables.rows(side[1]) for side in (left, right)]
    if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return False
    cells = [[tuple(cell) for row in side for cell in row] for side in rows]
    return all(map(_same, *cells))


def _nested(tokens: Tokens) -> tuple[str, Tokens] | None:
    """Rows in brackets, `[[1,2],[3,4]]` or `[1,2;3,4]`, as the inside of a table."""
    enclosed = bracketed(tokens)
    if not enclosed or enclosed[0] != "[":
        return None
    rows = [bracketed(row) for row in split(enclosed[1], (",",))]
    inner = [row[1] for row in rows if row and row[0] == "["]
    if len(inner) < len(rows):
        inner = split(enclosed[1], (";",))
        if len(inner) < 2:
            return None
    cells = [split(row, (",",)) for row in inner]
    lines = [tuple(token for cell in row for token in ("&", *cell))[1:] for row in cells]
    return "nested", tuple(token for line in lines for token in (r"\\", *line))[1:]


def _by_braces(ours: Tokens, theirs: Tokens) -> bool | None:
    """Sets: members in any order; set builders: the same variable and the same condition."""
    left, right = (_braced(side) for side in (ours, theirs))
    if left is None and right is None:
        return None
    for side, whole in ((left, ours), (right, theirs)):
        sides = relation(whole) if side is None else None
        if sides and (value := relations.stated(sides)) and _braced(value) is not None:
            return None
    built = [split(side, BUILDERS) if side is not None else [] for side in (left, right)]
    if len(built[0]) > 1 or len(built[1]) > 1:
        return len(built[0]) == len(built[1]) and all(map(_same, *built))
    members = [elements(whole if side is None else side) for side, whole in ((left, ours), (right, theirs))]
    if left is not None and right is not None:  # a set of sets is no set of numbers
        nested = [sum(_braced(member) is not None for member in side) for side in members]
        if nested[0] != nested[1]:
            return False
    return _same_members(*members)


def _braced(tokens: Tokens) -> Tokens | None:
    enclosed = bracketed(tokens)
    if tokens == (r"\emptyset",):
        return ()
    return enclosed[1] if enclosed and enclosed[0] == r"\{" and enclosed[2] == r"\}" else None


def _by_brackets(ours: Tokens, theirs: Tokens) -> bool | None:
    """Tuples and intervals: the same brackets, the same entries in the same order."""
    left, right = _tuple(ours), _tuple(theirs)
    if left is None or right is None:
        return None
    if (left[0], len(left[1]), left[2]) != (right[0], len(right[1]), right[2]):
        return False
    return all(map(_same, left[1], right[1]))


def _tuple(tokens: Tokens) -> tuple[str, list[Tokens], str] | None:
    enclosed = bracketed(tokens)
    if enclosed is None or enclosed[0] == "{":
        return None
    entries = split(enclosed[1], (",", ";"))
    angled = enclosed[0] == r"\langle"
    return ("(" if angled else enclosed[0], entries, ")" if angled else enclosed[2]) if len(entries) > 1 else None


def _by_unit(ours: Tokens, theirs: Tokens) -> bool | None:
    """A unit may be left out or be another of the same kind, the value being converted, but no other."""
    left, right = quantity(ours), quantity(theirs)
    if left.unit is None and right.unit is None:
        return None
    left, right = bare_quantity(left, right.unit), bare_quantity(right, left.unit)
    powers = [side.unit.powers if side.unit else {} for side in (left, right)]
    if powers[0] and powers[1] and powers[0] != powers[1]:
        return False
    if left.factor(right) == right.factor(left) == 1:
        return _same(left.value, right.value)
    try:
        return _equal_nodes(_scaled(left, right), _scaled(right, left))
    except NotAlgebraError:
        return False


def _scaled(measured: Quantity, other: Quantity) -> Node:
    return tables.combined("mul", [number(measured.factor(other)), parse(measured.value)])


def _by_algebra(ours: Tokens, theirs: Tokens) -> bool | None:
    ambiguous = "/" in ours or "/" in theirs
    for tight in ((False, False), (True, False), (False, True)) if ambiguous else ((False, False),):
        try:
            left, right = parse(ours, tight[0]), parse(theirs, tight[1])
            if _equal_nodes(left, right):
                return True
        except NotAlgebraError:
            return None
    return False


def _equal_nodes(left: Node, right: Node) -> bool:
    left, right = tables.pushed(left), tables.pushed(right)
    if tables.is_table(left) or tables.is_table(right):
        if (left.op, left.name, len(left.args)) != (right.op, right.name, len(right.args)):
            return False
        return all(map(_equal_nodes, left.args, right.args))
    if algebra.equal(left, right):
        return True
    if _has_degrees(left) != _has_degrees(right):
        return _equal_nodes(_without_degrees(left), _without_degrees(right))
    if any(
        part.op == "call" and part.name == "log" and len(part.args) == 1
        for side in (left, right)
        for part in walk(side)
    ):
        return algebra.equal(left, right, log_base=10)
    return has_constant(left, "infinity") and left == right


def _has_degrees(node: Node) -> bool:
    return any(part.op == "degree" for part in walk(node))


def _without_degrees(node: Node) -> Node:
    """Degree signs left out, as one side leaves them out."""
    if node.op == "degree":
        return _without_degrees(node.args[0])
    return replace(node, args=tuple(map(_without_degrees, node.args)))


_RULES: tuple[Callable[[Tokens, Tokens], bool | None], ...] = (
    texts.by_clock,
    texts.by_words,
    _by_ratio,
    texts.by_base,
    _by_sets,
    _by_table,
    _by_braces,
    _by_list,
    _by_relation,
    _by_union,
    _by_brackets,
    _by_unit,
    _by_algebra,
)
