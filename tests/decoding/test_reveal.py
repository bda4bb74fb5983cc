"""When a response is decided: the two named steps, worked by hand."""

import numpy as np
import pytest

from t3d.decoding import DecodingConfig
from t3d.decoding.reveal import find_ends, is_decided
from t3d.decoding.slots import Slots

STOP = 3


def flags(text: str) -> np.ndarray:
    return np.array([[letter == "x" for letter in text]])


@pytest.mark.parametrize(
    ("left", "is_end", "early", "whole"),
    [
        ("....", "....", False, False),  # nothing ends
        ("....", "..x.", True, True),
        ("...x", "..x.", True, False),  # only what is behind the end is masked
        ("x...", "..x.", False, False),  # it may still become a stop token
        ("..x.", "..x.", False, False),  # the end itself is masked: the limit
        ("..x.", ".x.x", True, False),  # the first of two ends counts
        ("...x", "....", False, False),
    ],
)
def test_a_block_ends_its_response_once_all_up_to_an_end_is_revealed(left, is_end, early: bool, whole: bool) -> None:
    assert is_decided(flags(left), flags(is_end), end_early=True).tolist() == [early]
    assert is_decided(flags(left), flags(is_end), end_early=False).tolist() == [whole]


def test_a_response_ends_at_a_stop_token_of_its_own_or_at_its_limit(tiny_model) -> None:
    slots = Slots(tiny_model, DecodingConfig(47, 4, 4, max_new_tokens=5, stop_ids=(STOP,)), 1, 6)
    slots.columns["ids"][0, :12] = [1, STOP, 1, 1, 1, STOP, STOP, 1, 1, 1, STOP, 1]
    # The prompt is the first six: its stop tokens end nothing.
    for start, expected in ((4, [False, False, True, False]), (8, [False, False, True, False])):
        positions = np.arange(start, start + 4)[None]
        assert find_ends(slots, positions - 6, slots.columns["ids"][0][positions]).tolist() == [expected], start
