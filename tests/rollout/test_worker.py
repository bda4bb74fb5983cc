import pytest
import torch

from t3d.errors import ConfigError
from t3d.rollout import rollout, worker
from t3d.rollout.worker import pick_device


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


def test_too_many_sequences_for_the_memory_are_the_users_to_reduce(settings, monkeypatch):
    whole = rollout(settings()).read_bytes()
    decode = worker.iter_decode

    def exhausted(*arguments):
        for number, finished in enumerate(decode(*arguments)):
            if number == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
            yield finished

    with monkeypatch.context() as patch:
        patch.setattr(worker, "iter_decode", exhausted)
        with pytest.raises(ConfigError) as caught:
            rollout(settings("rollout.resume=false"))
    assert str(caught.value) == (
        "rollout.max_active: expected sequences that fit into the memory, "
        "found 64 (CUDA out of memory. Tried to allocate 2 GiB.)"
    )
    assert rollout(settings("rollout.max_active=1")).read_bytes() == whole
