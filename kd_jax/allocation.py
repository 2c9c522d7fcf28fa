"""Memory of a CPU's steps is used again by the next ones, in the place of new pages of the system."""

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterable

import jax

GIB = 2**30
# Of glibc's malloc.h: what is as large is asked of the system and given back; what is free beyond that is given back;
# how many arenas the threads share.
MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8


def keep_memory() -> None:
    """Makes glibc keep up to a GiB of what is freed, where no variable of the environment says otherwise.

    XLA takes the memory of a step anew at each call. On a CPU the system then clears every page of it, which takes a
    quarter of a step of ResNet-20. Call it before XLA starts its threads.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    if libc.mallopt(MMAP_THRESHOLD, GIB):  # an old glibc refuses, and does better with its own, which then grows
        libc.mallopt(TRIM_THRESHOLD, GIB)
        libc.mallopt(ARENA_MAX, 1)


def peak(devices: Iterable[jax.Device]) -> int:
    """Bytes that were in use at most so far: of the fullest device; of a CPU, by the process with all that it holds."""
    known = [stats["peak_bytes_in_use"] for device in devices if (stats := device.memory_stats())]
    unit = 1 if sys.platform == "darwin" else 1024
    return max(known, default=unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
