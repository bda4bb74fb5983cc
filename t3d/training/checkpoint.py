"""Resumable training states: whole or absent, and pruned."""

import json
import logging
import re
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn

from t3d.errors import CheckpointError

log = logging.getLogger(__name__)

STEP_FOLDER = re.compile(r"step-(\d+)")
META = "t3d_state.json"
REFERENCE = "reference.safetensors"


def step_folder(parent: Path, step: int) -> Path:
    """Folder under `parent` of what was saved after global step `step`."""
    return parent / f"step-{step:06d}"


def save_state(accelerator: Accelerator, parent: Path, step: int, reference: nn.Module | None) -> None:
    """Saves model, optimizer and reference after global step `step`; all processes call it together.

    The folder is renamed into place only when every process has written its part.
    """
    target = step_folder(parent, step)
    temporary = target.with_name(f".{target.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    if accelerator.is_main_process:
        if reference is not None:
            save_model(reference, str(temporary / REFERENCE))
        meta = {"step": step, "num_processes": accelerator.num_processes}
        (temporary / META).write_text(json.dumps(meta), encoding="utf-8")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, folder: Path, reference: nn.Module | None) -> int:
    """Restores what `save_state` wrote and returns its global step.

    Raises:
        CheckpointError: an incomplete or unreadable state, or one of another number of processes.
    """
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if meta["num_processes"] != accelerator.num_processes:
            found = f"{accelerator.num_processes} now"
            raise CheckpointError(folder, f"the {meta['num_processes']} processes that it was saved by", found)
        accelerator.load_state(str(folder))
        if reference is not None:
            load_model(reference, str(folder / REFERENCE))
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(folder, "a whole training state", f"{type(error).__name__}: {reason}") from error
    return int(meta["step"])


def saved_steps(parent: Path) -> dict[int, Path]:
    """Step -> folder of everything saved under `parent`, in ascending order."""
    found = {}
    for path in parent.glob("step-*"):
        if match := STEP_FOLDER.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def prune(parent: Path, limit: int | None) -> None:
    """Removes the oldest step folders beyond `limit` (None keeps all)."""
    steps = list(saved_steps(parent).values())
    for path in steps[: max(0, len(steps) - limit)] if limit else []:
        log.info("removing %s", path)
        shutil.rmtree(path)
