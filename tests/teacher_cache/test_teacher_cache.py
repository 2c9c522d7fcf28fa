"""What is kept, where, and what is said of it."""

import errno
import os
import re

import jax
import numpy as np
import pytest
import scipy.special

from kd_jax import augment, evaluation, experiment, teacher_cache, teachers
from kd_jax.batches import Epoch
from kd_jax.errors import InputError
from kd_jax.teacher_cache import recording, store, table
from kd_jax.teachers import ensemble, kept
from kd_jax.types import Batch, Outputs, Split, Teacher
from tests import tiny

FROM_A_RANDOM_ONE = {"teacher.kind": "random", "dataset.holdout": 0.0, "teacher.cache": "recording"}


def create(folder="runs", method=tiny.METHODS["kd"], **overrides):
    whole = tiny.config(**FROM_A_RANDOM_ONE | overrides) | {"method": method}
    return experiment.create(whole, runs_folder=str(folder), traced=False)


def about(**overrides):
    made = create(**overrides)
    crops = teacher_cache.teachers.listed_views(made.config)
    teacher = teacher_cache._of_teacher(made, {})
    return teacher | teacher_cache._of_recording(made), teacher | teacher_cache._of_table(made, crops)


@pytest.fixture(scope="module")
def usual():
    return about()


@pytest.mark.parametrize(
    ("changes", "recording", "table"),
    [
        ({"seed": 1}, True, False),
        ({"train.batch_size": 32}, True, False),
        ({"train.accumulate": 2}, True, False),
        ({"train.mixup": 0.5}, True, True),
        ({"dataset.augment": "none"}, True, True),
        ({"dataset.train_images": 32}, True, True),
        ({"dataset.labeled": 32}, True, True),
        ({"dataset.image_size": 16}, True, True),
        ({"precision": "bfloat16"}, True, True),
        ({"teacher.kind": "ensemble", "teacher.members": {"a": {"kind": "random"}}}, True, True),
        ({"teacher.mode": "train"}, True, True),
        ({"teacher.top_k": 3}, True, True),
        ({"teacher.cache": "auto"}, False, False),
        ({"train.steps": 3}, False, False),
        ({"train.steps_per_call": 2}, False, False),
        ({"train.label_smoothing": 0.1}, False, False),
        ({"optimizer.learning_rate": 0.3}, False, False),
        ({"model.width": 0.25}, False, False),
        ({"method": {"dkd": {}}}, False, False),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_what_is_kept_is_read_by_the_runs_for_which_it_is_right(usual, changes, recording, table):
    other = about(**changes)
    assert [a != b for a, b in zip(other, usual, strict=True)] == [recording, table]


@pytest.mark.parametrize("name", teacher_cache.RANDOM)
def test_views_that_are_drawn_otherwise_are_recorded_anew(usual, name):
    other = {"jax_default_prng_impl": "rbg", "jax_threefry_partitionable": not jax.config.jax_threefry_partitionable}
    before = getattr(jax.config, name)
    jax.config.update(name, other[name])
    try:
        assert [a != b for a, b in zip(about(), usual, strict=True)] == [True, False]
    finally:
        jax.config.update(name, before)


def test_the_choice_of_a_cache_is_no_part_of_a_runs_identity_and_what_is_left_of_logits_is():
    changes = ({}, {"teacher.cache": "auto"}, {"teacher.top_k": 3})
    usual, other, largest = (create(**each).digest for each in changes)
    assert usual == other != largest


ENSEMBLE = {"a": {"kind": "random"}, "b": {"kind": "random", "mode": "train"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher.cache": "all"}, "teacher.cache is 'all'; expected one of: auto, none, recording, views"),
        ({"teacher.kind": "none", "method": {"cross_entropy": {}}}, "'recording' and teacher.kind 'none'; expected"),
        ({"teacher.kind": "mean", "train.ema": 0.9}, "'recording' and teacher.kind 'mean'; expected cache 'none'"),
        (
            {"teacher.cache": "views", "train.mixup": 0.5},
            "which mixup, CutMix, cutout, resized crops, RandAugment, teacher.mode 'train' and",
        ),
        ({"teacher.cache": "views", "train.cutmix": 0.5}, "which mixup, CutMix, cutout,"),
        ({"teacher.cache": "views", "dataset.cutout": 0.5}, "which mixup, CutMix, cutout,"),
        ({"teacher.cache": "views", "dataset.augment": "resized_crop"}, "which mixup, CutMix, cutout,"),
        ({"teacher.cache": "views", "dataset.augment": "randaugment"}, "which mixup, CutMix, cutout,"),
        ({"teacher.cache": "views", "teacher.mode": "train"}, "which mixup, CutMix, cutout,"),
        (
            {"teacher.cache": "views", "teacher.kind": "ensemble", "teacher.members": ENSEMBLE},
            "which mixup, CutMix, cutout,",
        ),
        ({"teacher.cache": "none", "teacher.top_k": 3}, "teacher.top_k is 3 and teacher.cache 'none'; expected 0, or"),
        ({"teacher.top_k": 10}, "teacher.top_k is 10; expected fewer than the 10 classes, or 0 for all"),
        (
            {"teacher.kind": "ensemble", "teacher.members": {"a": {"kind": "random", "cache": "recording"}}},
            "teacher.members.a.cache is 'recording'; expected that of teacher",
        ),
    ],
)
def test_a_cache_that_cannot_be_is_refused(changes, said):
    with pytest.raises(InputError, match=re.escape(said)):
        create(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"at": {}}}, "only its logits and embedding are kept, and method.at"),
        ({"method": {"cross_entropy": {}}}, "it does not run at all"),
    ],
)
def test_largest_logits_that_nothing_keeps_are_refused(tmp_path, changes, said):
    made = create(tmp_path, **{"teacher.top_k": 3}, **changes)
    with pytest.raises(
        InputError, match=re.escape(f"teacher.top_k is 3, and nothing of the teacher can be kept: {said}")
    ):
        teacher_cache.create(made, made.feed(), {})


