"""Engines side by side on a CPU: cores that share the sequences instead of each product.

Threads that share one product wait for each other at its end and at that of every small operation beside it; threads
that decode sequences of their own do not.  Results are the same to the bit for a model that `load_decoder` loaded: no
response depends on what is decoded beside it, and no product on the number of its threads.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

PER_LANE = 8
"""Sequences below which a lane of their own does not pay: its products are too small, and it reads every weight."""

Result = TypeVar("Result")


def num_lanes(device: torch.device, num_sequences: int) -> int:
    """How many engines decode `num_sequences` at a time: up to one per thread on a CPU, else one."""
    return max(1, min(torch.get_num_threads(), num_sequences // PER_LANE)) if device.type == "cpu" else 1


def lane_shares(device: torch.device, num_sequences: int) -> list[int]:
    """How many of the sequences each engine decodes at a time."""
    lanes = num_lanes(device, num_sequences)
    return [num_sequences // lanes + (lane < num_sequences % lanes) for lane in range(lanes)]


def side_by_side(lanes: Sequence[Callable[[], Iterator[list[Result]]]]) -> Iterator[Result]:
    """Runs iterators in threads that share torch's threads evenly, and yields what their lists hold as they come.

    However this ends, no thread goes on: each stops at the next list, an empty one at the latest.  The first
    exception of a lane ends all of them and is raised here.
    """
    if len(lanes) == 1:
        yield from chain.from_iterable(lanes[0]())
        return
    news: SimpleQueue[list[Result] | Exception | None] = SimpleQueue()
    stopped, num_threads = threading.Event(), torch.get_num_threads()
    work = partial(_work, news=news, stopped=stopped, num_threads=num_threads // len(lanes))
    threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    try:
        for _ in lanes:
            while (found := news.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                yield from found
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
        torch.set_num_threads(num_threads)


def _work(
    lane: Callable[[], Iterator[list[Any]]], news: SimpleQueue[Any], stopped: threading.Event, num_threads: int
) -> None:
    """One lane's thread: sends its lists, an exception if there is one, and None at the end."""
    torch.set_num_threads(num_threads)
    try:
        for found in lane():
            if found:
                news.put(found)
            if stopped.is_set():
                break
    except Exception as error:  # noqa: BLE001 - raised again where the results are awaited
        news.put(error)
    news.put(None)
