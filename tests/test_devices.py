import ctypes
import resource
import sys

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
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]

    def usual() -> None:
        library.mallopt(M_MMAP_THRESHOLD, 128 * 1024)
        library.mallopt(M_TRIM_THRESHOLD, 128 * 1024)

    usual()
    yield library
    usual()
    library.malloc_trim(0)


def faults(library: ctypes.CDLL) -> int:
    """Page faults of taking, filling and freeing `SIZE` bytes, once they were taken before."""
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        place = library.malloc(SIZE)
        ctypes.memset(place, 1, SIZE)
        library.free(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again_without_asking_the_system(library):
    asked = faults(library)
    reuse_freed_memory()
    assert faults(library) < asked / 10


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_the_user_stay(library, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    asked = faults(library)
    reuse_freed_memory()
    assert faults(library) > asked / 2
