"""A whole examination: the machine and, where a command is named, everything that it would meet."""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t3d.doctor import packages
from t3d.doctor.finding import Examination
from t3d.doctor.page import count, render
from t3d.errors import UserError

KINDS = ("sample", "train", "eval")
TRAIN_GROUPS = {"model", "dataset", "training", "optimizer", "lr_scheduler", "validation", "wandb"}
EVAL_GROUPS = {"execute", "table"}
EVAL_KEYS = {"evaluation.rollouts", "evaluation.repair_known_bad"}
DRY_RUN = "--dry-run"


def dry_run(kind: str, arguments: list[str]) -> None:
    """A script's `--dry-run`: examines exactly its command, prints the page, and starts and writes nothing.

    In a launch only the first process speaks.

    Args:
        kind: of `KINDS`.
        arguments: of the script.

    Raises:
        UserError: something keeps the command from running.
    """
    if os.environ.get("RANK", "0") == "0":
        report(kind, [argument for argument in arguments if argument != DRY_RUN], launched=True)


def report(kind: str | None, arguments: list[str], launched: bool = False) -> None:
    """Examines and prints the page.

    Args:
        kind: of `KINDS`; None: the machine alone.
        arguments: `config=FILE key=value ...`.
        launched: the command itself asks: processes are counted in its launch.

    Raises:
        UserError: there are errors on the page.
    """
    with _page_alone():
        examination = examine(kind, arguments, launched)
    title = "t3d doctor" + (f": {kind} {' '.join(arguments)}" if kind else "")
    sys.stdout.write(render(title, examination.sections))
    sys.stdout.flush()
    if any(finding.level == "error" for finding in examination.findings):
        what = "a command that will run" if kind else "a machine that t3d runs on"
        raise UserError("doctor", what, f"{count(examination.findings, 'error')} (above, with the cure)")


def examine(kind: str | None, arguments: list[str], launched: bool = False) -> Examination:
    """Everything that is to be said; see `report`."""
    examination = Examination()
    examination.open("machine")
    _machine(examination, kind)
    if kind is not None:
        examination.open(kind)
        _command(examination, kind, arguments, launched)
    return examination


@contextmanager
def _page_alone() -> Iterator[None]:
    """Keeps the news of what is tried out from the console: the page says it all."""
    news = logging.getLogger("t3d")
    level = news.level
    news.setLevel(logging.ERROR)
    try:
        yield
    finally:
        news.setLevel(level)


def kind_of(keys: set[str]) -> str:
    """The kind of command that a configuration is for, by the keys that it gives."""
    groups = {key.partition(".")[0] for key in keys}
    if groups & TRAIN_GROUPS:
        return "train"
    return "eval" if groups & EVAL_GROUPS or keys & EVAL_KEYS else "sample"


def _machine(examination: Examination, kind: str | None) -> None:
    """Packages first: what the other checks import may be what is broken."""
    examination.examine("packages", lambda: packages.packages(trains=kind in (None, "train")))
    machine = examination.obtain("devices", lambda: _checks("machine"))
    devices = None if machine is None else examination.obtain("devices", machine.find_devices)
    if machine is None or devices is None:
        return
    on_gpu = devices[0].capability is not None
    examination.examine("extras", lambda: packages.extras(on_gpu))
    examination.examine("processor", machine.processor)
    examination.examine("devices", lambda: machine.devices(devices, machine.has_driver()))
    examination.examine("host", lambda: machine.storage(Path.cwd(), len(devices)))
    if kind is None:  # else with the command's own model and settings
        examination.examine("kernels", lambda: machine.usual_kernels(devices[0]))
        examination.examine("sandbox", lambda: machine.sandbox("auto", is_needed=False))


def _command(examination: Examination, kind: str, arguments: list[str], launched: bool) -> None:
    checks = examination.obtain("checks", lambda: _checks("training" if kind == "train" else "decoding"))
    if checks is None:
        return
    if kind == "train":
        examination.obtain("train", lambda: checks.examine_training(examination, arguments, launched))
    else:
        examination.obtain(kind, lambda: checks.examine_decoding(examination, arguments, kind == "eval", launched))


def _checks(name: str) -> Any:
    """A module of checks; it imports what may be broken."""
    return importlib.import_module(f"t3d.doctor.{name}")
