"""Means over seeds and problems, with the uncertainty that both bring, and differences paired by both.

Every problem is answered by the student of every seed: a table of seeds x problems.  Problems come in families (the
same numbers in other words, say) whose outcomes go together, so that the families count and not the problems.  With S
seeds, F families and P problems, and deviations e of problems' means from the mean, f of seeds' means, and r what is
left of a value, the mean's variances are those of a two-way analysis of variance, summed by family:

    over seeds     sum of f^2 / (S (S - 1)), what another set of seeds would change on the same problems
    over problems  F / (F - 1) sum over families of (sum of e)^2 / P^2, what other families would change for the same
                   students
    over both      the sum of these, less S / (S - 1) F / (F - 1) sum over seeds and families of (sum of r)^2 / (S P)^2,
                   which both hold; at least the larger of the two

Where each problem is a family of its own, these are the textbook's mean squares.  A difference of two rows is such a
table too, of differences by problem and seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

FEWEST_SEEDS = 3
"""Two seeds are often alike by chance, and the interval then as narrow as if seeds never differed."""
MOST_FREEDOM = 1e5
"""Degrees of freedom from which on Student's distribution is the normal one, to four digits."""

Families = NDArray[np.int64]
"""The family of each problem, a number from 0."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and problems, in the unit of the values.

    Attributes:
        mean: over all.
        over_problems: its standard error by the problems' families.
        over_seeds: by the seeds; None with one seed.
        total: by both; None with one seed.
        freedom: degrees of freedom of `stderr`, by Satterthwaite.
        seeds: number of seeds.
        problems: number of problems.
    """

    mean: float
    over_problems: float
    over_seeds: float | None
    total: float | None
    freedom: float
    seeds: int
    problems: int

    @property
    def stderr(self) -> float:
        """By both or, with one seed, by the problems alone."""
        return self.over_problems if self.total is None else self.total

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval, by both; with one seed, by the problems alone."""
        return self.mean - quantile(self.freedom) * self.stderr

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + quantile(self.freedom) * self.stderr

    @property
    def is_clear(self) -> bool:
        """Whether 0 is outside the 95 % interval, and that of enough seeds."""
        return (self.low > 0 or self.high < 0) and self.seeds >= FEWEST_SEEDS

    @property
    def p_value(self) -> float:
        """Probability of a mean so far from 0, either way, if 0 were the truth."""
        if not self.stderr:
            return float(not self.mean)
        return 1 - within(abs(self.mean) / self.stderr, self.freedom)


def estimate(values: np.ndarray, families: Families | None = None) -> Estimate:
    """The mean of a table of seeds x problems; a problem without a value for some seed (nan) is left out.

    Args:
        values: the table.
        families: of the problems; None: each is its own.

    Raises:
        ValueError: fewer than two families are left.
    """
    known = ~np.isnan(values).any(axis=0)
    values, families = values[:, known], np.arange(len(known))[known] if families is None else families[known]
    _, families = np.unique(families, return_inverse=True)
    (seeds, problems), number = values.shape, int(families.max(initial=-1)) + 1
    if number < 2:
        raise ValueError("fewer than two families of problems with a value for every seed")

    def by_family(rows: np.ndarray) -> np.ndarray:
        return np.array([np.bincount(families, row, number) for row in rows])

    mean = float(values.mean())
    of_problems, of_seeds = values.mean(axis=0), values.mean(axis=1)
    few = number / (number - 1)
    by_problems = few * float((by_family(of_problems[None] - mean) ** 2).sum()) / problems**2
    if seeds == 1:
        return Estimate(mean, math.sqrt(by_problems), None, None, number - 1, seeds, problems)
    by_seeds = float(of_seeds.var(ddof=1)) / seeds
    rest = values - of_problems[None, :] - of_seeds[:, None] + mean
    by_rest = seeds / (seeds - 1) * few * float((by_family(rest) ** 2).sum()) / (seeds * problems) ** 2
    total = max(by_seeds + by_problems - by_rest, by_seeds, by_problems)
    freedom = _freedom(total, by_seeds, by_problems, by_rest, seeds, number)
    errors = math.sqrt(by_problems), math.sqrt(by_seeds), math.sqrt(total)
    return Estimate(mean, *errors, freedom, seeds, problems)


def paired(a: np.ndarray, b: np.ndarray, families: Families | None = None) -> Estimate:
    """The difference b - a of two tables of the same problems, paired by seed as well where both have the same seeds.

    A table of one seed (the teacher's) is compared with every seed of the other.
    """
    return estimate(b - a, families)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for their number: what is below 0.05 now is so with 95 % for all of them together."""
    corrected, most = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        most = max(most, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = most
    return corrected


def table(graded: Sequence[str]) -> np.ndarray:
    """Seeds x problems from a string for each seed: 1 right, 0 wrong, anything else nan."""
    known = {"0": 0.0, "1": 1.0}
    return np.array([[known.get(grade, math.nan) for grade in each] for each in graded])


def quantile(freedom: float) -> float:
    """Student's t at 97.5 %."""
    angles, masses = _student(freedom)
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, masses, angles)))


def within(distance: float, freedom: float) -> float:
    """The probability that Student's t is no further from 0."""
    angles, masses = _student(freedom)
    return float(np.interp(math.atan(distance / math.sqrt(freedom)), angles, masses))


@cache
def _student(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles a, and the probability that |t| <= sqrt(freedom) tan(a): the density in a is cos(a)^(freedom - 1)."""
    reach = min(math.pi / 2, 40 / math.sqrt(freedom))  # what lies beyond is nothing
    angles = np.linspace(0, reach, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    masses = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return angles, masses / masses[-1]


def _freedom(total: float, by_seeds: float, by_problems: float, by_rest: float, seeds: int, families: int) -> float:
    """Degrees of freedom of `total`, a sum of the others, by Satterthwaite."""
    spread = by_seeds**2 / (seeds - 1) + by_problems**2 / (families - 1) + by_rest**2 / ((seeds - 1) * (families - 1))
    return min(max(total**2 / spread, 1.0), MOST_FREEDOM) if spread else MOST_FREEDOM
