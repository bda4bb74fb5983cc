"""Append-only store of finished responses: what is counted as done survives a kill."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t3d.errors import DataError
from t3d.rollout.fingerprint import difference
from t3d.trajectory import Trajectory

SYNC_SECONDS = 1.0


class Shard:
    """A JSON-lines file: a header with the run's fingerprint, then one line per finished response.

    Attributes:
        finished: trajectory of each finished request, by its number.
        seconds: decoding time spent so far, over all sessions.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], resume: bool) -> None:
        """Opens the shard and reads what an interrupted run left.

        Raises:
            DataError: the shard belongs to a run with another fingerprint, or a line before its last is no JSON.
        """
        self.path = path
        self.finished: dict[int, Trajectory] = {}
        self.seconds = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path) if resume else []
        if lines:
            self._read(lines, fingerprint)
            os.truncate(path, sum(map(len, lines)))
        self._file = path.open("ab" if lines else "wb")
        if not lines:
            self._append({"fingerprint": fingerprint})
        self._synced = time.monotonic()

    def add(self, number: int, trajectory: Trajectory, seconds: float) -> None:
        """Stores a finished response; `seconds` is the run's decoding time so far.

        It outlives this process at once, and the machine within `SYNC_SECONDS`.
        """
        self.finished[number], self.seconds = trajectory, seconds
        self._append({"request": number, "seconds": seconds, "trajectory": asdict(trajectory)})
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Closes the file, which stays."""
        self._file.close()

    def remove(self) -> None:
        """Removes the file, once its content stands in the final one."""
        self.close()
        self.path.unlink()

    def _append(self, value: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(self.path, "room to write (the finished responses are kept)", error.strerror) from error

    def _read(self, lines: list[bytes], fingerprint: Mapping[str, Any]) -> None:
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise DataError(f"{self.path}, line {number}", "JSON", error) from error
            if number == 1:
                if changed := difference(entry["fingerprint"], fingerprint):
                    expected = "the settings of the interrupted run (rollout.resume=false starts over)"
                    raise DataError(self.path, expected, changed)
            else:
                self.finished[entry["request"]] = Trajectory(**entry["trajectory"])
                self.seconds = max(self.seconds, entry["seconds"])


def _whole_lines(path: Path) -> list[bytes]:
    """Lines of an earlier session; one that a kill cut short is left out."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
