"""What a rollout or an evaluation needs: problems, prompts that fit, memory for sequences, room for what it writes."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from t3d.config import EvalConfig, RolloutConfig, SampleConfig, load_config
from t3d.data.benchmarks import load_benchmark
from t3d.decoding import DecodingConfig
from t3d.decoding.graphs import are_recorded
from t3d.decoding.kernel import choose_paging, find_kernel
from t3d.decoding.limits import prompt_error
from t3d.decoding.memory import DecodingMemory, decoding_memory, speculative_memory
from t3d.devices import pick_device
from t3d.doctor import machine, model, output
from t3d.doctor.finding import Examination, Finding, counted
from t3d.doctor.machine import Device, size_of
from t3d.doctor.model import Patient
from t3d.errors import CheckpointError, DataError
from t3d.evaluation.records import read_gradable
from t3d.evaluation.run import at_newest_run
from t3d.rollout.draft import SELF, check_draft, check_tokens
from t3d.rollout.job import decoding_config, machine_share, prompt_of
from t3d.rollout.ranks import Ranks
from t3d.rollout.run import count_workers, project_folder, rollout_path
from t3d.sdar.backend import Heads
from t3d.sdar.opening import Checkpoint
from t3d.storage.paths import existing_path, find_data
from t3d.tables.cells import Cell, every_cell
from t3d.training.memory import num_parameters

LONGEST = 200
"""Prompts that are tokenized: the longest by characters, among which the longest by tokens will be."""

TOKEN_BYTES = 40
"""Of a decoded token on disk, at most: its text, id and step, in the rollout file and in a shard."""

SETTINGS_BYTES = 2**16
"""Of the settings beside the rollout file, at most."""


@dataclass(frozen=True)
class Problems:
    """The problems of a command.

    Attributes:
        path: of the data set.
        items: this machine's.
        prompts: token ids of the longest prompts; empty without a tokenizer.
    """

    path: Path
    items: list[dict[str, Any]]
    prompts: list[list[int]]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max((len(prompt) for prompt in self.prompts), default=0)


@dataclass(frozen=True)
class Needed:
    """Memory of a decoding process.

    Attributes:
        weights: bytes.
        decoding: beside them.
        wanted: sequences at a time.
    """

    weights: int
    decoding: DecodingMemory
    wanted: int


def examine_decoding(examination: Examination, arguments: list[str], grades: bool, launched: bool) -> None:
    """Adds what keeps `sdar_sample.py` or `eval.py` from running.

    Args:
        examination: to add to.
        arguments: of the command.
        grades: it is an evaluation.
        launched: the command itself asks, from inside its launch if it has one.
    """
    schema = EvalConfig if grades else SampleConfig
    config = examination.obtain("settings", lambda: load_config(schema, arguments, "", ""))
    if isinstance(config, EvalConfig):
        _examine_evaluation(examination, config, launched)
    elif config is not None:
        examine_model(examination, config, launched)


def _examine_evaluation(examination: Examination, config: EvalConfig, launched: bool) -> None:
    is_needed = "code" in _data_types(config)
    examination.examine("sandbox", lambda: machine.sandbox(config.execute.sandbox, is_needed))
    if config.evaluation.rollouts is not None:
        examination.examine("rollouts", lambda: rollouts(config))
        return
    if config.table.checkpoints:
        examination.examine("table", lambda: table(config))
        there = [cell for cell in every_cell(config) if not _is_missing(cell) and _problem_with_data(cell) is None]
        if not there:
            return
        config = replace(config, evaluation=there[0].config.evaluation, rollout=there[0].config.rollout)
    examine_model(examination, at_newest_run(config), launched)


def examine_model(examination: Examination, config: SampleConfig, launched: bool) -> None:
    """Adds what keeps one checkpoint from decoding one data set."""
    settings = config.rollout
    patient = examination.obtain(
        "checkpoint",
        lambda: model.find_patient(
            config.evaluation.checkpoint_path, "evaluation.checkpoint_path", settings.block_size
        ),
    )
    if patient is not None:
        examination.examine("checkpoint", lambda: model.checkpoint(patient, needs_weights=True))
        examination.examine("tokenizer", lambda: model.tokenizer(patient))
    asked = examination.obtain("problems", lambda: find_problems(config, patient))
    device = examination.obtain("device", lambda: pick_device(settings.device))
    decoding = examination.obtain("settings", lambda: decoding_settings(config, patient)) if patient else None
    if asked is not None:
        examination.examine("problems", lambda: problems(asked, patient, decoding))
        examination.examine("output", lambda: room(config, len(asked.items)))
    if patient is None or device is None or decoding is None:
        return
    dtype = patient.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    examination.examine("kernel", lambda: machine.decoding_kernel(device, dtype, Heads.of(patient.config)))
    needed = _needed(examination, settings, patient, decoding, device, dtype, asked)
    ranks = Ranks(size=int(os.environ.get("WORLD_SIZE", "1"))) if launched else Ranks()
    examination.examine("memory", lambda: memory(machine.find_devices(), device, needed, settings, ranks))
    examination.examine(
        "rehearsal",
        lambda: model.decoding_rehearsal(patient.config, decoding, device, dtype, settings.draft is not None),
    )


def _needed(
    examination: Examination,
    settings: RolloutConfig,
    patient: Patient,
    decoding: DecodingConfig,
    device: torch.device,
    dtype: torch.dtype,
    asked: Problems | None,
) -> Needed:
    """What a decoding process needs; adds what keeps the network that drafts from it."""
    longest = 0 if asked is None else asked.longest
    count = settings.max_active if asked is None else len(asked.items) * settings.num_response_per_task
    weights, wanted = num_parameters(patient.config) * dtype.itemsize, min(settings.max_active, count)
    if settings.draft is None:
        kernel = find_kernel(device, dtype, Heads.of(patient.config))
        graphs = partial(are_recorded, device, dtype, kernel, patient.config, settings.cuda_graphs)
        recorded = examination.obtain("kernel", graphs) or False
        paging = choose_paging(kernel, settings.paged)
        each = decoding_memory(patient.config, dtype, decoding, longest, device, recorded, paging)
        return Needed(weights // settings.tensor_parallel_size, each, wanted)
    networks = [(patient.config, dtype)]
    student = None if settings.draft == SELF else examination.obtain("draft", lambda: find_student(settings, patient))
    if student is not None:
        examination.examine("draft", lambda: model.checkpoint(student, needs_weights=True))
        networks.append((student.config, student.dtype if settings.dtype == "auto" else dtype))
        weights += num_parameters(student.config) * networks[-1][1].itemsize
    return Needed(weights, speculative_memory(networks, decoding, longest, device), wanted)


def find_student(settings: RolloutConfig, patient: Patient) -> Patient:
    """The student that drafts.

    Raises:
        CheckpointError: no such model here, or one that cannot draft for the model.
    """
    assert patient.config.block_size is not None  # the checkpoint is opened
    student = model.find_patient(settings.draft, "rollout.draft", patient.config.block_size)
    check_draft(student.name, student.config, patient.name, patient.config)
    if student.tokenizer is not None and patient.tokenizer is not None:
        check_tokens(student.name, student.tokenizer, patient.name, patient.tokenizer)
    return student


def decoding_settings(config: SampleConfig, patient: Patient) -> DecodingConfig:
    """The decoder's settings; without a tokenizer, no stop tokens."""
    mask = patient.config.mask_token_id
    assert mask is not None  # the checkpoint is opened
    if patient.folder is None or patient.tokenizer is None:
        rollout = config.rollout
        return DecodingConfig(mask, rollout.block_size, rollout.denoising_steps_per_block, rollout.max_token)
    checkpoint = Checkpoint(patient.folder, patient.config, patient.tokenizer)
    return decoding_config(config.rollout, checkpoint)


