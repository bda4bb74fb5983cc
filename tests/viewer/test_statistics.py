import numpy as np
import pytest

from t3d.trajectory import Trajectory
from t3d.viewer.source import Response, Source
from t3d.viewer.statistics import agreement, reveal_order, steps_in_block


def trajectory(ids, steps, prompt=3):
    return Trajectory(list(range(prompt)), ids, steps, "stop", 9, max(steps))


def source(*trajectories, size=4):
    made = [
        Response(f"p{n}", 0, 0, None, one, [], [], None, None, None, None, None) for n, one in enumerate(trajectories)
    ]
    return Source("s", [], size, made)


def test_steps_count_from_the_first_of_their_block():
    blocks, steps = steps_in_block(trajectory([9] * 6, [1, 3, 2, 3, 5, 6]), 4)
    assert blocks.tolist() == [0, 1, 1, 1, 1, 2]  # the prompt's three tokens share the first block
    assert steps.tolist() == [1, 2, 1, 2, 4, 1]


def test_reveal_order_by_hand():
    order = reveal_order(source(trajectory([9] * 5, [1, 3, 2, 3, 4])))
    assert order.tokens == 5
    assert order.steps == 4
    expected = np.zeros((4, 4))
    expected[3, 0] = 0.5  # the first token, in the prompt's block, at its first step
    expected[3, 2] = 0.5
    expected[0, 1] = expected[1, 0] = expected[2, 1] = 1
    np.testing.assert_allclose(order.by_place, expected)
    assert order.per_step.tolist() == [3, 1, 0, 0]
    assert order.left_to_right == pytest.approx(4 / 5)  # all but the one of step 2, whose left neighbour was hidden


def test_agreement_by_hand():
    first = source(trajectory([1, 2, 3, 4, 5], [1, 3, 2, 3, 4]), trajectory([7, 7], [1, 2]))
    second = source(trajectory([1, 2, 8, 4], [1, 2, 2, 2]), trajectory([7, 7], [1, 2]))
    compared = agreement(first, second)
    assert compared.pairs == 2
    assert compared.same_share == 0.5
    assert compared.first_difference == 2
    # Steps in their blocks: 1, 2, 1, 2, 3 of the first; 1, 1 of the second response.
    np.testing.assert_allclose(compared.by_step, [3 / 4, 1, 0, np.nan])
    assert compared.by_step_count.tolist() == [4, 2, 1, 0]


def test_a_response_that_goes_on_differs_at_its_end():
    compared = agreement(source(trajectory([1, 2, 3], [1, 2, 3])), source(trajectory([1, 2], [1, 2])))
    assert compared.first_difference == 2
    assert agreement(source(trajectory([1], [1])), source(trajectory([1, 2], [1, 2]))).first_difference == 1
