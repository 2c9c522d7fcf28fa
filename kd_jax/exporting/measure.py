"""Runs a program in a process of its own: python -m kd_jax.exporting.measure FORMAT PATH IMAGES.npy RESULT.npz BATCH

The result holds "milliseconds" of a call with BATCH images, and "logits" of all images [N, K].
"""

import sys
import time

import numpy as np

from kd_jax.exporting import Runner, runner

CALLS, SECONDS = 200, 5.0  # of a measurement at most, after two calls that are not counted


def latency(run: Runner, images: np.ndarray) -> float:
    """The median milliseconds of a call."""
    run(images), run(images)
    times: list[float] = []
    while len(times) < CALLS and sum(times) < SECONDS:
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


if __name__ == "__main__":
    name, path, images_path, result, batch = sys.argv[1:]
    run, images = runner(name, path), np.load(images_path)
    np.savez(result, milliseconds=latency(run, images[: int(batch)]), logits=run(images))
