"""Keys of a training run's states, losses and schedule."""

from dataclasses import dataclass

from t3d.config.keys import MAX_SEED, key
from t3d.errors import ConfigError
from t3d.objectives.registry import OBJECTIVES


@dataclass
class TrainingConfig:
    """States, losses and schedule of a run."""

    objective: str = key("t3d", "method: its states and the terms of its loss", one_of=OBJECTIVES)
    mask_strategy: str = key(
        "trace",
        "objectives of trajectories (td, ddo, t3d, near_far): masked are the tokens revealed last (trace), first"
        " (trace_earliest), or random ones",
        one_of=("trace", "random", "trace_earliest"),
    )
    block_size: int = key(8, "positions per block", low=1)
    block_size_choices: list[int] | None = key(
        None,
        "sizes of which each sample draws one, in place of block_size; without a path loss only",
    )
    block_alignment: str = key(
        "absolute",
        "where the first block starts: at position 0 (absolute), or at the response",
        one_of=("absolute", "response"),
    )
    mask_ratios: list[float] = key(
        [1.0, 0.75, 0.5, 0.25], "shares r of a block's tokens that may be masked; each visit to a sample draws one"
    )
    mask_ratio_exponent: float = key(
        8.0, "the probability of a share r is proportional to r ** mask_ratio_exponent", low=0
    )
    resample_states: bool = key(True, "true: each visit to a sample draws a new state; false: the first one is kept")
    lambda_path: float | None = key(None, "weight of the path loss; null: the objective's (t3d 0.2, else 0)", low=0)
    path_k_steps: int = key(4, "tokens per coarse step of the path loss", low=1)
    path_loss: str = key(
        "paper",
        "path loss: Eq. 8-9 (paper), or the authors' code, a mean over levels (release)",
        one_of=("paper", "release"),
    )
    alpha: float = key(0.5, "weight of DDO's fake term", low=0)
    beta: float = key(0.1, "scale of the log-ratio inside DDO's sigmoid", low=0)
    ddo_level: str = key(
        "sample", "DDO: what log-ratios are averaged over before the sigmoid", one_of=("sample", "block", "token")
    )
    fake_expectation: str = key(
        "argmax",
        "DDO: fake tokens are the reference's likeliest (argmax), draws from it (sample), or all, weighted (exact)",
        one_of=("argmax", "sample", "exact"),
    )
    reference_temp: float = key(
        0.0, "DDO: temperature of the reference's fake tokens; 0 with argmax, above 0 with sample and exact", low=0
    )
    certainty_weight: float | None = key(
        None, "weight of the certainty term; null: the objective's (dparallel 2, else 0)", low=0
    )
    ranking_weight: float = key(0.0, "weight of the term that ranks confidences by the teacher's order", low=0)
    soft_weight: float | None = key(
        None, "weight of soft targets for tokens revealed late; null: the objective's (near_far 1, else 0)", low=0
    )
    router_aux_weight: float = key(
        0.0, "mixtures of experts: weight of the loss that keeps experts evenly used, per sample", low=0
    )
    multi_round: bool = key(
        True,
        "make the student the new reference every round_interval steps; false: the reference stays the initial model",
    )
    round_interval: int = key(10, "global steps between refreshes of the reference", low=1)
    max_steps: int | None = key(None, "global steps of the run (null: num_train_epochs decides)", low=1)
    num_train_epochs: int = key(30, "passes over the data", low=1)
    batch_size_lm: int = key(1, "samples per process and micro-batch", low=1)
    gradient_accumulation_steps: int = key(
        32, "micro-batches per process and global step; not used where global_batch_size is given", low=1
    )
    global_batch_size: int | None = key(
        None, "samples per global step (null: batch_size_lm x gradient_accumulation_steps x processes)", low=1
    )
    tokens_per_batch: int | None = key(
        None, "most tokens per process and forward, whatever samples they are of (null: batch_size_lm samples)", low=1
    )
    max_grad_norm: float = key(1.0, "gradient norm to clip at; 0: never clip", low=0)
    max_prompt_len: int = key(512, "longest prompt, in tokens; samples of longer ones are left out, and counted", low=1)
    max_gen_length: int = key(1024, "longest response, in tokens; longer ones are cut there", low=1)
    post_num: int = key(2, "pad tokens after the stop token that are learnt too", low=0)
    seed: int = key(10086, "seed of data order, states and fakes", low=0, high=MAX_SEED)
    mixed_precision: str = key(
        "bf16", "number format that forward passes compute in; no: that of the weights", one_of=("no", "bf16", "fp16")
    )
    grad_accum_dtype: str = key(
        "auto",
        "precision that DeepSpeed sums micro-batches in; auto: float32 where gradients are sharded (ZeRO-2 and 3)",
        one_of=("auto", "float32", "bfloat16"),
    )
    shard_reference: bool | None = key(
        None, "divide the reference among the GPUs (ZeRO-3, FSDP2); false: each holds all of it; null: true there"
    )
    enable_tf32: bool = key(True, "allow TF32 in matrix products on CUDA")
    gradient_checkpointing_enable: bool = key(
        True, "recompute activations in the backward pass: less memory, more time"
    )
    checkpoint_layers: int | None = key(
        None,
        "layers, counted from the first, whose activations are recomputed; the others keep theirs (null: all are)",
        low=1,
    )
    meter_every: int = key(
        0,
        "global steps between measurements of what few-step decoding costs the student, in nats, on its own samples for"
        " validation.dataset at validation.decodings; one behind the last step; 0: never",
        low=0,
    )
    device_peak_tflops: float | None = key(
        None, "TFLOP/s that mfu is a share of, in the precision of the run (null: known for common GPUs)", low=0
    )

    @property
    def recomputed_layers(self) -> int | None:
        """Layers whose activations are recomputed; None: all of the network's."""
        return self.checkpoint_layers if self.gradient_checkpointing_enable else 0

    @property
    def path_weight(self) -> float:
        """Weight of the path loss: the objective's, unless `lambda_path` says otherwise."""
        return OBJECTIVES[self.objective].weight("path", self.lambda_path)

    @property
    def soft_targets_weight(self) -> float:
        """Weight of the soft targets: the objective's, unless `soft_weight` says otherwise."""
        return OBJECTIVES[self.objective].weight("soft", self.soft_weight)

    @property
    def orders_tokens(self) -> bool:
        """True if a term looks at coarse steps, whose number follows from the block size."""
        return self.path_weight > 0 or self.ranking_weight > 0 or self.soft_targets_weight > 0

    def __post_init__(self) -> None:
        """Checks values against each other."""
        if not self.mask_ratios or not all(0 < ratio <= 1 for ratio in self.mask_ratios):
            raise ConfigError("training.mask_ratios", "a non-empty list of ratios in (0, 1]", self.mask_ratios)
        sizes = self.block_size_choices
        if sizes is not None and (not sizes or min(sizes) < 1 or self.orders_tokens):
            expected = "sizes of at least 1, and no path loss, ranking or soft targets"
            raise ConfigError("training.block_size_choices", expected, sizes)
        if (self.ranking_weight or self.soft_targets_weight) and self.path_k_steps >= self.block_size:
            expected = f"below block_size ({self.block_size}) with ranking or soft targets: two coarse steps or more"
            raise ConfigError("training.path_k_steps", expected, self.path_k_steps)
        if self.grad_accum_dtype == "bfloat16" and self.mixed_precision != "bf16":
            expected = "auto or float32, unless mixed_precision is bf16"
            raise ConfigError("training.grad_accum_dtype", expected, self.grad_accum_dtype)
        if self.checkpoint_layers is not None and not self.gradient_checkpointing_enable:
            expected = "null, unless gradient_checkpointing_enable is true"
            raise ConfigError("training.checkpoint_layers", expected, self.checkpoint_layers)
        if self.device_peak_tflops == 0:
            raise ConfigError("training.device_peak_tflops", "null, or above 0", self.device_peak_tflops)
        if (self.fake_expectation == "argmax") != (self.reference_temp == 0):
            raise ConfigError(
                "training.reference_temp",
                "0 with fake_expectation=argmax, above 0 with sample or exact",
                f"{self.reference_temp} with {self.fake_expectation}",
            )
