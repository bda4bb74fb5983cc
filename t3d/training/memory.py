"""Memory that training takes on each GPU, estimated before anything is rented.

python -m t3d.training.memory config=configs/t3d.yaml num_gpus=8

With P parameters, N GPUs, ZeRO stage s, c bytes per number that the network computes in (2 for bf16, 4 for fp32) and a
bytes per number that micro-batches are summed in (`training.grad_accum_dtype`):

    weights     c P         s = 3: c P / N
    gradients   c P         s >= 2: a P / N; s = 1 with a > c: also a P, the sums beside the last micro-batch's
    optimizer   12 P / N    fp32 master copy and Adam's two moments (4 P each)
    reference   c P         if the objective compares with one; c P / N if sharded (`training.shard_reference`)
    buffers     5e8 c       reduce_bucket_size; s = 3: also up to 1e9 gathered parameters (stage3_max_live_parameters)
    update      4 P / N     while the optimizer steps: fp32 gradients of the partition; or, s = 1 with a > c and N > 1,
                            c P: the cast in which all sums travel at once

and without DeepSpeed (s = 0; one process or DDP), where the network's own weights are the master copy:

    weights     4 P + c P   and the casts that autocast keeps (none for fp32)
    gradients   4 P
    optimizer   8 P
    reference   4 P
    buffers     4 P         N > 1: DDP's gradient buckets
    update      0           AdamW is one kernel; 4 P with fp16, for its denominators

Where an adapter of A parameters is trained (`model.lora_rank`), A takes the place of P in every line, and the frozen
weights are c P beside them (at s = 0 too: published checkpoints are stored in bf16, and stay so).  The backward pass
holds no gradient of head or embeddings.  Activations are counted as the network's without the adapter: its layers keep
the inputs that the network's would; what dropout keeps (`model.lora_dropout`) is left out.

With FSDP2 the network's own weights are the precise ones, in parts.  Embeddings and head, of R parameters, are whole
from a forward to the end of its backward pass, the reference's always; layers, of K, are two at a time:

    weights     4 P / N
    gradients   4 P / N
    optimizer   8 P / N
    reference   c P / N     or c P if each GPU holds all of it
    buffers     c R, c R for a sharded reference, 2 c K for layers, and (c + 4) K for a layer's gradient and its sum
    update      (4 + c) R   the gradient of embeddings and head and its sum, behind the layers' backward passes; and
                            the buffers beside them

The states are those of Rajbhandari et al., "ZeRO" (arXiv:1910.02054, section 3.1: 2 P + 2 P + 12 P); the buffers are
DeepSpeed's defaults for `zero_optimization`.

Activations are not a formula: one and two layers of the network run on fake tensors, which have shapes and no memory,
and what autograd keeps for the backward pass is counted.  With L bytes kept per layer and H per layer's input, n
layers keep n L, or r H + (n - r) L if the first r are recomputed (`gradient_checkpointing_enable`,
`checkpoint_layers`).  On top of that the backward pass works on one thing at a time, and the largest counts:

    a layer     L / 2 for the gradients of its activations, or 5 L / 4 with the activations if they are recomputed, by
                when what the n - r others kept is gone
    the head    a chunk of logits, at most `CHUNK_BYTES`, of which about `HEAD_TENSORS` live together; with several
                chunks, beside the gradient of the head's weight, W, which all of them are added into
    embeddings  their gradient; if the head is tied to them its own waits for it, and is added into a third

Neither coincides with the update, nor with the masks of a row of T tokens, which flex_attention makes from 10 T^2 bytes
(`MASK_BYTES`) before the forward pass.

Validation and meter (`validation.every`, `training.meter_every`) come between steps: a copy of the weights in the
precision of the checkpoint's files (of the products where those are not known), and one sequence that decodes; as many
are decoded together as fit.

Attention is counted as a fused kernel keeps it; the tiles that a CPU computes keep up to a quarter more.
CUDA's context, NCCL and fragmentation are a flat `RESERVE`.  tests/training/test_memory.py compares all but that with
real steps of small networks on a CPU; no figure was measured on a GPU.
"""

