"""Keys and values in pages: whatever the pages, sequences decode what they decode without them."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.gpu.by_hand import PAGED
from t3d.decoding import DecodingConfig, decode, iter_decode
from t3d.decoding import engine as engine_module
from t3d.decoding.cache import PagedCache
from t3d.decoding.memory import Capacity, fitting
from t3d.decoding.pages import PageTable, Paging
from t3d.decoding.plain import decode_plain
from t3d.decoding.runner import Runner
from t3d.decoding.schedule import advance, schedule
from t3d.decoding.slots import Request, Slots
from t3d.sdar import SDARForCausalLM
from t3d.sdar.decoding_layers import pack_layers
from t3d.trajectory import UNFINISHED
from tests.decoding.test_graphs import Tape

MASK, CPU = 47, torch.device("cpu")
LENGTHS = (30, 25, 6, 9, 12)
PROMPTS = [[(7 * length + 5 * place) % 46 for place in range(length)] for length in LENGTHS for _ in range(3)]
"""Three responses to each of five prompts."""


@pytest.fixture(scope="module")
def model(build_tiny_model) -> SDARForCausalLM:
    return build_tiny_model().double()


@pytest.fixture(scope="module")
def single(build_tiny_model) -> SDARForCausalLM:
    """In single precision and packed, as the scripts load it: its results do not depend on what runs beside."""
    packed = build_tiny_model()
    pack_layers(packed)
    return packed


def config(**changes) -> DecodingConfig:
    return replace(DecodingConfig(MASK, 4, 2, max_new_tokens=24, stop_ids=(3,)), **changes)


@pytest.fixture
def paged(monkeypatch) -> Callable[..., list[int]]:
    """Lets everything decode in pages of some size, no more than so many; the turns of those put back are told."""

    def use(size: int, pages: int | None = None, is_gathered: bool = True) -> list[int]:
        def few(*given, **named) -> Capacity:
            found = fitting(*given, **named)
            return found if pages is None else replace(found, pages=max(found.longest, pages))

        def counted(self, slot: int) -> Request:
            turns.append(int(self.table["turn"][slot]))
            assert turns[-1] == self.running["turn"].max(), "the last one that came"
            return put_back(self, slot)

        turns, put_back = list[int](), Slots.put_back
        monkeypatch.setattr(engine_module, "choose_paging", lambda kernel, wanted: Paging(size, is_gathered))
        monkeypatch.setattr(engine_module, "fitting", few)
        monkeypatch.setattr(Slots, "put_back", counted)
        return turns

    return use


@pytest.fixture
def tables(monkeypatch) -> list[PageTable]:
    """The page tables that are made, each with the most pages that were held at once."""
    made, take = list[PageTable](), PageTable.take

    def noted(self, slot: int, number: int):
        if self not in made:
            self.most_held = 0
            made.append(self)
        taken = take(self, slot, number)
        self.most_held = max(self.most_held, int((self.holders > 0).sum()))
        return taken

    monkeypatch.setattr(PageTable, "take", noted)
    return made


# The same results


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("size", "steps", "page"), [(4, 4, 8), (4, 2, 12), (8, 3, 8), (8, 2, 4)])
def test_pages_change_no_bit_in_single_precision(single, paged, tables, size, steps, page, temperature) -> None:
    settings = config(
        block_size=size, denoising_steps=steps, temperature=temperature, record=("logprob", "entropy"), seed=steps
    )
    expected = decode(single, PROMPTS, settings, max_active=12)
    assert not tables
    for pages in (None, 120 // page):
        turns = paged(page, pages)
        assert decode(single, PROMPTS, settings, max_active=12) == expected, "tokens, steps, forwards and records"
        assert bool(turns) == (pages is not None), "where there are few, sequences are put back"
    assert all(sorted(table.free) == list(range(1, len(table.holders))) for table in tables), "all are returned"


@pytest.mark.parametrize(
    ("size", "steps", "page", "pages"), [(1, 1, 8, 20), (3, 2, 8, 20), (16, 4, 8, 20), (4, 2, 256, 4)]
)
def test_blocks_need_not_fit_pages(model, paged, size: int, steps: int, page: int, pages: int) -> None:
    settings = config(block_size=size, denoising_steps=steps, temperature=0.7)
    expected = [decode_plain(model, prompt, settings, stream) for stream, prompt in enumerate(PROMPTS)]
    turns = paged(page, pages)
    assert decode(model, PROMPTS, settings, max_active=8) == expected
    assert bool(turns) == (page == 8)


def test_a_page_for_one_sequence_more_is_enough(model, paged, tables) -> None:
    """The least memory that is accepted: the longest sequence alone, and the others wait or go back."""
    settings = config()
    expected = decode(model, PROMPTS, settings)
    turns = paged(8, pages=1)
    assert decode(model, PROMPTS, settings) == expected
    assert [len(table.holders) - 1 for table in tables] == [7], "30 + 24 tokens"
    assert 0 not in turns, "the first one never goes back"


def test_mixtures_decode_in_pages(build_tiny_mixture, paged) -> None:
    mixture = build_tiny_mixture().double()
    expected = decode(mixture, PROMPTS, config(), max_active=6)
    assert paged(8, pages=15) is not None
    assert decode(mixture, PROMPTS, config(), max_active=6) == expected


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("pages", [None, 16])
def test_flash_attention_reads_pages_in_forwards_that_are_replayed_too(
    model, paged, monkeypatch, pages, recorded
) -> None:
    settings = config(temperature=0.7)
    expected = decode(model, PROMPTS, settings, max_active=6)
    tape = Tape() if recorded else None
    monkeypatch.setattr(engine_module, "choose_kernel", lambda model: PAGED)
    monkeypatch.setattr(engine_module, "are_recorded", lambda *given: recorded)
    monkeypatch.setattr(engine_module, "CudaGraphs", lambda device: tape)
    turns = paged(8, pages, is_gathered=False)
    assert decode(model, PROMPTS, settings, max_active=6) == expected
    assert bool(turns) == (pages is not None)
    assert tape is None or tape.replays > tape.recordings > 2


def test_pages_that_held_no_numbers_harm_nobody(build_tiny_model, paged) -> None:
    bad, settings = 40, config(max_new_tokens=10)
    model = build_tiny_model().double()
    with torch.no_grad():
        model.model.embed_tokens.weight[bad], model.lm_head.weight[bad] = torch.nan, 0
    prompts = [[token % bad for token in prompt] for prompt in PROMPTS]
    for prompt in prompts[::4]:
        prompt[2] = bad
    prompts[3] = prompts[4]  # two that share what is no number
    paged(8, pages=12)
    done = decode(model, prompts, settings, max_active=5)
    assert done == [decode_plain(model, prompt, settings, stream) for stream, prompt in enumerate(prompts)]
    assert {trajectory.error is None for trajectory in done} == {True, False}


def test_what_grows_block_by_block_is_told_once(model, paged) -> None:
    settings = config(stop_ids=())
    paged(8, pages=20)
    told: dict[int, list[int]] = {index: [] for index in range(len(PROMPTS))}
    for index, trajectory in iter_decode(model, PROMPTS, settings, max_active=8, by_block=True):
        if trajectory.finish_reason == UNFINISHED:
            told[index].append(len(trajectory.response_ids))
    for prompt, lengths in zip(PROMPTS, told.values(), strict=True):
        assert lengths == list(range(4 - len(prompt) % 4, 24, 4))


# Sharing


def test_the_responses_of_a_problem_share_its_pages_and_its_prefill(model, paged, tables, monkeypatch) -> None:
    """32 tokens in pages of 8: four shared, and each of six responses has two of its own at the end."""
    computed, run = [], Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, staged: computed.append(staged.ids.numel()) or run(self, staged))
    prompt, settings = [(5 * place) % 46 for place in range(32)], config(max_new_tokens=12, stop_ids=())
    paged(8)
    done = decode(model, [prompt] * 6, settings)
    assert tables[0].most_held == 4 + 6 * 2
    assert computed[0] == 32, "once"
    assert computed[1] == 6 * 4
    assert {trajectory.num_forwards for trajectory in done} == {1 + 6}, "each is told to have prefilled"
    decode(model, [[index, *prompt[1:]] for index in range(6)], settings)
    assert tables[1].most_held == 6 * 6


def test_a_partly_filled_page_is_not_shared(model, paged, tables) -> None:
    paged(8)
    decode(model, [[1] * 15] * 3, config(max_new_tokens=9, stop_ids=()))
    assert tables[0].most_held == 1 + 3 * 2


def slots_of(model: SDARForCausalLM, settings: DecodingConfig, pages: int, page: int, longest: int) -> Slots:
    cache = PagedCache(model.config, pages, page, 4, longest + 64, model.dtype, CPU)
    return Slots(model, settings, 4, longest, cache=cache)


def test_whoever_is_left_goes_on_prefilling_a_shared_prompt(build_tiny_model) -> None:
    model = build_tiny_model(max_position_embeddings=2048)
    slots, prompt = slots_of(model, config(), 200, 16, 1100), [5] * 1100
    for index in range(3):
        slots.add(index, prompt, stream=index)
    step = schedule(slots)
    assert (step.prefilling.tolist(), step.denoising.tolist()) == ([0], [])
    advance(slots, step.prefilling, step.denoising)
    assert slots.running["filled"].tolist() == [512] * 3
    gone = slots.put_back(0)
    assert (gone.index, gone.prompt, gone.stream) == (0, prompt, 0)
    spans = []
    while slots.running["filled"].min() < 1100:
        step = schedule(slots)
        runs = step.spans.slots, step.spans.starts, 4 * step.spans.counts
        spans.append(np.column_stack(runs).tolist())
        advance(slots, step.prefilling, step.denoising)
    # 1,088 tokens fill 68 pages; the last twelve are each sequence's own.
    assert spans == [[[0, 512, 512]], [[0, 1024, 76]], [[0, 1100, 4], [1, 1088, 12]]]


# Waiting


def test_a_prompt_waits_until_it_leaves_pages_to_those_that_run(model) -> None:
    """Of twelve pages the first two prompts take ten; with a third, none would be left."""
    slots = slots_of(model, config(), 12, 8, 40)
    first, second, third = (Request(index, [index] * length, index) for index, length in enumerate((36, 36, 12)))
    waiting = deque([first, second, third])
    assert slots.fill(waiting).keys() == {0, 1}
    assert list(waiting) == [third]
    slots.remove(0, poisoned=False)
    assert slots.fill(waiting).keys() == {2}


def test_a_sequence_that_was_put_back_is_first_in_line(model, paged, monkeypatch) -> None:
    admitted, add = [], Slots.add
    monkeypatch.setattr(Slots, "add", lambda self, index, *given: admitted.append(index) or add(self, index, *given))
    paged(8, pages=11)
    settings = config(stop_ids=())
    decode(model, [[index] * 8 for index in range(6)], settings, max_active=3)
    again = [place for place, index in enumerate(admitted) if index in admitted[:place]]
    assert again
    for place in again:
        assert max(admitted[:place]) <= admitted[place] + 1, "nobody who came later was let in before it"


# How many


def test_processes_in_step_agree_on_pages_too(model, paged) -> None:
    asked: list[int] = []
    paged(8, pages=60)
    done = dict(iter_decode(model, PROMPTS, config(), 8, agree=lambda number: asked.append(number) or number - 3))
    assert asked == [8, 60]
    assert [done[index] for index in range(len(PROMPTS))] == decode(model, PROMPTS, config(), 5)


def test_half_of_the_pages_go_on_when_memory_runs_out(model, paged, tables, monkeypatch) -> None:
    expected, calls, run = decode(model, PROMPTS, config()), [], Runner.run

    def full(self, staged):
        calls.append(None)
        if len(calls) == 9:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(self, staged)

    monkeypatch.setattr(Runner, "run", full)
    paged(8, pages=60)
    assert decode(model, PROMPTS, config(), max_active=12) == expected
    assert [(len(table.rows), len(table.holders) - 1) for table in tables] == [(12, 60), (6, 30)]


@pytest.mark.parametrize(("pages", "lanes"), [(40, [20, 20]), (13, [13])])
def test_lanes_share_pages_or_are_one(single, paged, tables, pages: int, lanes: list[int], monkeypatch) -> None:
    """Each must hold the longest sequence, of seven pages."""
    monkeypatch.setattr("t3d.decoding.lanes.LANE_WORK", 1)
    expected, before = decode(single, PROMPTS * 2, config(), max_active=20), torch.get_num_threads()
    paged(8, pages)
    torch.set_num_threads(2)
    try:
        assert decode(single, PROMPTS * 2, config(), max_active=20) == expected
    finally:
        torch.set_num_threads(before)
    assert [len(table.holders) - 1 for table in tables] == lanes


def test_capacity_is_divided() -> None:
    whole = Capacity(10, Paging(8), 45, longest=9)
    assert whole.part(5) == Capacity(5, Paging(8), 22, 9)
    assert whole.part(1) == Capacity(1, Paging(8), 9, 9)
    assert Capacity(10).part(4) == Capacity(4)
