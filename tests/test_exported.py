"""A teacher that is a program: written of a function, read back, and as it teaches."""

import json
import shutil

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import checksums, eval_steps, registry, steps, teachers
from kd_jax.errors import InputError
from kd_jax.teachers import exported
from kd_jax.types import Preprocessing
from tests import tiny

RNG = np.random.default_rng(0)
SIZE, CLASSES = 16, tiny.CLASSES
WEIGHTS = {
    "mix": RNG.normal(size=(1, 5)).astype(np.float32),
    "fc.weight": RNG.normal(size=(CLASSES, 5)).astype(np.float32),
    "fc.bias": RNG.normal(size=CLASSES).astype(np.float32),
    "steps": np.array(7, np.int32),
}
READS = Preprocessing(size=SIZE, mean=(0.25,), std=(0.5,))
ABOUT = exported.About("a function", READS, CLASSES, head=("fc.weight", "fc.bias"), again="make it")


def function(weights, image):
    """A map of 5 channels, its average, and a linear layer."""
    x = jnp.maximum(image @ weights["mix"], 0)
    embedding = x.mean((0, 1))
    logits = weights["fc.weight"] @ embedding + weights["fc.bias"]
    return {"logits": logits, "embedding": embedding, "features": (image, x)}


def in_numpy(images):
    x = np.maximum(images @ np.float64(WEIGHTS["mix"]), 0)
    embedding = x.mean((1, 2))
    return x, embedding, embedding @ np.float64(WEIGHTS["fc.weight"]).T + WEIGHTS["fc.bias"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "teacher"
    exported.write(str(folder), function, WEIGHTS, ABOUT)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "teacher")


def create(folder, **overrides):
    given = {"teacher.kind": "exported", "teacher.path": str(folder), "dataset.augment": "none"}
    return tiny.create({"kd": {}}, **given, **overrides)


def say(folder, images, precision="float32"):
    said = exported.read(str(folder))
    program = exported.program(str(folder), said, precision)
    variables = exported.variables(str(folder), said)
    return jax.jit(lambda v, x: exported.apply(program, v, x, ABOUT.head))(variables, jnp.asarray(images, precision))


