"""Where the time of a global step goes, and how much of the device's power it uses."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch

Part = Callable[[str], AbstractContextManager[Any]]
"""A context in which time counts as that of the part of this name."""

REST = "rest"
"""What belongs to no part."""


def untimed(_name: str) -> AbstractContextManager[Any]:
    """As a `Part`: nothing is measured."""
    return nullcontext()


class StepClock:
    """Seconds of each part of one step; a part inside another one is taken off that one.

    On CUDA they are the device's: work is queued long before it is done, and "data" is what the device waited for.
    """

    def __init__(self, now: Callable[[], Any], seconds_between: Callable[[Any, Any], float]) -> None:
        """Starts.

        Args:
            now: a mark of this moment.
            seconds_between: of two marks, the earlier one first.
        """
        self.started = time.perf_counter()
        self._now, self._seconds_between = now, seconds_between
        self._marks = [(REST, now())]

    @classmethod
    def of(cls, device: torch.device) -> "StepClock":
        """The clock of a device."""
        if device.type == "cuda":
            return cls(_event, _event_seconds)
        return cls(time.perf_counter, lambda first, last: last - first)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts time as that of `name` for as long as the context lasts."""
        outer = self._marks[-1][0]
        self._marks.append((name, self._now()))
        try:
            yield
        finally:
            self._marks.append((outer, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds of every part so far, under "seconds/" and its name."""
        found: dict[str, float] = defaultdict(float)
        for (name, first), (_, last) in pairwise(self._marks):
            if name != REST:
                found[f"seconds/{name}"] += self._seconds_between(first, last)
        return dict(found)


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _event_seconds(first: Any, last: Any) -> float:
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3
