"""Engines side by side on a CPU: cores that share the sequences instead of each product.

Threads that share one product wait for each other at its end and at that of every small operation beside it; threads
that decode sequences of their own do not.  Results are the same to the bit for a model that `load_decoder` loaded: no
response depends on what is decoded beside it, and no product on the number of its threads.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from t3d.sdar.backend import Heads
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.modeling import SDARForCausalLM

PER_LANE = 8
"""Sequences below which a lane of their own does not pay: its products are too small, and it reads every weight."""
LANE_WORK = 50e6
"""Multiplications of a forward below which neither does it: engines side by side wait for each other's Python."""
SHARED_WEIGHTS = 4e6
"""Numbers in the layers' matrices below which no product is shared: they stay in a core's cache, and threads would wait
for each other longer than they work."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Lanes:
    """Engines side by side.

    Attributes:
        shares: sequences that each decodes at a time.
        threads: torch's threads of each.
    """

    shares: list[int]
    threads: int


def make_lanes(model: SDARForCausalLM, num_sequences: int, block_size: int, most: int) -> Lanes:
    """One engine, or on a CPU as many as pay, and at most so many."""
    available = torch.get_num_threads()
    if model.device.type != "cpu":
        return Lanes([num_sequences], available)
    weights = num_weights(model.config)
    worth = int(weights * block_size * num_sequences // LANE_WORK)
    lanes = max(1, min(available, num_sequences // PER_LANE, worth, most))
    shares = [num_sequences // lanes + (lane < num_sequences % lanes) for lane in range(lanes)]
    return Lanes(shares, available // lanes if weights >= SHARED_WEIGHTS else 1)


def num_weights(config: SDARConfig) -> int:
    """Numbers in the matrices of the layers that a token is multiplied with."""
    queries, keys, dim = Heads.of(config)
    per_channel = 2 * (queries + keys) * dim + 3 * config.intermediate_size
    return config.num_hidden_layers * config.hidden_size * per_channel


def side_by_side(lanes: Sequence[Callable[[], Iterator[list[Result]]]], num_threads: int) -> Iterator[Result]:
    """Runs iterators in threads, each with `num_threads` of torch's, and yields what their lists hold as they come.

    However this ends, no thread goes on: each stops at the next list, an empty one at the latest.  The first
    exception of a lane ends all of them and is raised here.
    """
    before = torch.get_num_threads()
    try:
        if len(lanes) == 1:
            torch.set_num_threads(num_threads)
            yield from chain.from_iterable(lanes[0]())
        else:
            yield from _in_threads(lanes, num_threads)
    finally:
        torch.set_num_threads(before)


def _in_threads(lanes: Sequence[Callable[[], Iterator[list[Result]]]], num_threads: int) -> Iterator[Result]:
    """A thread for each of several iterators."""
    news: SimpleQueue[list[Result] | Exception | None] = SimpleQueue()
    stopped = threading.Event()
    work = partial(_work, news=news, stopped=stopped, num_threads=num_threads)
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
