"""What a run would take: against counts by hand, what real arrays hold, and what a real recording takes."""

import itertools
import math

import jax
import numpy as np
import pytest

from kd_jax import experiment, planning, teacher_cache
from kd_jax.data import images
from kd_jax.models import cifar_resnet
from tests import tiny


def made_of(folder="runs", method=tiny.METHODS["kd"], **overrides):
    whole = tiny.config(**{"teacher.kind": "random", "dataset.holdout": 0.0} | overrides) | {"method": method}
    return experiment.create(whole, runs_folder=str(folder), traced=False, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def made():
    return made_of()


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """(the plan of a run whose teacher is missing, what it said, the folder of runs after it)."""
    folder, said = tmp_path_factory.mktemp("runs"), []
    made = experiment.create(tiny.taught(), runs_folder=str(folder), devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "CALLS", 2)
        return planning.plan(made, said.append), said, list(folder.iterdir())


def multiplications(side, stages, classes):
    """Of a ResNet of one block in each stage, on gray images: at each border a 3x3 kernel meets two pixels, not 3."""
    channels, total = 16, 9 * 16 * ((3 * side - 2) / 3) ** 2
    for stage, width in enumerate(stages):
        stride = 2 if stage else 1
        side //= stride
        within = (3 * side - 2 if stride == 1 else 3 * side - 1) ** 2  # taps that fall into the image, both axes
        total += within * channels * width + (3 * side - 2) ** 2 * width * width
        total += side**2 * channels * width if stride == 2 else 0  # of the shortcut
        channels = width
    return total + channels * classes


def test_the_flops_of_a_network_are_those_counted_by_hand():
    made = made_of(**{"model.name": "resnet8", "model.width": 1.0})
    by_hand = 2 * multiplications(8, cifar_resnet.NARROW[1:], 10)
    measured = planning.of_student(made)["flops"]
    assert by_hand < measured < 1.05 * by_hand  # norms, activations and the images' normalization


def test_a_step_takes_the_teachers_forward_pass_and_three_of_the_student(made):
    student, teacher = planning.of_student(made)["flops"], planning.of_teacher(made)["flops"]
    of_an_image = planning.flops_of_step(made) / 16
    assert teacher + 2.5 * student < of_an_image < teacher + 4.5 * student  # little is as small a network's update


def test_of_a_loop_of_micro_batches_every_round_counts(made):
    rolled = made._replace(options=made.options._replace(unroll=False, micro_batches=4))
    assert planning.flops_of_step(rolled) == 4 * planning.flops_of_step(made)


def test_parameters_and_bytes_are_those_of_real_arrays():
    run = tiny.Run(tiny.METHODS["kinds"])
    student, teacher = planning.of_student(run.experiment), planning.of_teacher(run.experiment)
    assert student["parameters"] == sum(x.size for x in jax.tree.leaves(run.student["params"]))
    moments = run.state.optimizer_state["student"]
    assert student["bytes"] == sum(x.nbytes for x in jax.tree.leaves((run.student, moments)))
    assert teacher["parameters"] == sum(x.size for x in jax.tree.leaves(run.teacher["params"]))
    assert teacher["bytes"] == sum(x.nbytes for x in jax.tree.leaves(run.teacher))


def test_a_term_adds_what_it_trains_and_keeps():
    run = tiny.Run(tiny.METHODS["kinds"])
    terms = planning.of_terms(run.experiment)
    assert terms.keys() == {"fitnet", "crd", "adversarial"}  # "kd" has nothing
    assert terms["crd"]["parameters"] == sum(x.size for x in jax.tree.leaves(run.state.params["crd"]))
    trees = run.state.params, run.state.stats, run.state.optimizer_state
    assert terms["crd"]["bytes"] == sum(x.nbytes for x in jax.tree.leaves([tree["crd"] for tree in trees]))


def test_the_peak_counts_what_is_given_away_once():
    class Compiled:
        def memory_analysis(self):
            sizes = {"argument": 100, "output": 60, "alias": 50, "temp": 7}
            return type("Sizes", (), {f"{kind}_size_in_bytes": size for kind, size in sizes.items()})

    assert planning.peak_of(Compiled()) == 117


def test_memory_grows_with_the_batch(made):
    peaks = [planning.compiled_peak(made, batch) for batch in (8, 16)]
    assert 0 < peaks[0] < peaks[1]


def test_a_program_that_its_compiler_refuses_does_not_fit(made):
    class Refused:
        def compile(self, options):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    class Made:
        mesh, steps_per_call, steps = made.mesh, 1, 1

        def lower(self, steps, batch):
            return Refused()

    assert planning.compiled_peak(Made(), 16) == math.inf


@pytest.mark.parametrize(
    ("peak", "room", "unit", "expected"),
    [
        (lambda n: 100 + 3 * n, 100 + 3 * 64, 1, 64),
        (lambda n: 100 + 3 * n, 99 + 3 * 64, 1, 32),
        (lambda n: 100 + 3 * n, 100 + 3 * 5, 1, 4),
        (lambda n: 100 + 3 * n, 100 + 3 * 5, 4, 4),
        (lambda n: 100 + 3 * n, 100 + 3 * 5, 8, 0),
        (lambda n: 100 + 3 * n, 50, 1, 0),
        (lambda n: n * n, 40 * 40, 1, 32),  # a loss between images: the line's guess is too large
        (lambda n: 1, 10, 1, 512),  # as many as there are images, but for what doubling leaves
        (lambda n: 3 * n if n <= 16 else math.inf, 48, 1, 16),  # the compiler refuses what is larger
    ],
)
def test_the_largest_batch_is_found_by_doubling_and_halving(peak, room, unit, expected):
    asked = []

    def counted(batch):
        asked.append(batch)
        return peak(batch)

    assert planning.largest_batch(counted, 16, room, unit=unit, most=1000) == expected
    assert len(set(asked)) < 8  # each is a compilation


def test_the_room_of_a_cpu_is_shared_by_its_devices_and_that_of_others_is_their_own(monkeypatch):
    monkeypatch.setattr(images, "available_memory", lambda: 1000)

    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 77}

    class Made:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))

    assert planning.device_room(Made) == 500
    Made.mesh = type("Mesh", (), {"devices": np.array([Device()]), "size": 1})
    assert planning.device_room(Made) == 77