def test_a_recording_that_the_disk_cannot_hold_is_refused_and_not_chosen(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(teacher_cache, "free_disk", lambda folder: 2**10)
    with pytest.raises(InputError, match=r"'recording': a recording takes 7\.5 KiB, and 1\.0 KiB of the disk are free"):
        start(tmp_path)
    assert start(tmp_path, **{"teacher.cache": "auto"})[1] is None
    assert "the teacher runs in every step: a recording takes 7.5 KiB, and 1.0" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"teacher\.cache is 'auto': a recording takes"):
        start(tmp_path, **{"teacher.cache": "auto", "teacher.top_k": 3, "train.epochs": 9})


def start(folder, change=lambda x: x, **overrides):
    """What `create` makes of a cache; `change` of the teacher's arrays."""
    made = create(folder, **overrides)
    cache = teacher_cache.create(made, made.feed(), made.place(jax.tree.map(change, made.teacher.load()[0])))
    return made, cache


@pytest.mark.parametrize("kind", ["views", "recordings"])
def test_a_teacher_that_is_another_though_its_config_is_the_same_is_asked(tmp_path, kind):
    changes = {"teacher.cache": kind.removesuffix("s") if kind == "recordings" else kind, "dataset.augment": "none"}
    folders = set()
    for factor in (1, 1, 1 + 1e-6):
        _, cache = start(tmp_path, lambda x, factor=factor: x * factor, **changes)
        if kind == "recordings":
            folders.add(cache._recording.folder)
        else:
            folders = set((tmp_path / "teachers" / kind).iterdir())
    assert len(folders) == 2


SHORT = {"teacher.cache": "auto", "train.epochs": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset.augment": "none"}, "a table of the teacher's logits, 2.5 KiB, for which it sees 1 view(s) of every"),
        ({}, "the teacher's logits at 0 of 4 steps are recorded"),
        ({"dataset.augment": "none", "train.mixup": 0.5}, "the teacher's logits at 0 of 4 steps are recorded"),
        ({"method": {"pkt": {}}}, "the teacher's logits and embedding at 0 of 4 steps are recorded"),
    ],
)
def test_auto_makes_a_table_where_the_runs_epochs_pay_for_it(tmp_path, capsys, changes, said):
    start(tmp_path, **SHORT | changes)
    assert f"teacher.cache is 'auto': {said}" in capsys.readouterr().out


