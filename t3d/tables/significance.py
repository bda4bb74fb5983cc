"""Whether two models differ on the same problems: paired tests, and the paper's improvement."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

EXACT_WORK = 50_000_000
"""Largest number of additions for an exact p-value; beyond it the normal approximation is far inside its range."""

Graded = Mapping[str, Sequence[bool]]
"""Grades of the responses to each problem."""
Families = Mapping[str, str]
"""Problem -> what it counts with; a problem that is not in it counts by itself."""


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same problems.

    Attributes:
        acc_a: mean over problems of the share of right responses of the first model.
        acc_b: the same of the second.
        units: families of problems that were compared.
        stderr: standard error of acc_b - acc_a, from the differences per family.
        p_value: two-sided.
        exact: whether `p_value` is exact or the normal approximation.
    """

    acc_a: float
    acc_b: float
    units: int
    stderr: float
    p_value: float
    exact: bool


class Part(NamedTuple):
    """What a family adds to a mean of accuracies, and what it would add if all it asks were solved."""

    value: float
    weight: float


def paired_test(a: Graded, b: Graded, families: Families | None = None) -> PairedTest:
    """Tests whether two models are equally good at the problems that both answered.

    The test flips signs: were the models equal, the difference of their shares of right responses at a problem
    would be as likely to be d as -d, independently of other problems.  The p-value is the share of the 2**n
    sign patterns whose sum is at least as far from 0 as the observed one.  With one response per problem the
    differences are -1, 0 and 1, the sum's distribution is binomial, and this is McNemar's exact test.  With
    several, a problem stays one unit however many responses it has: they are not independent.  Nor are the problems
    of a family, whose differences are added up and flip together.

    Raises:
        ValueError: no problem in common.
    """
    common = [problem for problem in a if problem in b]
    if not common:
        raise ValueError("no problem in common")
    scale = math.lcm(*(len(graded[problem]) for graded in (a, b) for problem in common))
    shares = [[sum(graded[problem]) * scale // len(graded[problem]) for problem in common] for graded in (a, b)]
    differences = [second - first for first, second in zip(*shares, strict=True)]
    units = [(families or {}).get(problem, problem) for problem in common]
    sizes = Counter(units)
    sums = dict.fromkeys(sizes, 0)
    for unit, difference in zip(units, differences, strict=True):
        sums[unit] += difference
    divisor = math.gcd(*sums.values()) or 1
    steps = [total // divisor for total in sums.values()]
    squares = sum((len(common) * step - sum(steps) * sizes[unit]) ** 2 for unit, step in zip(sums, steps, strict=True))
    exact = len(steps) * sum(map(abs, steps)) <= EXACT_WORK
    return PairedTest(
        acc_a=sum(shares[0]) / scale / len(common),
        acc_b=sum(shares[1]) / scale / len(common),
        units=len(sums),
        stderr=math.sqrt(squares) / len(common) ** 2 * (divisor / scale),
        p_value=exact_p(steps) if exact else normal_p(steps),
        exact=exact,
    )


def exact_p(differences: Sequence[int]) -> float:
    """Share of sign patterns whose sum is at least as far from 0 as that of `differences`."""
    sizes = [abs(difference) for difference in differences if difference]
    span, observed = sum(sizes), abs(sum(differences))
    shares = np.zeros(2 * span + 1)  # of the sums -span..span
    shares[span] = 1.0
    for size in sizes:
        shares = (np.roll(shares, size) + np.roll(shares, -size)) / 2
    sums = np.abs(np.arange(-span, span + 1))
    return min(1.0, float(shares[sums >= observed].sum()))


def normal_p(differences: Sequence[float]) -> float:
    """`exact_p` for any number of real differences, by the normal distribution of the same variance."""
    spread = math.sqrt(math.fsum(difference**2 for difference in differences))
    return math.erfc(abs(math.fsum(differences)) / spread / math.sqrt(2)) if spread else 1.0


def shares_of_mean(columns: Sequence[tuple[str, Graded, Families]]) -> dict[tuple[str, str], Part]:
    """What each problem, or family of problems, adds to the mean of several accuracies: the values sum to that mean.

    What several columns ask (at different block sizes, say) is one unit of a test.

    Args:
        columns: data set, grades and families of each accuracy.

    Returns:
        (data set, problem or family) -> its part of the mean.
    """
    parts: dict[tuple[str, str], Part] = {}
    for dataset, graded, families in columns:
        weight = 1 / len(graded) / len(columns) if graded else 0.0
        for problem, grades in graded.items():
            unit = dataset, families.get(problem, problem)
            value, before = parts.get(unit, Part(0.0, 0.0))
            parts[unit] = Part(value + weight * sum(grades) / len(grades), before + weight)
    return parts


def mean_stderr(parts: Mapping[tuple[str, str], Part]) -> float:
    """Standard error of the mean that `parts` (see `shares_of_mean`) sum to: problems are drawn per data set."""
    variance = 0.0
    for dataset in {dataset for dataset, _ in parts}:
        own = [part for (name, _), part in parts.items() if name == dataset]
        mean = math.fsum(part.value for part in own) / math.fsum(part.weight for part in own)
        variance += math.fsum((part.value - mean * part.weight) ** 2 for part in own)
    return math.sqrt(variance)


def improvement(value: float, baseline: float) -> float | None:
    """The paper's improvement: change in % of the baseline (Table 1); None where the baseline is 0."""
    return 100 * (value - baseline) / baseline if baseline else None
