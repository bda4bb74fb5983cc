"""Keys of validation while training."""

from dataclasses import dataclass

from t3d.config.keys import key
from t3d.errors import ConfigError

BEST = "best"
"""Name of the best checkpoint under ckpt/."""

MEAN = "mean"


def budget_name(decoding: list[int]) -> str:
    """What metrics and `validation.select` call a decoding: block size/steps, 4/1."""
    return f"{decoding[0]}/{decoding[1]}"


@dataclass
class ValidationConfig:
    """Held-out problems that the student decodes while it trains, which changes nothing of the training."""

    every: int = key(
        0, "global steps between validations of the student as it is, and one behind the last step; 0: never", low=0
    )
    dataset: str | None = key(
        None,
        "held-out problems of dataset.data_type: a JSON file, or the name of one in data/; not those of the final"
        " evaluation, as they decide which checkpoint is ckpt/best",
    )
    limit: int | None = key(None, "only the first N problems (null: all)", low=1)
    decodings: list[list[int]] = key([[4, 2], [4, 1]], "decodings, each a pair [block_size, denoising_steps_per_block]")
    select: str = key(
        MEAN,
        "accuracy that decides which checkpoint is ckpt/best: the mean over decodings, or that of one, such as 4/1",
    )
    max_token: int | None = key(
        None, "longest response, in tokens; longer ones are cut there (null: training.max_gen_length)", low=1
    )
    temperature: float = key(0.1, "softmax temperature; 0: argmax", low=0)
    max_active: int = key(64, "most sequences decoded together, as memory allows; does not change results", low=1)

    def __post_init__(self) -> None:
        """Checks values against each other."""
        for decoding in self.decodings:
            if len(decoding) != 2 or not 1 <= decoding[1] <= decoding[0]:
                raise ConfigError("validation.decodings", "pairs of block_size and at most as many steps", decoding)
        names = [budget_name(decoding) for decoding in self.decodings]
        if not names or len(set(names)) < len(names):
            raise ConfigError("validation.decodings", "at least one, each once", self.decodings)
        if self.select not in (MEAN, *names):
            raise ConfigError("validation.select", f"one of {', '.join((MEAN, *names))}", self.select)
        if self.every and self.dataset is None:
            raise ConfigError("validation.dataset", "held-out problems, as validation.every is not 0", "null")

    def check_metered(self) -> None:
        """Checks that there is something to measure for `training.meter_every`.

        Raises:
            ConfigError: no problems, or no decoding of several tokens per step.
        """
        if self.dataset is None:
            raise ConfigError("validation.dataset", "held-out problems, as training.meter_every is not 0", "null")
        if all(size == steps for size, steps in self.decodings):
            expected = "one of fewer steps than positions, as training.meter_every is not 0"
            raise ConfigError("validation.decodings", expected, self.decodings)
