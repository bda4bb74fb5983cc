import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from t3d.decoding import DecodingConfig, decode, iter_decode
from t3d.decoding.lanes import PER_LANE, num_lanes, side_by_side
from t3d.sdar.checkpoint import load_decoder

TEACHER = Path(__file__).parents[2] / "t3d/toy/teacher"


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2, "as it was found"
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_lane_per_thread_where_there_are_enough_sequences_for_it() -> None:
    cpu = torch.device("cpu")
    assert [num_lanes(cpu, num) for num in (1, 2 * PER_LANE - 1, 2 * PER_LANE, 100)] == [1, 1, 2, 2]
    assert num_lanes(torch.device("cuda"), 100) == 1


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("num_prompts", "max_active"), [(40, 16), (40, 23), (17, 64)])
def test_lanes_decode_what_one_engine_decodes(num_prompts: int, max_active: int) -> None:
    model = load_decoder(TEACHER, "auto", torch.device("cpu"))
    prompts = [[1 + (7 * index + place) % 300 for place in range(index % 11)] for index in range(num_prompts)]
    config = DecodingConfig(model.config.mask_token_id, 4, 2, 14, temperature=0.7, record=("logprob",))
    num_threads = threading.active_count()
    together = decode(model, prompts, config, max_active)
    assert threading.active_count() == num_threads
    torch.set_num_threads(1)
    alone = decode(model, prompts, config, max_active)
    torch.set_num_threads(2)
    assert together == alone, "to the last bit of the recorded values"


@pytest.mark.usefixtures("two_threads")
def test_lanes_end_with_whoever_stops_listening() -> None:
    model = load_decoder(TEACHER, "auto", torch.device("cpu"))
    num_threads = threading.active_count()
    results = iter_decode(model, [[1, 2, 3]] * 40, DecodingConfig(model.config.mask_token_id, max_new_tokens=8), 16)
    next(results)
    results.close()
    assert threading.active_count() == num_threads


@pytest.mark.usefixtures("two_threads")
def test_the_error_of_a_lane_is_raised_and_ends_the_others() -> None:
    def count() -> Iterator[list[int]]:
        while True:
            yield []

    def fail() -> Iterator[list[int]]:
        yield [-1]
        raise RuntimeError("no memory")

    num_threads = threading.active_count()
    with pytest.raises(RuntimeError, match="no memory"):
        for _ in side_by_side([count, fail]):
            pass
    assert threading.active_count() == num_threads
