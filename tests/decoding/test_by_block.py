"""Responses that are told of block by block while they are decoded."""

import pytest
import torch

from t3d.decoding import DecodingConfig, decode, iter_decode
from t3d.decoding.runner import Runner
from t3d.trajectory import UNFINISHED

PROMPTS = [[1, 2, 3], [4, 5, 6, 7], [], [9] * 21]


def config(**changes) -> DecodingConfig:
    fields = {"mask_id": 47, "block_size": 4, "denoising_steps": 2, "max_new_tokens": 14, "temperature": 0.9}
    return DecodingConfig(**(fields | {"stop_ids": (5, 6, 7)} | changes))


@pytest.mark.parametrize("changes", [{}, {"end_early": False}, {"temperature": 0.0, "stop_ids": ()}])
def test_what_grows_is_what_is_decoded_whole_blocks_at_a_time(tiny_model, changes):
    settings = config(record=("logprob",), **changes)
    whole = decode(tiny_model, PROMPTS, settings)
    grown: dict[int, list] = {index: [] for index in range(len(PROMPTS))}
    for index, trajectory in iter_decode(tiny_model, PROMPTS, settings, by_block=True):
        grown[index].append(trajectory)
    assert any(len(parts) > 2 for parts in grown.values())
    for index, (*parts, last) in grown.items():
        prompt_length = len(PROMPTS[index])
        assert last == whole[index]
        for number, part in enumerate(parts, 1):
            assert part.finish_reason == UNFINISHED
            known = number * 4 - prompt_length % 4
            assert part.response_ids == last.response_ids[:known]
            assert part.step_map == last.step_map[:known]
            assert part.logprobs == last.logprobs[:known]
            assert part.num_steps == max(part.step_map)
        assert len(parts) == (prompt_length % 4 + len(last.response_ids) - 1) // 4  # all blocks but the last


def test_without_asking_nothing_unfinished_is_told(tiny_model):
    found = [trajectory for _, trajectory in iter_decode(tiny_model, PROMPTS, config())]
    assert UNFINISHED not in {trajectory.finish_reason for trajectory in found}


def test_where_memory_runs_out_sequences_begin_anew_and_end_the_same(tiny_model, monkeypatch):
    whole, calls = decode(tiny_model, PROMPTS, config()), []

    def forward(self, *arguments):
        calls.append(None)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *arguments)

    original = Runner.run
    monkeypatch.setattr(Runner, "run", forward)
    found = list(iter_decode(tiny_model, PROMPTS, config(), by_block=True))
    ended = {index: trajectory for index, trajectory in found if trajectory.finish_reason != UNFINISHED}
    assert [ended[index] for index in range(len(PROMPTS))] == whole
