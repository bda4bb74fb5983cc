"""The memory estimate against real steps of small networks on a CPU.

They have as many key heads as query heads: for fewer, PyTorch's CPU kernel keeps its scores, which no GPU's does.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from t3d.config import TrainConfig, load_config
from t3d.errors import CheckpointError
from t3d.sdar import SDARConfig, SDARForCausalLM, SDARMoeConfig
from t3d.sdar.attention import TrainingTokens, training_mask
from t3d.sdar.backend import masked_attention
from t3d.training.attention import PackedPlan
from t3d.training.forward import batch_losses
from t3d.training.lora import add_adapter
from t3d.training.loss import LossSettings
from t3d.training.memory import (
    GIB,
    RESERVE,
    SHAPES,
    MemoryConfig,
    batch_size,
    estimate,
    estimate_fsdp2,
    num_parameters,
    recommended,
    shapes_asked,
    table,
)
from t3d.training.packing import collate
from t3d.training.reference import frozen_copy, trained
from t3d.training.settings import loss_settings
from t3d.training.states import StateSettings, TrainingSample, draw_state, sample_stream
from tests import launching

ROOT = Path(__file__).parents[2]
PROMPT, RESPONSE = 96, 256
SHAPE = {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations touched and nobody has dropped yet."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.most = 0
        """Bytes of all that was seen and not yet looked at again: at least those of what lives."""
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        if self.most > self.peak:
            self.peak = max(self.peak, self.now())
        return result

    def count(self, tensor: torch.Tensor) -> None:
        reference, size = StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()
        self.most += size - self.seen.get(reference.cdata, (reference, 0))[1]
        self.seen[reference.cdata] = reference, size

    def now(self) -> int:
        self.seen = {place: entry for place, entry in self.seen.items() if not entry[0].expired()}
        self.most = sum(size for _, size in self.seen.values())
        return self.most


def second_micro_batch(
    student: SDARForCausalLM, reference: nn.Module | None, batch: Any, settings: LossSettings, autocast: bool = False
) -> Live:
    """Counts through two micro-batches, the first of which makes the gradients; the peak is the second's."""
    with Live() as live:
        for network in (student, reference):
            for weight in network.parameters() if network else ():
                live.count(weight)
        for _ in range(2):
            live.peak = 0
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = batch_losses(student, reference, batch, settings)["loss/total"].sum()
            loss.backward()
    return live


def tiny(**changes: Any) -> SDARConfig:
    special = {"block_size": 8, "mask_token_id": 1, "bos_token_id": None, "eos_token_id": None}
    kind = SDARMoeConfig if "num_experts" in changes else SDARConfig
    return kind(**(SHAPE | HEADS | special | {"tie_word_embeddings": False} | changes))


def config(objective: str = "t3d", precision: str = "no", recompute: int = False) -> TrainConfig:
    """`recompute` is whether activations are recomputed, or if it is above 1 in how many layers."""
    made = TrainConfig()
    made.training.objective, made.training.mixed_precision = objective, precision
    made.training.gradient_checkpointing_enable = bool(recompute)
    made.training.checkpoint_layers = recompute if recompute > 1 else None
    made.training.max_prompt_len, made.training.max_gen_length = PROMPT, RESPONSE
    return made


def make_batch() -> Any:
    """One sample as long as the limits allow, all of its response masked."""
    settings = StateSettings("trace", (8,), 1, 0, 4096)
    drawn = np.random.default_rng(0).integers(2, 4096, PROMPT + RESPONSE).tolist()
    sample = TrainingSample(drawn[:PROMPT], drawn[PROMPT:], list(range(1, RESPONSE + 1)), ended=True)
    return collate([draw_state(sample, settings, sample_stream(0, 0, 0))], 0, torch.device("cpu"))


class FusedPlan(PackedPlan):
    """One call of a kernel that keeps its inputs, its output and a number per query, as on a GPU."""

    def __init__(self, tokens: TrainingTokens, lengths: Any, device: torch.device, longest: int = 0) -> None:
        self.mask = training_mask(tokens, tokens)[None, None]

    def attend(self, layer: int, query: Any, key: Any, value: Any, scale: float) -> torch.Tensor:
        return masked_attention(query, key, value, self.mask, scale).transpose(1, 2)


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    monkeypatch.setattr("t3d.training.packing.plan_of", lambda device: FusedPlan)


EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


