"""Every config key, declared once: its default, its meaning and its range; `--help` prints these declarations."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from t3d.config.keys import group, key
from t3d.config.table import TableConfig
from t3d.errors import ConfigError
from t3d.objectives.registry import OBJECTIVES
from t3d.prompts import DATA_TYPES, PROMPT_STYLES, check_prompts
from t3d.remasking import STRATEGIES

MAX_SEED = 2**63 - 1
PROJECT = "name of the folder that is written"
PROMPT_STYLE = "how code and option prompts end; release: in a space; the same in rollouts, training and evaluation"
PROMPTS = (
    "wordings of prompts in place of the built-in ones: math, option, function or stdio (the two kinds of code) -> a"
    " text with {problem} once; the same in rollouts, training and evaluation"
)


@dataclass
class SampleExperimentConfig:
    """Where stage 1 writes."""

    project: str = key("sdar_sample", PROJECT)
    output_dir: str | None = key(None, "the same folder by its path; null: <project>")


@dataclass
class EvalExperimentConfig(SampleExperimentConfig):
    """Where an evaluation writes."""

    project: str = key("eval", PROJECT)


@dataclass
class ExperimentConfig:
    """Where a training run writes, and how it continues."""

    project: str = key("t3d", f"{PROJECT}: the method's, where tables look for its runs")
    output_dir: str | None = key(
        None, "folder of the run by its path; null: experiments/<model>/<data_type>/<project>/<timestamp>"
    )
    timestamp: bool = key(True, "a folder named by its start for each run; false: <project> itself")
    start_from_scratch: bool = key(True, "false: the same as resume_from=latest")
    resume_from: str | None = key(None, "null | latest | a folder that a killed run left: continue it exactly")
    num_node: int = key(1, "machines of the launch; the launch must agree", low=1)
    num_processes: int | None = key(None, "processes of the launch (null: any); the launch must agree", low=1)
    save_every_steps: int = key(256, "global steps between checkpoints", low=1)
    checkpoints_total_limit: int | None = key(None, "checkpoints kept, the oldest removed first (null: all)", low=1)
    gradient_clipping: bool = key(True, "clip gradients at training.max_grad_norm; false: never")
    max_grad_norm: float | None = key(None, "the release's second name for training.max_grad_norm", low=0)
    trackers: list[str] = key([], "of wandb, tensorboard; metrics.jsonl is always written")


@dataclass
class RolloutConfig:
    """How responses are decoded."""

    block_size: int = key(4, "positions per block", low=1)
    denoising_steps_per_block: int = key(4, "most denoising steps per block; at most block_size", low=1)
    max_token: int = key(2000, "most new tokens per response, exactly", low=1)
    temperature: float = key(0.1, "softmax temperature; 0: argmax", low=0)
    top_p: float = key(1.0, "mass of the most probable tokens kept; 1 keeps all", low=0, high=1)
    top_k: int = key(0, "number of most probable tokens kept; 0 keeps all", low=0)
    remasking_strategy: str = key("low_confidence_static", "which tokens a step reveals", one_of=STRATEGIES)
    dynamic_threshold: float = key(0.9, "confidence for low_confidence_dynamic", low=0, high=1)
    eb_threshold: float = key(0.35, "entropy sum, in nats, for entropy_bounded", low=0)
    num_response_per_task: int = key(1, "responses per problem, each with its own random stream", low=1)
    seed: int = key(0, "seed of every random stream", low=0, high=MAX_SEED)
    resume: bool = key(True, "continue a rollout that was interrupted; false: start over")
    max_active: int = key(64, "most sequences decoded together, as memory allows; does not change results", low=1)
    num_workers: int = key(0, "decoding processes on this machine (0: one per visible GPU, or one)", low=0)
    confidence: str = key("scaled", "confidence of remasking", one_of=("scaled", "raw"))
    record: list[str] = key([], "figures per token kept in the rollout file, of logprob, entropy")
    batch_size: int | None = key(None, "responses queued together (null or 0: all); does not change results", low=0)
    start_with_think: bool = key(False, "begin the response with <think>")
    stop_token_list: list[Any] | None = key(
        None, "stop tokens, ids or strings; null: the model's end-of-sequence ids and <|im_end|>"
    )
    device: str = key("auto", "auto (cuda, else mps, else cpu) or a torch device string")
    dtype: str = key("auto", "auto: as stored", one_of=("auto", "float32", "bfloat16", "float16"))
    compile: bool = key(False, "torch.compile the layers: meant for GPUs; starts later and rounds otherwise")
    tensor_parallel_size: int = key(1, "processes of the launch that hold the model together: all or 1", low=1)

    def __post_init__(self) -> None:
        """Checks values against each other."""
        if self.denoising_steps_per_block > self.block_size:
            raise ConfigError(
                "rollout.denoising_steps_per_block",
                f"at most rollout.block_size = {self.block_size}",
                self.denoising_steps_per_block,
            )
        if self.compile and self.tensor_parallel_size > 1:
            raise ConfigError("rollout.compile", "false for a divided model (rollout.tensor_parallel_size)", True)
        if self.top_p == 0:
            raise ConfigError("rollout.top_p", "above 0, at most 1", self.top_p)
        if not set(self.record) <= {"logprob", "entropy"}:
            raise ConfigError("rollout.record", "of logprob, entropy", self.record)


@dataclass
class ProblemsConfig:
    """Which model answers which problems."""

    checkpoint_path: str | None = key(None, "model folder or hub id")
    eval_dataset: str = key("MATH500", "data set: a JSON file, or the name of one in data/")
    data_type: str = key("math", "kind of problem", one_of=DATA_TYPES)
    prompt_style: str = key("plain", PROMPT_STYLE, one_of=PROMPT_STYLES)
    prompts: dict[str, str] = key({}, PROMPTS)
    limit: int | None = key(None, "only the first N problems (null: all)", low=1)
    num_node: int = key(1, "machines that share the problems", low=1)
    node_index: int = key(0, "number of this machine, from 0", low=0)
    output_unmasking_history: bool = key(True, "write step_map to the rollout file (training needs it)")

    def __post_init__(self) -> None:
        """Checks values against each other."""
        check_prompts("evaluation.prompts", self.prompts)
        if self.node_index >= self.num_node:
            raise ConfigError("evaluation.node_index", f"below evaluation.num_node = {self.num_node}", self.node_index)


@dataclass
class EvaluationConfig(ProblemsConfig):
    """The same, or answers that are there already."""

    rollouts: str | None = key(None, "grade this rollout file; no model is needed")
    repair_known_bad: bool = key(True, "mend test programs that nothing can pass (MBPP has two); false: as published")


@dataclass
class ExtractConfig:
    """How a program is found in a response."""

    code_block: str = key("last", "which fenced block is the program", one_of=("last", "first", "longest"))


@dataclass
class ExecuteConfig(ExtractConfig):
    """How answers are graded."""

    num_chunk: int = key(64, "a grading batch (progress moves per batch) is 16 times as many answers", low=1)
    num_workers: int = key(2, "grading processes", low=1)
    timeout_s: float = key(0.5, "seconds to grade one math answer", low=0.1)
    math_verify: bool = key(True, "ask plain math-verify too, and tell where it disagrees (it decides no grade)")
    sandbox: str = key("auto", "isolation of model-written code", one_of=("auto", "bwrap", "sandlock", "none"))
    memory_mb: int = key(1024, "memory of a program under test, and of a math grading process", low=128)
    num_threads: int = key(64, "threads of a program under test", low=1)
    file_mb: int = key(64, "size of each file, and of all of /tmp, of a program under test", low=1)
    output_mb: int = key(16, "most that a program under test may print", low=1)


@dataclass
class ModelConfig:
    """The model that is trained."""

    pretrained_model: str = key(MISSING, "teacher: model folder or hub id")
    optimized_name: str = key("optimized", "name of the trained checkpoint under ckpt/")
    random_ratio: float = key(0.1, "p_rand of Eq. 48: masked inputs replaced by random tokens", low=0, high=1)
    random_init: bool = key(False, "ignore the weights and start from random ones (trains the toy teacher)")


@dataclass
class DatasetConfig:
    """The training data."""

    optimization_data: str = key(MISSING, "training data: a JSON file or a folder of them, or its name in data/")
    data_type: str = key("math", "kind of problem", one_of=DATA_TYPES)
    prompt_style: str = key("plain", PROMPT_STYLE, one_of=PROMPT_STYLES)
    prompts: dict[str, str] = key({}, PROMPTS)

    def __post_init__(self) -> None:
        """Checks the wordings."""
        check_prompts("dataset.prompts", self.prompts)


@dataclass
class TrainingConfig:
    """States, losses and schedule of a run."""

    objective: str = key("t3d", "loss and states", one_of=OBJECTIVES)
    mask_strategy: str = key("trace", "states of the trace objectives", one_of=("trace", "random", "trace_earliest"))
    block_size: int = key(8, "positions per block", low=1)
    block_size_choices: list[int] | None = key(
        None, "block sizes drawn per sample instead, where no path loss is asked for (trains the toy teacher)"
    )
    block_alignment: str = key("absolute", "where blocks are counted from", one_of=("absolute", "response"))
    mask_ratios: list[float] = key([1.0, 0.75, 0.5, 0.25], "ratios r of a block that is masked, each in (0, 1]")
    mask_ratio_exponent: float = key(8.0, "r is drawn with probability proportional to r ** this", low=0)
    resample_states: bool = key(True, "draw each sample's state anew at every visit; false: once")
    lambda_path: float | None = key(None, "weight of the path loss; null: the objective's (t3d 0.2, else 0)", low=0)
    path_k_steps: int = key(4, "tokens per coarse step of the path loss", low=1)
    path_loss: str = key("paper", "Eq. 8-9, or the release's mean over levels", one_of=("paper", "release"))
    alpha: float = key(0.5, "weight of DDO's fake term", low=0)
    beta: float = key(0.1, "scale of the log-ratio inside DDO's sigmoid", low=0)
    ddo_level: str = key("sample", "where log-ratios are averaged", one_of=("sample", "block", "token"))
    fake_expectation: str = key("argmax", "d_fake's expectation over p_ref", one_of=("argmax", "sample", "exact"))
    reference_temp: float = key(0.0, "temperature of p_ref in d_fake: 0 with argmax, else above 0", low=0)
    certainty_weight: float | None = key(
        None, "weight of the certainty term; null: the objective's (dparallel 2, else 0)", low=0
    )
    multi_round: bool = key(True, "refresh the reference with the student")
    round_interval: int = key(10, "global steps between refreshes", low=1)
    max_steps: int | None = key(None, "global steps (null: num_train_epochs decides)", low=1)
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
    max_prompt_len: int = key(512, "longer prompts are left out, and counted", low=1)
    max_gen_length: int = key(1024, "responses are cut here", low=1)
    post_num: int = key(2, "pad tokens trained after the stop token", low=0)
    seed: int = key(10086, "seed of data order, states and fakes", low=0, high=MAX_SEED)
    mixed_precision: str = key("bf16", "autocast of the forward passes", one_of=("no", "bf16", "fp16"))
    grad_accum_dtype: str = key(
        "auto",
        "precision that DeepSpeed sums micro-batches in; auto: float32 where gradients are sharded (ZeRO-2 and 3)",
        one_of=("auto", "float32", "bfloat16"),
    )
    shard_reference: bool | None = key(
        None, "no GPU holds the whole reference (null: under ZeRO-3, which it needs; false: each one does)"
    )
    enable_tf32: bool = key(True, "TF32 matrix products on CUDA")
    gradient_checkpointing_enable: bool = key(True, "recompute activations in the backward pass")

    @property
    def path_weight(self) -> float:
        """Weight of the path loss: the objective's, unless `lambda_path` says otherwise."""
        return OBJECTIVES[self.objective].path if self.lambda_path is None else self.lambda_path

    def __post_init__(self) -> None:
        """Checks values against each other."""
        if not self.mask_ratios or not all(0 < ratio <= 1 for ratio in self.mask_ratios):
            raise ConfigError("training.mask_ratios", "a non-empty list of ratios in (0, 1]", self.mask_ratios)
        sizes = self.block_size_choices
        if sizes is not None and (not sizes or min(sizes) < 1 or self.path_weight):
            raise ConfigError("training.block_size_choices", "sizes of at least 1, and no path loss", sizes)
        if self.grad_accum_dtype == "bfloat16" and self.mixed_precision != "bf16":
            expected = "auto or float32, unless mixed_precision is bf16"
            raise ConfigError("training.grad_accum_dtype", expected, self.grad_accum_dtype)
        if (self.fake_expectation == "argmax") != (self.reference_temp == 0):
            raise ConfigError(
                "training.reference_temp",
                "0 with fake_expectation=argmax, above 0 with sample or exact",
                f"{self.reference_temp} with {self.fake_expectation}",
            )