from t3d.entry import run_entry

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from t3d.config import TrainConfig, TrainingConfig, load_config
from t3d.config.keys import key
from t3d.decoding import DecodingConfig
from t3d.decoding.memory import decoding_memory
from t3d.devices import GIB
from t3d.sdar.checkpoint import load_model_config, resolve_checkpoint
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.weights import empty_network
from t3d.training.activations import activations
from t3d.training.forward import CHUNK_BYTES
from t3d.training.lora import num_adapter_parameters
from t3d.training.optimizer import is_fused
from t3d.training.settings import loss_settings

EXAMPLE = "python -m t3d.training.memory config=configs/t3d.yaml num_gpus=8"
BUCKET_NUMBERS = 500_000_000
LIVE_PARAMETERS = 1_000_000_000
HEAD_TENSORS = {"argmax": 3, "sample": 3, "exact": 6}
"""Tensors of the size of a chunk's fp32 logits, by `training.fake_expectation`; "exact" keeps the reference's too, and
so do soft targets with any."""
MASK_BYTES = 10
"""Per pair of tokens of a row, at most, while `create_block_mask` works; what stays is small."""
RESERVE = 1.5 * GIB
CAPACITIES = (40, 80)
"""GiB of the GPUs asked about."""
MARGIN = 0.9
"""Share of a GPU that the estimate of a recommended stage may fill."""

STAGES = (0, 1, 2, 3)
_1_7B = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_4B = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "SDAR-1.7B-Chat": {**_1_7B, "tie_word_embeddings": False},
    "SDAR-4B-Chat": {**_1_7B, **_4B, "tie_word_embeddings": False},
}
"""The paper's models, known without their files."""


@dataclass
class MemoryConfig(TrainConfig):
    """A training configuration, and the launch to ask about."""

    num_gpus: int | None = key(None, "GPUs of the launch (null: a row for each of 1, 2, 4 and 8)", low=1)


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU; see the module's docstring."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    buffers: float
    activations: float
    backward: float
    update: float
    masks: float
    validation: float = 0.0

    @property
    def state(self) -> float:
        """What stays from step to step once every gradient exists."""
        return self.weights + self.gradients + self.optimizer + self.reference

    @property
    def total(self) -> float:
        """The most that a step holds at a time, without `RESERVE`."""
        return self.state + max(
            self.buffers + self.activations + self.backward, self.update, self.masks, self.validation
        )


def estimate(config: TrainConfig, shape: SDARConfig, stage: int, num_gpus: int) -> Estimate:
    """Memory of one training step on each of `num_gpus` GPUs.

    Args:
        config: batch, lengths, precision and objective.
        shape: of the student.
        stage: 1 to 3 of ZeRO; 0 for training without DeepSpeed.
        num_gpus: GPUs that share the states.
    """
    training, adapter = config.training, num_adapter_parameters(shape, config.model)
    frozen = num_parameters(shape) if adapter else 0
    count = adapter or num_parameters(shape)
    computed = 4 if training.mixed_precision == "no" else 2
    stored = 4 if stage == 0 else computed
    weights, gradients = float(stored * count), float(stored * count)
    if stage == 0:
        fused = is_fused("cuda", scaled=training.mixed_precision == "fp16")
        optimizer, update = 8.0 * count, 0.0 if fused else 4.0 * count
        weights += computed * count if computed < 4 else 0
        buffers = 4.0 * count if num_gpus > 1 else 0.0
    else:
        optimizer, update = 12.0 * count / num_gpus, 4.0 * count / num_gpus
        buffers = float(BUCKET_NUMBERS * computed)
        per_parameter = _gradients(training, stage, num_gpus, computed)
        gradients = per_parameter * count
        if stage == 1 and per_parameter > computed and num_gpus > 1:  # DeepSpeed's BF16_Optimizer has one flat tensor
            update = max(update, float(computed * count))
    weights += computed * frozen
    if stage == 3:
        weights /= num_gpus
        buffers += computed * min((count + frozen) * (1 - 1 / num_gpus), LIVE_PARAMETERS)
    reference = float(stored * count) if loss_settings(training).needs_reference else 0.0
    if stage == 3 and training.shard_reference is not False and reference:
        reference /= num_gpus
        if not adapter:
            buffers += computed * shape.vocab_size * shape.hidden_size  # its head, gathered beside the student's
    tokens, rows = batch_size(config)
    autocast = stage == 0 and not adapter
    kept, working = activations(shape, tokens, computed, autocast, training.recomputed_layers)
    return Estimate(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        reference=reference,
        buffers=buffers,
        activations=kept,
        backward=_backward(shape, training, rows, (computed, stored), kept, working, bool(adapter)),
        update=update,
        masks=float(MASK_BYTES * tokens**2),
        validation=_validation(config, shape, computed) if config.looks_at_student else 0.0,
    )


