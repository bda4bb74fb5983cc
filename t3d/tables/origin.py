"""Whether a checkpoint is what its row says: its run's configuration against the cell."""

from pathlib import Path
from typing import Any

from t3d.config import TableConfig
from t3d.errors import CheckpointError
from t3d.objectives.registry import OBJECTIVES, WEIGHT_KEYS
from t3d.storage.experiments import recorded, run_config
from t3d.storage.paths import model_name


def check_origin(table: TableConfig, row: str, checkpoint: str, base: str | None, data_type: str) -> None:
    """Checks a checkpoint that this project trained; of any other nothing is recorded.

    Its base model and kind of data must be the cell's where the row's path names them ({base}, {data_type}), and the
    settings of its training those of `table.trained`.

    Args:
        table: the table.
        row: a key of `table.checkpoints`.
        checkpoint: the row's model folder at this cell.
        base: the cell's base model.
        data_type: the cell's kind of problem.

    Raises:
        CheckpointError: it is another row's, base's or kind's; the run's file and entry are named.
    """
    found = run_config(checkpoint)
    if found is None:
        return
    source, values = found
    template = table.checkpoints[row]
    where = f"table.checkpoints.{row}, {source}"
    if base is not None and "{base}" in template:
        _check(where, "model.pretrained_model", base, model_name(str(recorded(values, "model.pretrained_model"))))
        data = Path(str(recorded(values, "dataset.optimization_data"))).name
        if any(data.startswith(f"{other}-") for other in table.bases if not f"{base}-".startswith(f"{other}-")):
            raise CheckpointError(
                f"{where}, dataset.optimization_data", f"no other model's rollouts than {base}'s", data
            )
    if "{data_type}" in template:
        _check(where, "dataset.data_type", data_type, recorded(values, "dataset.data_type"))
    for setting in table.trained.get(row, "").split():
        key, _, expected = setting.partition("=")
        _check(where, key, expected, _setting(values, key))


def _setting(values: dict[str, Any], key: str) -> Any:
    """A setting as the run had it: no weight of a term means the objective's own."""
    value = recorded(values, key)
    objective = OBJECTIVES.get(str(recorded(values, "training.objective")))
    return value if objective is None or key not in WEIGHT_KEYS else objective.weight(WEIGHT_KEYS[key], value)


def _check(where: str, key: str, expected: str, found: Any) -> None:
    if not _equal(expected, found):
        raise CheckpointError(f"{where}, {key}", expected, found)


def _equal(expected: str, found: Any) -> bool:
    if isinstance(found, int | float) and not isinstance(found, bool):
        try:
            return float(expected) == found
        except ValueError:
            return False
    return expected == str(found)
