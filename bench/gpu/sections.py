"""The kit's sections, in their order, and how one is run: no check stops another, and none begins after its time."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.gpu import attention, decoding, decoding_speed, machine, network, paging, recordings, training
from bench.gpu.findings import NOT_MADE, Finding, Record
from bench.gpu.world import World

log = logging.getLogger(__name__)

Check = Callable[[World], Iterator[Finding]]


@dataclass(frozen=True)
class Section:
    """Checks that share a process.

    Attributes:
        name: of the section.
        must_hold: whether a check that cannot be made counts as failed.
        seconds: that it may take.
        checks: in their order.
    """

    name: str
    must_hold: bool
    seconds: float
    checks: tuple[Check, ...]


SECTIONS = (
    Section("machine", False, 30, (machine.versions, machine.rates)),
    Section("network", True, 45, (network.rotary_frequencies, network.host_and_device)),
    Section(
        "attention",
        True,
        65,
        (attention.decoding_kernels, paging.attention, attention.training_kernels, attention.training_graphs),
    ),
    Section(
        "decoding",
        True,
        110,
        (
            decoding.single_precision,
            decoding.no_number,
            decoding.full_card,
            decoding.two_in_one_process,
            recordings.same_as_eager,
            paging.same_as_whole,
            decoding.half_precision,
        ),
    ),
    Section("training", True, 70, (training.equal_networks, training.gradients)),
    Section("decoding speed", False, 75, (decoding_speed.eager, decoding_speed.small_network)),
    Section("training speed", False, 45, (training.steps,)),
    Section("kernels", False, 25, (attention.decoding_choice, attention.training_choice)),
    Section("recorded decoding", False, 30, (recordings.speed,)),
    Section("compiled decoding", False, 45, (decoding_speed.compiled,)),
)


def run_section(section: Section, world: World, seconds: float) -> Iterator[Record]:
    """Yields what a section finds; a check's failure is a record.

    Args:
        section: whose checks run.
        world: where.
        seconds: after which no check begins, and the one under way ends with its next finding.
    """
    deadline = time.monotonic() + seconds
    for check in section.checks:
        yield from _run_check(section, check, world, deadline)
        world.clear()


def _run_check(section: Section, check: Check, world: World, deadline: float) -> Iterator[Record]:
    name, started = check.__name__.replace("_", " "), time.monotonic()
    if started > deadline:
        yield unmade(section, name, "no time was left")
        return
    findings = check(world)
    try:
        for finding in findings:
            now = time.monotonic()
            yield Record(section.name, finding.name, finding.passed, finding.values, now - started)
            started = now
            if now > deadline:
                yield unmade(section, name, "cut: its time was over")
                return
    except Exception as error:  # whatever it is, it is this check's result
        log.exception("%s: %s", section.name, name)
        yield unmade(section, name, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


def unmade(section: Section, name: str, why: str) -> Record:
    """The record of a check that gave no answer."""
    return Record(section.name, name, False if section.must_hold else None, {NOT_MADE: why}, 0.0)
