"""What a training run needs: a launch that fits, samples, memory on every device, a new folder, trackers."""

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from t3d.config import ExecuteConfig, SampleConfig, TrainConfig, TrainingConfig, load_config
from t3d.doctor import machine, model, output
from t3d.doctor.decoding import decoding_settings, find_problems, problems
from t3d.doctor.finding import Examination, Finding, counted
from t3d.doctor.machine import Device, size_of
from t3d.doctor.model import Patient
from t3d.errors import DataError
from t3d.sdar.backend import Heads
from t3d.sdar.checkpoint import chat_end_id
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.opening import Checkpoint
from t3d.storage.paths import cache_root, find_data_files, user_path
from t3d.training import fsdp
from t3d.training.data import iter_samples, text_length
from t3d.training.forward import batch_losses
from t3d.training.kernel import COMPUTED_IN, find_plan
from t3d.training.launch import check_group, is_asked
from t3d.training.lora import add_adapter, num_adapter_parameters
from t3d.training.memory import RESERVE, estimate, estimate_fsdp2, num_parameters
from t3d.training.packing import collate
from t3d.training.reference import frozen_copy
from t3d.training.run_folder import find_run
from t3d.training.samples import num_pieces
from t3d.training.schedule import accumulation_steps, num_steps, samples_per_step
from t3d.training.settings import loss_settings, needs_step_map, state_settings
from t3d.training.states import StateSettings, TrainingSample, draw_state, sample_stream
from t3d.training.trackers import unused_wandb
from t3d.training.validation import sample_configs

STATE_BYTES = 16
"""Of each trained parameter on disk: single-precision weights, Adam's two moments, and the reference."""

ADAPTER_BYTES = 4
"""Of each parameter of an adapter, beside the weights that it is merged into."""

SAMPLE_BYTES = 12
"""Of each token of the data in the cache."""


@dataclass(frozen=True)
class Launch:
    """The processes that train together.

    Attributes:
        processes: of all machines.
        machines: that they run on.
        stage: of ZeRO; 0 without DeepSpeed, None if it is not decided yet.
        fsdp: FSDP2 shards in its place.
    """

    processes: int
    machines: int
    stage: int | None
    fsdp: bool = False


@dataclass(frozen=True)
class Data:
    """The training samples.

    Attributes:
        files: that they come from.
        records: in the files.
        samples: within the length limits.
        left_out: with longer prompts.
        longest: tokens of the longest prompt that is kept.
        tokens: of all samples, prompts and responses.
    """

    files: list[Path]
    records: int
    samples: int
    left_out: int
    longest: int
    tokens: int


def launch_of(environment: Mapping[str, str], num_gpus: int, launched: bool) -> Launch:
    """The launch that this process is part of, by what the launchers leave in the environment.

    Args:
        environment: of the process.
        num_gpus: of the machine.
        launched: the command itself asks; otherwise, with no launch around, one process per GPU is assumed.
    """
    if "WORLD_SIZE" not in environment and not launched:
        return Launch(max(1, num_gpus), 1, None if num_gpus else 0)
    processes = int(environment.get("WORLD_SIZE", "1"))
    deepspeed = is_asked(environment, "ACCELERATE_USE_DEEPSPEED")
    stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")) if deepspeed else 0
    sharded = is_asked(environment, fsdp.ASKED)
    return Launch(processes, int(environment.get("GROUP_WORLD_SIZE", "1")), stage, sharded)


