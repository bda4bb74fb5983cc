"""Runs stage 1's entry again and again, killing it at random moments, until it ends by itself; prints the kills.

A process per start, forked after the imports, which would take most of the time.  Usage: kills, rollout file,
arguments of sample/sdar_sample.py.
"""

import os
import random
import runpy
import signal
import sys
import time
from pathlib import Path

import t3d.rollout  # noqa: F401

ENTRY = Path(__file__).parents[2] / "sample" / "sdar_sample.py"


def start(arguments: list[str]) -> int:
    child = os.fork()
    if not child:
        sys.argv = [ENTRY.name, *arguments]
        runpy.run_path(str(ENTRY), run_name="__main__")
        os._exit(0)
    return child


def kill_at(reached, child: int) -> bool:
    """Kills the process once `reached()`; False if it has ended by itself."""
    while not reached():
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, status
            return False
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(kills: int, target: Path, arguments: list[str]) -> None:
    moments, done = random.Random(7), {"at any time": 0, "while decoding": 0, "while merging": 0}
    shard, details = target.with_suffix(".partial-0.jsonl"), target.with_suffix(".meta.json")

    def size() -> int:
        return shard.stat().st_size if shard.exists() else 0

    def after(seconds: float):
        end = time.monotonic() + seconds
        return lambda: time.monotonic() > end

    for number in range(kills):
        child = start(arguments)
        if number % 4 == 3:
            kind, moment = "at any time", after(moments.random() * 0.5)
        else:
            kind, enough = "while decoding", size() + moments.randrange(1, 1200)
            moment = lambda enough=enough: size() >= enough  # noqa: E731
        assert kill_at(moment, child), "it ended before its time"
        done[kind] += 1
    merging = True
    while merging:
        details.unlink(missing_ok=True)  # it appears when the shards are merged
        child = start(arguments)
        merging = kill_at(details.exists, child) if done["while merging"] < 3 else kill_at(lambda: False, child)
        done["while merging"] += merging
    sys.stdout.write(f"{sum(done.values())} kills: {done}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
