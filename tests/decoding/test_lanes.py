import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from t3d.decoding import DecodingConfig, decode, iter_decode
from t3d.decoding.lanes import Lanes, make_lanes, num_weights, side_by_side
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
def test_lanes_and_threads_are_what_the_work_is_worth(build_tiny_model) -> None:
    teacher, large = load_decoder(TEACHER, "auto", torch.device("cpu")), build_tiny_model()
    assert [make_lanes(teacher, num, 4, num) for num in (1, 29, 30, 100)] == [
        Lanes([1], 1),
        Lanes([29], 1),
        Lanes([15, 15], 1),
        Lanes([50, 50], 1),
    ], "small products are never shared"
    large.config.hidden_size, large.config.intermediate_size = 1024, 3072
    assert [make_lanes(large, num, 4, num) for num in (1, 15, 16)] == [Lanes([1], 2), Lanes([15], 2), Lanes([8, 8], 1)]
    assert make_lanes(large, 16, 4, 1) == Lanes([16], 2), "the threads of lanes that have no room"
    assert make_lanes(large.to("meta"), 100, 4, 100) == Lanes([100], 2), "an accelerator has one engine"


def test_the_weights_that_count_are_those_of_the_layers(build_tiny_model) -> None:
    model = build_tiny_model()
    linears = [module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    assert num_weights(model.config) == sum(linear.weight.numel() for linear in linears)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("num_prompts", "max_active"), [(40, 16), (40, 23), (17, 64)])
def test_lanes_decode_what_one_engine_decodes(num_prompts: int, max_active: int, monkeypatch) -> None:
    model = load_decoder(TEACHER, "auto", torch.device("cpu"))
    prompts = [[1 + (7 * index + place) % 300 for place in range(index % 11)] for index in range(num_prompts)]
    config = DecodingConfig(model.config.mask_token_id, 4, 2, 14, temperature=0.7, record=("logprob",))
    monkeypatch.setattr("t3d.decoding.lanes.LANE_WORK", 1)
    num_threads = threading.active_count()
    together = decode(model, prompts, config, max_active)
    assert threading.active_count() == num_threads
    monkeypatch.undo()
    alone = decode(model, prompts, config, max_active)
    assert together == alone, "to the last bit of the recorded values"


@pytest.mark.usefixtures("two_threads")
def test_lanes_end_with_whoever_stops_listening(monkeypatch) -> None:
    monkeypatch.setattr("t3d.decoding.lanes.LANE_WORK", 1)
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
        for _ in side_by_side([count, fail], 1):
            pass
    assert threading.active_count() == num_threads