@dataclass
class OptimizerParams:
    """Parameters of the optimizer."""

    learning_rate: float = key(1e-5, "peak learning rate", low=0)
    scale_lr: bool = key(False, "multiply learning_rate by the global batch size")
    beta1: float = key(0.9, "AdamW's first moment", low=0, high=1)
    beta2: float = key(0.999, "AdamW's second moment", low=0, high=1)
    weight_decay: float = key(0.01, "AdamW's decoupled weight decay", low=0)
    epsilon: float = key(1e-8, "AdamW's epsilon", low=0)

    def __post_init__(self) -> None:
        """Checks the open bounds."""
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if beta == 1:
                raise ConfigError(f"optimizer.params.{name}", "at least 0, below 1", beta)


@dataclass
class OptimizerConfig:
    """The optimizer, AdamW."""

    params: OptimizerParams = group(OptimizerParams)


@dataclass
class SchedulerParams:
    """Parameters of the learning-rate schedule."""

    learning_rate: float | None = key(None, "peak; null, or equal to the optimizer's")
    warmup_steps: int = key(20, "global steps of linear warm-up", low=0)
    min_lr_scale: float = key(0.1, "final learning rate, as a share of the peak", low=0, high=1)


@dataclass
class SchedulerConfig:
    """The learning-rate schedule, advanced once per global step."""

    scheduler: str = key("cosine", "shape after warm-up", one_of=("cosine", "linear", "constant"))
    params: SchedulerParams = group(SchedulerParams)


