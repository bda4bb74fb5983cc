"""Append-only stores of finished responses: what is counted as done survives a kill."""

import fcntl
import glob
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from t3d.errors import DataError
from t3d.storage.files import whole_lines
from t3d.storage.fingerprint import difference
from t3d.storage.folders import make_folder
from t3d.trajectory import Trajectory

SYNC_SECONDS = 1.0


class Shard:
    """One process's JSON-lines file: a header with the run's fingerprint, then a line per finished response.

    A context manager; the file stays when it ends.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], session: str) -> None:
        """Opens the file behind its last whole line; a new one gets its header.

        Args:
            path: the file; one that is there belongs to a run with this fingerprint (see `Shards.read`).
            fingerprint: what the rollout file is made from.
            session: name of this start of the run, shared by its processes.

        Raises:
            DataError: the file cannot be written, or another process is writing it.
        """
        self.path, self.session = path, session
        self._synced = time.monotonic()
        make_folder(path.parent)
        with self._room():
            self._file: IO[bytes] = path.open("ab", buffering=0)
        try:
            self._lock()
            self._begin(fingerprint)
        except DataError:
            self._file.close()
            raise

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, number: int, trajectory: Trajectory, seconds: float) -> None:
        """Stores a finished response, which outlives this process; the disk is synced every `SYNC_SECONDS`.

        Args:
            number: which request it answers.
            trajectory: the response.
            seconds: time that this process has decoded in this session.

        Raises:
            DataError: the disk is full or gone; what was stored before is kept.
        """
        entry = {"request": number, "session": self.session, "seconds": seconds, "trajectory": asdict(trajectory)}
        self._append(entry)

    def _begin(self, fingerprint: Mapping[str, Any]) -> None:
        """Cuts off what a kill left of a line, and writes the header of a file without responses."""
        lines = whole_lines(self.path)
        kept = sum(map(len, lines)) if len(lines) > 1 else 0
        with self._room():
            self._file.truncate(kept)
        if not kept:
            self._append({"fingerprint": fingerprint})

    def _append(self, value: Mapping[str, Any]) -> None:
        """Writes a line; no buffer is left that closing the file would try to write once more."""
        rest = memoryview(json.dumps(value).encode() + b"\n")
        with self._room():
            while rest:
                rest = rest[self._file.write(rest) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def _lock(self) -> None:
        """Makes sure that no other process, such as a second start of the same run, writes this file."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(self.path, "no other process that decodes into it", "one") from error
        except OSError:  # some network file systems have no locks
            return

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            expected = "room to write (the finished responses are kept)"
            raise DataError(self.path, expected, error.strerror or error) from error


class Shards:
    """All shards of one rollout file, whichever session and process wrote them.

    Only the places of the responses are kept in memory.

    Attributes:
        seconds: decoding time of the longest process of each session, summed over sessions.
        failed: number of stored responses that failed to decode.
    """

    def __init__(self, target: Path, fingerprint: Mapping[str, Any]) -> None:
        """Looks for shards beside the rollout file `target`; `read` reads them."""
        self.target, self.fingerprint = target, fingerprint
        self.seconds, self.failed = 0.0, 0
        self._places: dict[int, tuple[Path, int, int]] = {}

    def path(self, worker: int) -> Path:
        """The shard that process `worker` writes."""
        return self.target.with_suffix(f".partial-{worker}.jsonl")

    def paths(self) -> list[Path]:
        """The shards that are there."""
        return sorted(self.target.parent.glob(f"{glob.escape(self.target.stem)}.partial-*.jsonl"))

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __getitem__(self, number: int) -> Trajectory:
        path, start, length = self._places[number]
        with path.open("rb") as file:
            file.seek(start)
            return _trajectory(json.loads(file.read(length)))

    def read(self) -> None:
        """Finds every stored response; a shard that holds none is of no account.

        Raises:
            DataError: a shard of a run with another fingerprint (what changed is named), or an unreadable line.
        """
        self._places, self.failed = {}, 0
        sessions: dict[str, float] = {}
        for path in self.paths():
            lines = whole_lines(path)
            start = 0
            for number, line in enumerate(lines, 1) if len(lines) > 1 else ():
                try:
                    entry = json.loads(line)
                    if number == 1:
                        self._check(path, entry["fingerprint"])
                    else:
                        self._index(entry, (path, start, len(line)), sessions)
                except (ValueError, KeyError, TypeError) as error:
                    expected = "a line of this project (rollout.resume=false starts over)"
                    raise DataError(f"{path}, line {number}", expected, error) from error
                start += len(line)
        self.seconds = sum(sessions.values())

    def remove(self) -> None:
        """Removes the shards, once their content stands in the rollout file."""
        for path in self.paths():
            path.unlink(missing_ok=True)

    def _check(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        if changed := difference(fingerprint, self.fingerprint):
            raise DataError(path, "the settings of the interrupted run (rollout.resume=false starts over)", changed)

    def _index(self, entry: Mapping[str, Any], place: tuple[Path, int, int], sessions: dict[str, float]) -> None:
        self.failed += _trajectory(entry).error is not None and entry["request"] not in self
        self._places[entry["request"]] = place
        session = entry["session"]
        sessions[session] = max(sessions.get(session, 0.0), entry["seconds"])


def _trajectory(entry: Mapping[str, Any]) -> Trajectory:
    return Trajectory(**entry["trajectory"])
