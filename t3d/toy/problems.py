r"""TinyMath: word problems of two or three steps, with worked solutions that differ in wording and order.

That a problem has many right solutions is the point: a model that fills several positions at once, each on its own,
mixes them up, which is what few-step decoding suffers from and distillation mends.

    python -m t3d.toy.problems --split test --limit 50 --out data/TinyMath.json
"""

from t3d.entry import run_entry

import itertools
import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from t3d.arguments import ArgumentParser
from t3d.errors import UserError
from t3d.storage.files import write_json_atomic
from t3d.storage.folders import make_folder
from t3d.storage.paths import user_path

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SPLITS = ("train", "validation", "test")
SHARES = (8, 1, 1)
SEED = 20260212

NAMES = """Ada Adam Alan Alex Amy Ana Anna Arun Asha Ben Beth Bill Bob Boris Carl Cara Chen Clara Cora Dan Dana David
Dina Dora Ed Eli Ella Emil Emma Erik Eva Evan Fay Felix Finn Fred Gina Glen Greta Gus Hana Hans Helen Hugo Ian Ida Igor
Ines Iris Ivan Jack Jan Jane Jill Joan Joe John Jon Juan Jun Kai Karl Kate Ken Kim Kira Lars Lea Lena Leo Liam Lila Lin
Lisa Liz Lola Lucy Luis Luke Mara Marc Maria Mark Max May Mei Mia Milo Mina Nadia Nick Nina Noah Nora Olga Omar Oscar
Otto Paul Pia Rana Rosa Ruth Sam Sara Sven Tara Tim Tom Uma Vera Wen Yan Zoe""".split()
ITEMS = """apples balls beads beans bells berries birds boats bolts books bowls boxes bricks buns buttons cakes candles
candies caps cards cars chairs cherries chips clips coins cones cookies corks cups dates dice discs dolls drums ducks
eggs fans figs flags forks frogs gems grapes hats hooks jars keys kites knobs lamps leaves lemons limes magnets maps
marbles melons mints mugs nails nuts olives onions oranges peaches pears peas pencils pens pies pins plates plums pots
radios rings rocks rolls roses ropes screws seeds shells shirts shoes skirts snails socks spoons stamps stars sticks
stones straws tapes teas tents ticks tiles tins toys trains trays trucks tubes tulips vases watches wheels
yams""".split()
CONTAINERS = "bags baskets bins cans cases chests crates drawers packs piles racks rows sacks shelves stacks".split()

FIRST_SYLLABLES = "Ba Be Bo Da De Di Do Fa Fe Ga Go Ha He Ja Jo Ka Ke Ko La Le Lo Ma Me Mo Na Ne No Pa Pe Ra Re".split()
LAST_SYLLABLES = """bam bar bel bin dan del din dor fan fel gan gel gor han hel kan kel kin lan len lin lon man mel min
mon nan nel nin nor ran rel rin ron san sel sin son tan tel tin ton van vel vin vor wan wel win wor zan zel zin zon
bus dus gus kus lus mus nus pus rus sus tus""".split()

MOST_NAMES = len(FIRST_SYLLABLES) * len(LAST_SYLLABLES)