@dataclass
class WandbConfig:
    """Weights & Biases, when experiment.trackers names it."""

    entity: str | None = key(None, "user or team")
    project: str | None = key(None, "project; null: experiment.project")
    resume: bool = key(False, "continue the run run_id")
    run_id: str | None = key(None, "run to continue; null: a new one, or that of the run that is resumed")


@dataclass
class SampleConfig:
    """Stage 1: decode a data set with a checkpoint."""

    experiment: SampleExperimentConfig = group(SampleExperimentConfig)
    rollout: RolloutConfig = group(RolloutConfig)
    evaluation: ProblemsConfig = group(ProblemsConfig)
    execute: ExtractConfig = group(ExtractConfig)


@dataclass
class EvalConfig(SampleConfig):
    """Evaluation: decode a data set likewise and grade the answers, or fill a table."""

    experiment: EvalExperimentConfig = group(EvalExperimentConfig)
    evaluation: EvaluationConfig = group(EvaluationConfig)
    execute: ExecuteConfig = group(ExecuteConfig)
    table: TableConfig = group(TableConfig)

    def __post_init__(self) -> None:
        """Checks groups against each other."""
        if self.table.checkpoints and self.evaluation.rollouts is not None:
            raise ConfigError("evaluation.rollouts", "null beside table.checkpoints", self.evaluation.rollouts)


