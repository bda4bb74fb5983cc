"""Weights & Biases and TensorBoard: told of every step, and never a reason for a run to end."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from t3d.config import TrainConfig
from t3d.errors import named

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 30.0
"""How long an unreachable server may hold up the first step."""


class Tracker(ABC):
    """One tracker of a run; from its first failure on it is silent."""

    name: str

    def __init__(self, folder: Path, config: TrainConfig, first_step: int) -> None:
        """Starts the tracker; whatever keeps it from starting is a warning."""
        self._running = True
        self._safely(self._start, folder, config, first_step)

    def write(self, metrics: Mapping[str, float]) -> None:
        """Passes on the metrics of one global step."""
        self._safely(self._write, dict(metrics), int(metrics["step"]))

    def close(self) -> None:
        """Ends the tracker."""
        self._safely(self._close)

    def _safely(self, action: Any, *arguments: Any) -> None:
        if not self._running:
            return
        try:
            action(*arguments)
        # A network, a service process and two libraries may raise anything; days of training are worth more.
        except Exception as error:  # noqa: BLE001
            self._running = False
            log.warning("training goes on without %s: %s", self.name, named(error))

    @abstractmethod
    def _start(self, folder: Path, config: TrainConfig, first_step: int) -> None: ...

    @abstractmethod
    def _write(self, metrics: dict[str, float], step: int) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...


class Wandb(Tracker):
    """Weights & Biases, with the keys of the group `wandb`.

    A resumed run goes on in the wandb run that it began, whose id the run's folder keeps; `wandb.run_id` names
    another.  (Offline both parts have the same id, and `wandb sync --append` puts them together.)
    """

    name = "wandb"
    ID_FILE = "wandb_run_id.txt"

    def _start(self, folder: Path, config: TrainConfig, first_step: int) -> None:
        import wandb  # a run without it needs neither the package nor the second that it takes to import

        settings, kept = config.wandb, folder / self.ID_FILE
        run_id = settings.run_id
        if run_id is None and first_step and kept.exists():
            run_id = kept.read_text(encoding="utf-8").strip()
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise PermissionError("not logged in (run `wandb login`, or set WANDB_MODE=offline)")
        self._run = wandb.init(
            entity=settings.entity,
            project=settings.project or config.experiment.project,
            id=run_id,
            resume="allow" if settings.resume or run_id else None,
            dir=str(folder),
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT_S),
        )
        kept.write_text(f"{self._run.id}\n", encoding="utf-8")

    def _write(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)

    def _close(self) -> None:
        self._run.finish()


class TensorBoard(Tracker):
    """TensorBoard event files in the run's folder."""

    name = "tensorboard"

    def _start(self, folder: Path, config: TrainConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports tensorboard, as above

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def _write(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def _close(self) -> None:
        self._board.close()


TRACKERS: dict[str, type[Tracker]] = {tracker.name: tracker for tracker in (Wandb, TensorBoard)}


def unused_wandb(config: TrainConfig) -> str | None:
    """What to say of a group `wandb` that is filled in while nothing is sent there; None if all is well."""
    given = [entry.name for entry in fields(config.wandb) if vars(config.wandb)[entry.name] not in (None, False)]
    if not given or Wandb.name in config.experiment.trackers:
        return None
    keys = ", ".join(f"wandb.{name}" for name in given)
    return f"{keys}: not used, as experiment.trackers does not name wandb (experiment.trackers=[wandb])"


def start_trackers(folder: Path, config: TrainConfig, first_step: int) -> list[Tracker]:
    """The trackers of `experiment.trackers`, from the step after `first_step` on."""
    if line := unused_wandb(config):
        log.warning("%s", line)
    return [TRACKERS[name](folder, config, first_step) for name in config.experiment.trackers]
