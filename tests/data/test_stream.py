"""Images that stream: the same pixels in the same order, read as they are needed."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kd_jax import evaluation, experiment, sharding
from kd_jax.batches import Epoch
from kd_jax.data import folder, lazy, resident, stream
from kd_jax.errors import InputError, Preempted
from kd_jax.types import Split
from tests import tiny


def write(path, sizes, *, classes=2, each=30):
    """A folder of random images of the sizes in turn, in class folders."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (path / f"class{label}").mkdir(parents=True)
        for number in range(each):
            height, width = sizes[number % len(sizes)]
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(path / f"class{label}" / f"{number:02}.png")
    return path


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(8, 8)], 8),
        ([(6, 6)], 6),
        ([(6, 6), (8, 8)], 8),
        ([(20, 20)], 8),
        ([(9, 14), (14, 9)], 8),
        ([(6, 6), (7, 5)], 8),
    ],
)
def test_streamed_images_are_those_in_memory(tmp_path, sizes, side):
    path = str(write(tmp_path / "images", sizes, each=6))
    read = [folder.load(path, image_size=8, stream=how) for how in ("never", "always")]
    for kept, streamed in zip(*[(source.train, source.test) for source in read], strict=True):
        assert isinstance(streamed.images, lazy.Images)
        assert streamed.images.shape[1:] == (side, side, 3)
        np.testing.assert_array_equal(np.asarray(streamed.images), kept.images)
        np.testing.assert_array_equal(streamed.labels, kept.labels)


def test_what_is_no_image_is_named_before_it_is_needed(tmp_path):
    (write(tmp_path / "images", [(8, 8)], each=6) / "class1" / "03.png").write_bytes(b"no image")
    path = str(tmp_path / "images")
    with pytest.raises(InputError, match=r"class1/03.png cannot be read as an image: no known image format; remove it"):
        folder.load(path, image_size=8, stream="always")
    read = folder.load(path, image_size=8, stream="always", skip_unreadable=True)
    assert (read.skipped, len(read.train.labels) + len(read.test.labels)) == (1, 11)


@pytest.fixture(scope="module")
def numbered():
    """Twenty images, each of one gray, its number."""
    read = lazy.Images(lambda item: np.full((2, 2, 3), item, np.uint8), list(range(20)), (2, 2, 3))
    return Split(read, np.sqrt(np.arange(20)).astype(np.int32) // 2)  # classes of 4, 12 and 4


WHOLE = Epoch(6, 3)


def calls(numbered, first, *, divided=WHOLE, total=10, per_call=2, **options):
    mesh = sharding.mesh(jax.devices()[:1])
    shared = {"seed": 3, "divided": divided, "steps_per_call": per_call, "total_steps": total, "mesh": mesh}
    shared |= options
    return stream.feed(numbered, workers=0, **shared).calls(first)


@pytest.mark.parametrize("sampling", ["shuffle", "balanced"])
@pytest.mark.parametrize("divided", [WHOLE, Epoch(6, 3, 2)], ids=["drop", "keep"])
@pytest.mark.parametrize("first", [0, 1, 4, 7])
def test_the_order_is_that_of_images_in_memory_from_any_step_on(numbered, first, divided, sampling):
    whole = Split(np.asarray(numbered.images), numbered.labels)
    kept = resident.feed(
        whole,
        seed=3,
        divided=divided,
        steps_per_call=2,
        total_steps=10,
        mesh=sharding.mesh(jax.devices()[:1]),
        options=None,
        sampling=sampling,
    )
    expected = [(np.asarray(ids), end) for ids, end in kept.calls(first)]
    found = list(calls(numbered, first, divided=divided, sampling=sampling))
    assert [end for _, end in found] == [end for _, end in expected]
    for (rows, _), (ids, _) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rows.ids, ids)
        np.testing.assert_array_equal(rows.images[..., 0, 0, 0], ids)
        np.testing.assert_array_equal(rows.labels, numbered.labels[ids])


