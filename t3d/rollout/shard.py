"""Append-only store of finished responses: what is counted as done survives a kill."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from t3d.errors import DataError
from t3d.folders import make_folder
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
        """Reads what an interrupted run left; the file appears with the first response.

        Raises:
            DataError: the shard belongs to a run with another fingerprint, or a line of it is unreadable.
        """
        self.path = path
        self.finished: dict[int, Trajectory] = {}
        self.seconds = 0.0
        self._file: IO[bytes] | None = None
        self._fingerprint = fingerprint
        self._synced = time.monotonic()
        make_folder(path.parent)
        lines = _whole_lines(path) if resume else []
        self._kept_bytes = sum(map(len, lines))
        if lines:
            self._read(lines, fingerprint)

    def add(self, number: int, trajectory: Trajectory, seconds: float) -> None:
        """Stores a finished response; `seconds` is the run's decoding time so far.

        It outlives this process at once, and the machine within `SYNC_SECONDS`.
        """
        self.finished[number], self.seconds = trajectory, seconds
        self._append({"request": number, "seconds": seconds, "trajectory": asdict(trajectory)})

    def close(self) -> None:
        """Closes the file, which stays."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Removes the file, once its content stands in the final one."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _append(self, value: Mapping[str, Any]) -> None:
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise DataError(self.path, "room to write (the finished responses are kept)", error.strerror) from error

    def _open(self) -> IO[bytes]:
        """Opens the file behind its last whole line; a new one gets its header."""
        if self._kept_bytes:
            os.truncate(self.path, self._kept_bytes)
            return self.path.open("ab")
        file = self.path.open("wb")
        file.write(json.dumps({"fingerprint": self._fingerprint}).encode() + b"\n")
        return file

    def _read(self, lines: list[bytes], fingerprint: Mapping[str, Any]) -> None:
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number == 1:
                    changed = difference(entry["fingerprint"], fingerprint)
                else:
                    self.finished[entry["request"]] = Trajectory(**entry["trajectory"])
                    self.seconds = max(self.seconds, entry["seconds"])
            except (ValueError, KeyError, TypeError) as error:
                expected = "a line of this project (rollout.resume=false starts over)"
                raise DataError(f"{self.path}, line {number}", expected, error) from error
            if number == 1 and changed:
                expected = "the settings of the interrupted run (rollout.resume=false starts over)"
                raise DataError(self.path, expected, changed)


def _whole_lines(path: Path) -> list[bytes]:
    """Lines of an earlier session; one that a kill cut short is left out."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