@pytest.mark.parametrize("count", [1, 6])
def test_a_program_says_what_its_function_says_of_any_number_of_images(folder, count):
    images = RNG.normal(size=(count, SIZE, SIZE, 1))
    said = say(folder, images)
    maps, embedding, logits = in_numpy(images)
    for got, expected in ((said.features[-1], maps), (said.embedding, embedding), (said.logits, logits)):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(said.pooled, maps.mean((1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(said.head.kernel, WEIGHTS["fc.weight"].T)
    np.testing.assert_array_equal(said.head.bias, WEIGHTS["fc.bias"])


def test_in_bfloat16_maps_are_narrow_and_logits_wide(folder):
    images = RNG.normal(size=(3, SIZE, SIZE, 1))
    said = say(folder, images, "bfloat16")
    assert (said.features[-1].dtype, said.logits.dtype, said.embedding.dtype) == (
        jnp.bfloat16,
        jnp.float32,
        jnp.float32,
    )
    np.testing.assert_allclose(said.logits, in_numpy(images)[2], rtol=0.05, atol=0.05)


def test_the_program_is_for_every_platform(folder):
    program = exported.program(str(folder), exported.read(str(folder)), "float32")
    assert program.platforms == ("cpu", "cuda", "tpu")


def test_it_teaches_what_it_says_of_images_as_it_reads_them(folder):
    made = create(folder)
    raw = made.feed().example
    teacher = made.teacher
    variables, result = teacher.load()
    assert result is None
    images = teacher.prepare(raw.images)
    resized = jax.image.resize((np.asarray(raw.images) / 255 - 0.25) / 0.5, images.shape, "linear")
    np.testing.assert_allclose(images, resized, rtol=1e-5, atol=1e-5)
    pixels = eval_steps.batch_of(raw.images, raw, CLASSES)
    said = jax.jit(lambda v: steps.ask(made.components, v, pixels, jax.random.key(0), True))(variables)
    np.testing.assert_allclose(said.logits, in_numpy(np.float64(resized))[2], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def steps_taken(folder):
    """Losses of two calls of a scan of two steps, on one device and on two."""
    losses = {}
    for devices in (1, 2):
        given = {"teacher.kind": "exported", "teacher.path": str(folder), "train.steps_per_call": 2}
        run = tiny.Run({"kd": {}, "rkd_distance": {}}, devices=devices, **given)
        losses[devices] = []
        for call in range(2):
            run.call(run.rows(2 * call, 2))
            losses[devices].append({key: float(x) for key, x in run.scalars.items()})
    return losses


def test_two_devices_equal_one_under_a_scan(steps_taken):
    for one, two in zip(steps_taken[1], steps_taken[2], strict=True):
        assert one == pytest.approx(two, rel=1e-4)
        assert one["loss/kd"] > 0


def test_its_files_and_not_their_place_are_its_identity(folder, copy):
    own = teachers.identify({**tiny.config()["teacher"], "kind": "exported", "path": str(folder)}, dict)
    assert own == teachers.identify({**tiny.config()["teacher"], "kind": "exported", "path": str(copy)}, dict)
    other = copy.with_name("other")
    exported.write(str(other), function, {**WEIGHTS, "mix": 2 * WEIGHTS["mix"]}, ABOUT)
    assert own != exported.identify({"path": str(other)})


def test_what_was_checked_is_written_down(tmp_path):
    seen = []

    def check(say):
        seen.append(say(jnp.ones((2, SIZE, SIZE, 1))).logits)
        return {"difference": 0.5}

    exported.write(str(tmp_path / "teacher"), function, WEIGHTS, ABOUT, check)
    np.testing.assert_allclose(seen[0], in_numpy(np.ones((2, SIZE, SIZE, 1)))[2], rtol=1e-4)
    assert exported.read(str(tmp_path / "teacher"))["parity"] == {"difference": 0.5}


def test_a_folder_may_be_given_with_a_slash_behind_it(tmp_path):
    exported.write(f"{tmp_path}/teacher/", function, WEIGHTS, ABOUT)
    assert exported.read(str(tmp_path / "teacher"))["num_classes"] == CLASSES
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_a_folder_that_exists_is_not_replaced_and_a_failed_check_leaves_none(folder, tmp_path):
    with pytest.raises(InputError, match="which already exists; expected a new folder"):
        exported.write(str(folder), function, WEIGHTS, ABOUT)

    def fail(say):
        raise InputError("it is not the same")

    with pytest.raises(InputError, match="it is not the same"):
        exported.write(str(tmp_path / "teacher"), function, WEIGHTS, ABOUT, fail)
    assert list(tmp_path.iterdir()) == []


def describe(folder, **changes):
    """Changes what teacher.json says."""
    path = folder / "teacher.json"
    path.write_text(json.dumps(checksums.add(json.loads(path.read_text()) | changes)))


def damaged(folder):
    (folder / "teacher.json").write_text('{"format": 1}')


def edited(folder):
    path = folder / "teacher.json"
    path.write_text(path.read_text().replace('"num_classes": 4', '"num_classes": 5'))


def of_another_jax(folder):
    (folder / "float32.jax").write_bytes(b"what no version reads")
    files = exported.read(str(folder))["files"] | {"float32.jax": registry.digest(folder / "float32.jax")}
    describe(folder, files=files, packages={"jax": "9.9.9"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shutil.rmtree, r"cannot be read \(No such file or directory\); expected a folder of `kd_jax import-teacher`"),
        (damaged, "teacher.json is damaged"),
        (edited, "teacher.json is damaged"),
        (lambda folder: describe(folder, format=2), "is of format 2; expected 1, or a later version of kd_jax"),
        (lambda folder: describe(folder, num_classes=5), r"knows 5 classes; expected the student's 4 \(0, 1, 2, 3\)"),
        (
            lambda folder: describe(folder, class_names=["3", "2", "1", "0"]),
            r"knows 4 classes \(3, 2, 1, 0\); expected the student's 4 \(0, 1, 2, 3\)",
        ),
        (
            lambda folder: describe(folder, preprocessing=Preprocessing()._asdict()),
            "reads images of 3 channels; expected the student's 1",
        ),
        (of_another_jax, r"is of JAX 9.9.9 \(calling convention \d+\), and JAX .* does not read it: .* again: make it"),
        (lambda folder: (folder / "float32.jax").write_bytes(b"x"), "float32.jax is not the file that teacher.json"),
        (lambda folder: (folder / "float32.jax").unlink(), "float32.jax cannot be read"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(copy, change, said):
    change(copy)
    with pytest.raises(InputError, match=said):
        create(copy)


def test_damaged_weights_are_not_used(copy):
    made = create(copy)
    with open(copy / "weights.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(InputError, match=r"weights.safetensors is not the file that teacher.json"):
        made.teacher.load()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"teacher.path": ""}, "teacher.path is empty; expected a folder of `kd_jax import-teacher`"),
        ({"teacher.mode": "train"}, "teacher.mode is 'train'; expected 'eval' with an exported teacher"),
    ],
)
def test_what_an_exported_teacher_cannot_do_is_said(folder, overrides, said):
    given = {"teacher.kind": "exported", "teacher.path": str(folder)}
    with pytest.raises(InputError, match=said):
        tiny.create({"kd": {}}, **given | overrides)


def test_there_is_no_program_in_float64(folder):
    with pytest.raises(InputError, match="precision is 'float64'; expected one of float32, bfloat16 with an exported"):
        exported.program(str(folder), exported.read(str(folder)), "float64")


def test_a_program_for_other_platforms_is_refused(copy, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "METAL")
    with pytest.raises(InputError, match="runs on cpu, cuda, tpu; expected METAL"):
        create(copy)


@pytest.mark.parametrize("changed", [False, True])
def test_a_finished_run_is_compared_without_a_teacher_that_is_gone_or_another(copy, capsys, changed):
    section = {**tiny.config()["teacher"], "kind": "exported", "path": str(copy)}
    saved = {"config": {"teacher": section}, "identity": {"teacher": {"run": exported.identify(section)}}}
    assert exported.is_there(saved)
    if changed:
        describe(copy, files=exported.read(str(copy))["files"] | {"float32.jax": "0"})
    else:
        shutil.rmtree(copy)
    assert not exported.is_there(saved)
    told = "is not the one that taught the run any more" if changed else "the teacher is gone"
    assert told in capsys.readouterr().err
    assert teachers.finished(saved, "", "")["kind"] == "none"


def test_a_network_without_classes_reports_an_embedding_alone(tmp_path):
    about = exported.About("an embedding", READS, num_classes=0)
    exported.write(str(tmp_path / "teacher"), lambda w, x: {"embedding": function(w, x)["embedding"]}, WEIGHTS, about)
    images = RNG.normal(size=(3, SIZE, SIZE, 1))
    program = exported.program(str(tmp_path / "teacher"), exported.read(str(tmp_path / "teacher")), "float32")
    said = jax.jit(lambda v, x: exported.apply(program, v, x))(WEIGHTS, jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(said.embedding, in_numpy(images)[1], rtol=1e-4, atol=1e-5)
    assert said.num_classes == 0
    with pytest.raises(InputError, match=r"method.kd: it reads the logits, and a network without classes has none"):
        create(tmp_path / "teacher").trace()
