import os
import shutil
from pathlib import Path

import pytest
import torch

from t3d.devices import GIB
from t3d.doctor import machine, output
from t3d.doctor.machine import Device
from t3d.grading import isolation as boxes

A100 = Device("cuda:0", "NVIDIA A100-SXM4-40GB", (8, 0), 39 * GIB, 37 * GIB, 40 * GIB)
V100 = Device("cuda:0", "Tesla V100", (7, 0), 31 * GIB, 30 * GIB, 32 * GIB)
HOST = Device("cpu", "CPU", None, 16 * GIB, 14 * GIB, 24 * GIB)


def test_devices_of_one_kind_share_a_line():
    found = [Device(f"cuda:{index}", *list(vars(A100).values())[1:]) for index in range(8)]
    (finding,) = machine.devices(found, has_driver=True)
    assert finding.level == "ok"
    assert finding.text == "8 x NVIDIA A100-SXM4-40GB, compute capability 8.0, bfloat16; 39.0 GiB of 40.0 GiB free"


def test_a_device_in_use_and_an_old_one_are_warnings():
    used = Device("cuda:1", A100.model, A100.capability, 10 * GIB, 8 * GIB, 40 * GIB)
    _, finding = machine.devices([A100, used], has_driver=True)
    assert finding.level == "warning"
    assert finding.text == "cuda:1 is in use: 30.0 GiB"
    (finding,) = machine.devices([V100], has_driver=True)
    assert finding.level == "warning"
    assert "no bfloat16 units" in finding.text
    assert "rollout.dtype=float16" in finding.cure


def test_a_driver_whose_gpu_torch_does_not_see_is_a_warning():
    assert [finding.level for finding in machine.devices([HOST], has_driver=False)] == ["ok"]
    _, finding = machine.devices([HOST], has_driver=True)
    assert finding.level == "warning"
    assert torch.__version__ in finding.text


def test_this_machine_has_a_device_and_kernels_that_work_on_it():
    found = machine.find_devices()
    assert found
    assert 0 < found[0].usable <= found[0].free <= found[0].total
    decoding, training = machine.usual_kernels(HOST)
    assert (decoding.level, training.level) == ("ok", "ok")
    assert "scaled_dot_product_attention" in decoding.text
    assert "tiles" in training.text


def test_more_threads_than_cores_are_a_warning(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert [finding.level for finding in machine.processor()] == ["ok"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    (finding,) = machine.processor()
    assert finding.level == "warning"
    assert finding.cure.startswith("OMP_NUM_THREADS=2")


@pytest.mark.parametrize(("is_needed", "level"), [(True, "error"), (False, "warning")])
def test_a_missing_sandbox_matters_where_code_is_graded(monkeypatch, is_needed, level):
    boxes._probe.cache_clear()
    monkeypatch.setattr(boxes.shutil, "which", lambda _name: None)
    monkeypatch.setattr(boxes, "_sandlocks", lambda: iter(()))
    try:
        (finding,) = machine.sandbox("auto", is_needed)
    finally:
        boxes._probe.cache_clear()
    assert (finding.level, finding.text) == (level, "bwrap: not installed; sandlock: not installed")
    assert "apt-get install bubblewrap" in finding.cure


def test_no_isolation_is_a_warning():
    (finding,) = machine.sandbox("none", is_needed=True)
    assert finding.level == "warning"


def test_small_shared_memory_is_a_warning_for_several_gpus(monkeypatch, tmp_path):
    usage = shutil.disk_usage("/")._replace(total=64 << 20)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _path: usage)
    assert [finding.level for finding in machine.storage(tmp_path, 1)] == ["ok"]
    _, finding = machine.storage(tmp_path, 8)
    assert finding.level == "warning"
    assert "--ipc=host" in finding.cure


def test_output_goes_where_it_may_be_written_and_nothing_is_made(tmp_path):
    (finding,) = output.folder(tmp_path / "a" / "b", 10, "a run", "cure", at_once=5)
    assert finding.level == "ok"
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (finding,) = output.folder(tmp_path / "file" / "run", 0, "a run", "cure")
    assert finding.level == "error"
    assert f"{tmp_path / 'file'} is a file" in finding.text
    monkeypatch.setattr(output.os, "access", lambda _path, _mode: False)
    (finding,) = output.folder(tmp_path / "run", 0, "a run", "cure")
    assert finding.level == "error"
    assert f"{tmp_path} cannot be written to" in finding.text


def test_a_disk_too_small_for_all_is_a_warning_and_for_the_first_part_an_error(tmp_path, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10 * GIB)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _path: usage)
    levels = [
        finding.level
        for needed, once in ((9, 9), (11, 9), (11, 11))
        for finding in output.folder(tmp_path, needed * GIB, "a run", "cure", once * GIB)
    ]
    assert levels == ["ok", "warning", "error"]


def test_the_nearest_folder_is_the_first_that_exists(tmp_path):
    assert machine.nearest_folder(tmp_path / "a" / "b") == tmp_path
    assert machine.nearest_folder(Path(tmp_path)) == tmp_path