@dataclasses.dataclass(eq=False)
class Device:
    """A device of one of many processes, as far as meshes and shardings ask for it."""

    id: int
    process_index: int
    client: Any  # of the process that looks at it
    platform: str = "cpu"
    device_kind: str = "cpu"


def mesh_of(owners, process):
    """The mesh of devices that these processes own, in a row, as one of the processes sees it."""
    client = SimpleNamespace(process_index=lambda: process)
    return sharding.mesh([Device(number, owner, client) for number, owner in enumerate(owners)])


@st.composite
def meshes(draw):
    """The mesh that each process sees, and a batch size that the devices divide."""
    processes, devices = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    owners = np.repeat(np.arange(processes), devices).tolist()
    return [mesh_of(owners, process) for process in range(processes)], len(owners) * draw(st.integers(1, 4))


def reading(images):
    """Numbered images, and the numbers of those that were read."""
    read = []

    def one(item):
        read.append(item)
        return np.frombuffer(np.uint32(item).tobytes(), np.uint8).reshape(2, 2, 1)

    return Split(lazy.Images(one, range(images), (2, 2, 1)), np.arange(images, dtype=np.int32) % 7), read


def pixels_say(batch):
    return np.ascontiguousarray(batch.images).reshape(len(batch.ids), -1).view(np.uint32)[:, 0]


laws = settings(derandomize=True, deadline=None, max_examples=50, database=None)


@laws
@given(meshes(), st.integers(0, 200), st.integers(0, 3), st.integers(0, 2), st.booleans())
def test_processes_read_every_image_of_an_epoch_once(seen, more, seed, epoch, keep):
    """In the order of one process; the images that are no whole batch, none of them reads but where it is kept."""
    meshes, size = seen
    images = size + (more - more % meshes[0].size if keep else more)
    divided = Epoch(size, images // size, images % size if keep else 0)
    steps = divided.steps
    split, read = reading(images)
    orders = resident.orders(split.labels, seed=seed, sampling="shuffle")
    ids = functools.partial(stream.ids_of_step, orders=orders, divided=divided)
    parts = [{size: stream.own_part(mesh, size) for size in divided.sizes} for mesh in meshes]
    sources = [stream.Batches(split, steps * (epoch + 1), ids, own) for own in parts]
    each = [source[step] for step in range(steps * epoch, len(sources[0])) for source in sources]
    expected = resident.epoch_order(seed, epoch, images)[: divided.images]
    np.testing.assert_array_equal(np.concatenate([batch.ids for batch in each]), expected)
    np.testing.assert_array_equal(np.concatenate([pixels_say(batch) for batch in each]), expected)
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in each]), expected % 7)
    assert sorted(read) == sorted(expected)


@laws
@given(meshes(), st.integers(1, 300))
def test_processes_evaluate_every_image_once(seen, images):
    """In their order; only the last batch is filled up, with what is masked."""
    meshes, size = seen
    split, read = reading(images)
    made = SimpleNamespace(config={"evaluate": {"batch_size": size}}, mesh=meshes[0])
    ids, mask = evaluation._ids_and_mask(made, images)
    with mock.patch.object(stream, "_put", lambda own, on_devices: own):
        each = [list(stream.evaluated(split, ids, mesh)) for mesh in meshes]
    found = np.concatenate([pixels_say(batch) for step in zip(*each, strict=True) for batch in step])
    np.testing.assert_array_equal(found[mask.reshape(-1)], np.arange(images))
    assert mask.reshape(-1)[:images].all()
    assert len(read) == len(found) < images + ids.shape[1]


def test_devices_that_do_not_follow_each_other_are_refused():
    with pytest.raises(InputError, match="the devices of this process do not follow each other"):
        stream.own_part(mesh_of([0, 1, 0, 1], process=1), 8)


