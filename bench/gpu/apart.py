"""A section in a process of its own: whatever becomes of it, what it found is kept and the next one begins afresh."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from bench.gpu.findings import Record

GRACE = 15.0
"""Seconds beyond a section's own: it imports its libraries in them, and ends by itself if it can."""


def run_apart(command: Sequence[str], seconds: float) -> tuple[list[Record], str]:
    """Runs a command that writes records, and ends it with all its children when its time is over.

    Args:
        command: its standard output is lines of records; its standard error goes to ours.
        seconds: that it may take.

    Returns:
        What it wrote, and how it failed: empty if it did not.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    failure = ""
    try:
        written, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        failure = f"stopped after {seconds:.0f} s"
        os.killpg(process.pid, signal.SIGKILL)
        written, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if not failure and process.returncode:
        failure = f"ended with status {process.returncode}"
    lines = [line for line in written.splitlines() if line.startswith("{") and line.endswith("}")]
    return [Record.from_line(line) for line in lines], failure


def section_command(name: str, device: str, tiny: bool, seconds: float) -> list[str]:
    """The kit itself, for one section."""
    options = ["--section", name, "--device", device, "--budget", str(seconds), *(["--tiny"] if tiny else [])]
    return [sys.executable, "-m", "bench.gpu", *options]