def estimate_fsdp2(config: TrainConfig, shape: SDARConfig, num_gpus: int) -> Estimate:
    """As `estimate`, with FSDP2 in ZeRO's place."""
    as_zero3, training = estimate(config, shape, 3, num_gpus), config.training
    computed = 4 if training.mixed_precision == "no" else 2
    network = empty_network(shape)
    layers = [sum(weight.numel() for weight in layer.parameters()) for layer in network.model.layers]
    count = num_parameters(shape)
    root, layer = count - sum(layers), max(layers)
    gathered = 2 if as_zero3.reference and training.shard_reference is not False else 1
    buffers = gathered * computed * root + (3 * computed + 4) * layer
    return replace(
        as_zero3,
        weights=4 * count / num_gpus,
        gradients=4 * count / num_gpus,
        optimizer=8 * count / num_gpus,
        buffers=buffers,
        update=buffers + (4 + computed) * root,
    )


def _validation(config: TrainConfig, shape: SDARConfig, computed: int) -> float:
    """Bytes of the decoding copy, and of the sequence that needs most."""
    settings, training = config.validation, config.training
    dtype: Any = shape.dtype or (torch.bfloat16 if computed == 2 else torch.float32)
    decodings = [
        DecodingConfig(0, size, steps, settings.max_token or training.max_gen_length, settings.temperature)
        for size, steps in settings.decodings
    ]
    gpu = torch.device("cuda")
    needed = [decoding_memory(shape, dtype, one, training.max_prompt_len, gpu) for one in decodings]
    return float(dtype.itemsize * num_parameters(shape) + max(one.shared + one.per_slot for one in needed))


def _gradients(training: TrainingConfig, stage: int, num_gpus: int, computed: int) -> float:
    """Bytes of gradients per parameter under DeepSpeed."""
    asked = {"auto": 4 if stage >= 2 else computed, "float32": 4, "bfloat16": 2}[training.grad_accum_dtype]
    if stage >= 2:
        return asked / num_gpus
    return computed + (asked if asked > computed else 0)


def _backward(
    shape: SDARConfig,
    training: TrainingConfig,
    rows: int,
    sizes: tuple[int, int],
    kept: float,
    working: float,
    frozen: bool,
) -> float:
    """The most that the backward pass works with beside the kept activations: see the module's docstring.

    Args:
        shape: of the network.
        training: for the loss's kind.
        rows: that the loss reads.
        sizes: bytes per number of a product, and of a weight.
        kept: bytes of activations.
        working: bytes of a layer.
        frozen: head and embeddings get no gradient.
    """
    computed, stored = sizes
    matrix = 0 if frozen else shape.vocab_size * shape.hidden_size
    logits = 4 * rows * shape.vocab_size
    kind = "exact" if training.soft_targets_weight else training.fake_expectation
    chunk, tensors = min(logits, CHUNK_BYTES), HEAD_TENSORS[kind]
    product = computed * matrix
    # Casts of the weights under autocast give their gradients in the weights' own precision beside the products'.
    single = logits <= CHUNK_BYTES
    head = max(tensors * chunk, 2 * chunk + product) if single else product + tensors * chunk
    if computed < stored:
        head = max(head, product + stored * matrix)
    waiting = stored * matrix if shape.tie_word_embeddings else 0
    embeddings = (3 if shape.tie_word_embeddings else 1) * stored * matrix - kept
    return max(working + waiting, head, embeddings)


