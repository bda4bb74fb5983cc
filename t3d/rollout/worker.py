"""One process's work: decode a share of the requests with its own copy of the model, into its own shard."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from t3d.config import RolloutConfig
from t3d.decoding import DecodingConfig, iter_decode
from t3d.decoding.speculative import Draft, iter_speculative
from t3d.devices import pick_device, room
from t3d.errors import ConfigError
from t3d.rollout.job import Request
from t3d.rollout.ranks import Ranks, join_ranks
from t3d.rollout.shard import Shard
from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.sdar.checkpoint import load_decoder, load_model
from t3d.trajectory import Trajectory


@dataclass(frozen=True)
class Share:
    """What one process decodes, with all that it needs for that: it can be sent to another process.

    Attributes:
        worker: number of the process on its machine, which picks its GPU.
        requests: what to decode.
        model: the checkpoint's folder.
        model_config: its configuration, completed.
        settings: batching, device and dtype.
        decoding: the decoder's settings.
        shard: the file to write; None for the processes that only hold a part of another one's model.
        fingerprint: its header.
        session: name of this start of the run.
        sharing: processes that decode on the same device, this one among them.
        student: folder of the network that drafts; None where the model does, or nobody.
        student_config: its configuration, completed.
    """

    worker: int
    requests: list[Request]
    model: Path
    model_config: SDARConfig
    settings: RolloutConfig
    decoding: DecodingConfig
    shard: Path | None
    fingerprint: dict[str, Any]
    session: str
    sharing: int = 1
    student: Path | None = None
    student_config: SDARConfig | None = None


@dataclass(frozen=True)
class Done:
    """News of one finished response, which is already stored.

    Attributes:
        request: what it answers.
        tokens: its length.
        forwards: model forwards it took part in.
        seconds: time that its process has decoded so far.
        error: why decoding failed, if it did.
    """

    request: Request
    tokens: int
    forwards: int
    seconds: float
    error: str | None


class Loaded:
    """The networks that a process decoded with last, for the next share that wants the same ones."""

    def __init__(self) -> None:
        """None yet."""
        self._key: tuple[Any, ...] | None = None
        self._networks: tuple[SDARForCausalLM, Draft | None] | None = None

    def of(self, share: Share) -> tuple[SDARForCausalLM, Draft | None]:
        """A share's network and its draft, loaded unless they are there.

        Raises:
            UserError: a mistake in checkpoint or device, or no memory.
        """
        settings = share.settings
        content = [share.fingerprint.get(name) for name in ("model", "draft")]  # a folder's weights may be new
        key = (share.worker, share.model, share.student, *content, settings.device, settings.dtype, settings.compile)
        if self._networks is None or key != self._key:
            self._key = self._networks = None  # there may be no room for both
            gc.collect()
            with room("rollout.device", "memory for the model's weights"):
                model = _load(share)
                self._networks = model, None if settings.draft is None else _load_draft(share, model)
            self._key = key
        return self._networks


def decode_share(share: Share, report: Callable[[Done], None], loaded: Loaded | None = None) -> None:
    """Decodes a share, and reports every response once it is stored.

    Args:
        share: what to decode.
        report: told of every stored response.
        loaded: the networks that this process has; None: none.

    Raises:
        UserError: a mistake in checkpoint or device, a full disk, or no memory for the model or for one sequence.
    """
    settings = share.settings
    model, draft = (loaded or Loaded()).of(share)
    agree = None if settings.tensor_parallel_size == 1 else join_ranks().least
    size = settings.batch_size or len(share.requests)
    stored = nullcontext() if share.shard is None else Shard(share.shard, share.fingerprint, share.session)
    with stored as shard:
        started = time.perf_counter()
        for start in range(0, len(share.requests), size):
            requests = share.requests[start : start + size]
            prompts = [request.prompt_ids for request in requests]
            streams = [request.stream for request in requests]
            for place, trajectory in _responses(share, model, draft, agree, prompts, streams):
                if shard is None:
                    continue
                seconds = time.perf_counter() - started
                shard.add(requests[place].number, trajectory, seconds)
                counts = len(trajectory.response_ids), trajectory.num_forwards
                report(Done(requests[place], *counts, seconds, trajectory.error))


def _responses(
    share: Share,
    model: SDARForCausalLM,
    draft: Draft | None,
    agree: Callable[[int], int] | None,
    prompts: list[list[int]],
    streams: list[int],
) -> Iterator[tuple[int, Trajectory]]:
    """Decodes some prompts, by drafts or plainly; see `iter_decode`."""
    settings = share.settings
    if draft is not None:
        found = iter_speculative(model, prompts, share.decoding, draft, settings.max_active, streams, share.sharing)
        return ((place, drafted.trajectory) for place, drafted in found)
    graphs = settings.cuda_graphs if agree is None else False
    return iter_decode(
        model,
        prompts,
        share.decoding,
        settings.max_active,
        streams,
        agree,
        share.sharing,
        graphs=graphs,
        paged=settings.paged,
    )


def _load_draft(share: Share, model: SDARForCausalLM) -> Draft:
    """A student drafts where a new block has none yet: of the ways to use it, the one with the fewest forwards."""
    if share.student is None:
        return Draft()
    settings = share.settings
    network = load_decoder(share.student, settings.dtype, model.device, settings.compile, share.student_config)
    return Draft("both", network)


def _load(share: Share) -> SDARForCausalLM:
    settings = share.settings
    device = pick_device(settings.device, share.worker)
    if settings.tensor_parallel_size == 1:
        return load_decoder(share.model, settings.dtype, device, settings.compile, share.model_config)
    dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
    model = load_model(share.model, dtype, num_parts=settings.tensor_parallel_size, config=share.model_config)
    if model.device.type != device.type:
        raise ConfigError("rollout.device", f"auto or {model.device.type}, as the model is divided", device.type)
    return model


def processes_per_device(name: str, workers: int, ranks: Ranks) -> int:
    """How many decoding processes share one device called `name`, at most; see `pick_device`.

    Args:
        name: of the device.
        workers: that this process starts.
        ranks: the launch.
    """
    processes = max(workers, ranks.local_size)
    if name not in ("auto", "cuda") or not torch.cuda.is_available():
        return processes
    gpus = torch.cuda.device_count()
    # A launcher that gives each process a GPU of its own (srun) shows it no other; torchrun shows all of them to each.
    if ranks.size > 1 == gpus and "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1
    return -(-processes // gpus)
