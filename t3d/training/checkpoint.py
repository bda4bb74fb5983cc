"""Resumable training states: whole or absent, checked when read, and pruned."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import MODEL_NAME
from torch import nn

from t3d.errors import CheckpointError, named
from t3d.storage.folders import make_folder, put_in_place, remove_folder, saving
from t3d.training import fsdp
from t3d.training.reference import load_reference, save_reference

log = logging.getLogger(__name__)

STEP_FOLDER = re.compile(r"step-(\d+)")
META = "t3d_state.json"
REFERENCE = "reference.safetensors"


def step_folder(parent: Path, step: int) -> Path:
    """Folder under `parent` of what was saved after global step `step`."""
    return parent / f"step-{step:06d}"


def save_state(
    accelerator: Accelerator, parent: Path, step: int, samples_per_step: int, reference: nn.Module | None
) -> None:
    """Saves model, optimizer and reference after global step `step`; all processes call it together.

    Frozen weights stay out: they are those of the model that the run started from.  The folder is renamed into place
    only when every process has written its part.

    Raises:
        CheckpointError: this process could not write its part.
    """
    target = step_folder(parent, step)
    temporary = target.with_name(f".{target.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
    accelerator.wait_for_everyone()
    try:
        with saving(target):
            with _without_wrappers(accelerator):
                # The second argument is heeded by DeepSpeed alone; `_without_wrappers` does the same for the others.
                accelerator.save_state(str(temporary), exclude_frozen_parameters=True)
            if reference is not None:
                unwrapped = accelerator.unwrap_model(reference)
                save_reference(unwrapped, temporary / REFERENCE, accelerator.is_main_process)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                meta = {
                    "step": step,
                    "samples_per_step": samples_per_step,
                    "num_processes": accelerator.num_processes,
                    "files": _sizes(temporary),
                }
                (temporary / META).write_text(json.dumps(meta), encoding="utf-8")
                put_in_place(temporary, target)
    except CheckpointError as error:
        if not accelerator.is_local_main_process:  # whose line is the only one that the entry point prints
            log.error("process %d: %s", accelerator.process_index, error)
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, folder: Path, reference: nn.Module | None, whole: bool = True) -> int:
    """Restores what `save_state` wrote and returns its global step.

    Args:
        accelerator: of the launch.
        folder: the state's.
        reference: the one that was saved.
        whole: no weight of the model is frozen, and so the state has every one.

    Raises:
        CheckpointError: an incomplete or unreadable state (the newest earlier one that is whole is named), one saved
            with DeepSpeed or FSDP2 and not loaded with it or the other way round, or one of DeepSpeed's of another
            number of processes.
    """
    if problem := damage(folder):
        raise CheckpointError(folder, f"a whole training state{_advice(folder)}", problem)
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    _check_launch(accelerator, folder, meta["num_processes"])
    try:
        with _without_wrappers(accelerator):
            strict = "strict" if accelerator.state.deepspeed_plugin is None else "load_module_strict"
            accelerator.load_state(str(folder), **{strict: whole})
        if reference is not None:
            load_reference(accelerator.unwrap_model(reference), folder / REFERENCE)
    except Exception as error:  # whatever four file formats make of garbage
        expected = f"a whole training state{_advice(folder)}"
        raise CheckpointError(folder, expected, named(error)) from error
    return int(meta["step"])


def _check_launch(accelerator: Accelerator, folder: Path, saved_by: int) -> None:
    """Without DeepSpeed any number of processes can go on from a state."""
    kinds = {MODEL_NAME: "a launch with DeepSpeed", fsdp.STATES: "a launch with FSDP2"}
    plain = "a launch without DeepSpeed or FSDP2"
    saved = next((kind for name, kind in kinds.items() if (folder / name).is_dir()), plain)
    deepspeed = accelerator.state.deepspeed_plugin is not None
    now = kinds[MODEL_NAME] if deepspeed else kinds[fsdp.STATES] if fsdp.is_fsdp(accelerator) else plain
    if saved != now:
        raise CheckpointError(folder, f"{saved}, as the one that saved it", now)
    if deepspeed and saved_by != accelerator.num_processes:
        expected = (
            f"the {saved_by} process(es) that it was saved by: DeepSpeed cuts the optimizer's state into a part per"
            " process (without DeepSpeed any number goes on)"
        )
        raise CheckpointError(folder, expected, f"{accelerator.num_processes} now")


@contextmanager
def _without_wrappers(accelerator: Accelerator) -> Iterator[None]:
    """Within it, accelerate's states name weights as one process does, however many there are.

    DDP's module puts a prefix before each name.  (With DeepSpeed both lists are empty: its engine saves by itself.)
    """

    def save(models: list[Any], weights: list[Any], _: str) -> None:
        weights[:] = [_unfrozen(accelerator.unwrap_model(model)) for model in models[: len(weights)]]

    def load(models: list[Any], _: str) -> None:
        models[:] = [accelerator.unwrap_model(model) for model in models]

    hooks = accelerator.register_save_state_pre_hook(save), accelerator.register_load_state_pre_hook(load)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _unfrozen(network: nn.Module) -> dict[str, Any]:
    """A network's weights without those that no training changes."""
    weights = network.state_dict()
    for name, weight in network.named_parameters(remove_duplicate=False):
        if not weight.requires_grad:
            del weights[name]
    return weights


def saved_samples(folder: Path, per_process: int) -> int | None:
    """Samples per step of the run that saved a state; None if the state is damaged.

    Args:
        folder: the state's.
        per_process: of an older state, which does not record them, each process had as many.
    """
    if damage(folder):
        return None
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    return int(meta.get("samples_per_step", per_process * meta["num_processes"]))


def damage(folder: Path) -> str | None:
    """What is wrong with a state, as far as the names and sizes of its files show; None if nothing."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        expected, _, _ = dict(meta["files"]), int(meta["step"]), int(meta["num_processes"])
    except FileNotFoundError:
        return f"no {META}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{META}: {named(error)}"
    found = _sizes(folder)
    for name, size in expected.items():
        if found.get(name) != size:
            return f"{name}: {found[name]} of {size} bytes" if name in found else f"{name} missing"
    return None


def saved_steps(parent: Path) -> dict[int, Path]:
    """Step -> folder of everything saved under `parent`, in ascending order."""
    found = {}
    for path in parent.glob("step-*"):
        if match := STEP_FOLDER.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def prune(parent: Path, limit: int | None) -> None:
    """Removes the oldest step folders beyond `limit` (None keeps all); one that cannot be removed is told of."""
    steps = list(saved_steps(parent).values())
    for path in steps[: max(0, len(steps) - limit)] if limit else []:
        log.info("removing %s", path)
        try:
            remove_folder(path)
        except OSError as error:
            log.warning("%s cannot be removed yet: %s", path, error.strerror or error)


def _advice(folder: Path) -> str:
    """Where to resume from instead of a damaged state."""
    whole = [path for path in saved_steps(folder.parent).values() if path != folder and not damage(path)]
    return f" (experiment.resume_from={whole[-1]} is one)" if whole else " (there is no other one)"


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file in a state, by its path from the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != META)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}
