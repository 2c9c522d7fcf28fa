"""Measures what streams: images a second beside decoding alone, and memory, over many images.

usage: python -m launch.streaming [--images=1000000] [--size=64] [--batch=256] [--workers=0]

The images are JPEG files in memory, of noise, which take longer than photographs; each is decoded anew. Decoding
alone is the same threads on the same files, without order and batches. Memory is the process's peak so far, every tenth
of the way; that of workers is not in it.
"""

import argparse
import functools
import io
import resource
import time

import numpy as np
from PIL import Image

from kd_jax.batches import Epoch
from kd_jax.data import lazy, resident, stream
from kd_jax.types import Split

FILES = 1000  # different ones


def files(size: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(FILES):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(file, "jpeg")
        found.append(file.getvalue())
    return found


def decode(contents: list[bytes], item: int) -> np.ndarray:
    with Image.open(io.BytesIO(contents[item % FILES])) as image:
        return np.asarray(image)


def peak() -> int:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 1_000_000), ("size", 64), ("batch", 256), ("workers", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    shape, steps = (given.size, given.size, 3), given.images // given.batch
    images = lazy.Images(functools.partial(decode, files(given.size)), range(given.images), shape)
    labels = np.zeros(given.images, np.int32)

    alone = min(given.images, 20 * FILES)
    start = time.monotonic()
    np.asarray(images[:alone])
    rate = alone / (time.monotonic() - start)
    print(f"decoding alone: {rate:,.0f} images/s", flush=True)

    orders = resident.orders(labels, seed=0, sampling="shuffle")
    ids = functools.partial(stream.ids_of_step, orders=orders, divided=Epoch(given.batch, steps))
    source = stream.Batches(Split(images, labels), steps, ids, {given.batch: slice(0, given.batch)})
    seen, start = 0, time.monotonic()
    for step, batch in enumerate(stream.read(source, 0, given.workers), start=1):
        seen += len(batch.ids)
        if step % max(steps // 10, 1) == 0:
            now = seen / (time.monotonic() - start)
            print(f"{seen:,} images: {now:,.0f} images/s, {now / rate:.0%} of decoding, {peak()} MiB", flush=True)


if __name__ == "__main__":
    main()
