"""Keys of a table of evaluations."""

from dataclasses import dataclass

from t3d.config.keys import check_name, key
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
        "row -> its model: a folder or hub id; {base} and {data_type} in it stand for the cell's; where there is no"
        " <method>/ckpt/<name>, it is that of the method's newest finished run",
    )
    labels: dict[str, str] = key(
        {}, "row -> its name in the table and in plots; a row without one is called by its key"
    )
    trained: dict[str, str] = key(
        {},
        "row -> settings (key=value key=value) that its checkpoint must have been trained with; another one is refused",
    )
    bases: list[str] = key([], "names of base models; the table is filled for each, and {base} stands for the name")
    datasets: list[str] = key(
        [],
        "data sets (empty: evaluation.eval_dataset); the paper's have a known data_type, others evaluation.data_type",
    )
    decodings: list[list[int]] = key([], "decodings, each a pair [block_size, denoising_steps_per_block]")
    strategies: list[str] = key([], "remasking strategies (empty: rollout.remasking_strategy)")
    name: str = key("table", "the files are called <project>/results/<name>.md, .csv, .tex, .json and .config.yaml")
    title: str = key("", "caption of the table (empty: table.name)")
    sections: list[str] = key(
        [], f"axes that divide the table into parts, one for each value; axes: {', '.join(TABLE_AXES)}"
    )
    rows: list[str] = key(
        ["model", "dataset"], "axes whose values make the rows; tokps is block_size / denoising_steps"
    )
    columns: list[str] = key(["block_size", "denoising_steps"], "axes whose values make the columns")
    figures: list[str] = key(["acc"], f"figures that each cell shows, any of {', '.join(TABLE_FIGURES)}")
    average: bool = key(
        False, "add the mean accuracy of each row and, with table.baseline, its improvement on that row's"
    )
    baseline: str | None = key(
        None, "row that the others are compared with: by the improvement, and by the report's AUP"
    )
    unranked: list[str] = key([], "rows for reference: never bold, and not compared with the others")
    level: float = key(
        0.05,
        "significance level of the test against the best accuracy; what it does not find lower is bold too",
        low=0,
        high=1,
    )
    skip_missing: bool = key(
        False, "true: cells of missing checkpoints stay empty; false: a missing checkpoint is an error, before any work"
    )

    def label(self, row: str) -> str:
        """What people read for a row of `checkpoints`."""
        return self.labels.get(row, row)

    def __post_init__(self) -> None:
        """Checks the grid and its layout."""
        check_name("table.name", self.name)
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
            unknown = [value for value in values if value not in known]
            if unknown or len(set(values)) < len(values):
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