def batch_size(config: TrainConfig) -> tuple[int, int]:
    """Tokens of the largest micro-batch, and how many of them the loss may read."""
    training = config.training
    fill = 2 * max(training.block_size_choices or [training.block_size])
    sample = training.max_prompt_len + 2 * training.max_gen_length + fill
    tokens = max(sample, training.tokens_per_batch or training.batch_size_lm * sample)
    return tokens, tokens * (training.max_gen_length + fill) // sample


def num_parameters(shape: SDARConfig) -> int:
    """Parameters of a network; tied ones count once."""
    return sum(parameter.numel() for parameter in empty_network(shape).parameters())


def table(config: MemoryConfig, shapes: dict[str, SDARConfig]) -> Iterator[str]:
    """Lines of the table: one row per model, ZeRO stage or FSDP2, and number of GPUs, in GiB per GPU."""
    tokens, rows = batch_size(config)
    training = config.training
    yield f"GiB per GPU; objective {training.objective}, {training.mixed_precision}, micro-batches of up to"
    recomputed = {
        None: "recomputed",
        0: "kept (training.gradient_checkpointing_enable=false)",
    }.get(training.recomputed_layers, f"of the first {training.recomputed_layers} layers recomputed")
    yield f"{tokens} tokens ({rows} rows of logits), activations {recomputed}; reserve {RESERVE / GIB:.1f}"
    parts = ["weights", "gradients", "optimizer", "reference", "buffers", "activations", "backward", "update", "masks"]
    parts += ["validation"] if config.looks_at_student else []
    header = "".join(f"{part:>12}" for part in parts)
    sizes = "".join(f"{f'{capacity} GiB':>15}" for capacity in CAPACITIES)
    for name, shape in shapes.items():
        yield ""
        yield f"{name}: {num_parameters(shape) / 1e9:.2f}e9 parameters"
        yield f"{'ZeRO':>6}{'GPUs':>6}{header}{'total':>9}{sizes}"
        counts = (config.num_gpus,) if config.num_gpus else (1, 2, 4, 8)
        found_of = {
            (stage or "none", count): estimate(config, shape, stage, count) for stage in STAGES for count in counts
        }
        if not config.model.lora_rank:
            found_of |= {("FSDP2", count): estimate_fsdp2(config, shape, count) for count in counts if count > 1}
        for (sharding, num_gpus), found in found_of.items():
            values = "".join(f"{vars(found)[part] / GIB:12.1f}" for part in parts)
            total = found.total + RESERVE
            fits = "".join(f"{'fits' if total <= size * GIB else 'does not fit':>15}" for size in CAPACITIES)
            yield f"{sharding:>6}{num_gpus:>6}{values}{total / GIB:9.1f}{fits}"
        yield from recommended(config, shape)


def recommended(config: MemoryConfig, shape: SDARConfig) -> Iterator[str]:
    """The lowest stage of ZeRO that leaves a tenth of a GPU free, for each number of GPUs: lower ones talk less."""
    for capacity in CAPACITIES:
        choices = []
        for num_gpus in (config.num_gpus,) if config.num_gpus else (1, 2, 4, 8):
            fitting = [
                stage
                for stage in STAGES[1:]
                if estimate(config, shape, stage, num_gpus).total + RESERVE <= MARGIN * capacity * GIB
            ]
            choices.append(f"{num_gpus}: {f'ZeRO-{fitting[0]}' if fitting else 'none'}")
        yield f"  with a tenth of {capacity} GiB to spare, by number of GPUs: {', '.join(choices)}"


def shapes_asked(name: str) -> dict[str, SDARConfig]:
    """The paper's two models, and the configured one if it is neither of them.

    Raises:
        CheckpointError: the configured model is neither known nor found.
    """
    known = {shape: SDARConfig(**fields) for shape, fields in SHAPES.items()}
    if Path(name).name in known and not Path(name).is_dir():
        return known
    return {name: load_model_config(resolve_checkpoint(name, only="config.json")), **known}


def main(arguments: list[str]) -> None:
    """Parses the configuration and prints the table."""
    config = load_config(MemoryConfig, arguments, "Estimates the memory that training takes on each GPU.", EXAMPLE)
    for line in table(config, shapes_asked(config.model.pretrained_model)):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    run_entry(main)