def test_a_plan_has_a_time_for_the_run_and_for_the_missing_teacher(planned):
    found, said, _ = planned
    (teacher,) = found["teachers_to_train"]
    for time in (found["time"], teacher["time"]):
        assert time["steps"] == 12
        assert 0 < 3 * time["epoch"] < time["run"]
        assert time["epoch"] == pytest.approx(4 * time["step"])
    assert teacher["name"] == "tiny-teacher"
    assert found["fits"]
    assert found["memory"]["peak"] < found["memory"]["room"]
    assert said[0] == "compiling a step"


def test_a_plan_writes_nothing(planned):
    assert planned[2] == []


def test_a_step_that_does_not_fit_is_not_tried(made, monkeypatch):
    peak = planning.compiled_peak(made, 8)
    monkeypatch.setattr(planning, "device_room", lambda made: peak)
    monkeypatch.setattr(planning, "seconds_of_step", lambda *_: pytest.fail("it was tried"))
    found = planning.plan(made)
    assert (found["fits"], found["largest_batch"], found["time"], found["cache"]) == (False, 8, None, None)


def test_teachers_are_trained_before_those_that_they_teach_unless_they_have_finished(monkeypatch, made):
    monkeypatch.setattr(experiment.runs, "has_result", lambda folder: folder == "done")
    monkeypatch.setattr(experiment.runs, "check", lambda *_: None)

    def taught_by(untrained, folder):
        teacher = made.teacher._replace(untrained=untrained, source=folder)
        return made._replace(components=made.components._replace(teacher=teacher))

    assistant = taught_by(made, "teacher")
    assert list(planning.untrained(taught_by(assistant, "assistant"))) == ["teacher", "assistant"]
    assert planning.untrained(taught_by(assistant, "done")) == {}


@pytest.mark.parametrize("kind", ["recording", "views"])
def test_a_cache_takes_the_bytes_that_it_is_said_to_need(tmp_path, kind):
    made = made_of(tmp_path, {"kd": {}}, **{"teacher.cache": kind, "train.epochs": 1, "dataset.augment": "none"})
    feed, begin = made.feed(), 0
    cache = teacher_cache.create(made, feed, planning.random_variables(made))
    if kind == "recording":
        for rows, end in feed.calls(0):
            cache.rows(rows, begin, end)
            begin = end
        cache.close()
    need = teacher_cache.needs(made, cache.sizes)
    real = sum(np.load(path).nbytes for path in (tmp_path / "teachers").rglob("*.npy"))
    assert real == (need.recording if kind == "recording" else need.table) > 0


def cache_of(monkeypatch, made, without, free=2**40):
    monkeypatch.setattr(planning, "seconds_of_step", lambda *_: without)
    monkeypatch.setattr(teacher_cache, "free_disk", lambda folder: free)
    return planning.of_cache(made, made.feed(), {}, 1.0)


def test_a_cache_is_advised_where_it_saves_enough(monkeypatch, made):
    found = cache_of(monkeypatch, made, 0.25)
    assert (found["advised"], found["saved"], found["passes"]) == ("recording", 0.75, 81)  # of three epochs
    assert found["table_seconds"] == pytest.approx(0.75 / 16 * 81 * 64)
    assert cache_of(monkeypatch, made, 0.95)["advised"] == "none"
    assert cache_of(monkeypatch, made, 0.25, free=100)["why"] == "the disk has no room for a recording"


def test_a_table_is_advised_where_the_run_is_as_long_as_it_takes_to_make(monkeypatch):
    found = cache_of(monkeypatch, made_of(**{"dataset.augment": "none"}), 0.25)
    assert (found["advised"], found["passes"]) == ("views", 1)


def test_no_cache_is_advised_to_a_method_that_reads_the_teachers_maps(monkeypatch):
    found = cache_of(monkeypatch, made_of(method={"at": {}}), 0.25)
    assert found["advised"] == "none"
    assert found["why"].startswith("nothing can be kept: only its logits and embedding are kept")


def test_the_images_own_side_is_known_of_small_ones_and_of_files(tmp_path, made):
    assert planning.of_data(made_of(**{"dataset.image_size": 16}))["shorter_side"] == 8
    assert planning.of_data(made)["shorter_side"] is None  # of digits, read at 8 pixels
    for label, count in itertools.product("ab", range(5)):
        path = tmp_path / label / f"{count}.png"
        path.parent.mkdir(exist_ok=True)
        images.to_image(np.zeros((40, 30 + count, 3), np.uint8)).save(path)
    changes = {"dataset.source": "folder", "dataset.path": str(tmp_path), "dataset.train_images": 0}
    found = planning.of_data(made_of(**changes, **{"train.batch_size": 2}))
    assert (found["side"], found["channels"], found["images"]) == (8, 3, 8)
    assert 31 <= found["shorter_side"] <= 33