def find_problems(config: SampleConfig, patient: Patient | None) -> Problems:
    """Reads the data set, every record of it, and builds its longest prompts.

    Raises:
        UserError: no such file, a bad record (named), or more machines than problems.
    """
    _, items = machine_share(config)
    prompts: list[list[int]] = []
    if patient is not None and patient.tokenizer is not None:
        longest = sorted(items, key=lambda item: -len(item["question"]))[:LONGEST]
        prompts = [prompt_of(item, patient.tokenizer, config)[1] for item in longest]
    return Problems(find_data(config.evaluation.eval_dataset), items, prompts)


def problems(asked: Problems, patient: Patient | None, decoding: DecodingConfig | None) -> Iterator[Finding]:
    """How many problems there are, and whether the longest fit the model."""
    text = f"{asked.path}: {len(asked.items)}"
    if patient is None or decoding is None or not asked.prompts:
        yield Finding("ok", "problems", text)
        return
    text += f", longest prompt {asked.longest} tokens"
    errors = [error for prompt in asked.prompts if (error := prompt_error(patient.config, prompt, decoding))]
    if errors:
        every = len(errors) == len(asked.prompts) == len(asked.items)
        count = f"at least {len(errors)}" if len(errors) == LONGEST < len(asked.items) else f"{len(errors)}"
        yield Finding(
            "error" if every else "warning",
            "problems",
            f"{text}; {count} too long: {errors[0]}",
            "rollout.max_token lower",
        )
    else:
        yield Finding("ok", "problems", text)


