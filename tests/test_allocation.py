"""Memory that is freed is used again, where nothing of the environment says otherwise."""

import os
import platform
import subprocess
import sys
import types

import pytest

from kd_jax import allocation
from tests import tiny

SECOND_TIME = """
import ctypes, resource
from kd_jax.allocation import keep_memory
keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = libc.malloc(2**26)
    ctypes.memset(place, 1, 2**26)
    libc.free(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def pages_asked_for_again(**environment):
    """How many pages of 64 MiB the system gives to a process that had them and freed them."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run([sys.executable, "-c", SECOND_TIME], env=own | environment, capture_output=True, check=True)
    return int(run.stdout)


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@needs_glibc
def test_freed_memory_is_used_again():
    assert pages_asked_for_again() < 100


@needs_glibc
def test_the_environment_decides_where_it_says_something():
    assert pages_asked_for_again(MALLOC_MMAP_THRESHOLD_="1000000") > 10_000


def test_an_experiment_keeps_memory_before_anything_runs(monkeypatch):
    kept = []
    monkeypatch.setattr("kd_jax.experiment.keep_memory", lambda: kept.append(True))
    monkeypatch.setattr("kd_jax.data.load", lambda *_: kept.append("late") or pytest.skip("not reached"))
    with pytest.raises(pytest.skip.Exception):
        tiny.create(tiny.METHODS["kd"])
    assert kept == [True, "late"]


def device(peak):
    return types.SimpleNamespace(memory_stats=lambda: peak and {"peak_bytes_in_use": peak})


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs the proc of Linux")
def test_the_peak_is_that_of_the_fullest_device_and_of_a_cpu_the_processs():
    assert allocation.peak([device(5), device(7), device(6)]) == 7
    with open("/proc/self/status") as file:
        (line,) = (text for text in file if text.startswith("VmHWM:"))
    assert allocation.peak([device(None)]) == pytest.approx(1024 * int(line.split()[1]), rel=0.05)