def test_a_call_takes_no_more_than_its_room(numbered, monkeypatch):
    monkeypatch.setattr(stream, "CALL", 6 * 12 * 3 + 1)  # three batches of six images of twelve bytes
    assert [stream.steps_per_call(wanted, numbered, 6) for wanted in (1, 3, 50)] == [1, 3, 3]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write(tmp_path_factory.mktemp("images"), [(8, 8)])


def of_folder(images, how):
    return {"dataset.source": "folder", "dataset.path": str(images), "dataset.stream": how, "dataset.train_images": 0}


def taught(images, how, **overrides):
    """A run of two epochs on a folder, and of its teacher one."""
    whole = tiny.taught(**of_folder(images, how), **{"train.epochs": 2}, **overrides)
    whole["teacher"]["config"]["dataset"] |= {key: whole["dataset"][key] for key in ("source", "path", "stream")}
    whole["teacher"]["config"]["train"]["epochs"] = 1
    return whole


@pytest.fixture(scope="module")
def kept(images, tmp_path_factory):
    """The end of a run whose images lie in memory."""
    return tiny.train(taught(images, "never"), tmp_path_factory.mktemp("never"))


def same(a, b):
    (state, result), (other, expected) = a, b
    assert tiny.identical((state.params, state.stats), (other.params, other.stats))
    assert (result["test"], result["config_hash"]) == (expected["test"], expected["config_hash"])


@pytest.mark.parametrize("cache", ["none", "recording"])
def test_a_run_that_streams_ends_as_one_in_memory(images, kept, tmp_path, cache):
    same(tiny.train(taught(images, "always", **{"teacher.cache": cache}), tmp_path), kept)


@pytest.mark.slow
def test_processes_that_read_change_nothing(images, kept, tmp_path):
    same(tiny.train(taught(images, "always", **{"dataset.workers": 2}), tmp_path), kept)


def test_a_run_that_streams_goes_on_as_if_it_had_not_stopped(images, kept, tmp_path, monkeypatch):
    whole = taught(images, "always")
    with monkeypatch.context() as patched:
        tiny.interrupt(patched, 5)
        with pytest.raises(Preempted):
            tiny.train(whole, tmp_path)
    same(tiny.train(whole, tmp_path), kept)


def test_an_evaluation_reads_the_same_images(images):
    made = [experiment.create(tiny.config(**of_folder(images, how))) for how in ("never", "always")]
    found = []
    for one in made:
        variables = jax.jit(one.components.student.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
        evaluate = evaluation.Evaluator(one, {})
        found.append(evaluate(variables, evaluation.steps.method_variables({}, {}), one.dataset.test))
    assert found[0] == found[1]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_image_that_turns_out_to_be_damaged_ends_the_run_with_its_name(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(resident, "EXAMPLES", 2)  # that initialization reads; this one is behind them
    path = write(tmp_path / "images", [(8, 8)])
    cut = path / "class1" / "07.png"
    cut.write_bytes(cut.read_bytes()[:60])  # behind its header
    whole = tiny.config(**of_folder(path, "always"), **{"dataset.normalize": "imagenet", "dataset.workers": workers})
    with pytest.raises(InputError, match=r"class1/07.png cannot be read as an image"):
        tiny.train(whole, tmp_path)


def test_a_table_of_views_is_refused(images, tmp_path):
    whole = taught(images, "always", **{"teacher.cache": "views"})
    with pytest.raises(
        InputError, match=r"teacher.cache is 'views', and the images stream; expected 'recording' or 'none'"
    ):
        tiny.train(whole, tmp_path)


@pytest.mark.parametrize("source", ["digits", "tar", "npz"])
def test_a_source_that_does_not_stream_is_refused(source):
    said = f"dataset.stream is 'always', and dataset.source '{source}', which is read into memory"
    with pytest.raises(InputError, match=f"{said}; expected dataset.source 'folder', 'hf', 'tfds'"):
        experiment.create(tiny.config(**{"dataset.stream": "always", "dataset.source": source}))
