"""Plain data as text: all that a test and the solution that it calls ever tell each other.

Both ends are handed this source (see `t3d.grading.sandbox`), and the test's end trusts nothing that it reads: a text
becomes numbers, strings and containers of exactly these types, or an error.
"""

import json

SCALARS = {
    bool: ("b", bool),
    int: ("i", hex),
    float: ("f", float.hex),
    complex: ("c", lambda value: [value.real.hex(), value.imag.hex()]),
    str: ("s", str),
    bytes: ("y", bytes.hex),
    bytearray: ("Y", bytearray.hex),
}
"""Each type's letter, and its value as JSON holds it: exact, whatever its size."""

CONTAINERS = {list: "l", tuple: "t", set: "S", frozenset: "F"}

READERS = {
    "b": bool,
    "i": lambda value: int(value, 16),
    "f": float.fromhex,
    "c": lambda value: complex(float.fromhex(value[0]), float.fromhex(value[1])),
    "s": lambda value: "".join((value,)),
    "y": bytes.fromhex,
    "Y": bytearray.fromhex,
}

BUILDERS = {letter: kind for kind, letter in CONTAINERS.items()}

MUTABLE = (list, dict, set, bytearray)


class NotPlainError(Exception):
    """A value that is no plain data: of another type, a subclass, or in a circle."""


def encode(value):
    """The text of a value, one line; what can be changed and stands in two places is one object on the other side, too.

    Raises:
        NotPlainError: it is no plain data.
    """
    try:
        return json.dumps(_parts(value, {}))
    except RecursionError:
        raise NotPlainError from None


def decode(text):
    """The value of a text.

    Raises:
        ValueError: no text of `encode`.
    """
    try:
        return _value(json.loads(text), [])
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError("no plain data") from error


def update(old, new):
    """Gives a mutable value the content of another one, keeping the identity of what is in it as far as it can."""
    if type(old) is list:
        old[:] = [*map(merged, old, new), *new[len(old) :]]
    elif type(old) is dict:
        known = dict(old)
        old.clear()
        old.update({key: merged(known[key], value) if key in known else value for key, value in new.items()})
    elif type(old) is set:
        old.clear()
        old.update(new)
    else:
        old[:] = new


def merged(old, new):
    """`old` with the content of `new` where it can take it in place, else `new`."""
    if type(old) is not type(new):
        return new
    if type(old) in MUTABLE:
        update(old, new)
        return old
    if type(old) is tuple and len(old) == len(new):
        together = tuple(map(merged, old, new))
        return old if all(a is b for a, b in zip(old, together)) else together  # noqa: B905 - as long as each other
    return new


def _parts(value, seen):
    """JSON of a value; `seen` numbers the changeable containers so far by their id."""
    kind = type(value)
    if value is None:
        return None
    if kind in SCALARS and kind is not bytearray:
        letter, write = SCALARS[kind]
        return [letter, write(value)]  # type: ignore[operator]
    if id(value) in seen:
        return ["r", seen[id(value)]]
    if kind is bytearray:
        parts = ["Y", value.hex()]
    elif kind in CONTAINERS:
        parts = [CONTAINERS[kind], [_parts(entry, seen) for entry in value]]  # type: ignore[index]
    elif kind is dict:
        parts = ["d", [[_parts(key, seen), _parts(entry, seen)] for key, entry in value.items()]]
    else:
        raise NotPlainError(kind.__name__)
    if kind in MUTABLE:
        seen[id(value)] = len(seen)
    return parts


def _value(parts, seen):
    """The value of JSON; `seen` holds the changeable containers so far."""
    if parts is None:
        return None
    letter, content = parts
    if letter == "r":
        return seen[content]
    if letter in READERS:
        value = READERS[letter](content)
    elif letter == "d":
        value = {_value(key, seen): _value(entry, seen) for key, entry in content}
    else:
        value = BUILDERS[letter](_value(entry, seen) for entry in content)
    if type(value) in MUTABLE:
        seen.append(value)
    return value
