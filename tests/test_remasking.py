import numpy as np
import pytest

from t3d.remasking import STRATEGIES, BlockScores, step_quota


def choose(
    strategy: str,
    masked: list[int],
    confidence: list[float],
    quota: int = 1,
    entropy: list[float] | None = None,
    threshold: float = 0.9,
    bound: float = 0.35,
) -> list[int]:
    """Offsets revealed in one block; the same block under another row's numbers must not matter."""
    row = np.array([masked, masked], dtype=np.bool_)
    values = np.array([confidence, confidence[::-1]], dtype=np.float32)
    spread = np.array([entropy or [1.0] * len(masked)] * 2, dtype=np.float32)
    revealed = STRATEGIES[strategy](BlockScores(row, values, spread, np.array([quota, quota]), threshold, bound))
    return np.flatnonzero(revealed[0]).tolist()


@pytest.mark.parametrize(
    ("size", "steps", "expected"),
    [
        (4, 4, [1, 1, 1, 1]),
        (4, 1, [4]),
        (8, 3, [3, 3, 2]),
        (7, 4, [2, 2, 2, 1]),
        (32, 5, [7, 7, 6, 6, 6]),
        (1, 1, [1]),
    ],
)
def test_the_remainder_of_the_quota_falls_on_the_first_steps(size: int, steps: int, expected: list[int]) -> None:
    assert step_quota(np.arange(steps), size, steps).tolist() == expected


def test_static_reveals_the_most_confident_masked() -> None:
    assert choose("low_confidence_static", [1, 1, 1, 1], [0.1, 0.9, 0.3, 0.5], 2) == [1, 3]
    assert choose("low_confidence_static", [1, 0, 1, 1], [0.1, 0.9, 0.3, 0.5], 2) == [2, 3]
    assert choose("low_confidence_static", [1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5], 2) == [0, 1], "of equals the leftmost"


def test_static_never_picks_a_revealed_position_when_masks_run_out() -> None:
    assert choose("low_confidence_static", [0, 0, 1, 0], [0.9, 0.9, 0.1, 0.9], 1) == [2]
    assert choose("low_confidence_static", [0, 0, 1, 0], [0.9, 0.9, 0.0, 0.9], 4) == [2]
    assert choose("sequential", [0, 0, 1, 0], [0.9, 0.9, 0.0, 0.9], 4) == [2]


def test_dynamic_reveals_all_above_the_threshold_and_at_least_the_quota() -> None:
    confidence = [0.95, 0.2, 0.91, 0.9]
    assert choose("low_confidence_dynamic", [1, 1, 1, 1], confidence) == [0, 2], "0.9 is not above 0.9"
    assert choose("low_confidence_dynamic", [0, 1, 0, 1], confidence) == [3]
    assert choose("low_confidence_dynamic", [1, 1, 1, 1], confidence, quota=3) == [0, 2, 3]
    assert choose("low_confidence_dynamic", [1, 1, 1, 1], confidence, threshold=0.1) == [0, 1, 2, 3]


def test_sequential_reveals_the_leftmost_masked() -> None:
    assert choose("sequential", [0, 1, 0, 1], [0.9, 0.1, 0.9, 0.8]) == [1]
    assert choose("sequential", [0, 1, 1, 1], [0.9, 0.1, 0.9, 0.8], 2) == [1, 2]


def test_entropy_bounded_fills_up_to_the_bound_and_reveals_at_least_one() -> None:
    entropies = [0.3, 0.1, 0.2, 0.01]
    assert choose("entropy_bounded", [1, 1, 1, 1], [0.5] * 4, entropy=entropies) == [1, 2, 3], ".01 + .1 + .2 <= .35"
    assert choose("entropy_bounded", [1, 1, 1, 1], [0.5] * 4, entropy=entropies, bound=0.3) == [1, 3]
    assert choose("entropy_bounded", [1, 1, 1, 0], [0.5] * 4, entropy=entropies, bound=0.0) == [1]
    assert choose("entropy_bounded", [1, 0, 0, 0], [0.5] * 4, entropy=[9.0, 0, 0, 0]) == [0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_at_different_phases_are_chosen_independently(strategy: str) -> None:
    generator = np.random.default_rng(0)
    masked = generator.random((40, 6)) < 0.6
    masked[:, 0] = True
    confidence, entropy = generator.random((2, 40, 6), dtype=np.float32)
    quota = np.minimum(np.arange(40) % 3 + 1, masked.sum(-1))
    together = STRATEGIES[strategy](BlockScores(masked, confidence, entropy, quota, 0.8, 0.5))
    assert not (together & ~masked).any()
    assert together.any(-1).all()
    for row in range(40):
        one = slice(row, row + 1)
        scores = BlockScores(masked[one], confidence[one], entropy[one], quota[one], 0.8, 0.5)
        assert np.array_equal(STRATEGIES[strategy](scores), together[one])