def examine_training(examination: Examination, arguments: list[str], launched: bool) -> None:
    """Adds what keeps `self_ddo_sdar_full.py` from running.

    Args:
        examination: to add to.
        arguments: of the command.
        launched: the command itself asks, from inside its launch.
    """
    config = examination.obtain("settings", lambda: load_config(TrainConfig, arguments, "", ""))
    if config is None:
        return
    training = config.training
    found = machine.find_devices()
    num_gpus = sum(device.capability is not None for device in found)
    around = launch_of(os.environ, num_gpus, launched)
    examination.examine("launch", lambda: launch(config, around, num_gpus))
    patient = examination.obtain(
        "checkpoint",
        lambda: model.find_patient(config.model.pretrained_model, "model.pretrained_model", training.block_size),
    )
    data = None
    if patient is not None:
        examination.examine("checkpoint", lambda: model.checkpoint(patient, not config.model.random_init))
        examination.examine("tokenizer", lambda: model.tokenizer(patient))
        if patient.tokenizer is None:
            examination.examine("data", lambda: unread_data(config))
        else:
            data = examination.obtain("data", lambda: read_data(config, patient))
            if data is not None:
                examination.examine("data", lambda: samples(config, data, around))
    if config.looks_at_student:
        examine_validation(examination, config, patient)
    examination.examine("output", lambda: folder(config, patient, data, around))
    examination.examine("trackers", lambda: trackers(config, os.environ))
    if patient is None:
        return
    device, dtype = torch.device(found[0].name), COMPUTED_IN[training.mixed_precision]
    examination.examine("memory", lambda: memory(config, patient.config, around, found))
    examination.examine("kernel", lambda: machine.training_kernel(device, dtype, Heads.of(patient.config)))
    if patient.tokenizer is not None:
        examination.examine("rehearsal", lambda: rehearsal(config, patient, device))


def examine_validation(examination: Examination, config: TrainConfig, patient: Patient | None) -> None:
    """Adds what keeps the held-out problems from being decoded, at whichever of the decodings, or graded."""
    if config.validation.every and config.dataset.data_type == "code":
        examination.examine("sandbox", lambda: machine.sandbox(ExecuteConfig.sandbox, is_needed=True))
    for asked in sample_configs(config):
        examination.examine("validation", partial(validation, asked, patient))


def validation(asked: SampleConfig, patient: Patient | None) -> Iterator[Finding]:
    """How many held-out problems there are, and whether they fit the model under one decoding.

    Raises:
        UserError: no such file, or a bad record (named).
    """
    found = find_problems(asked, patient)
    settings = None if patient is None else decoding_settings(asked, patient)
    where = f"at {asked.rollout.block_size}/{asked.rollout.denoising_steps_per_block}, "
    for one in problems(found, patient, settings):
        cure = one.cure and "validation.max_token lower"
        yield Finding(one.level, "validation", where + one.text, cure)


def launch(config: TrainConfig, around: Launch, num_gpus: int) -> Iterator[Finding]:
    """Whether the launch is the one that the configuration asks for, and uses the GPUs.

    Raises:
        ConfigError: its processes cannot share `training.global_batch_size`, would not know of each other, or FSDP2
            cannot train this.
    """
    experiment, training = config.experiment, config.training
    check_group(os.environ, num_gpus > 0)
    if around.fsdp:
        fsdp.check_launch(config)
    batch, accumulation = samples_per_step(training, around.processes), accumulation_steps(training, around.processes)
    deepspeed = {None: "", 0: ", no DeepSpeed"}.get(around.stage, f", ZeRO-{around.stage}")
    sharding = ", FSDP2" if around.fsdp else deepspeed
    where = f"{counted(around.processes, 'process', 'processes')} on {counted(around.machines, 'machine')}"
    text = (
        f"{where}{sharding}; {counted(batch, 'sample')} per update "
        f"({training.batch_size_lm} x {accumulation} x {around.processes})"
    )
    for key, asked, there in (
        ("experiment.num_node", experiment.num_node, around.machines),
        ("experiment.num_processes", experiment.num_processes, around.processes),
    ):
        if asked is not None and asked != there:
            yield Finding("error", "launch", f"{text}; {key} asks for {asked}", f"{key}={there}, or another launch")
            return
    if around.processes == 1 < num_gpus:
        cure = "accelerate launch --config_file accelerate_configs/1_node_8_gpus_deepspeed_zero1.yaml ... (or another)"
        yield Finding("warning", "launch", f"{text}; {num_gpus} GPUs are here", cure)
    elif num_gpus * around.machines and around.processes > num_gpus * around.machines:
        text = f"{text}; {num_gpus} GPU(s) are here"
        yield Finding("error", "launch", text, "a file of accelerate_configs/ with as many processes as GPUs")
    else:
        yield Finding("ok", "launch", text)


