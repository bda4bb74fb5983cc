"""What a run reports: one line of metrics.jsonl per global step, and the trackers asked for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t3d.config import TrainConfig
from t3d.errors import DataError
from t3d.storage.files import atomic_writer, whole_lines
from t3d.training.trackers import start_trackers

METRICS = "metrics.jsonl"

SCORE = "validation/acc"
"""The metric that decides which checkpoint is the best; those of single decodings have their names behind it."""


GAP = "meter/nats_per_block"
"""How the metrics of the factorisation meter begin; each has its decoding's name behind it."""


class MetricsLog:
    """metrics.jsonl, continued where a resumed run left off, and the trackers of `experiment.trackers`."""

    def __init__(self, folder: Path, config: TrainConfig, first_step: int) -> None:
        """Opens the log in `folder`, dropping lines of steps that the resumed state does not include.

        Args:
            folder: the run's folder.
            config: names the trackers.
            first_step: global steps already done.

        Raises:
            DataError: the log cannot be read or written.
        """
        self._path = folder / METRICS
        kept = [line for line in read_metrics(self._path) if line["step"] <= first_step]
        with atomic_writer(self._path) as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._trackers = start_trackers(folder, config, first_step)

    def write(self, metrics: Mapping[str, float]) -> None:
        """Records the metrics of one global step; "step" is one of them.

        JSON has no infinity: what is no number, such as the gradient norm of a step that fp16's scaling left out, is
        null.

        Raises:
            DataError: no room for the line.
        """
        valid = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(valid) + "\n")
        except OSError as error:
            raise DataError(self._path, "room to write", error.strerror or error) from error
        for tracker in self._trackers:
            tracker.write(metrics)

    def close(self) -> None:
        """Ends the trackers."""
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a log (none if it is missing), None for what was no number; one that a kill cut short is left out.

    Raises:
        DataError: an unreadable line, or one without a step.
    """
    lines = []
    for number, line in enumerate(whole_lines(path), 1):
        try:
            lines.append(json.loads(line, parse_constant=lambda _: None))  # older logs have NaN and Infinity
            int(lines[-1]["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}", "the metrics of one step", error) from error
    return lines
