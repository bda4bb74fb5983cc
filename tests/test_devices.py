import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from t3d.devices import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, reuse_freed_memory

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