def read_data(config: TrainConfig, patient: Patient) -> Data:
    """Reads every record of the training data; nothing is kept or written.

    Raises:
        DataError: no such file, a bad record (file and index are named), or a record without the steps that the
            objective needs.
    """
    training, tokenizer = config.training, patient.tokenizer
    assert tokenizer is not None  # who calls has looked
    files = find_data_files(config.dataset.optimization_data)
    needs_steps = needs_step_map(config.training, settings_of(config, patient))
    records, kept, left_out, longest, tokens = set(), 0, 0, 0, 0
    for sample, record in iter_samples(files, tokenizer, config.dataset, patient.config.vocab_size):
        records.add(record)
        if len(sample.prompt_ids) > training.max_prompt_len:
            left_out += 1
            continue
        if needs_steps and sample.step_map is None:
            where = f"{files[0].parent}/{record}"
            raise DataError(where, f"a trajectory, as {training.objective} needs", "a record without step_map")
        length = np.array([len(sample.response_ids)])
        kept += int(num_pieces(length, text_length(training)).sum()) if sample.is_text else 1
        longest = max(longest, len(sample.prompt_ids))
        tokens += len(sample.prompt_ids) + len(sample.response_ids)
    return Data(files, len(records), kept, left_out, longest, tokens)


def unread_data(config: TrainConfig) -> Iterator[Finding]:
    """Whether there is data at all, where no tokenizer is there to read it with.

    Raises:
        DataError: there is none.
    """
    files = find_data_files(config.dataset.optimization_data)
    yield Finding("ok", "data", f"{counted(len(files), 'file')}, such as {files[0]}; unread, for want of a tokenizer")


def settings_of(config: TrainConfig, patient: Patient) -> StateSettings:
    """The states' settings, which name what the objective needs."""
    assert patient.folder is not None
    assert patient.tokenizer is not None
    return state_settings(config, Checkpoint(patient.folder, patient.config, patient.tokenizer))


def samples(config: TrainConfig, data: Data, around: Launch) -> Iterator[Finding]:
    """How many samples there are, how many steps that makes, and whether the cache has room for them."""
    training = config.training
    where = str(data.files[0]) if len(data.files) == 1 else f"{len(data.files)} files in {data.files[0].parent}"
    found = f"{counted(data.records, 'record')}, {counted(data.samples, 'sample')}"
    text = f"{where}: {found}, longest prompt {data.longest} tokens"
    if data.left_out:
        text += f"; {data.left_out} left out (over training.max_prompt_len = {training.max_prompt_len})"
    if not data.samples:
        yield Finding("error", "data", text, "training.max_prompt_len higher, or other data")
        return
    yield Finding("ok", "data", f"{text}; {counted(_steps(training, data, around), 'global step')}")
    above = machine.nearest_folder(cache_root())
    free, needed = shutil.disk_usage(above).free, SAMPLE_BYTES * data.tokens
    if not os.access(above, os.W_OK | os.X_OK):
        text = f"{cache_root()}: {above} cannot be written to"
        yield Finding("error", "data", text, "T3D_CACHE_ROOT=/another/folder")
    elif free < needed:
        text = f"{size_of(needed)} in {cache_root()}, {size_of(free)} free"
        yield Finding("error", "data", text, "T3D_CACHE_ROOT on a larger disk")


def _steps(training: TrainingConfig, data: Data, around: Launch) -> int:
    """Global steps of the run."""
    return num_steps(training, data.samples, samples_per_step(training, around.processes))


