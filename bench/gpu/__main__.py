"""Parity and speed on one card, in nine minutes, with random weights: `make gpu`, or `python -m bench.gpu`.

It needs torch, transformers, numpy, safetensors and what installs as pure wheels, no network and no checkpoint.  Each
section runs in a process of its own with a time of its own, so that the kit always ends; what is known is written
after each one, to bench_results/gpu.json and gpu.md.  Exit status 1 says that a parity check failed or was not made:
kernels are compiled at the first run and kept, so that a second one needs less time.
`--tiny --device cpu` tries every check on small networks, in one process.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from bench.gpu.apart import GRACE, run_apart, section_command
from bench.gpu.findings import Record, summary, table, verdict, words
from bench.gpu.sections import SECTIONS, Section, run_section, unmade
from bench.gpu.world import World

BUDGET = 540.0
"""Seconds of the whole kit."""


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="a CUDA device, or cpu")
    parser.add_argument("--tiny", action="store_true", help="small networks: tries the kit and measures nothing")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything (%(default)g)")
    parser.add_argument("--out", type=Path, default=Path("bench_results"), help="folder of the results (%(default)s)")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--section", choices=names, help="one section alone; its records go to standard output")
    return parser.parse_args()


def run_all(world: World, budget: float) -> Iterator[list[Record]]:
    """Yields the records of each section in turn: on a card in processes of their own, else here.

    A section has its own part of the budget, and what those before it have left.
    """
    begun, share, due = time.monotonic(), budget / BUDGET, 0.0
    for section in SECTIONS:
        own = share * section.seconds
        due += own
        elapsed = time.monotonic() - begun
        seconds = min(max(own, due - elapsed), budget - elapsed - GRACE)
        if seconds <= 0:
            yield [unmade(section, section.name, "no time was left")]
        elif world.is_cuda:
            command = section_command(section.name, str(world.device), world.tiny, seconds)
            records, failure = run_apart(command, seconds + GRACE)
            yield [*records, *([unmade(section, section.name, failure)] if failure else [])]
        else:
            yield list(run_section(section, world, seconds))


def write(folder: Path, records: list[Record], device: str) -> None:
    """Writes everything that is known so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n")
    title = f"# `python -m bench.gpu` on {device}, {time.strftime('%Y-%m-%d')}"
    (folder / "gpu.md").write_text(f"{title}\n\n{summary(records)}\n\n{table(records)}\n")


def prepare(world: World) -> None:
    """Exact single-precision products; small ones on one thread, as several would wait for each other."""
    torch.set_float32_matmul_precision("highest")
    if world.tiny:
        torch.set_num_threads(1)


def one_section(section: Section, world: World, budget: float) -> None:
    """As a process of its own: writes each record as soon as it is known."""
    for record in run_section(section, world, budget):
        sys.stdout.write(record.to_line() + "\n")
        sys.stdout.flush()
        tell(record)


def tell(record: Record) -> None:
    """One line of progress."""
    line = f"{verdict(record):4} {record.section}: {record.name}: {words(record.values)}"
    sys.stderr.write(f"{line} ({record.seconds:.1f} s)\n")


def main() -> int:
    """Runs the kit."""
    asked = arguments()
    logging.basicConfig(format="%(message)s")
    world = World(torch.device(asked.device), asked.tiny)
    if world.is_cuda and not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA device; `python -m bench.gpu --tiny --device cpu` tries the kit without one\n")
        return 2
    prepare(world)
    if asked.section:
        one_section(next(section for section in SECTIONS if section.name == asked.section), world, asked.budget)
        return 0
    records: list[Record] = []
    name = torch.cuda.get_device_name(world.device) if world.is_cuda else "a CPU"
    for found in run_all(world, asked.budget):
        records += found
        if not world.is_cuda:
            for record in found:
                tell(record)
        write(asked.out, records, name)
    sys.stdout.write(f"{table(records)}\n\n{summary(records)}\n{asked.out / 'gpu.json'}, {asked.out / 'gpu.md'}\n")
    return int(any(record.passed is False for record in records))


if __name__ == "__main__":
    sys.exit(main())