@pytest.mark.parametrize("objective", ["t3d", "exact", "td"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 12, "vocab_size": 512},
        {"hidden_size": 256, "head_dim": 96},
        EXPERTS,
    ],
    ids=["base", "deep", "wide", "experts"],
)
def test_states_are_exact_and_a_steps_peak_is_within_a_quarter(
    build_tiny_model, build_tiny_mixture, changes, recompute, objective
):
    made, shape = config("t3d" if objective == "exact" else objective, recompute=recompute), tiny(**changes)
    if objective == "exact":
        made.training.fake_expectation, made.training.reference_temp = "exact", 1.0
    expected = estimate(made, shape, stage=0, num_gpus=1)
    build = build_tiny_mixture if "num_experts" in changes else build_tiny_model
    student = build(**(SHAPE | HEADS | {"mask_token_id": 1} | changes)).train()
    reference = frozen_copy(student) if objective != "td" else None
    if recompute:
        student.recompute_activations()
    optimizer = torch.optim.AdamW(student.parameters(), fused=True)  # as on CUDA
    settings, batch = loss_settings(made.training), make_batch()
    models = [parameter for model in (student, reference) if model for parameter in model.parameters()]
    if changes.get("vocab_size"):
        batch.input_ids.remainder_(512)
        batch.targets.remainder_(512)
    with Live() as live:
        for parameter in models:
            live.count(parameter)
        for _ in range(2):  # the first step makes Adam's moments
            for _ in range(2):  # the first micro-batch makes the gradients
                live.peak = 0
                batch_losses(student, reference, batch, settings)["loss/total"].sum().backward()
            before_update, live.peak = live.peak, 0
            optimizer.step()
            updating = live.peak
            optimizer.zero_grad()
    assert sum(tensor.nbytes for tensor in models) == expected.weights + expected.reference
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert sum(tensor.nbytes for tensor in moments) == expected.optimizer
    assert sum(tensor.nbytes for tensor in student.parameters()) == expected.gradients
    assert before_update - expected.state == pytest.approx(expected.activations + expected.backward, rel=0.25)
    assert updating == pytest.approx(expected.state + expected.update, rel=0.1)


@pytest.mark.parametrize("recompute", [2, 4, 5])
def test_a_step_that_recomputes_some_layers_is_within_15_percent(build_tiny_model, recompute):
    changes = {"num_hidden_layers": 5, "vocab_size": 512}
    made = config("td", recompute=recompute)
    expected = estimate(made, tiny(**changes), stage=0, num_gpus=1)
    student = build_tiny_model(**(SHAPE | HEADS | {"mask_token_id": 1} | changes)).train()
    student.recompute_activations(recompute)
    settings, batch = loss_settings(made.training), make_batch()
    batch.input_ids.remainder_(512)
    batch.targets.remainder_(512)
    live = second_micro_batch(student, None, batch, settings)
    state = expected.weights + expected.gradients
    assert live.peak - state == pytest.approx(expected.activations + expected.backward, rel=0.15)


@pytest.mark.parametrize("objective", ["t3d", "td"])
@pytest.mark.parametrize("changes", [{"vocab_size": 16384}, {"vocab_size": 16384, "hidden_size": 256}], ids=str)
def test_a_step_of_several_head_chunks_is_within_15_percent(build_tiny_model, monkeypatch, changes, objective):
    for module in ("forward", "memory"):
        monkeypatch.setattr(f"t3d.training.{module}.CHUNK_BYTES", 4 << 20)
    expected = estimate(config(objective, recompute=True), tiny(**changes), stage=0, num_gpus=1)
    student = build_tiny_model(**(SHAPE | HEADS | {"mask_token_id": 1} | changes)).train()
    reference = frozen_copy(student) if objective == "t3d" else None
    student.recompute_activations()
    settings, batch = loss_settings(config(objective).training), make_batch()
    live = second_micro_batch(student, reference, batch, settings)
    state = expected.weights + expected.gradients + expected.reference
    assert live.peak - state == pytest.approx(expected.activations + expected.backward, rel=0.15)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_bf16_networks_peak_is_within_a_quarter(build_tiny_model, recompute):
    """As under DeepSpeed, where the network itself is kept in bf16."""
    expected = estimate(config("td", "bf16", recompute), tiny(), stage=1, num_gpus=1)
    student = build_tiny_model(**(SHAPE | HEADS | {"mask_token_id": 1})).bfloat16().train()
    if recompute:
        student.recompute_activations()
    settings, batch = loss_settings(config("td").training), make_batch()
    live = second_micro_batch(student, None, batch, settings)
    state = expected.weights + expected.gradients
    assert live.now() == pytest.approx(state, rel=0.01)
    assert live.peak - state == pytest.approx(expected.activations + expected.backward, rel=0.25)


CHUNKED = {"vocab_size": 16_384, "hidden_size": 256, "num_hidden_layers": 2}