@dataclass
class TrainConfig:
    """Stage 3: train a student on trajectories."""

    experiment: ExperimentConfig = group(ExperimentConfig)
    model: ModelConfig = group(ModelConfig)
    dataset: DatasetConfig = group(DatasetConfig)
    training: TrainingConfig = group(TrainingConfig)
    optimizer: OptimizerConfig = group(OptimizerConfig)
    lr_scheduler: SchedulerConfig = group(SchedulerConfig)
    wandb: WandbConfig = group(WandbConfig)

    @property
    def gradient_limit(self) -> float | None:
        """Gradient norm to clip at; None: never."""
        return (self.training.max_grad_norm or None) if self.experiment.gradient_clipping else None

    def __post_init__(self) -> None:
        """Checks groups against each other."""
        for name, other, own in (
            ("experiment.max_grad_norm", self.experiment.max_grad_norm, self.training.max_grad_norm),
            (
                "lr_scheduler.params.learning_rate",
                self.lr_scheduler.params.learning_rate,
                self.optimizer.params.learning_rate,
            ),
        ):
            if other is not None and other != own:
                raise ConfigError(name, f"null or the value of its namesake, {own}", other)
        for tracker in self.experiment.trackers:
            if tracker not in ("wandb", "tensorboard"):
                raise ConfigError("experiment.trackers", "wandb, tensorboard", tracker)
