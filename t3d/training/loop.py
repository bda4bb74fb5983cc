"""The training loop: every objective, one process or many, resumable at every checkpoint."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from t3d.cards.model import Run, base_of, model_card
from t3d.config import TrainConfig, TrainingConfig, save_config
from t3d.config.validation import BEST
from t3d.data.benchmarks import leakage_warning
from t3d.devices import GIB, forget_peak, peak_memory
from t3d.errors import Terminated, UserError
from t3d.sdar.backend import Heads
from t3d.sdar.opening import open_checkpoint
from t3d.storage.folders import saving
from t3d.storage.paths import find_data_files
from t3d.training import fsdp
from t3d.training.checkpoint import load_state, prune, save_state, saved_steps, step_folder
from t3d.training.clock import StepClock
from t3d.training.data import load_samples
from t3d.training.forward import batch_losses
from t3d.training.kernel import COMPUTED_IN, choose_plan
from t3d.training.launch import make_accelerator
from t3d.training.limits import room_to_train
from t3d.training.meter import Meter
from t3d.training.metrics import MetricsLog
from t3d.training.models import prepare_models, save_student, whole_weights
from t3d.training.operations import Work, peak_operations
from t3d.training.packing import Batch, collate
from t3d.training.parts import whole
from t3d.training.reference import refresh
from t3d.training.run_folder import open_run_folder, run_inputs, to_train_on
from t3d.training.scaling import SkippedSteps
from t3d.training.schedule import (
    SampleOrder,
    Visit,
    accumulation_steps,
    learning_rate,
    longest_row,
    micro_batches,
    num_steps,
    samples_per_step,
    token_packs,
)
from t3d.training.settings import loss_settings, needs_step_map, state_settings
from t3d.training.states import draw_state, sample_stream
from t3d.training.validation import Validation

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Path:
    """Trains a student and returns its folder.

    Raises:
        UserError: a mistake in configuration, data or checkpoint, or a loss that is no number.
    """
    accelerator = make_accelerator(config)
    with room_to_train(config):
        # No `end_training`: it ends the process group, and a second one of the same launch may meet the first's
        # addresses and wait for ever.  The group stays for what comes next in these processes, and until they end.
        trainer = Trainer(config, accelerator)
        try:
            return trainer.run()
        except (KeyboardInterrupt, Terminated) as stopped:
            states = list(saved_steps(trainer.folder / "state").values())
            kept = f"{states[-1]} is kept, experiment.resume_from=latest goes on from there" if states else ""
            raise type(stopped)(kept) from None


class Trainer:
    """One run: models, data and folder; `run` is the loop."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        """Loads data and models, and the state to resume from if there is one."""
        training = config.training
        self.config, self.accelerator = config, accelerator
        self.checkpoint = open_checkpoint(config.model.pretrained_model, training.block_size)
        self.loss_settings = loss_settings(training)
        self.state_settings = state_settings(config, self.checkpoint)
        self.samples = load_samples(
            find_data_files(config.dataset.optimization_data),
            self.checkpoint.tokenizer,
            config.dataset,
            training,
            self.checkpoint.config.vocab_size,
            needs_step_map=needs_step_map(training, self.state_settings),
        )
        self.validation = Validation(config, self.checkpoint) if config.validation.every else None
        self.meter = Meter(config, self.checkpoint) if training.meter_every else None
        # At most: a response that begins and ends inside blocks is completed to whole ones.
        fill = 2 * max(self.state_settings.block_sizes)
        self.lengths = self.samples.lengths + fill
        self.order = SampleOrder(len(self.samples), training.seed)
        self.global_batch = samples_per_step(training, accelerator.num_processes)
        self.accumulation = accumulation_steps(training, accelerator.num_processes)
        self.num_steps = num_steps(training, len(self.samples), self.global_batch)
        params = config.optimizer.params
        self.peak_rate = params.learning_rate * (self.global_batch if params.scale_lr else 1)
        needs_reference = self.loss_settings.needs_reference
        models = prepare_models(config, accelerator, self.checkpoint, needs_reference, self.peak_rate)
        self.student, self.optimizer, self.reference = models.student, models.optimizer, models.reference
        networks = [
            accelerator.unwrap_model(network) for network in (self.student, self.reference) if network is not None
        ]
        self.work = [Work.of(network) for network in networks]
        self.skipped = SkippedSteps.counted_by(accelerator, self.optimizer)
        heads = Heads.of(self.checkpoint.config)
        self.longest = longest_row(self.lengths, training)
        self.plan = choose_plan(accelerator.device, COMPUTED_IN[accelerator.mixed_precision], heads, self.longest)
        inputs = partial(run_inputs, self.checkpoint.folder, self.samples.digest)
        self.folder, resume_state = open_run_folder(config, accelerator, inputs)
        self.resumed = resume_state
        whole = not config.model.lora_rank
        self.step = 0 if resume_state is None else load_state(accelerator, resume_state, self.reference, whole)

    def run(self) -> Path:
        """Trains to the last step; returns the folder of the final checkpoint."""
        final = self.folder / "ckpt" / self.config.model.optimized_name
        main, first_step = self.accelerator.is_main_process, self.step
        if main:
            save_config(self.config, self.folder / "config.yaml")
            log.info("%s: %s", self.folder, self._plan())
            if self.resumed is not None:
                log.info("%s", self._resumption(self.resumed))
            given = self.config.training.gradient_accumulation_steps
            if given not in (self.accumulation, TrainingConfig.gradient_accumulation_steps):
                log.warning("training.gradient_accumulation_steps = %d is not used: global_batch_size decides", given)
            if leakage := leakage_warning(self.config.dataset.optimization_data):
                log.warning("%s", leakage)
        with closing(MetricsLog(self.folder, self.config, self.step)) if main else nullcontext() as metrics_log:
            self._train(metrics_log)
            [is_there] = broadcast_object_list([final.is_dir()])  # processes may see a shared folder at other moments
            if self.step > first_step or not is_there:
                self.save(final)  # before trackers are closed, which may take them as long as they like
        return final

    def _plan(self) -> str:
        """What the run will do, in a line."""
        training, processes = self.config.training, self.accelerator.num_processes
        shares = f"{self.accumulation} micro-batch(es) of {training.batch_size_lm}"
        if training.tokens_per_batch is not None:
            shares = f"packs of up to {training.tokens_per_batch} tokens"
        plugin = self.accelerator.state.deepspeed_plugin
        deepspeed = "no DeepSpeed" if plugin is None else f"ZeRO-{plugin.zero_stage}"
        sharding = "FSDP2" if fsdp.is_fsdp(self.accelerator) else deepspeed
        epochs = self.num_steps * self.global_batch / len(self.samples)
        return (
            f"{len(self.samples)} samples, {self.global_batch} per step ({processes} process(es) on"
            f" {self.accelerator.device.type}, {sharding}, {shares}), {self.num_steps} steps, {epochs:.2f} epochs"
        )

    def _resumption(self, state: Path) -> str:
        """What is resumed, in a line."""
        done = f"step {self.step} of {self.num_steps}"
        if self.step < self.num_steps:
            return f"resumed from {state}, {done}"
        return f"{self.folder} is finished ({done}); {to_train_on(self.folder, self.config)}"

    def _train(self, metrics_log: MetricsLog | None) -> None:
        """Steps up to the last one; only the main process has a `metrics_log`."""
        with tqdm(
            total=self.num_steps,
            initial=self.step,
            desc=self.config.training.objective,
            disable=metrics_log is None,
        ) as progress:
            while self.step < self.num_steps:
                metrics = self.train_step() | self._validate() | self._measure()
                if metrics_log is not None:
                    metrics_log.write(metrics)
                speed = f"{metrics['tokens_per_second']:.0f}"
                progress.set_postfix(loss=f"{metrics['loss/total']:.4f}", tok_s=speed, refresh=False)
                progress.update()
                if self.step % self.config.experiment.save_every_steps == 0 and self.step < self.num_steps:
                    self.save(step_folder(self.folder / "ckpt", self.step))

    def train_step(self) -> dict[str, float]:
        """One global step: micro-batches, update, then everything that happens after an update.

        Raises:
            UserError: a loss or gradient that is no number; the weights are still those of the last step.
        """
        training, accelerator = self.config.training, self.accelerator
        forget_peak(accelerator.device)
        clock = StepClock.of(accelerator.device)
        rate = learning_rate(self.step, self.num_steps, self.peak_rate, self.config.lr_scheduler)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        totals: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        # Sum over samples / global count: backward() divides by the configured micro-batches, and the gradients
        # are then averaged over processes.
        scale = self.accumulation * accelerator.num_processes / self.global_batch
        done: list[tuple[list[Visit], torch.Tensor]] = []
        parts = self._parts()
        for part in parts:
            accelerator.sync_gradients = last = part is parts[-1]
            # FSDP2 sums parts of gradients: whole ones would not fit where whole weights do not.
            with nullcontext() if last or fsdp.is_fsdp(accelerator) else accelerator.no_sync(self.student):
                with clock.part("data"):
                    batch = self._batch(part)
                with accelerator.autocast():
                    losses = batch_losses(self.student, self.reference, batch, self.loss_settings, clock.part)
                done.append((part, losses["loss/total"].detach()))
                if last:
                    # Before the last backward pass: with DeepSpeed it is also the update.
                    self._check_finite(done)
                with clock.part("backward"):
                    accelerator.backward(losses["loss/total"].sum() * scale)
            for name, values in losses.items():
                totals[name] += values.detach().sum()
            totals["tokens"] += batch.num_tokens
            totals["computed"] += batch.input_ids.numel()
            totals["operations"] += sum(work.count(batch.num_tokens, len(batch.logit_rows)) for work in self.work)
        with clock.part("update"):
            grad_norm = self._update()
        self.step += 1
        metrics = self._metrics(totals, grad_norm, rate, clock)
        if self.reference is not None and training.multi_round and self.step % training.round_interval == 0:
            refresh(accelerator.unwrap_model(self.reference), accelerator.unwrap_model(self.student))
        return metrics

    def _validate(self) -> dict[str, float]:
        """The metrics of a validation, where one is due behind this step; the best student is kept."""
        if self.validation is None or not self.validation.is_due(self.step, self.num_steps):
            return {}
        student = self.accelerator.unwrap_model(self.student)
        found = self.validation.run(student, self.accelerator.device, self.folder)
        if found.is_best:
            self._save_student(self.folder / "ckpt" / BEST)
        return found.metrics

    def _measure(self) -> dict[str, float]:
        """The metrics of the meter, where it is due behind this step."""
        if self.meter is None or not self.meter.is_due(self.step, self.num_steps):
            return {}
        return self.meter.run(self.accelerator.unwrap_model(self.student), self.accelerator.device)

    def _save_student(self, target: Path) -> None:
        """Saves the student's folder `target`."""
        weights = whole_weights(self.accelerator, self.student)
        if self.accelerator.is_main_process:
            with saving(target):
                student = self.accelerator.unwrap_model(self.student)
                save_student(student, weights, self.checkpoint, target, self._card())

    def save(self, target: Path) -> None:
        """Saves the student's folder `target`, and the state from which the run continues."""
        self._save_student(target)
        save_state(self.accelerator, self.folder / "state", self.step, self.global_batch, self.reference)
        if self.accelerator.is_main_process:
            for kept in ("ckpt", "state"):
                prune(self.folder / kept, self.config.experiment.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def _card(self) -> str:
        """The model card of the checkpoint of this step."""
        source = self.checkpoint.folder
        run = Run(asdict(self.config), self.step, self.num_steps, len(self.samples), self.global_batch)
        return model_card(base_of(self.config.model.pretrained_model, source), run, source)

    def _parts(self) -> list[list[Visit]]:
        """This process's micro-batches of the next global step; every process has as many."""
        training, accelerator = self.config.training, self.accelerator
        visits = self.order.visits(self.step, self.global_batch)
        rank = accelerator.process_index, accelerator.num_processes
        if training.tokens_per_batch is None:
            return micro_batches(visits, self.lengths, training.batch_size_lm, *rank)
        return token_packs(visits, self.lengths, training.tokens_per_batch, *rank)

    def _batch(self, visits: list[Visit]) -> Batch:
        training = self.config.training
        states = []
        for epoch, index in visits:
            stream = sample_stream(training.seed, epoch if training.resample_states else 0, index)
            states.append(draw_state(self.samples[index], self.state_settings, stream))
        return collate(
            states,
            self.state_settings.pad_id,
            self.accelerator.device,
            visible_rows=self.loss_settings.needs_visible_rows,
            plan=self.plan,
            longest=self.longest,
        )

    def _check_finite(self, done: list[tuple[list[Visit], torch.Tensor]]) -> None:
        """Every process learns of a loss that is no number on any of them."""
        losses = torch.cat([values for _, values in done])
        if self.accelerator.reduce((~losses.isfinite()).sum(), "sum") == 0:
            return
        samples = [sample for part, _ in done for _, sample in part]
        bad = [sample for sample, loss in zip(samples, losses.tolist(), strict=True) if not math.isfinite(loss)]
        self._refuse(gather_object(bad), "a finite loss")

    def _update(self) -> float:
        """One step of the optimizer; returns the gradient's norm.

        DeepSpeed has made the step already, or has left it out for a gradient that is no number.
        """
        accelerator = self.accelerator
        norm = accelerator.clip_grad_norm_(self.student.parameters(), self.config.gradient_limit or math.inf)
        grad_norm = math.nan if norm is None else float(whole(norm))
        bad = norm is not None and not math.isfinite(grad_norm)
        if self.skipped is None and (bad or self.optimizer.step_was_skipped):
            self._refuse_gradient()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.skipped is not None and self.optimizer.step_was_skipped and not self.skipped.add():
            self._refuse_gradient()
        return grad_norm

    def _refuse_gradient(self) -> NoReturn:
        visits = self.order.visits(self.step, self.global_batch)
        self._refuse([sample for _, sample in visits], "a finite gradient")

    def _refuse(self, samples: list[int], expected: str) -> NoReturn:
        """Ends the run before the update of the step under way."""
        last = list(saved_steps(self.folder / "state").values())
        where = f"global step {self.step + 1}, samples {sorted(set(samples))[:20]}"
        raise UserError(where, expected, f"nan or inf; last good state: {last[-1] if last else 'none'}")

    def _metrics(
        self, totals: Mapping[str, torch.Tensor], grad_norm: float, rate: float, clock: StepClock
    ) -> dict[str, float]:
        names = sorted(totals)
        summed = self.accelerator.reduce(torch.stack([totals[name].float() for name in names]), "sum").tolist()
        values = dict(zip(names, summed, strict=True))
        tokens, computed, operations = (values.pop(name) for name in ("tokens", "computed", "operations"))
        seconds, device = time.perf_counter() - clock.started, self.accelerator.device
        peak = self.accelerator.num_processes * peak_operations(self.config.training, device)
        return {
            "step": self.step,
            "epoch": round(self.step * self.global_batch / len(self.samples), 4),
            "round": self._round(),
            "lr": rate,
            "grad_norm": grad_norm,
            **({} if self.skipped is None else {"skipped_steps": self.skipped.count}),
            **{name: value / self.global_batch for name, value in values.items()},
            "tokens_per_second": tokens / seconds,
            "real_token_share": tokens / computed,
            "mfu": operations / seconds / peak,
            "peak_memory_gib": peak_memory(device) / GIB,
            "seconds/step": seconds,
            **clock.seconds(),
        }

    def _round(self) -> int:
        """Refreshes of the reference before the step just made."""
        training = self.config.training
        return (self.step - 1) // training.round_interval if training.multi_round else 0
