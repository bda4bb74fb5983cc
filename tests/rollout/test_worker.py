import logging

import pytest
import torch

from t3d.decoding.config import _warn_once
from t3d.devices import pick_device
from t3d.errors import ConfigError
from t3d.rollout import pool, rollout, worker
from t3d.rollout.job import make_job
from t3d.rollout.ranks import Ranks
from t3d.rollout.run import decode_job, rollout_path
from t3d.sdar import SDARForCausalLM


@pytest.mark.parametrize("device", ["cuda:77", "nonsense", "cpu:x", ""])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(ConfigError, match=r"rollout\.device: expected a device of this machine, found"):
        pick_device(device)


def test_the_automatic_device_exists():
    assert pick_device("auto").type in ("cuda", "mps", "cpu")


def test_gpus_go_to_workers_in_turn(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda size, device: asked.append(str(device)))
    for number in range(3):
        pick_device("auto", number)
    pick_device("cuda", 1)
    pick_device("cuda:0", 1)
    assert asked == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]


def test_a_device_is_shared_by_the_workers_that_it_goes_to(monkeypatch):
    alone, launched = Ranks(), Ranks(size=8, local_size=4)
    assert worker.processes_per_device("cpu", 3, alone) == 3
    assert worker.processes_per_device("cpu", 1, launched) == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [worker.processes_per_device("auto", number, alone) for number in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    assert worker.processes_per_device("auto", 1, launched) == 2
    assert worker.processes_per_device("cuda:1", 3, alone) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert worker.processes_per_device("auto", 3, alone) == 3
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert worker.processes_per_device("auto", 1, launched) == 1, "srun gives each its own"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert worker.processes_per_device("auto", 1, launched) == 4, "torchrun shows all of them to each"


def test_the_workers_of_a_rollout_are_told_how_many_they_are(settings, monkeypatch):
    told = []
    monkeypatch.setattr("t3d.rollout.pool.Workers.decode", lambda self, shares, report: told.extend(shares))
    monkeypatch.setattr("t3d.rollout.run._finish", lambda job, shards: None)
    config = settings("rollout.num_workers=3")
    decode_job(make_job(config), rollout_path(config))
    assert [share.sharing for share in told] == [3, 3, 3]


class Exhausted:
    """A network's forward that finds no memory from some call on, as long as there are more rows than it bears."""

    def __init__(self, bears: int, after: int = 0) -> None:
        self.bears, self.after, self.calls = bears, after, 0

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        forward = SDARForCausalLM.forward

        def failing(model, ids, **layout):
            self.calls += 1
            if self.calls > self.after and len(layout["logit_rows"]) > self.bears:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
            return forward(model, ids, **layout)

        patch.setattr(SDARForCausalLM, "forward", failing)


def test_a_rollout_without_memory_for_all_its_sequences_goes_on_with_fewer(settings, monkeypatch, caplog):
    whole = rollout(settings()).read_bytes()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        Exhausted(bears=8, after=3).patch(patch)
        assert rollout(settings("rollout.resume=false")).read_bytes() == whole
    halvings = [record.getMessage() for record in caplog.records if "no memory" in record.getMessage()]
    assert halvings[0] == (
        "no memory on cpu for 10 sequences at a time (CUDA out of memory. Tried to allocate 2 GiB.): going on with 5, "
        "which changes no result; rollout.max_active=5 starts there"
    )
    assert len(halvings) == 2, "5 sequences have up to 20 masks"


def test_a_rollout_without_memory_for_one_sequence_ends_and_keeps_what_it_has(settings, monkeypatch):
    finished = rollout(settings())
    whole = finished.read_bytes()
    for path in (finished, finished.with_suffix(".meta.json")):
        path.unlink()
    with monkeypatch.context() as patch:
        Exhausted(bears=0, after=20).patch(patch)
        with pytest.raises(ConfigError) as caught:
            rollout(settings("rollout.max_active=2"))
    assert str(caught.value) == (
        "rollout.max_token: expected memory on cpu for 1 sequence(s) at a time, "
        "found CUDA out of memory. Tried to allocate 2 GiB."
    )
    left = []
    with monkeypatch.context() as patch:
        decode = worker.iter_decode
        patch.setattr(worker, "iter_decode", lambda *given, **rest: left.extend(given[1]) or decode(*given, **rest))
        assert rollout(settings("rollout.max_active=1")).read_bytes() == whole
    assert 0 < len(left) < 10, "goes on from what was stored"


def test_a_model_too_large_for_the_device_is_one_line(settings, monkeypatch):
    def full(share):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 9 bytes.")

    monkeypatch.setattr(worker, "_load", full)
    with pytest.raises(ConfigError, match=r"^rollout.device: expected memory for the model's weights, found \[enforce"):
        rollout(settings())


def test_a_rollout_names_the_trap_of_scaled_confidences_once(settings, caplog, tmp_path):
    _warn_once.cache_clear()
    for number in range(2):
        project = f"experiment.project={tmp_path / str(number)}"
        rollout(settings("rollout.remasking_strategy=low_confidence_dynamic", "evaluation.limit=2", project))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert told[0].startswith("low_confidence_dynamic at temperature 0.7: nearly every scaled confidence is above 0.9")


@pytest.fixture
def silenced():
    """Puts the package's logger back, which a worker takes for itself."""
    logger = logging.getLogger("t3d")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.mark.usefixtures("silenced")
@pytest.mark.parametrize(
    ("worker", "told"),
    [
        (0, [(logging.INFO, "decoding 3"), (logging.WARNING, "no memory")]),
        (2, [(logging.WARNING, "worker 2: no memory")]),
    ],
)
def test_workers_send_their_warnings_and_the_first_its_news(worker, told):
    sent = []
    pool._log_through(sent.append, worker)
    log = logging.getLogger("t3d.decoding.memory")
    log.info("decoding %d", 3)
    log.warning("no memory")
    assert [(news.level, news.text) for news in sent] == told


@pytest.mark.slow
def test_two_workers_tell_once_which_kernel_decodes(settings, caplog):
    caplog.set_level(logging.INFO)
    rollout(settings("rollout.num_workers=2", "evaluation.limit=2"))
    told = [record.getMessage() for record in caplog.records if "decoding on" in record.getMessage()]
    assert told == ["decoding on cpu in float32 with torch's scaled_dot_product_attention"]