TWO_GROUPS = [
    "{name} has {a} {box} of {b} {x} and {c} {bin} of {d} {y}. How many things does {name} have?",
    "{name} buys {a} {box} of {b} {x} and {c} {bin} of {d} {y}. How many things is that?",
    "There are {a} {box} with {b} {x} each and {c} {bin} with {d} {y} each. How many things are there?",
    "A shop sells {a} {box} of {b} {x} and {c} {bin} of {d} {y}. How many things does it sell?",
    "{name} packs {c} {bin} of {d} {y} after {a} {box} of {b} {x}. How many things does {name} pack?",
]
GAIN = [
    "{name} has {a} {box} of {b} {x} and finds {e} more. How many {x} does {name} have now?",
    "{name} had {a} {box} with {b} {x} each, then got {e} more. How many {x} is that?",
    "A shop has {a} {box} of {b} {x} and gets {e} more. How many {x} does it have?",
]
LOSS = [
    "{name} has {a} {box} of {b} {x} and loses {e}. How many {x} are left?",
    "{name} had {a} {box} with {b} {x} each, then gave away {e}. How many {x} remain?",
    "A shop has {a} {box} of {b} {x} and sells {e}. How many {x} does it still have?",
]
PRODUCT = [
    "{a} groups of {b} make {p}.",
    "Here {a} * {b} = {p}.",
    "{a} times {b} is {p}.",
    "We count {p} from {a} * {b}.",
    "{b} in each of {a} gives {p}.",
]
SUM = [
    "Together that is {p} + {q} = {s}.",
    "Adding {p} and {q} gives {s}.",
    "The sum of {p} and {q} is {s}.",
    "All in all we get {p} + {q} = {s}.",
]
DIFFERENCE = [
    "Taking {e} from {p} leaves {s}.",
    "What remains is {p} - {e} = {s}.",
    "So {p} - {e} = {s} are left.",
    "Now {p} less {e} is {s}.",
]
FINAL = [
    "The answer is \\boxed{{{s}}}.",
    "So the answer is \\boxed{{{s}}}.",
    "Answer: \\boxed{{{s}}}.",
    "Thus we get \\boxed{{{s}}}.",
]

Operands = tuple[int, ...]


def operand_tuples(split: str) -> list[Operands]:
    """All operand tuples of a split: (a, b, c, d) for two groups, (a, b, e) with e < 0 for a loss.

    Each tuple belongs to exactly one split.  Tuples are ordered: a test problem's reordering (b times a, or its
    groups swapped) may be in the train split, so what is held out is the problem, not every fact it rests on.
    """
    small = range(2, 7)
    groups: list[Operands] = list(itertools.product(small, repeat=4))
    changes: list[Operands] = [
        (a, b, e) for a, b in itertools.product(small, repeat=2) for e in range(-20, 21) if abs(e) > 1 and a * b + e > 0
    ]
    chosen: list[Operands] = []
    for tuples in (groups, changes):
        order = np.random.default_rng(SEED).permutation(len(tuples))
        part = order * sum(SHARES) // len(tuples)
        number = SPLITS.index(split)
        low, high = sum(SHARES[:number]), sum(SHARES[: number + 1])
        chosen += [values for values, place in zip(tuples, part, strict=True) if low <= place < high]
    return chosen


def invented_names(count: int) -> list[str]:
    """So many names that nobody has, in a mixed order: a larger vocabulary, in which a random word is noise.

    Raises:
        ValueError: more than there are.
    """
    names = [first + last for first in FIRST_SYLLABLES for last in LAST_SYLLABLES]
    if count > len(names):
        raise ValueError(f"at most {len(names)} names, not {count}")
    return [names[place] for place in np.random.default_rng(SEED).permutation(len(names))[:count]]


def check_names(count: int) -> None:
    """Checks the option --names.

    Raises:
        UserError: fewer than none, or more than there are.
    """
    if not 0 <= count <= MOST_NAMES:
        raise UserError("--names", f"0 to {MOST_NAMES}", count)


def generate(split: str, seed: int = 0, extra_names: int = 0) -> Iterator[dict[str, Any]]:
    """Yields an endless stream of problems of one split, no two alike.

    Args:
        split: train, validation or test.
        seed: another seed, other problems (of the same operands); no stream is shared between splits.
        extra_names: number of `invented_names` beside the usual ones.

    Yields:
        `question`, `ground_truth_answer`, and `answer`: one of the many worked solutions.
    """
    stream = np.random.default_rng([SEED, SPLITS.index(split), seed])
    tuples = operand_tuples(split)
    groups = [values for values in tuples if len(values) == 4]
    changes = [values for values in tuples if len(values) == 3]
    names, seen = NAMES + invented_names(extra_names), set()
    while True:
        kind = groups if stream.random() < 0.65 else changes
        question, steps, result = _problem(kind[stream.integers(len(kind))], names, stream)
        if question not in seen:
            seen.add(question)
            final = _pick(FINAL, stream).format(s=result)
            yield {
                "question": question,
                "ground_truth_answer": str(result),
                "answer": " ".join([*steps, final]),
            }


