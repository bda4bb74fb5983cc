import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from t3d import devices
from t3d.devices import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, reuse_freed_memory, usable_cores

SIZE = 64 * 2**20
NAMES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@pytest.fixture
def library(monkeypatch):
    """glibc with its usual settings, before and after."""
    if not sys.platform.startswith("linux"):
        pytest.skip("glibc alone has these settings")
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    library = glibc()

    def usual() -> None:
        library.mallopt(M_MMAP_THRESHOLD, 128 * 1024)
        library.mallopt(M_TRIM_THRESHOLD, 128 * 1024)

    usual()
    yield library
    usual()
    library.malloc_trim(0)


def glibc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    return library


def faults(library: ctypes.CDLL) -> int:
    """Page faults of taking, filling and freeing `SIZE` bytes, once they were taken before."""
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        place = library.malloc(SIZE)
        ctypes.memset(place, 1, SIZE)
        library.free(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again_without_asking_the_system(library):
    """In a process of its own: where a heap cannot grow any more, the C library maps every piece anew."""
    code = (
        "import test_devices as t; lib = t.glibc(); a = t.faults(lib); t.reuse_freed_memory(); print(a, t.faults(lib))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    asked, then = map(int, ended.stdout.split())
    assert then < asked / 10


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_the_user_stay(library, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    asked = faults(library)
    reuse_freed_memory()
    assert faults(library) > asked / 2


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000\n", 24), ("400000 100000\n", 4), ("50000 100000\n", 1), ("9900000 100000", 24), (None, 24)],
)
def test_a_containers_quota_is_no_more_cores_than_it_says(monkeypatch, tmp_path, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(24)))
    monkeypatch.setattr(devices, "CORES_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores() == cores


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_that_ends_by_an_exception_waits_for_no_other(fails):
    """In somebody's own script (`t3d.entry` ends its own failures): NCCL's group is left by all together."""
    said = (
        "import sys; import torch.distributed as dist; from t3d.devices import leave_group_at_exit;"
        "dist.is_initialized, dist.get_world_size = lambda: True, lambda: 2;"
        "dist.destroy_process_group = lambda: print('left');"
        "leave_group_at_exit();"
    ) + ("raise ValueError('a bug')" if fails else "")
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == ((1, "") if fails else (0, "left\n"))
    assert ("ValueError: a bug" in ended.stderr) == fails
