"""Padded and replayed forwards: all but CUDA's own recording, which a CPU has not."""

import logging
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from bench.gpu.by_hand import KERNEL
from t3d.config import RolloutConfig
from t3d.decoding import DecodingConfig, decode
from t3d.decoding import engine as engine_module
from t3d.decoding import graphs as graphs_module
from t3d.decoding.buckets import Buffers, padded_size
from t3d.decoding.cache import SlotCache, padded_keys
from t3d.decoding.draws import Draws
from t3d.decoding.graphs import SIGHTINGS, CudaGraphs, GraphRunner, are_recorded
from t3d.decoding.memory import decoding_memory
from t3d.decoding.plan import Spans
from t3d.decoding.runner import Runner
from t3d.decoding.schedule import schedule
from t3d.decoding.slots import Slots
from t3d.decoding.stage import stage
from t3d.errors import ConfigError
from t3d.parcel import FixedBuffer
from t3d.sdar import SDARForCausalLM, mixture

MASK, CPU = 47, torch.device("cpu")
PROMPTS = [[5, 9, 1, 4, 4, 8, 2], [7], [1, 2, 3, 4], [6] * 13, [8] * 9, [], [2] * 22]


@pytest.fixture(scope="module")
def model(build_tiny_model) -> SDARForCausalLM:
    return build_tiny_model().double()


def config(**changes) -> DecodingConfig:
    return replace(DecodingConfig(MASK, 4, 4, max_new_tokens=19, stop_ids=(3, 17)), **changes)