def test_auto_reads_a_table_that_is_there_unless_the_run_is_recorded(tmp_path, capsys, monkeypatch):
    crops = {"dataset.augment": "crop_flip", "train.batch_size": 8, "dataset.train_images": 16}
    start(tmp_path, **crops, **{"teacher.cache": "views"})
    capsys.readouterr()
    start(tmp_path, **SHORT | crops)
    assert "teacher.cache is 'auto': a table of the teacher's logits, 101.2 KiB, which is there:" in (
        capsys.readouterr().out
    )
    monkeypatch.setattr(recording.Recording, "count", lambda self: 2)
    start(tmp_path, **SHORT | crops)
    assert "logits at 2 of 2 steps are recorded for this seed" in capsys.readouterr().out


def test_a_table_that_no_device_holds_is_refused_and_not_chosen(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(teacher_cache, "LARGEST_TABLE", 2**11)
    start(tmp_path, **SHORT, **{"dataset.augment": "none"})
    assert "steps are recorded" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"whose table takes 2\.5 KiB; expected at most 2\.0 KiB, or 'recording'"):
        start(tmp_path, **{"dataset.augment": "none", "teacher.cache": "views"})


def tables(folder):
    (one,) = (folder / "teachers" / "views").iterdir()
    return one


def test_a_table_holds_what_the_teacher_says_of_every_crop_and_goes_on_where_its_making_stopped(
    tmp_path, capsys, monkeypatch
):
    changes = {"teacher.cache": "views", "dataset.augment": "crop", "dataset.train_images": 19, "train.batch_size": 8}
    monkeypatch.setattr(table, "IMAGES", 5)
    write = store.Store.write

    def stops(self, field, number, array):
        if number == 10:
            raise KeyboardInterrupt
        write(self, field, number, array)

    monkeypatch.setattr(store.Store, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, **changes)
    monkeypatch.setattr(store.Store, "write", write)
    before = {path: path.stat().st_mtime_ns for path in tables(tmp_path).glob("*.npy")}
    assert len(before) == 2
    made, _ = start(tmp_path, **changes)
    after = {path: path.stat().st_mtime_ns for path in tables(tmp_path).glob("*.npy")}
    assert len(after) == 4
    assert before.items() <= after.items()
    found = np.concatenate([np.load(path) for path in sorted(after)])
    assert found.shape == (19, 81, 10)
    variables, images = made.teacher.load()[0], made.dataset.train.images
    for view in (0, 40, 80):
        crops = augment.take_crops(images, np.full(19, 2 * view, np.int32))
        batch = batch_of(made.components.prepare(crops))
        expected = made.teacher.apply(variables, batch, rng=jax.random.key(0), train=False).logits
        np.testing.assert_allclose(found[:, view], expected, rtol=1e-4, atol=1e-5)
    start(tmp_path, **changes)
    assert {path: path.stat().st_mtime_ns for path in tables(tmp_path).glob("*.npy")} == after


@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, InputError), (errno.ENOSPC, OSError)])
def test_a_table_that_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch, number, kind):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store.Store, "write", fails)
    with pytest.raises(kind, match=os.strerror(number)):
        start(tmp_path, **{"teacher.cache": "views", "dataset.augment": "none"})


def batch_of(images):
    zeros = np.zeros(len(images), np.int32)
    return Batch(images, zeros, zeros, zeros, zeros)


@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_the_largest_logits_keep_their_probabilities_and_the_others_share_the_rest(top_k):
    logits = np.random.default_rng(0).normal(0, 4, (5, 7))
    embedding = np.ones((5, 2), np.float32)
    said = kept.keep(
        Outputs(jax.numpy.asarray(logits, jax.numpy.float32), embedding=embedding),
        fields=("logits", "embedding"),
        top_k=top_k,
    )
    assert {name: x.shape for name, x in said.items()} == {
        "largest": (5, top_k),
        "classes": (5, top_k),
        "rest": (5,),
        "embedding": (5, 2),
    }
    found = kept.restore(said, num_classes=7)
    probabilities = scipy.special.softmax(logits, -1)
    expected = np.empty_like(probabilities)
    for row, p in zip(expected, probabilities, strict=True):
        largest = np.argsort(p)[-top_k:]
        row[:] = (1 - p[largest].sum()) / (7 - top_k)
        row[largest] = p[largest]
    np.testing.assert_allclose(scipy.special.softmax(np.asarray(found.logits, np.float64), -1), expected, rtol=2e-5)
    np.testing.assert_array_equal(found.embedding, embedding)