@pytest.mark.parametrize("rows", [8, 32, 10_000], ids=["many-chunks", "chunks", "one-chunk"])
@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize("kept", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("objective", ["td", "t3d"])
def test_a_steps_peak_with_a_large_head_is_within_15_percent(
    build_tiny_model, monkeypatch, objective, kept, tied, rows
):
    """The head's gradient leads: several chunks' are added up, and a tied head's waits for the layers."""
    for place in ("forward", "memory"):
        monkeypatch.setattr(f"t3d.training.{place}.CHUNK_BYTES", 4 * rows * 16_384)
    made, shape = config(objective, "no" if kept == "fp32" else "bf16"), tiny(**CHUNKED, tie_word_embeddings=tied)
    stage = 1 if kept == "bf16" else 0
    expected = estimate(made, shape, stage, num_gpus=1)
    changes = SHAPE | HEADS | CHUNKED | {"mask_token_id": 1, "tie_word_embeddings": tied}
    student = build_tiny_model(**changes).train()
    if kept == "bf16":
        student.bfloat16()
    reference = frozen_copy(student) if objective == "t3d" else None
    settings, batch = loss_settings(made.training), make_batch()
    live = second_micro_batch(student, reference, batch, settings, autocast=kept == "autocast")
    # Without what no backward pass has: the optimizer's states, and autocast's casts of weights, which are gone then.
    casts = 2 * num_parameters(shape) if kept == "autocast" else 0
    state = expected.state - expected.optimizer - casts
    assert live.now() == pytest.approx(state, rel=0.02)
    assert live.peak - state == pytest.approx(expected.activations + expected.backward, rel=0.15)


def test_scaled_updates_need_memory_of_their_own():
    """There AdamW is not one kernel: see `t3d.training.optimizer`."""
    count = num_parameters(tiny())
    assert estimate(config(precision="fp16"), tiny(), 0, 1).update == 4 * count
    assert estimate(config(precision="bf16"), tiny(), 0, 1).update == 0
    assert estimate(config(precision="fp16"), tiny(), 2, 4).update == count


def test_single_precision_sums_travel_whole_in_the_networks_precision_under_zero_1():
    """DeepSpeed keeps them as one tensor, and casts all of it before it is summed over the GPUs."""
    config, shape = TrainConfig(), SDARConfig(**SHAPES["SDAR-1.7B-Chat"])
    config.training.grad_accum_dtype = "float32"
    count, found = num_parameters(shape), {num: estimate(config, shape, 1, num) for num in (1, 2, 8)}
    assert {num: one.update / count for num, one in found.items()} == {1: 4, 2: 2, 8: 2}
    config.training.grad_accum_dtype = "auto"
    assert estimate(config, shape, 1, 8).update == count / 2


def test_the_masks_of_a_row_are_counted():
    """A measured 10 bytes per pair of tokens, which only a long pack makes the largest thing."""
    long, short = config(), config()
    long.training.tokens_per_batch = 60_000
    assert estimate(long, tiny(), 2, 8).masks == 10 * 60_000**2
    assert estimate(long, tiny(), 2, 8).total == estimate(long, tiny(), 2, 8).state + 10 * 60_000**2
    assert estimate(short, tiny(), 2, 8).masks == 10 * (96 + 2 * 256 + 16) ** 2


def test_the_copy_that_validates_is_counted_where_it_is_the_largest_thing():
    """Between steps there is no other; without validation there is none."""
    made, shape = config(), tiny(vocab_size=200_000, hidden_size=1024)
    before = estimate(made, shape, 3, 64)
    assert before.validation == 0
    made.training.meter_every = 10
    assert estimate(made, shape, 3, 64).validation > 4 * num_parameters(shape)
    made.training.meter_every, made.validation.every, made.training.max_gen_length = 0, 10, 1
    short = estimate(made, shape, 3, 64)
    made.training.max_gen_length = 100_000
    long = estimate(made, shape, 3, 64)
    assert 4 * num_parameters(shape) < short.validation < long.validation
    assert long.total >= long.state + long.validation
    shape.dtype = torch.bfloat16
    assert long.validation - estimate(made, shape, 3, 64).validation > 2 * num_parameters(shape)


def test_a_sharded_reference_is_a_gpus_share_under_zero_3():
    made = config(precision="bf16")
    sharded = estimate(made, tiny(), 3, 8)
    made.training.shard_reference = False
    assert sharded.reference * 8 == estimate(made, tiny(), 3, 8).reference == estimate(made, tiny(), 2, 8).reference


def test_the_table_recommends_the_lowest_stage_that_leaves_a_tenth():
    path = ROOT / "configs/t3d.yaml"
    made = load_config(MemoryConfig, [f"config={path}"], "", "")
    shape = SDARConfig(**SHAPES["SDAR-4B-Chat"])
    small, large = recommended(made, shape)
    assert small.endswith("1: none, 2: none, 4: ZeRO-3, 8: ZeRO-1")
    assert large.endswith("1: none, 2: ZeRO-1, 4: ZeRO-1, 8: ZeRO-1")
    lower, chosen = (estimate(made, shape, stage, 4).total / GIB + 1.5 for stage in (2, 3))
    assert chosen <= 36 < lower < 40
    assert estimate(made, shape, 1, 8).total / GIB + 1.5 <= 36


SUMS = [(1, "bfloat16"), (1, "float32"), (2, "bfloat16"), (2, "float32"), (3, "bfloat16"), (3, "float32")]
"""ZeRO's stage, and the precision that micro-batches are summed in."""

DEEPSPEED = """
import gc, json, os, sys, time
import deepspeed, deepspeed.ops
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
import torch
from t3d.sdar import SDARConfig, SDARForCausalLM

def on_cpu(tensor):
    try:
        return tensor.device.type == "cpu"
    except RuntimeError:  # torch 2.8 keeps one that has no data
        return False

def alive():
    time.sleep(0.3)  # gloo's threads hold what they have sent for a moment after the wait for it has ended
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor) and on_cpu(item)]
    tensors += [item.grad for item in tensors if item.is_leaf and item.grad is not None]  # Python need not know of them
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}

deepspeed.init_distributed("gloo", verbose=False)
found = []
for stage, dtype in json.loads(sys.argv[2]):
    before = alive()
    student = SDARForCausalLM(SDARConfig(**json.loads(sys.argv[1])))
    zero = {"stage": stage, "reduce_bucket_size": 500_000, "stage3_param_persistence_threshold": 0}
    settings = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, "bf16": {"enabled": True}}
    settings |= {"zero_optimization": zero, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    settings |= {"data_types": {"grad_accum_dtype": {"float32": "fp32", "bfloat16": "bf16"}[dtype]}}
    engine, *_ = deepspeed.initialize(model=student, optimizer=torch.optim.AdamW(student.parameters()), config=settings)
    del student
    for _ in range(3):  # an update, and the first micro-batch after it
        engine.backward(engine(torch.zeros(1, 8, dtype=torch.long)).logits.float().sum())
        engine.step()
    found.append(sum(size for place, size in alive().items() if place not in before and size != 1_000_000))
    engine.destroy()
    del engine
if os.environ["RANK"] == "0":
    print("FOUND", json.dumps(found))
"""


@pytest.mark.slow
def test_zeros_states_are_those_of_two_deepspeed_processes(tmp_path):
    (tmp_path / "script.py").write_text(DEEPSPEED)
    command = [str(tmp_path / "script.py"), json.dumps(tiny().to_dict()), json.dumps(SUMS)]
    first, second = launching.launch(2, command)
    assert first.returncode == second.returncode == 0, first.stderr[-3000:] + second.stderr[-3000:]
    found = json.loads(first.stdout.partition("FOUND ")[2].splitlines()[0])
    for (stage, dtype), size in zip(SUMS, found, strict=True):
        made = config("td", "bf16")
        made.training.grad_accum_dtype = dtype
        assert size == pytest.approx(estimate(made, tiny(), stage, num_gpus=2).state, rel=0.01), (stage, dtype)


def test_the_papers_models_have_their_parameters():
    counts = {name: num_parameters(SDARConfig(**fields)) / 1e6 for name, fields in SHAPES.items()}
    assert counts == pytest.approx({"SDAR-1.7B-Chat": 2031.7, "SDAR-4B-Chat": 4411.4}, abs=0.1)


def test_the_papers_launch_fits_where_the_paper_ran_it():
    """4B, ZeRO-1, eight GPUs of 40 GB (section 5.1); on one GPU no stage can help."""
    path = ROOT / "configs/t3d.yaml"
    made = load_config(MemoryConfig, [f"config={path}", "num_gpus=8"], "", "")
    shape = {"SDAR-4B-Chat": SDARConfig(**SHAPES["SDAR-4B-Chat"])}
    lines = [line.split() for line in table(made, shape)]
    [eight] = [line for line in lines if line[:2] == ["1", "8"]]
    assert eight[-2:] == ["fits", "fits"]
    assert float(eight[2]) == pytest.approx(2 * 4.411e9 / GIB, abs=0.1)
    made.num_gpus = 1
    [one] = [line for line in (line.split() for line in table(made, shape)) if line[:2] == ["3", "1"]]
    assert one[-6:] == ["does", "not", "fit"] * 2


def test_fsdp2_holds_a_part_of_everything_and_embeddings_and_head_whole():
    layer, root = 4 * 128 * 128 + 3 * 128 * 384 + 2 * (128 + 32), 2 * 4096 * 128 + 128
    count, made = root + 6 * layer, config(precision="bf16")
    found = estimate_fsdp2(made, tiny(), 4)
    assert (found.weights, found.gradients, found.optimizer, found.reference) == (count, count, 2 * count, count / 2)
    assert found.buffers == 4 * root + 10 * layer
    assert found.update == found.buffers + 6 * root
    assert estimate_fsdp2(config("td", "bf16"), tiny(), 4).buffers == found.buffers - 2 * root
    made.training.shard_reference = False
    whole = estimate_fsdp2(made, tiny(), 4)
    assert (whole.reference, whole.buffers) == (2 * count, found.buffers - 2 * root)


def test_the_table_has_fsdp2_where_it_trains():
    made = load_config(MemoryConfig, [f"config={ROOT / 'configs/t3d.yaml'}"], "", "")
    labels = [line.split()[:2] for line in table(made, {"tiny": tiny()})]
    assert [label for label in labels if label[:1] == ["FSDP2"]] == [["FSDP2", n] for n in ("2", "4", "8")]
    made.model.lora_rank = 4
    assert not any("FSDP2" in line for line in table(made, {"tiny": tiny()}))


def test_batches_are_as_long_as_the_configuration_allows():
    made = config()
    made.training.block_size, made.training.batch_size_lm = 8, 3
    assert batch_size(made) == (3 * (96 + 2 * 256 + 16), 3 * (256 + 16))
    made.training.tokens_per_batch = 10_000
    assert batch_size(made)[0] == 10_000
    made.training.tokens_per_batch = 10
    assert batch_size(made)[0] == 96 + 2 * 256 + 16, "one sample is never split"


def test_a_configured_model_is_read_from_its_folder_and_an_unknown_one_is_an_error(checkpoint):
    assert list(shapes_asked("JetLM/SDAR-4B-Chat")) == list(SHAPES)
    assert list(shapes_asked(str(checkpoint))) == [str(checkpoint), *SHAPES]
    with pytest.raises(CheckpointError, match=r"a model folder .*or a hub id"):
        shapes_asked("nowhere")


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_an_adapters_states_are_exact_and_a_steps_peak_is_within_a_quarter(build_tiny_model, recompute, precision):
    """Frozen weights in what is computed in, the adapter in single precision, two of them and one set of the rest."""
    made = config("t3d", precision, recompute)
    made.model.pretrained_model, made.model.lora_rank = "base", 8
    expected = estimate(made, tiny(), stage=0, num_gpus=1)
    student = build_tiny_model(**(SHAPE | HEADS | {"mask_token_id": 1})).train()
    add_adapter(student, made.model)
    if precision == "bf16":
        for weight in student.parameters():
            weight.data = weight.data if weight.requires_grad else weight.data.bfloat16()
    reference = frozen_copy(student)
    if recompute:
        student.recompute_activations()
    optimizer = torch.optim.AdamW(trained(student).values(), foreach=True)
    weights = {id(weight): weight for network in (student, reference) for weight in network.parameters()}
    settings, batch = loss_settings(made.training), make_batch()
    with Live() as live:
        for weight in weights.values():
            live.count(weight)
        for _ in range(2):
            live.peak = 0
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                losses = batch_losses(student, reference, batch, settings)["loss/total"].sum()
            losses.backward()
        peak = live.peak
        optimizer.step()
    own = sum(weight.nbytes for weight in weights.values())
    casts = 2 * sum(weight.numel() for weight in trained(student).values()) if precision == "bf16" else 0
    assert own == expected.weights + expected.reference - casts
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert sum(tensor.nbytes for tensor in moments) == expected.optimizer
    state = expected.state - expected.optimizer
    assert peak - state == pytest.approx(expected.activations + expected.backward, rel=0.25)


@pytest.mark.parametrize("name", SHAPES)
def test_an_adapter_of_the_papers_models_trains_on_a_card_of_24_gb(name):
    made = load_config(MemoryConfig, [f"config={ROOT / 'configs/t3d_lora.yaml'}"], "", "")
    shape = SDARConfig(**SHAPES[name])
    assert estimate(made, shape, stage=0, num_gpus=1).total + RESERVE < 0.9 * 24e9
    made.model.lora_rank = 0
    assert estimate(made, shape, stage=0, num_gpus=1).total > 24e9