def _problem(operands: Operands, names: list[str], stream: np.random.Generator) -> tuple[str, list[str], int]:
    """Question, worked steps in a random order and wording, and result."""
    x, y = (str(item) for item in stream.choice(ITEMS, 2, replace=False))
    box, other_box = (str(container) for container in stream.choice(CONTAINERS, 2, replace=False))
    name = _pick(names, stream)
    if len(operands) == 4:
        a, b, c, d = operands
        p, q = a * b, c * d
        words = {"name": name, "a": a, "b": b, "c": c, "d": d, "x": x, "y": y, "box": box, "bin": other_box}
        question = _pick(TWO_GROUPS, stream).format(**words)
        first = _pick(PRODUCT, stream).format(a=a, b=b, p=p)
        second = _pick(PRODUCT, stream).format(a=c, b=d, p=q)
        if stream.random() < 0.5:
            first, second, p, q = second, first, q, p
        return question, [first, second, _pick(SUM, stream).format(p=p, q=q, s=p + q)], p + q
    a, b, e = operands
    p = a * b
    question = _pick(GAIN if e > 0 else LOSS, stream).format(name=name, a=a, b=b, e=abs(e), x=x, box=box)
    product = _pick(PRODUCT, stream).format(a=a, b=b, p=p)
    p_first = e < 0 or stream.random() < 0.5
    change = (
        _pick(DIFFERENCE, stream).format(p=p, e=-e, s=p + e)
        if e < 0
        else _pick(SUM, stream).format(p=p if p_first else e, q=e if p_first else p, s=p + e)
    )
    return question, [product, change], p + e


def _pick(choices: list[str], stream: np.random.Generator) -> str:
    return choices[stream.integers(len(choices))]


def family_of(problem: dict[str, Any]) -> str:
    """Names what a problem shares with those that say the same in other words: its numbers, in any order, and answer.

    A world redraws the wording of few sums, and who solves one wording mostly solves the others.
    """
    return f"{' '.join(sorted(NUMBER.findall(problem['question'])))} = {problem['ground_truth_answer']}"


def write_problems(
    world: str,
    module: str,
    stream: Callable[..., Iterator[dict[str, Any]]],
    arguments: list[str],
    *,
    named: bool = False,
) -> None:
    """The command of a world: writes some of its problems as a data set file.

    Args:
        world: its name.
        module: which the command line runs.
        stream: its `generate`.
        arguments: of the command line.
        named: whether it takes `extra_names`.

    Raises:
        UserError: a mistake in the arguments, or a place that cannot be written to.
    """
    parser = ArgumentParser(
        f"Write {world} problems as a data set file.",
        f"python -m {module} --split test --limit 50 --out data/{world.replace('-', '')}.json",
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="operands of which split")
    parser.add_argument("--limit", type=int, default=1000, help="number of problems")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other problems of the same split")
    if named:
        parser.add_argument("--names", type=int, default=0, help="invented names beside the usual: more words")
    parser.add_argument("--solutions", action="store_true", default=False, help="add a worked `answer` to each problem")
    parser.add_argument("--out", type=user_path, required=True, help="file to write")
    options = parser.parse_args(arguments)
    if options.limit < 1 or options.seed < 0:
        raise UserError("--limit, --seed", "at least 1, at least 0", f"{options.limit}, {options.seed}")
    if named:
        check_names(options.names)
        stream = partial(stream, extra_names=options.names)
    problems = list(itertools.islice(stream(options.split, options.seed), options.limit))
    for problem in problems:
        problem["family"] = family_of(problem)
        if not options.solutions:
            del problem["answer"]
    make_folder(options.out.parent)
    write_json_atomic(options.out, problems)
    logging.getLogger(__name__).info("%d %s problems: %s", len(problems), options.split, options.out)


def main(arguments: list[str]) -> None:
    """Writes TinyMath problems as a data set file."""
    write_problems("TinyMath", "t3d.toy.problems", generate, arguments, named=True)


if __name__ == "__main__":
    run_entry(main)