def test_the_error_of_the_largest_logits_is_said(tmp_path, capsys):
    made, cache = start(tmp_path, **{"teacher.top_k": 3})
    assert cache.what == "3 largest of 10 logits"
    said = capsys.readouterr().out
    found = re.search(r"are off by KL (\S+) at temperature 1 and (\S+) at temperature 4", said).groups()
    images = made.components.prepare(made.feed().example.images)
    variables = made.place(made.teacher.load()[0])
    logits = made.teacher.apply(variables, batch_of(images), rng=jax.random.key(0), train=False).logits
    logits = np.asarray(logits, np.float64)
    left = np.sort(logits)[:, ::-1].copy()
    left[:, 3:] = scipy.special.logsumexp(left[:, 3:], axis=-1, keepdims=True) - np.log(7)
    for t, error in zip((1, 4), found, strict=True):
        p, q = (scipy.special.log_softmax(x / t, -1) for x in (np.sort(logits)[:, ::-1], left))
        np.testing.assert_allclose(float(error), (np.exp(p) * (p - q)).sum(-1).mean(), rtol=0.06, atol=1e-7)


WHOLE, KEEPS = Epoch(4, 7), Epoch(4, 6, 2)  # seven steps


def a_recording(folder, steps, epoch=WHOLE):
    one = store.Store(str(folder), {"of": "a test"})
    return recording.Recording(one, ("logits", "embedding"), epoch=epoch, steps=steps)


def said(begin, end, views=2, images=4):
    """What a teacher says at some steps: numbers that tell step, view and name."""
    steps = np.arange(begin, end, dtype=np.float32)[:, None, None]
    return tuple(
        {"logits": steps + np.full((1, images, 3), view / 8), "embedding": -steps + np.full((1, images, 2), view / 8)}
        for view in range(views)
    )


def say(one, total, per_call, epoch=WHOLE):
    """Takes the steps of a run as training does, and returns those at which the teacher was asked."""
    asked, begin = [], 0
    while begin < total:
        end = epoch.end_of_call(begin, per_call, total)
        expected = said(begin, end, images=epoch.images_before(begin + 1) - epoch.images_before(begin))
        read = one.read(begin, end)
        if read is None:
            one.keep(expected, begin, end)
            asked += range(begin, end)
        else:
            assert tiny.identical(read, expected)
        begin = end
    one.close()
    return asked


@pytest.mark.parametrize("images", [4, 16, 2**14])
@pytest.mark.parametrize("lengths", [(9, 23), (23, 9), (3, 5, 16, 21)])
@pytest.mark.parametrize("calls", [(1, 5), (3, 2), (7, 1)])
@pytest.mark.parametrize("epoch", [WHOLE, KEEPS], ids=["drop", "keep"])
def test_runs_of_any_length_and_any_calls_read_what_is_there(tmp_path, monkeypatch, epoch, images, lengths, calls):
    monkeypatch.setattr(recording, "FILE", images)
    for number, length in enumerate(lengths):
        say(a_recording(tmp_path, length, epoch), length, calls[number % 2], epoch)
        again = a_recording(tmp_path, length, epoch)
        assert again.count() == length
        assert say(again, length, calls[0], epoch) == []


def test_two_processes_that_record_the_same_do_no_harm(tmp_path):
    first, second = a_recording(tmp_path, 14), a_recording(tmp_path, 14)
    for begin in range(14):
        for one in (first, second):
            one.keep(said(begin, begin + 1), begin, begin + 1)
    first.close(), second.close()
    third = a_recording(tmp_path, 14)
    assert say(third, 14, 3) == []
    assert len(list(tmp_path.glob("*/*.npy"))) == 4
    assert not list(tmp_path.glob("*/*.tmp"))


def test_a_longer_file_takes_the_place_of_a_shorter_one_and_is_read_then(tmp_path):
    one = store.Store(str(tmp_path), {"of": "a test"})
    for array, there in (
        (np.arange(3.0), np.arange(3.0)),
        (np.arange(6.0), np.arange(6.0)),
        (np.arange(5.0), np.arange(6.0)),
    ):
        one.write("logits", 7, array)
        np.testing.assert_array_equal(one.read("logits", 7), there)
    assert sorted(os.listdir(one.folder))[0] == "about.json"
    assert len(os.listdir(one.folder)) == 2


