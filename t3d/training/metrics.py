"""What a run reports: one line of metrics.jsonl per global step, and the trackers asked for."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from torch.utils.tensorboard import SummaryWriter

from t3d.config import TrainConfig

log = logging.getLogger(__name__)


class MetricsLog:
    """metrics.jsonl, continued where a resumed run left off, and the trackers of `experiment.trackers`."""

    def __init__(self, folder: Path, config: TrainConfig, first_step: int) -> None:
        """Opens the log in `folder`, dropping lines of steps that the resumed state does not include.

        Args:
            folder: the run's folder.
            config: names the trackers.
            first_step: global steps already done.
        """
        path = folder / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= first_step]
        path.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._wandb = _start_wandb(folder, config) if "wandb" in config.experiment.trackers else None
        self._board = None
        if "tensorboard" in config.experiment.trackers:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, metrics: Mapping[str, float]) -> None:
        """Records the metrics of one global step; "step" is one of them."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        step = int(metrics["step"])
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Ends the log and the trackers."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._board is not None:
            self._board.close()


def _whole_lines(path: Path) -> list[str]:
    """Complete lines of an earlier log; a line that a kill cut short is left out."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]


def _start_wandb(folder: Path, config: TrainConfig) -> Any:
    """A wandb run, or None with a message if wandb refuses (not logged in, no network): training goes on."""
    settings = config.wandb
    try:
        return wandb.init(
            entity=settings.entity,
            project=settings.project or config.experiment.project,
            id=settings.run_id,
            resume="allow" if settings.resume or settings.run_id else None,
            dir=str(folder),
        )
    except (wandb.errors.Error, OSError) as error:
        mode = os.environ.get("WANDB_MODE", "online")
        log.warning("training goes on without wandb (WANDB_MODE=%s): %s", mode, " ".join(str(error).split()))
        return None
