"""Keys of a table of evaluations."""

from dataclasses import dataclass

from t3d.config.keys import key
from t3d.errors import ConfigError
from t3d.remasking import STRATEGIES

TABLE_AXES = ("base", "model", "dataset", "strategy", "block_size", "denoising_steps", "tokps")
TABLE_FIGURES = (
    *("acc", "tokens_per_second", "latency_s", "avg_steps", "avg_len"),
    *("tokens_per_step", "tokens_per_forward"),
)


@dataclass
class TableConfig:
    """A grid of evaluations; empty: a single one."""

    checkpoints: dict[str, str] = key(
        {},
        "row -> model folder or hub id; {base} and {data_type} in it are replaced by the cell's; a method's"
        " <folder>/ckpt/<name> is that of its newest finished run",
    )
    labels: dict[str, str] = key(
        {}, "row -> its name in the table and in plots; a row without one is called by its key"
    )
    trained: dict[str, str] = key(
        {}, "row -> the overrides (key=value key=value) that its checkpoint must have been trained with"
    )
    bases: list[str] = key([], "base models: the grid is filled for each, {base} being its name")
    datasets: list[str] = key(
        [], "data sets (empty: evaluation.eval_dataset); the paper's bring their data_type, others take evaluation's"
    )
    decodings: list[list[int]] = key([], "pairs of block_size and denoising_steps_per_block")
    strategies: list[str] = key([], "remasking strategies (empty: rollout.remasking_strategy)")
    name: str = key("table", "the files are called <project>/results/<name>.md, .csv, .tex, .json and .config.yaml")
    title: str = key("", "caption")
    sections: list[str] = key([], f"axes of which each value has a part of the table; axes: {', '.join(TABLE_AXES)}")
    rows: list[str] = key(["model", "dataset"], "axes that make a row; tokps is block_size / denoising_steps")
    columns: list[str] = key(["block_size", "denoising_steps"], "axes that make a column")
    figures: list[str] = key(["acc"], f"shown of each cell: {', '.join(TABLE_FIGURES)}")
    average: bool = key(False, "add the mean accuracy over the columns, and the improvement on table.baseline")
    baseline: str | None = key(None, "row whose average the improvement is measured from, and the reference of AUP")
    unranked: list[str] = key([], "rows shown for reference, never bold")
    level: float = key(0.05, "significance level: what is not below the best at it is bold too", low=0, high=1)
    skip_missing: bool = key(False, "leave the cells of missing checkpoints empty; false: an error before any work")

    def label(self, row: str) -> str:
        """What people read for a row of `checkpoints`."""
        return self.labels.get(row, row)

    def __post_init__(self) -> None:
        """Checks the grid and its layout."""
        for decoding in self.decodings:
            if len(decoding) != 2 or not 1 <= decoding[1] <= decoding[0]:
                raise ConfigError("table.decodings", "pairs of block_size and at most as many steps", decoding)
        if bool(self.checkpoints) != bool(self.decodings):
            found = f"{len(self.checkpoints)} and {len(self.decodings)}"
            raise ConfigError("table", "checkpoints and decodings, or neither", found)
        axes = [*self.sections, *self.rows, *self.columns]
        for name, values, known in (
            ("sections, rows and columns", axes, TABLE_AXES),
            ("figures", self.figures, TABLE_FIGURES),
            ("strategies", self.strategies, STRATEGIES),
            ("unranked", self.unranked, self.checkpoints),
            ("baseline", [self.baseline] if self.baseline else [], self.checkpoints),
            ("labels", [*self.labels], self.checkpoints),
        ):
            if unknown := [value for value in values if value not in known] or len(set(values)) < len(values):
                raise ConfigError(f"table.{name}", f"different ones of {', '.join(known)}", unknown or values)
        if len({self.label(row) for row in self.checkpoints}) < len(self.checkpoints):
            raise ConfigError("table.labels", "a name of its own for each row", self.labels)
        for row, settings in self.trained.items():
            if row not in self.checkpoints or not all(word.partition("=")[2] for word in settings.split()):
                raise ConfigError(
                    "table.trained", "key=value key=value for a row of table.checkpoints", f"{row}: {settings}"
                )
        if self.average and ("model" not in self.rows or self.figures != ["acc"]):
            raise ConfigError("table.average", "false, or model among table.rows and figures: [acc]", True)