def test_of_two_writers_of_different_numbers_one_file_stays_whoever_looks(tmp_path, monkeypatch):
    first, second = (store.Store(str(tmp_path), {"of": "a test"}) for _ in range(2))
    clean, both = store.Store._found, []

    def found(self, field, number):
        if not both:  # the second writes before the first looks
            both.append(True)
            second.write("logits", 0, np.arange(3.0) + 1)
        return clean(self, field, number)

    monkeypatch.setattr(store.Store, "_found", found)
    first.write("logits", 0, np.arange(3.0))
    assert len(list(tmp_path.glob("*/*.npy"))) == 1
    np.testing.assert_array_equal(first.read("logits", 0), second.read("logits", 0))


def test_a_file_that_cannot_be_opened_is_left_where_it_is(tmp_path, monkeypatch, capsys):
    one = store.Store(str(tmp_path), {"of": "a test"})
    one.write("logits", 0, np.arange(3.0))

    def too_many(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", too_many)
        assert one.read("logits", 0) is None
        assert one.read("logits", 0) is None
    assert capsys.readouterr().out.count("cannot be read: Too many open files") == 1
    np.testing.assert_array_equal(one.read("logits", 0), np.arange(3.0))


def test_many_files_are_read_with_few_open_ones(tmp_path):
    one = store.Store(str(tmp_path), {"of": "a test"})
    for number in range(3 * store.MAPS):
        one.write("logits", number, np.full(2, number))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3 * store.MAPS):
        np.testing.assert_array_equal(one.read("logits", number), [number, number])
    assert len(os.listdir("/proc/self/fd")) - before <= store.MAPS


def test_an_array_is_read_though_another_thread_drops_its_map(tmp_path):
    class Dropping(dict):
        def __setitem__(self, key, value):
            self.clear()

    one = store.Store(str(tmp_path), {"of": "a test"})
    one.write("logits", 0, np.arange(3.0))
    one._maps = Dropping()
    np.testing.assert_array_equal(one.read("logits", 0), np.arange(3.0))


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "runs[lr=0.1]*"
    store.Store(str(folder), {}).write("logits", 0, np.arange(3.0))
    np.testing.assert_array_equal(store.Store(str(folder), {}).read("logits", 0), np.arange(3.0))


def test_a_shorter_run_that_reads_more_leaves_what_a_longer_one_recorded(tmp_path):
    of_logits = store.Store(str(tmp_path), {"of": "a test"})
    setting = {"epoch": Epoch(4, 7)}
    longer = recording.Recording(of_logits, ("logits",), **setting, steps=14)
    longer.keep([{"logits": view["logits"]} for view in said(0, 7)], 0, 7)
    longer.close()
    say(a_recording(tmp_path, 5), 5, 1)
    again = recording.Recording(store.Store(str(tmp_path), {"of": "a test"}), ("logits",), **setting, steps=14)
    assert again.count() == 7


@pytest.mark.parametrize(("find", "put"), [(b"<f8", b"<i8"), (b"(2, 3)", b"(3, 2)"), (b"False", b"True ")])
def test_a_header_that_was_damaged_is_noticed(tmp_path, capsys, find, put):
    one = store.Store(str(tmp_path), {"of": "a test"})
    one.write("logits", 0, np.arange(6.0).reshape(2, 3))
    (path,) = tmp_path.glob("*/*.npy")
    path.write_bytes(path.read_bytes().replace(find, put))
    assert store.Store(str(tmp_path), {"of": "a test"}).read("logits", 0) is None
    assert "is damaged and is made again" in capsys.readouterr().out
    assert not path.exists()


def test_what_is_less_than_float32_is_kept_as_float32_and_what_is_not_reported_as_none():
    said = kept.keep(Outputs(jax.numpy.ones((2, 3), jax.numpy.bfloat16)), fields=("logits", "embedding"))
    assert said["logits"].dtype == np.float32
    assert said["embedding"] is None


