"""Where and with what results were made."""

import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("t3d", "torch", "transformers", "math-verify")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of installed packages."""
    return {name: version(name) for name in packages}


def environment() -> dict[str, Any]:
    """What the results were made with: versions, this project's commit, and the machine's device and threads.

    The device is the machine's accelerator, if it has one; `rollout.device` says whether it was used.
    """
    return {
        **versions(),
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, ending in "-dirty" where files differ from it.

    None where it runs from no checkout (an installed package), or there is no git.
    """
    root = Path(__file__).parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