def memory(
    found: Sequence[Device], device: torch.device, needed: Needed, settings: RolloutConfig, ranks: Ranks
) -> Iterator[Finding]:
    """How many sequences fit beside the weights on the device with the least memory.

    Args:
        found: the machine's devices.
        device: that the command picks first.
        needed: of each process.
        settings: of the rollout; the number of processes counts.
        ranks: of the launch.

    Raises:
        ConfigError: see `count_workers`.
    """
    mine = [one for one in found if one.name.startswith(device.type)] or list(found)
    if device.index is not None and settings.device not in ("auto", "cuda"):
        mine = [one for one in mine if one.name == str(device)] or mine
    workers = count_workers(settings, ranks)
    sharing = -(-max(workers, ranks.size) // len(mine))
    least = min(mine, key=lambda one: one.usable)
    fit = needed.decoding.capacity(least.usable // sharing - needed.weights, needed.wanted)
    text = (
        f"{counted(workers, 'process', 'processes')}, each weights of {size_of(needed.weights)} "
        f"and {size_of(needed.decoding.per_slot)} per sequence"
    )
    if fit.paging is not None:
        pages = f"{fit.pages} of {size_of(needed.decoding.per_page)} for {fit.paging.size} tokens each"
        text += f" and pages of keys and values, {pages} (the longest sequence takes {fit.longest})"
    free = f"{size_of(least.usable / sharing)} usable on {least.name}" + (" by each" if sharing > 1 else "")
    if fit.slots < 1:
        cure = "a free device, a smaller model, rollout.max_token or num_workers lower, or rollout.tensor_parallel_size"
        yield Finding("error", "memory", f"{text}: not one fits into {free}", cure)
    elif fit.slots < needed.wanted:
        text = f"{text}: {fit.slots} of {needed.wanted} at a time fit into {free}; results do not depend on it"
        yield Finding("ok", "memory", text)
    else:
        yield Finding("ok", "memory", f"{text}: all {needed.wanted} fit into {free}")


def room(config: SampleConfig, num_problems: int) -> Iterator[Finding]:
    """Whether the rollout file, or the folder of a table, can be written."""
    settings, path, cells = config.rollout, rollout_path(config), 1
    folder, what = path.parent, counted(num_problems * settings.num_response_per_task, "response")
    if isinstance(config, EvalConfig) and config.table.checkpoints:
        folder, cells = project_folder(config), sum(1 for _ in every_cell(config))
        what += f" in each of {counted(cells, 'cell')}"
    elif path.is_file():
        what += f"; {path.name} is there: kept if nothing differs, else renamed"
    needed = (TOKEN_BYTES * settings.max_token * num_problems * settings.num_response_per_task + SETTINGS_BYTES) * cells
    cure = "another experiment.output_dir, or rollout.max_token lower"
    yield from output.folder(folder, needed, what, cure, at_once=SETTINGS_BYTES)


def rollouts(config: EvalConfig) -> Iterator[Finding]:
    """Whether a rollout file can be graded.

    Raises:
        DataError: it cannot; file, record and field are named.
    """
    path = existing_path(str(config.evaluation.rollouts))
    records = read_gradable(path, config.evaluation.data_type, config.evaluation.limit)
    answers = sum(len(record["full_output"]) for record in records)
    yield Finding("ok", "rollouts", f"{path}: {len(records)} problems, {answers} responses to grade")
    yield from output.folder(project_folder(config) / "results", 0, "grades", "another experiment.output_dir")


def table(config: EvalConfig) -> Iterator[Finding]:
    """Whether every checkpoint and data set of the grid is there."""
    cells = list(every_cell(config))
    by_name = {str(cell.config.evaluation.checkpoint_path): cell for cell in cells}
    missing = [name for name, cell in by_name.items() if _is_missing(cell)]
    text = f"{counted(len(cells), 'cell')}, {counted(len(by_name), 'checkpoint')}"
    level = "warning" if config.table.skip_missing else "error"
    if missing:
        cure = "train or copy them, or table.skip_missing=true leaves their cells empty"
        text += f", {len(missing)} missing or unreadable, such as {missing[0]}"
        yield Finding(level, "table", text, "" if config.table.skip_missing else cure)  # type: ignore[arg-type]
    else:
        yield Finding("ok", "table", text)
    for cell in {cell.place["dataset"]: cell for cell in cells}.values():
        if (error := _problem_with_data(cell)) is not None:
            yield Finding("error", "table", f"{error.where}: {error.found}", f"expected {error.expected}")


def _problem_with_data(cell: Cell) -> DataError | None:
    asked = cell.config.evaluation
    try:
        load_benchmark(find_data(asked.eval_dataset), asked.data_type, asked.limit)
    except DataError as error:
        return error
    return None


def _is_missing(cell: Cell) -> bool:
    try:
        model.check_config(str(cell.config.evaluation.checkpoint_path))
    except CheckpointError:
        return True
    return False


def _data_types(config: EvalConfig) -> set[str]:
    if not config.table.checkpoints:
        return {config.evaluation.data_type}
    return {cell.config.evaluation.data_type for cell in every_cell(config)}
