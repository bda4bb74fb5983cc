"""Forwards that are recorded once and replayed: no launch of a kernel costs the host any more.

A network of a few billion parameters is some 2,000 kernels, and starting one takes longer than running it while few
sequences are decoded.  Here is only what to record, when, and whether to believe it; `CudaGraphs` alone is CUDA's.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

from t3d.decoding.buckets import Bucket, Buffers
from t3d.decoding.config import DecodingConfig
from t3d.decoding.draws import Draws
from t3d.decoding.kernel import Kernel
from t3d.decoding.runner import Runner
from t3d.decoding.stage import Staged
from t3d.errors import ConfigError, first_line
from t3d.sdar.backend import TOLERANCE
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.mixture import waits_for_device
from t3d.sdar.modeling import SDARForCausalLM

log = logging.getLogger(__name__)

SIGHTINGS = 3
"""Steps of a bucket before it is recorded: recording takes as long as some twenty steps, and a rare one never pays."""
MOST = 64
"""Recordings of one engine; each holds some megabytes."""

_UNRECORDABLE: set[torch.device] = set()
"""Where a recording has failed: what it took from the device may be lost to this process, which tries no other."""

Work = Callable[[], Draws]
Record = Callable[[Work], Work]
"""Takes a forward that reads fixed memory, and gives one that does the same to what then stands there."""


class CudaGraphs:
    """Records with CUDA; all recordings share their memory, as one ends before the next begins.

    They do so only if one stream records them all: torch's allocator gives freed memory to the stream that had it.
    And they end together: with one, torch clears the workspaces of its stream that the others read (PyTorch 193402).
    """

    def __init__(self, device: torch.device) -> None:
        """Begins without memory."""
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)  # torch's own is the first device's

    def __call__(self, work: Work) -> Work:
        """Records `work`, which has run before."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self.device),
            torch.cuda.stream(torch.cuda.current_stream(self.device)),  # a recording that fails does not go back to it
        ):
            try:
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                    draws = work()
            except RuntimeError:
                # Before PyTorch 180395 a recording that CUDA ended stays open for the allocator, which then gives back
                # no memory any more; elsewhere this finds nothing to end.
                with suppress(RuntimeError):
                    torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)
                raise

        def replay() -> Draws:
            graph.replay()
            return draws

        return replay


@dataclass
class _Known:
    """What is known of a bucket: steps seen, its recording, and whether that was found to do the same."""

    sightings: int = 0
    replay: Work | None = None
    is_trusted: bool = False


class GraphRunner(Runner):
    """Runs a bucket's first steps as they are, then records one, and replays it once it has been compared.

    A recording is compared at the step after it, when other values stand in its buffers: whatever was taken from the
    host when it was recorded shows.  What cannot be recorded, or does something else, is logged, and from then on
    everything runs as it is, without padding.
    """

    def __init__(
        self, model: SDARForCausalLM, config: DecodingConfig, kernel: Kernel, buffers: Buffers, record: Record
    ) -> None:
        """Takes what `Runner` does, where steps are staged, and how a forward is recorded."""
        super().__init__(model, config, kernel)
        self.buffers, self.record = buffers, record
        self.known: dict[Bucket, _Known] = {}

    def forward(self, staged: Staged) -> Draws | None:
        """One entry per row, padding included."""
        known = None if staged.bucket is None else self.known.setdefault(staged.bucket, _Known())
        if known is not None and known.is_trusted and known.replay is not None:
            return known.replay()
        draws = super().forward(staged)
        if known is None or draws is None or self.buffers is None:
            return draws
        known.sightings += 1
        if known.replay is not None:
            self._compare(known, draws)
        elif known.sightings >= SIGHTINGS and self.num_recorded < MOST:
            self._record(known, staged)
        return draws

    @property
    def num_recorded(self) -> int:
        """Recordings so far."""
        return sum(known.replay is not None for known in self.known.values())

    def _record(self, known: _Known, staged: Staged) -> None:
        try:
            known.replay = self.record(lambda: self._once(staged))
        except RuntimeError as error:
            self._give_up(f"a forward cannot be recorded: {first_line(error)}")

    def _once(self, staged: Staged) -> Draws:
        draws = super().forward(staged)
        assert draws is not None, "a bucket has rows"
        return draws

    def _compare(self, known: _Known, draws: Draws) -> None:
        """Runs the recording on the step that was just computed (which writes the same keys and values again)."""
        assert known.replay is not None
        known.is_trusted = _same(draws, known.replay())
        if not known.is_trusted:
            self._give_up("a recorded forward computes something else")
        elif self.num_recorded == 1:
            log.info("decoding replays recorded forwards (CUDA graphs), which were found to compute the same")

    def _give_up(self, why: str) -> None:
        log.warning("decoding without CUDA graphs: %s; rollout.cuda_graphs=false starts without them", why)
        _UNRECORDABLE.add(self.model.device)
        self.buffers = None
        self.known.clear()


def _same(one: Draws, other: Draws) -> bool:
    """Whether tokens are equal, and scores up to rounding (not a number equals itself)."""
    exact = torch.equal(one.tokens, other.tokens) and torch.equal(one.failed, other.failed)
    return exact and torch.allclose(one.score, other.score, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def are_recorded(
    device: torch.device, dtype: torch.dtype, kernel: Kernel, config: SDARConfig, wanted: bool | None
) -> bool:
    """Whether forwards are recorded there: not where one was tried in vain.

    Args:
        device: that decodes.
        dtype: of the weights.
        kernel: its attention.
        config: of the network.
        wanted: None records where that is possible.

    Raises:
        ConfigError: wanted and not possible.
    """
    possible = device.type == "cuda" and kernel.is_fixed and not waits_for_device(config, device, dtype)
    if wanted and not possible:
        network = f"{kernel.name} and {config.model_type}"
        raise ConfigError("rollout.cuda_graphs", f"null or false on {device} with {network}", True)
    return possible and wanted is not False and device not in _UNRECORDABLE