class Tape:
    """Records as CUDA does, as far as a CPU can: a replay runs the forward that was recorded, over what stands in
    its buffers now, and its results lie where they lay."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, work):
        self.recordings += 1
        kept = deepcopy(work())

        def replay() -> Draws:
            self.replays += 1
            for old, new in zip(vars(kept).values(), vars(work()).values(), strict=True):
                if old is not None:
                    old.copy_(new)
            return kept

        return replay


@pytest.fixture
def recorded(monkeypatch):
    """Lets engines record with what is given, over attention of fixed shapes."""

    def use(record) -> None:
        monkeypatch.setattr(engine_module, "choose_kernel", lambda model: KERNEL)
        monkeypatch.setattr(engine_module, "are_recorded", lambda *given: record is not None)
        monkeypatch.setattr(engine_module, "CudaGraphs", lambda device: record)

    return use


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("strategy", ["low_confidence_static", "entropy_bounded", "low_confidence_dynamic"])
def test_replayed_forwards_decode_what_forwards_decode(model, recorded, strategy: str, temperature: float) -> None:
    settings = config(
        temperature=temperature, remasking_strategy=strategy, dynamic_threshold=0.2, record=("logprob", "entropy")
    )
    recorded(None)
    expected = decode(model, PROMPTS * 2, settings, max_active=5)
    tape = Tape()
    recorded(tape)
    found = decode(model, PROMPTS * 2, settings, max_active=5)
    assert tape.replays > tape.recordings > 2
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.response_ids, ours.step_map, ours.finish_reason, ours.num_steps, ours.num_forwards) == (
            theirs.response_ids,
            theirs.step_map,
            theirs.finish_reason,
            theirs.num_steps,
            theirs.num_forwards,
        )
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-6)
        assert ours.entropies == pytest.approx(theirs.entropies, abs=1e-6)


def test_only_buckets_that_were_seen_before_are_replayed_and_each_is_recorded_once(model, recorded, monkeypatch):
    buckets, forward = [], GraphRunner.forward

    def noted(self, staged):
        buckets.append((staged.bucket, self.known.get(staged.bucket) and self.known[staged.bucket].is_trusted))
        return forward(self, staged)

    monkeypatch.setattr(GraphRunner, "forward", noted)
    tape = Tape()
    recorded(tape)
    decode(model, PROMPTS, config(), max_active=3)
    seen: dict = {}
    for bucket, trusted in buckets:
        before = seen.get(bucket, 0)
        assert bool(trusted) == (bucket is not None and before > SIGHTINGS)
        seen[bucket] = before + 1
    assert tape.recordings == sum(number >= SIGHTINGS for bucket, number in seen.items() if bucket is not None)
    assert {bucket.rows for bucket in seen if bucket is not None} <= {1, 2, 4, 8, 16}


def test_a_recording_that_took_a_value_of_the_host_is_found_out(model, recorded, caplog) -> None:
    recorded(None)
    expected = decode(model, PROMPTS, config())

    def baked(work):
        draws = deepcopy(work())
        return lambda: draws

    recorded(baked)
    assert decode(model, PROMPTS, config()) == expected
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "decoding without CUDA graphs: a recorded forward computes something else; rollout.cuda_graphs=false starts "
        "without them"
    ]


def test_a_forward_that_cannot_be_recorded_is_a_logged_fallback_without_padding(
    model, recorded, caplog, monkeypatch
) -> None:
    recorded(None)
    expected, padded, run = decode(model, PROMPTS, config()), [], Runner.run

    def noted(self, staged):
        padded.append(staged.bucket is not None)
        return run(self, staged)

    def broken(work):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Runner, "run", noted)
    monkeypatch.setattr(graphs_module, "_UNRECORDABLE", set())
    recorded(broken)
    assert decode(model, PROMPTS, config()) == expected
    assert any(padded)
    assert not any(padded[-10:])
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "decoding without CUDA graphs: a forward cannot be recorded: CUDA error: operation not permitted when stream "
        "is capturing; rollout.cuda_graphs=false starts without them"
    ]
    # And nothing in this process tries again.
    assert CPU in graphs_module._UNRECORDABLE
    graphs_module._UNRECORDABLE.add(torch.device("cuda"))
    for wanted in (None, True):
        assert not are_recorded(torch.device("cuda"), torch.bfloat16, KERNEL, model.config, wanted)


def test_not_a_number_fails_its_own_response_in_a_replay_too(model, recorded, monkeypatch) -> None:
    recorded(Tape())
    before = decode(model, PROMPTS, config())
    used = {token for done in before for token in done.response_ids} | {token for prompt in PROMPTS for token in prompt}
    token = next(token for token in range(MASK) if token not in used)
    with torch.no_grad():
        weights = model.model.embed_tokens.weight
        kept, weights[token] = weights[token].clone(), torch.nan
        *after, broken = decode(model, [*PROMPTS, [token, 5]], config(), max_active=8)
        weights[token] = kept
    assert after == before
    assert broken.error == "logits that are not finite at denoising step 1"


# Padding


def test_sizes_are_few_and_waste_little() -> None:
    sizes = [padded_size(number) for number in range(1, 2000)]
    assert sorted(set(sizes))[:12] == [1, 2, 4, 8, 16, 32, 40, 48, 56, 64, 80, 96]
    assert len(set(sizes)) == 30
    for number, size in enumerate(sizes, start=1):
        assert number <= size
        assert size < 2 * number
        assert number <= 32 or size - number < size / 5
        assert padded_size(size) == size


def test_padding_writes_to_the_spare_slot_alone_and_draws_behind_the_rest(model) -> None:
    settings = config(temperature=0.7)
    drawn, caches = [], []
    for padded in (False, True):
        slots = Slots(model, settings, 3, 20, num_spare=1)
        for index in range(3):
            slots.add(index, [[5, 9, 1, 4, 4, 8, 2], [7], [6] * 13][index], stream=index)
            slots.table["filled"][index] = slots.table["whole"][index]
        with torch.inference_mode():
            staged = stage(schedule(slots), slots, KERNEL, Buffers(CPU, spare=3) if padded else None)
            runner = Runner(model, settings, KERNEL)
            drawn.append(runner.run(staged))
        assert staged.ids.shape == (1, 16 if padded else 12)
        assert (len(staged.rows), staged.num_rows) == (8 if padded else 7, 7)
        assert (staged.bucket is not None) == padded
        caches.append(slots.cache)
    assert torch.equal(drawn[0].tokens, drawn[1].tokens)
    assert torch.equal(caches[0].keys[:, :3], caches[1].keys[:, :3])
    assert not caches[0].keys[:, 3].any()
    assert caches[1].keys[:, 3, :4].any()
    assert not caches[1].keys[:, 3, 4:].any()


def test_padded_spans_end_with_first_blocks_of_the_spare_slot() -> None:
    spans = Spans(np.array([0, 2]), np.array([8, 4]), np.array([1, 2]), 4).padded(5, spare=7)
    assert spans.slots.tolist() == [0, 2, 7, 7]
    assert spans.positions.tolist() == [8, 9, 10, 11, *range(4, 12), *range(4), *range(4)]
    assert spans.places(100)[-8:].tolist() == [700, 701, 702, 703] * 2


def test_what_is_sent_again_lies_where_it_lay() -> None:
    buffer = FixedBuffer(CPU)
    first = buffer.send([np.arange(3), np.ones(2, dtype=np.float32)])
    second = buffer.send([np.arange(3) + 5, np.zeros(2, dtype=np.float32)])
    assert [tensor.data_ptr() for tensor in first] == [tensor.data_ptr() for tensor in second]
    assert [tensor.tolist() for tensor in first] == [[5, 6, 7], [0, 0]]
    with pytest.raises(RuntimeError, match="size"):
        buffer.send([np.arange(30)])


# Where


def test_graphs_are_for_cuda_with_attention_of_fixed_shapes(model) -> None:
    cuda = torch.device("cuda")
    given = (torch.bfloat16, KERNEL, model.config)
    assert are_recorded(cuda, *given, None)
    assert not are_recorded(CPU, *given, None)
    assert not are_recorded(cuda, torch.bfloat16, replace(KERNEL, is_fixed=False), model.config, None)
    assert not are_recorded(cuda, *given, False)
    with pytest.raises(ConfigError, match=r"^rollout.cuda_graphs: expected null or false on cpu with torch's scaled"):
        decode(model, PROMPTS, config(), graphs=True)


@pytest.mark.parametrize(
    ("level", "stacked", "dtype", "possible"),
    [
        ((8, 0), True, torch.bfloat16, False),
        ((9, 0), True, torch.bfloat16, True),
        ((9, 0), False, torch.bfloat16, False),
        ((9, 0), True, torch.float16, False),
        ((10, 3), True, torch.bfloat16, torch.__version__ >= "2.9"),
        ((11, 0), True, torch.bfloat16, False),
        ((12, 0), True, torch.bfloat16, False),
    ],
)
def test_experts_are_recorded_where_nothing_asks_for_their_rows(monkeypatch, level, stacked, dtype, possible) -> None:
    monkeypatch.setattr(mixture, "capability", lambda device: level)
    monkeypatch.setattr(mixture, "STACKED", stacked)
    cuda, config = torch.device("cuda"), mixture.SDARMoeConfig()
    assert are_recorded(cuda, dtype, KERNEL, config, None) == possible
    if not possible:
        with pytest.raises(ConfigError, match=r"rollout.cuda_graphs.* and sdar_moe"):
            are_recorded(cuda, dtype, KERNEL, config, True)


def test_a_divided_model_records_nothing() -> None:
    with pytest.raises(ConfigError, match=r"rollout.cuda_graphs.*divided"):
        RolloutConfig(cuda_graphs=True, tensor_parallel_size=2)


def test_room_is_kept_for_what_recordings_read_and_write(model) -> None:
    counted = [decoding_memory(model.config, model.dtype, config(), 20, CPU, recorded) for recorded in (False, True)]
    slot = SlotCache.slot_bytes(model.config, padded_keys(40), model.dtype)
    assert counted[1].shared == int(2.75 * counted[0].shared) + slot
    assert counted[0].per_slot < counted[1].per_slot < 4.5 * counted[0].per_slot


@pytest.fixture
def streams(monkeypatch) -> list[object]:
    """CUDA's recording as far as it can be told here: the streams that are entered, the current one last."""
    entered: list[object] = ["default"]

    @contextmanager
    def stream(other):
        entered.append(other)
        try:
            yield
        finally:
            entered.append(entered[0])

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: object())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Mock)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: entered[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return entered


def test_all_recordings_are_made_on_one_stream_in_one_pool(monkeypatch, streams) -> None:
    """Of another stream, torch's allocator would give each its own memory."""
    asked = []
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **given: asked.append(given) or nullcontext())
    record = CudaGraphs(torch.device("cuda"))
    for _ in range(3):
        record(lambda: "draws")
    assert len({(given["stream"], given["pool"]) for given in asked}) == 1
    assert len(asked) == 3


def test_a_recording_that_fails_goes_back_to_the_stream_before(monkeypatch, streams) -> None:
    """torch's does not: where the recording cannot be ended, it stays on its own stream."""

    @contextmanager
    def graph(graph, *, stream, **given):
        streams.append(stream)
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    ended = Mock(side_effect=RuntimeError("not allocating to this pool"))  # as it is where torch has ended it
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", ended, raising=False)
    record = CudaGraphs(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="previous error"):
        record(lambda: "draws")
    assert record.stream in streams
    assert streams[-1] == "default"
    ended.assert_called_once_with(0, record.pool)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_records_and_replays(build_tiny_model, recorded) -> None:
    cuda = torch.device("cuda")
    model = build_tiny_model().double().to(cuda)
    recorded(None)
    expected = decode(model, PROMPTS, config())
    recorded(CudaGraphs(cuda))
    assert decode(model, PROMPTS, config()) == expected