def test_a_later_run_reads_what_the_teacher_says_of_evaluated_images(tmp_path, monkeypatch):
    def measured(cache):
        made = create(tmp_path, **{"teacher.cache": cache, "evaluate.batch_size": 100})
        teacher = made.place(made.teacher.load()[0])
        state = made.init_state(np.uint32(0), teacher, made.feed().example, None)
        evaluate = evaluation.Evaluator(made, teacher)
        if cache == "auto":
            monkeypatch.setattr(evaluate, "_teach", None)  # it cannot be asked
        return evaluate(*evaluation.evaluated(state), made.dataset.test)

    assert measured("recording") == measured("auto") == measured("none")


def test_other_images_than_the_evaluated_ones_do_not_take_their_place(tmp_path):
    made = create(tmp_path)
    teacher = made.place(made.teacher.load()[0])
    state = made.init_state(np.uint32(0), teacher, made.feed().example, None)
    evaluate, own = evaluation.Evaluator(made, teacher), evaluation.evaluated(state)
    there = evaluate(*own, made.dataset.test)
    some = Split(made.dataset.test.images[:50], made.dataset.test.labels[:50])
    assert evaluate(*own, some)["images"] == 50
    assert [path.name.partition("-")[0] for path in (tmp_path / "teachers").rglob("*.npy")] == ["test"]
    assert evaluation.Evaluator(made, teacher)(*own, made.dataset.test) == there


def test_evaluated_images_whose_logits_cannot_be_kept_are_evaluated(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.Store, "write", full)
    made = create(tmp_path)
    teacher = made.place(made.teacher.load()[0])
    state = made.init_state(np.uint32(0), teacher, made.feed().example, None)
    assert evaluation.Evaluator(made, teacher)(*evaluation.evaluated(state), made.dataset.test)["agreement"] is not None
    assert "what the teacher says of test images is not kept: No space left" in capsys.readouterr().out


def test_a_teachers_accuracy_is_that_of_the_test_images_asked_and_kept(tmp_path):
    found = []
    for cache in ("none", "recording", "recording"):
        made = create(tmp_path, **{"teacher.cache": cache})
        variables = made.place(made.teacher.load()[0])
        found.append(evaluation.Evaluator(made, variables).of_teacher(made.dataset.test))
    assert found[0] == found[1] == found[2]
    batch = batch_of(made.components.prepare(made.dataset.test.images))
    logits = made.teacher.apply(variables, batch, rng=jax.random.key(0), train=False).logits
    assert found[0]["accuracy"] == pytest.approx(
        float((logits.argmax(-1) == made.dataset.test.labels).mean()), abs=1e-6
    )
    assert found[0]["images"] == len(made.dataset.test.labels)


def test_what_is_said_of_evaluated_images_is_that_of_the_data(tmp_path):
    made = [create(tmp_path, **changes) for changes in ({}, {"seed": 1}, {"dataset.train_images": 32})]
    usual, other_seed, other_data = (teacher_cache.of_evaluations(one, {}).folder for one in made)
    assert usual == other_seed != other_data


def test_a_table_gets_what_another_method_reads_more(tmp_path):
    changes = {"teacher.cache": "views", "dataset.augment": "none"}
    start(tmp_path, **changes)
    start(tmp_path, method={"pkt": {}}, **changes)
    assert {path.name.partition("-")[0] for path in tables(tmp_path).glob("*.npy")} == {"logits", "embedding"}


def test_the_order_of_an_ensembles_members_is_no_part_of_it():
    def says(value):
        outputs = Outputs(np.full((2, 3), value), embedding=np.full((2, 1), value))
        return Teacher(lambda *_: outputs, load=None, shapes=None, name="", source="")

    one, other = says(1.0), says(2.0)
    orders = ({"a": one, "b": other}, {"b": other, "a": one})
    images = Batch(np.zeros((2, 4, 4, 1)), *[None] * 4)
    found = [
        ensemble.of(members, lambda pixels: pixels)
        .apply({"a": {}, "b": {}}, images, jax.random.key(0), False)
        .embedding
        for members in orders
    ]
    np.testing.assert_array_equal(*found)


def test_the_same_weights_in_another_network_are_another_teacher(tmp_path):
    (tmp_path / "weights").write_bytes(b"the same")
    plain, padded = (
        teachers.identify(
            {"kind": "weights", "path": str(tmp_path / "weights"), "config": {"model": {"shortcut": shortcut}}}, None
        )
        for shortcut in ("conv", "pad")
    )
    assert plain != padded
