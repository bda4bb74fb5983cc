"""Means over seeds and problems, with the uncertainty that both bring, and differences paired by both.

Every problem is answered by the student of every seed: a table of seeds x problems.  With S seeds, P problems, and
mean squares MS of the two-way analysis of variance without interaction, the mean's variances are

    over seeds     MS_seeds / (S P), the variance of the seeds' means over S
    over problems  MS_problems / (S P), that of the problems' means over P
    over both      (MS_seeds + MS_problems - MS_rest) / (S P), at least the larger of these two

The first says what another set of seeds would change on the same problems, the second what other problems would change
for the same students, the last what both would change.  A difference of two rows is such a table too, of differences
by problem and seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""Student's t at 97.5 % for 1 to 20 degrees of freedom."""
NORMAL_975 = 1.960
FEWEST_SEEDS = 3
"""Two seeds are often alike by chance, and the interval then as narrow as if seeds never differed."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and problems, in the unit of the values.

    Attributes:
        mean: over all.
        over_problems: its standard error by the problems.
        over_seeds: by the seeds; None with one seed.
        total: by both; None with one seed.
        low: lower end of the 95 % interval, by both; with one seed, by the problems alone.
        high: upper end.
        seeds: number of seeds.
        problems: number of problems.
    """

    mean: float
    over_problems: float
    over_seeds: float | None
    total: float | None
    low: float
    high: float
    seeds: int
    problems: int

    @property
    def stderr(self) -> float:
        """By both or, with one seed, by the problems alone."""
        return self.over_problems if self.total is None else self.total

    @property
    def is_clear(self) -> bool:
        """Whether 0 is outside the 95 % interval, and that of enough seeds."""
        return (self.low > 0 or self.high < 0) and self.seeds >= FEWEST_SEEDS


def estimate(values: np.ndarray) -> Estimate:
    """The mean of a table of seeds x problems; a problem without a value for some seed (nan) is left out.

    Raises:
        ValueError: fewer than two problems are left.
    """
    values = values[:, ~np.isnan(values).any(axis=0)]
    seeds, problems = values.shape
    if problems < 2:
        raise ValueError("fewer than two problems with a value for every seed")
    mean = float(values.mean())
    of_problems, of_seeds = values.mean(axis=0), values.mean(axis=1)
    by_problems = float(of_problems.var(ddof=1)) / problems
    if seeds == 1:
        error = math.sqrt(by_problems)
        reach = NORMAL_975 * error
        return Estimate(mean, error, None, None, mean - reach, mean + reach, seeds, problems)
    by_seeds = float(of_seeds.var(ddof=1)) / seeds
    rest = values - of_problems[None, :] - of_seeds[:, None] + mean
    by_rest = float((rest**2).sum()) / ((seeds - 1) * (problems - 1)) / (seeds * problems)
    total = max(by_seeds + by_problems - by_rest, by_seeds, by_problems)
    reach = _quantile(total, by_seeds, by_problems, by_rest, values.shape) * math.sqrt(total)
    errors = math.sqrt(by_problems), math.sqrt(by_seeds), math.sqrt(total)
    return Estimate(mean, *errors, mean - reach, mean + reach, seeds, problems)


def paired(a: np.ndarray, b: np.ndarray) -> Estimate:
    """The difference b - a of two tables of the same problems, paired by seed as well where both have the same seeds.

    A table of one seed (the teacher's) is compared with every seed of the other.
    """
    return estimate(b - a)


def table(graded: Sequence[str]) -> np.ndarray:
    """Seeds x problems from a string for each seed: 1 right, 0 wrong, anything else nan."""
    known = {"0": 0.0, "1": 1.0}
    return np.array([[known.get(grade, math.nan) for grade in each] for each in graded])


def _quantile(total: float, by_seeds: float, by_problems: float, by_rest: float, shape: tuple[int, ...]) -> float:
    """Student's t at 97.5 % for `total`, a sum of the others, by Satterthwaite's degrees of freedom."""
    seeds, problems = shape
    spread = by_seeds**2 / (seeds - 1) + by_problems**2 / (problems - 1) + by_rest**2 / ((seeds - 1) * (problems - 1))
    freedom = total**2 / spread if spread else math.inf
    if freedom < len(T_975) + 1:
        return T_975[max(int(freedom), 1) - 1]
    return NORMAL_975 + 2.372 / freedom + 2.82 / freedom**2  # Cornish and Fisher's expansion: 2.079 at 21