def folder(config: TrainConfig, patient: Patient | None, data: Data | None, around: Launch) -> Iterator[Finding]:
    """Whether the run's folder can be begun or continued, and has room for what is kept.

    Raises:
        UserError: the folder holds another run, or there is none to continue.
    """
    experiment = config.experiment
    path, state = find_run(config)
    what = "a new run" if state is None else f"the run continues from {state.name}"
    once = kept = 0
    if patient is not None:
        count, adapter = num_parameters(patient.config), num_adapter_parameters(patient.config, config.model)
        once = count * patient.dtype.itemsize + adapter * ADAPTER_BYTES + (adapter or count) * STATE_BYTES
        saves = 1 if data is None else -(-_steps(config.training, data, around) // experiment.save_every_steps)
        most = saves if experiment.checkpoints_total_limit is None else experiment.checkpoints_total_limit + 1
        kept = once * max(1, min(saves, most))
        what += f", {counted(saves, 'save')} of {size_of(once)}"
    cure = "experiment.checkpoints_total_limit=1, save_every_steps higher, or an experiment.output_dir on a larger disk"
    yield from output.folder(path, kept, what, cure, at_once=once)


def memory(config: TrainConfig, shape: SDARConfig, around: Launch, found: Sequence[Device]) -> Iterator[Finding]:
    """Whether a step fits into the memory of the device with the least; see `t3d.training.memory`."""
    gpus = [device for device in found if device.capability is not None]
    least = min(gpus or found, key=lambda device: device.free)
    share = least.free if gpus else least.free // max(1, around.processes // around.machines)
    free = f"{size_of(share)} free" + (f" on {least.name}" if gpus else " per process")
    stages = (0, 1, 2, 3) if around.stage is None else (around.stage,)
    needed = {stage: needed_bytes(config, shape, stage, around, bool(gpus)) for stage in stages}
    without_stage = "FSDP2" if around.fsdp else "no DeepSpeed"
    words = {stage: f"{without_stage if stage == 0 else f'ZeRO-{stage}'} {size_of(needed[stage])}" for stage in stages}
    fitting = [stage for stage in stages if needed[stage] <= share]
    text = f"an estimate: {', '.join(words.values())} per {'GPU' if gpus else 'process'}; {free}"
    if fitting:
        advice = f": ZeRO-{max(1, fitting[0])} fits" if around.stage is None else ""
        yield Finding("ok", "memory", text + advice)
        return
    cure = "another ZeRO stage or more GPUs (python -m t3d.training.memory), or training.max_gen_length lower"
    yield Finding("error", "memory", text, cure)


def needed_bytes(config: TrainConfig, shape: SDARConfig, stage: int, around: Launch, on_gpu: bool) -> float:
    """Bytes of a step on each device."""
    if around.fsdp:
        found = estimate_fsdp2(config, shape, around.processes)
    else:
        found = estimate(config, shape, stage, around.processes)
    return found.total + (RESERVE if on_gpu else 0)


def trackers(config: TrainConfig, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the trackers asked for can be told anything, and are those that were meant."""
    if line := unused_wandb(config):
        yield Finding("warning", "trackers", line)
    for name in config.experiment.trackers:
        if importlib.util.find_spec(name) is None:
            yield Finding(
                "warning", "trackers", f"{name} is not installed: training goes on without", f"pip install {name}"
            )
    offline = environment.get("WANDB_MODE") in ("offline", "disabled")
    known = "WANDB_API_KEY" in environment or user_path("~/.netrc").is_file()
    if "wandb" in config.experiment.trackers and not offline and not known:
        text = "wandb knows no login: training goes on without"
        yield Finding("warning", "trackers", text, "wandb login, or WANDB_MODE=offline")


def rehearsal(config: TrainConfig, patient: Patient, device: torch.device) -> Iterator[Finding]:
    """Forward and backward of one sample through a shrunk student (and reference), by the run's objective."""
    started, tokenizer = time.perf_counter(), patient.tokenizer
    assert tokenizer is not None
    settings, losses = settings_of(config, patient), loss_settings(config.training)
    stop = chat_end_id(tokenizer)
    sample = TrainingSample([stop] * 5, [stop] * 16, list(range(1, 17)), ended=True)
    state = draw_state(sample, settings, sample_stream(0, 0, 0))
    student = model.small_network(patient.config, device, torch.float32)
    if config.model.lora_rank:
        with torch.random.fork_rng(devices=[]):
            add_adapter(student, config.model)
    reference = frozen_copy(student) if losses.needs_reference else None
    dtype = COMPUTED_IN[config.training.mixed_precision]
    plan, _ = find_plan(device, dtype, Heads.of(student.config))
    batch = collate([state], settings.pad_id, device, losses.needs_visible_rows, plan)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        total = batch_losses(student.train(), reference, batch, losses)["loss/total"].sum()
    total.backward()
    norms = [weight.grad.norm() for weight in student.parameters() if weight.grad is not None]
    where = f"a shrunk copy on {device}, {config.training.objective} in {config.training.mixed_precision}"
    where += f", LoRA of rank {config.model.lora_rank}" if config.model.lora_rank else ""
    if not np.isfinite([float(total.detach()), *map(float, norms)]).all():
        yield Finding("error", "rehearsal", f"{where}: loss or gradient is no number", "training.mixed_precision=no")
        return
    seconds = time.perf_counter() - started
    yield Finding("ok", "rehearsal", f"{where}: forward and backward ({seconds:.1f} s)")
