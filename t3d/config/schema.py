"""Every config key, declared once: its default, its meaning and its range; `--help` prints these declarations."""

import math
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from t3d.config.keys import MAX_SEED, check_name, group, key
from t3d.config.table import TableConfig
from t3d.config.training import TrainingConfig
from t3d.config.validation import BEST, ValidationConfig
from t3d.errors import ConfigError
from t3d.prompts import DATA_TYPES, PROMPT_STYLES, check_prompts
from t3d.remasking import CONFIDENCES, STRATEGIES

PROJECT = "name of the folder that is written"
PROMPT_STYLE = "end of code and option prompts (release: a space); the same in rollouts, training and evaluation"
PROMPTS = (
    "wording of prompts, by kind: math, option, function or stdio (the two kinds of code); a text with {problem} once;"
    " a kind left out has the built-in wording; the same in rollouts, training and evaluation"
)
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a block, by their names in the network."""


@dataclass
class SampleExperimentConfig:
    """Where stage 1 writes."""

    project: str = key("sdar_sample", PROJECT)
    output_dir: str | None = key(None, "path of the folder that is written; null: a folder called <project>")


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
    timestamp: bool = key(
        True,
        "true: a folder for each run, named by the time of its start; false: <project> itself is the run's",
    )
    start_from_scratch: bool = key(True, "false: the release's way to say resume_from=latest")
    resume_from: str | None = key(None, "run to continue exactly: latest, or its folder; null: a new run")
    num_node: int = key(1, "machines that train; another launch is refused", low=1)
    num_processes: int | None = key(None, "processes that train; another launch is refused (null: any number)", low=1)
    save_every_steps: int = key(256, "global steps (updates of the weights) between checkpoints", low=1)
    checkpoints_total_limit: int | None = key(None, "checkpoints kept, the oldest removed first (null: all)", low=1)
    gradient_clipping: bool = key(True, "clip gradients at training.max_grad_norm; false: never")
    max_grad_norm: float | None = key(
        None, "the release's second name for training.max_grad_norm; null, or the same value", low=0
    )
    trackers: list[str] = key([], "where metrics go beside metrics.jsonl: any of wandb, tensorboard")


@dataclass
class RolloutConfig:
    """How responses are decoded."""

    block_size: int = key(4, "positions per block", low=1)
    denoising_steps_per_block: int = key(4, "most denoising steps that a block takes; no more than block_size", low=1)
    max_token: int = key(2000, "longest response, in tokens; longer ones are cut there", low=1)
    temperature: float = key(0.1, "softmax temperature; 0: argmax", low=0)
    top_p: float = key(1.0, "mass of the most probable tokens kept; 1 keeps all", low=0, high=1)
    top_k: int = key(0, "number of most probable tokens kept; 0 keeps all", low=0)
    remasking_strategy: str = key(
        "low_confidence_static", "how a step chooses the tokens that it reveals", one_of=STRATEGIES
    )
    dynamic_threshold: float = key(
        0.9, "low_confidence_dynamic: tokens above this confidence are revealed beyond a step's share", low=0, high=1
    )
    eb_threshold: float = key(
        0.35, "entropy_bounded: bound on the entropies of the tokens that a step reveals, in nats", low=0
    )
    num_response_per_task: int = key(1, "responses per problem, each with its own random stream", low=1)
    seed: int = key(0, "seed of all random draws", low=0, high=MAX_SEED)
    resume: bool = key(True, "continue a rollout that was interrupted; false: start over")
    max_active: int = key(64, "most sequences decoded together, as memory allows; does not change results", low=1)
    num_workers: int = key(0, "decoding processes on this machine (0: one per visible GPU, or one)", low=0)
    confidence: str = key(
        "scaled",
        "what strategies rank by: probabilities as tokens are drawn (scaled), or the model's own (raw)",
        one_of=CONFIDENCES,
    )
    record: list[str] = key([], "figures of each token that the rollout file keeps: any of logprob, entropy")
    batch_size: int | None = key(None, "responses queued together (null or 0: all); does not change results", low=0)
    start_with_think: bool = key(False, "put <think> at the start of every response")
    stop_token_list: list[Any] | None = key(
        None, "stop tokens, ids or strings; null: the model's end-of-sequence ids and <|im_end|>"
    )
    device: str = key("auto", "auto (cuda, else mps, else cpu) or a torch device string")
    dtype: str = key(
        "auto",
        "number format of the weights; auto: that of the checkpoint",
        one_of=("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = key(False, "compile the layers (torch.compile), for GPUs; starts later, and rounding differs")
    cuda_graphs: bool | None = key(
        None, "replay forwards as CUDA graphs; null: where there are CUDA and flash-attn, and they compute the same"
    )
    paged: bool | None = key(
        None,
        "keep keys and values in pages of 256 tokens, which responses take as they grow; null: where flash-attn "
        "decodes; does not change results",
    )
    tensor_parallel_size: int = key(1, "processes that share one model: 1, or all of the launch", low=1)
    draft: str | None = key(
        None,
        "who drafts steps that the model checks, several in one forward, for the same responses: self (the model), or"
        " a student of it (folder or hub id); null: nobody",
    )

    def __post_init__(self) -> None:
        """Checks values against each other."""
        self._check_draft()
        if self.denoising_steps_per_block > self.block_size:
            raise ConfigError(
                "rollout.denoising_steps_per_block",
                f"at most rollout.block_size = {self.block_size}",
                self.denoising_steps_per_block,
            )
        if self.compile and self.tensor_parallel_size > 1:
            raise ConfigError("rollout.compile", "false for a divided model (rollout.tensor_parallel_size)", True)
        if self.cuda_graphs and self.tensor_parallel_size > 1:
            raise ConfigError("rollout.cuda_graphs", "null or false for a divided model", True)
        if self.top_p == 0:
            raise ConfigError("rollout.top_p", "above 0, at most 1", self.top_p)
        if not set(self.record) <= {"logprob", "entropy"}:
            raise ConfigError("rollout.record", "of logprob, entropy", self.record)

    def _check_draft(self) -> None:
        """Checks that there is something to draft, and nothing in its way."""
        if self.draft is None:
            return
        if not self.draft:
            raise ConfigError("rollout.draft", "null, self, or a model folder or hub id", "an empty text")
        if self.denoising_steps_per_block == 1:
            expected = "null where a block takes one step, which leaves nothing to draft"
            raise ConfigError("rollout.draft", expected, self.draft)
        if self.tensor_parallel_size > 1:
            raise ConfigError("rollout.draft", "null for a divided model (rollout.tensor_parallel_size)", self.draft)
        if self.cuda_graphs:
            raise ConfigError("rollout.cuda_graphs", "null or false beside rollout.draft", True)
        if self.paged:
            raise ConfigError("rollout.paged", "null or false beside rollout.draft", True)


@dataclass
class ProblemsConfig:
    """Which model answers which problems."""

    checkpoint_path: str | None = key(None, "model that decodes: a folder or hub id")
    eval_dataset: str = key("MATH500", "data set: a JSON file, or the name of one in data/")
    data_type: str = key("math", "kind of problem", one_of=DATA_TYPES)
    prompt_style: str = key("plain", PROMPT_STYLE, one_of=PROMPT_STYLES)
    prompts: dict[str, str] = key({}, PROMPTS)
    limit: int | None = key(None, "only the first N problems (null: all)", low=1)
    num_node: int = key(1, "machines that decode, each a share of the problems", low=1)
    node_index: int = key(0, "which of the machines this one is, from 0", low=0)
    output_unmasking_history: bool = key(True, "write step_map to the rollout file (training needs it)")

    def __post_init__(self) -> None:
        """Checks values against each other."""
        check_prompts("evaluation.prompts", self.prompts)
        if self.node_index >= self.num_node:
            raise ConfigError("evaluation.node_index", f"below evaluation.num_node = {self.num_node}", self.node_index)


@dataclass
class EvaluationConfig(ProblemsConfig):
    """The same, or answers that are there already."""

    rollouts: str | None = key(None, "rollout file to grade as it is, without a model; null: decode")
    repair_known_bad: bool = key(
        True, "mend the two test programs of MBPP that no answer can pass; false: leave them as published"
    )


@dataclass
class ExtractConfig:
    """How a program is found in a response."""

    code_block: str = key(
        "last", "which fenced block of a response is its program", one_of=("last", "first", "longest")
    )


@dataclass
class ExecuteConfig(ExtractConfig):
    """How answers are graded."""

    num_chunk: int = key(64, "answers are graded 16 x this many at a time; progress is shown after each", low=1)
    num_workers: int = key(0, "grading processes (0: one for every two cores of this machine, 2 to 16)", low=0)
    timeout_s: float = key(0.5, "computing time to grade one math answer, in seconds", low=0.1)
    math_verify: bool = key(
        True, "report plain math-verify's verdict beside ours, and where they differ; grades are ours"
    )
    sandbox: str = key("auto", "isolation of model-written code", one_of=("auto", "bwrap", "sandlock", "none"))
    memory_mb: int = key(
        1024, "most memory of a program under test, and of a process that grades mathematics, in MiB", low=128
    )
    num_threads: int = key(64, "most threads of a program under test", low=1)
    file_mb: int = key(64, "most that a program under test may write: to one file, and to /tmp in all, in MiB", low=1)
    output_mb: int = key(16, "most that a program under test may print, in MiB", low=1)


@dataclass
class ModelConfig:
    """The model that is trained."""

    pretrained_model: str = key(MISSING, "model that training starts from: a folder or hub id")
    optimized_name: str = key("optimized", "name of the trained checkpoint under ckpt/")
    random_ratio: float = key(
        0.1,
        "p_rand of Eq. 48: share of the masked positions that show a random token in place of the mask",
        low=0,
        high=1,
    )
    random_init: bool = key(False, "start from random weights, not the checkpoint's (how the toy teacher was made)")
    lora_rank: int = key(
        0, "rank of the LoRA adapter that is trained in place of the weights; 0: train them all", low=0
    )
    lora_alpha: float | None = key(
        None, "the adapter's product is multiplied by lora_alpha / lora_rank; null: twice the rank"
    )
    lora_dropout: float = key(0.0, "share of an adapter's inputs that training drops; below 1", low=0, high=1)
    lora_targets: list[str] = key(list(LINEAR_LAYERS), "linear layers of each block that have an adapter")

    @property
    def adapter_alpha(self) -> float:
        """`lora_alpha`, or what stands for it."""
        return 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha

    def __post_init__(self) -> None:
        """Checks values against each other."""
        if self.lora_rank and self.random_init:
            raise ConfigError(
                "model.lora_rank", "0 with model.random_init, which leaves nothing to adapt", self.lora_rank
            )
        if self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf:
            raise ConfigError("model.lora_alpha", "null, or a number above 0", self.lora_alpha)
        if self.lora_dropout == 1:
            raise ConfigError("model.lora_dropout", "at least 0, below 1", self.lora_dropout)
        targets = set(self.lora_targets)
        if not targets or not targets <= set(LINEAR_LAYERS) or len(targets) < len(self.lora_targets):
            raise ConfigError(
                "model.lora_targets", f"each at most once, of {', '.join(LINEAR_LAYERS)}", self.lora_targets
            )
        if not self.lora_rank:
            given = {"alpha": self.lora_alpha is not None, "dropout": self.lora_dropout > 0}
            given["targets"] = self.lora_targets != list(LINEAR_LAYERS)
            if unheeded := [name for name, is_given in given.items() if is_given]:
                raise ConfigError("model.lora_rank", f"above 0 with model.lora_{unheeded[0]}", self.lora_rank)


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
class OptimizerParams:
    """Parameters of the optimizer."""

    learning_rate: float = key(1e-5, "peak learning rate", low=0)
    scale_lr: bool = key(False, "multiply learning_rate by the global batch size")
    beta1: float = key(0.9, "AdamW's first moment", low=0, high=1)
    beta2: float = key(0.999, "AdamW's second moment", low=0, high=1)
    weight_decay: float = key(0.01, "AdamW's decoupled weight decay", low=0)
    decay_norms: bool = key(True, "decay the weights of norms, and biases, too; false: matrices alone")
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

    learning_rate: float | None = key(None, "peak learning rate; null, or the same as optimizer.params.learning_rate")
    warmup_steps: int = key(20, "global steps of linear warm-up", low=0)
    min_lr_scale: float = key(0.1, "final learning rate, as a share of the peak", low=0, high=1)


@dataclass
class SchedulerConfig:
    """The learning-rate schedule, advanced once per global step."""

    scheduler: str = key(
        "cosine", "how the learning rate falls after the warm-up", one_of=("cosine", "linear", "constant")
    )
    params: SchedulerParams = group(SchedulerParams)


@dataclass
class WandbConfig:
    """Weights & Biases, when experiment.trackers names it."""

    entity: str | None = key(None, "user or team that the run is stored under")
    project: str | None = key(None, "project that the run is stored in; null: experiment.project")
    resume: bool = key(False, "continue the run that run_id names")
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
        if self.table.checkpoints and self.rollout.draft is not None:
            raise ConfigError("rollout.draft", "null beside table.checkpoints", self.rollout.draft)


@dataclass
class TrainConfig:
    """Stage 3: train a student on trajectories."""

    experiment: ExperimentConfig = group(ExperimentConfig)
    model: ModelConfig = group(ModelConfig)
    dataset: DatasetConfig = group(DatasetConfig)
    training: TrainingConfig = group(TrainingConfig)
    optimizer: OptimizerConfig = group(OptimizerConfig)
    lr_scheduler: SchedulerConfig = group(SchedulerConfig)
    validation: ValidationConfig = group(ValidationConfig)
    wandb: WandbConfig = group(WandbConfig)

    @property
    def gradient_limit(self) -> float | None:
        """Gradient norm to clip at; None: never."""
        return (self.training.max_grad_norm or None) if self.experiment.gradient_clipping else None

    @property
    def looks_at_student(self) -> bool:
        """Whether a copy of the student decodes between steps: for a validation, or for the meter."""
        return self.validation.every > 0 or self.training.meter_every > 0

    def __post_init__(self) -> None:
        """Checks groups against each other."""
        self._check_same()
        for tracker in self.experiment.trackers:
            if tracker not in ("wandb", "tensorboard"):
                raise ConfigError("experiment.trackers", "wandb, tensorboard", tracker)
        if self.training.meter_every:
            self.validation.check_metered()
        name = self.model.optimized_name
        check_name("model.optimized_name", name)
        if name.startswith("step-") or (self.validation.every and name == BEST):
            raise ConfigError("model.optimized_name", "a name that no other checkpoint of the run has", name)

    def _check_same(self) -> None:
        """Checks keys that have two names."""
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
