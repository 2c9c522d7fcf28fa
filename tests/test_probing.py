"""The linear probe: against scikit-learn, and of runs without labels."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import kd_jax
from kd_jax import evaluation, experiment, export, exporting, probing, runs, training
from kd_jax.data import digits
from kd_jax.errors import InputError
from kd_jax.explaining import agreement
from kd_jax.reporting import finished
from kd_jax.teachers import exported
from kd_jax.types import Preprocessing, Split
from tests import tiny

RNG = np.random.default_rng(0)
WIDTH = 24  # of the teacher's embedding; the student's is 8


def blobs(count, classes=4, width=6):
    labels = np.arange(count) % classes
    return Split((2 * np.eye(classes, width)[labels] + RNG.normal(size=(count, width))).astype(np.float32), labels)


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_a_probe_is_scikit_learns_logistic_regression(strength):
    train, test = blobs(200), blobs(400)
    train.images[:, -1] = 3.0  # says nothing
    own = probing.fit(train.images, train.labels, strength)
    scaler = StandardScaler().fit(train.images.astype(np.float64))
    theirs = LogisticRegression(C=1 / (strength * 200), tol=1e-8, max_iter=10_000)
    theirs.fit(scaler.transform(train.images), train.labels)
    np.testing.assert_allclose(own.kernel[:-1], theirs.coef_.T[:-1], atol=2e-3)
    np.testing.assert_allclose(own.bias - own.bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)
    assert (own.predict(test.images) == theirs.predict(scaler.transform(test.images))).mean() > 0.995


def test_the_strength_is_chosen_by_the_validation_images(monkeypatch):
    monkeypatch.setattr(probing, "STRENGTHS", (1.0, 1e-2, 1e-4))
    width = 40  # more than the images can tell: without a penalty it fits the noise
    train, validation, test = blobs(48, width=width), blobs(400, width=width), blobs(400, width=width)
    found = probing.measure(train, validation, test)
    fitted = {strength: probing.fit(train.images, train.labels, strength) for strength in probing.STRENGTHS}
    scores = {key: (probe.predict(validation.images) == validation.labels).mean() for key, probe in fitted.items()}
    assert scores[found["strength"]] > max(scores.values()) - 0.01
    assert found["strength"] > min(probing.STRENGTHS)
    assert found["width"] == width
    assert found["accuracy"] > 0.6


def embed(weights, image):
    """Random features of an 8x8 image: a teacher without classes, in plain JAX."""
    return {"embedding": jnp.tanh(image.reshape(-1) @ weights["mix"])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A flat folder of 400 digits, a teacher of embeddings, and class folders of others."""
    root = tmp_path_factory.mktemp("label-free")
    source = digits.load()
    (root / "flat" / "deeper").mkdir(parents=True)
    for i, image in enumerate(source.train.images[:400, ..., 0]):
        Image.fromarray(image).save(root / "flat" / ("deeper" if i % 3 else "") / f"{i}.png")
    for split, (images, labels) in {"train": source.train, "test": source.test}.items():
        chosen = slice(400, 800) if split == "train" else slice(0, 200)
        for i, (image, label) in enumerate(zip(images[chosen, ..., 0], labels[chosen], strict=True)):
            (root / "classes" / split / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / "classes" / split / str(label) / f"{i}.png")
    weights = {"mix": RNG.normal(size=(8 * 8 * 3, WIDTH), scale=0.1).astype(np.float32)}
    about = exported.About("random features", Preprocessing(8, (0.5,) * 3, (0.5,) * 3), num_classes=0)
    exported.write(str(root / "teacher"), embed, weights, about)
    return root


def config(folder, **overrides):
    whole = tiny.config(
        **{
            "dataset.source": "folder",
            "dataset.path": str(folder / "flat"),
            "dataset.label_free": True,
            "dataset.train_images": 0,
            "dataset.augment": "none",
            "teacher.kind": "exported",
            "teacher.path": str(folder / "teacher"),
            "train.epochs": 6,
            "optimizer.weight_decay": 0.0,
        }
        | overrides
    )
    return whole | {"method": {"embedding": {}}}


@pytest.fixture(scope="module")
def run(folder):
    return training.train(config(folder), folder / "run", runs_folder=folder)


def logged(run, key):
    with open(f"{run.folder}/metrics.jsonl") as file:
        return [line[key] for line in map(json.loads, file) if key in line]


def test_a_student_without_labels_comes_closer_to_its_teacher(run):
    assert run.accuracy is None
    losses, held_out = logged(run, "train/loss"), logged(run, "validation/embedding/distance")
    assert losses[-1] < 0.5 * losses[0]
    assert held_out[-1] < held_out[0]
    assert run.result["test"]["embedding/distance"] == pytest.approx(held_out[-1], rel=0.3)
    assert (run.result["teacher"]["accuracy"], run.result["test"]["images"]) == (None, 80)
    assert "fc" not in run.state.params["student"]


def test_what_was_measured_is_the_mean_distance_of_the_images(run, folder):
    again = evaluation.evaluate_run(run.folder, runs_folder=folder)
    assert again["embedding/distance"] == pytest.approx(run.result["test"]["embedding/distance"], rel=1e-5)
    restored = evaluation.restore(run.folder, runs_folder=folder)
    images = restored.experiment.dataset.test.images
    student = restored.experiment.components.student
    own = student.apply(restored.variables, restored.experiment.components.prepare(images), train=False)[0].embedding
    projector = restored.method.params["embedding"]["projector"]
    own = np.asarray(own, np.float64) @ np.float64(projector["kernel"]) + np.float64(projector["bias"])
    x = (images.reshape(len(images), -1) / 255 - 0.5) / 0.5
    theirs = np.tanh(x @ np.float64(restored.teacher_variables["mix"]))
    cosine = (own * theirs).sum(-1) / np.linalg.norm(own, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert again["embedding/distance"] == pytest.approx(1 - cosine.mean(), rel=1e-3)


@pytest.fixture(scope="module")
def probed(run, folder):
    changes = {"path": str(folder / "classes")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "STRENGTHS", (0.1, 0.01))
        return probing.probe_run(run.folder, changes, of=probing.OF, runs_folder=folder)


def test_a_probe_of_the_student_its_teacher_and_its_beginning(probed):
    assert (probed["train_images"], probed["test_images"], probed["teacher"]["width"]) == (400, 200, WIDTH)
    assert probed["student"]["width"] == 4
    for who in probing.OF:
        assert probed[who]["accuracy"] > 0.25  # chance is 0.1
    assert probed["teacher"]["accuracy"] > probed["student"]["accuracy"] > probed["initial"]["accuracy"] - 0.05


def test_the_probed_embeddings_are_those_of_the_teacher(probed, folder, run):
    """Its accuracy is that of scikit-learn on the same function in numpy."""
    made = experiment.create(config(folder, **{"dataset.path": str(folder / "classes"), "dataset.label_free": False}))
    mix = np.float64(made.teacher.load()[0]["mix"])

    def features(images):
        return np.tanh((images.reshape(len(images), -1) / 255 - 0.5) / 0.5 @ mix)

    train, validation, test = made.dataset.train, made.dataset.validation, made.dataset.test
    images, labels = (np.concatenate(parts) for parts in zip(train, validation, strict=True))
    scaler = StandardScaler().fit(features(images))
    theirs = LogisticRegression(C=1 / (probed["teacher"]["strength"] * len(labels)), max_iter=10_000)
    theirs.fit(scaler.transform(features(images)), labels)
    expected = theirs.score(scaler.transform(features(test.images)), test.labels)
    assert probed["teacher"]["accuracy"] == pytest.approx(expected, abs=0.0101)


def test_a_probe_needs_labels_and_the_runs_channels(run, folder):
    with pytest.raises(InputError, match=r"dataset.label_free is true, and a probe needs labels"):
        probing.probe_run(run.folder, {"label_free": True, "path": str(folder / "flat")})
    with pytest.raises(InputError, match=r"the images of .* have no labels, and a probe needs some; expected dataset"):
        probing.probe_run(run.folder)
    with pytest.raises(InputError, match=r"the images have 1 channels; expected the run's 3"):
        probing.probe_run(run.folder, {"source": "digits", "path": ""})
    with pytest.raises(InputError, match=r"a key of dataset is 'pth'; expected one of"):
        probing.probe_run(run.folder, {"pth": ""})


def test_what_needs_classes_says_so_of_a_run_without(run, folder):
    with pytest.raises(InputError, match=r"was trained without labels, and Grad-CAM explains a class"):
        agreement.explain_run(run.folder, runs_folder=folder)
    found, left_out = finished.read([run.folder])
    assert not found
    assert left_out == [(run.folder, "was trained without labels and has no accuracy; `kd_jax probe` measures it")]


def test_a_run_without_labels_teaches_its_embedding_to_one_with_labels(run, folder):
    of_run = {"dataset.path": str(folder / "classes"), "dataset.label_free": False, "teacher.kind": "run"}
    whole = config(folder, **of_run, **{"teacher.path": run.folder})
    made = experiment.create(whole | {"method": {"embedding": {}}})
    assert made.teacher.config_hash == runs.read_config(run.folder)["hash"]
    with pytest.raises(InputError, match=r"method.kd: it reads the logits, and a network without classes has none"):
        experiment.create(whole | {"method": {"kd": {}}})


@pytest.mark.parametrize(
    ("terms", "overrides", "said"),
    [
        ({"cross_entropy": {}}, {}, "the images have no labels, which method.cross_entropy would read; expected terms"),
        (
            {"kd": {}},
            {},
            "method.kd: it reads the logits, and a network without classes has none; expected a method of",
        ),
        ({"simkd": {}}, {}, "a term predicts classes in the student's place, and the images have none"),
        ({"catkd": {}}, {}, "method.catkd: it reads the head of the student, and a network without classes has none"),
        ({"embedding": {}}, {"model.freeze": "backbone"}, "model.freeze is 'backbone', and a network without classes"),
        (
            {"embedding": {}},
            {"train.label_smoothing": 0.1},
            "train.label_smoothing is 0.1, and the images",
        ),
        (
            {"embedding": {}},
            {"evaluate.select": "best-validation"},
            "evaluate.select is .best-validation., and",
        ),
        ({"embedding": {}}, {"dataset.labeled": 20}, "dataset.label_free is true, so no image has a label"),
    ],
)
def test_what_cannot_be_without_labels_is_said(folder, terms, overrides, said):
    with pytest.raises(InputError, match=said):
        experiment.create(config(folder, **overrides) | {"method": terms})


def test_a_teacher_of_embeddings_beside_labels(folder, monkeypatch):
    labeled = {"dataset.path": str(folder / "classes"), "dataset.label_free": False}
    with pytest.raises(InputError, match=r"method.kd: it reads the logits, and a network without classes has none"):
        experiment.create(config(folder, **labeled) | {"method": {"kd": {}}})
    whole = config(folder, **labeled, **{"train.epochs": 1}) | {"method": {"cross_entropy": {}, "embedding": {}}}
    result = training.train(whole, folder / "labeled", runs_folder=folder).result
    assert 0 <= result["test"]["accuracy"] <= 1
    assert result["test"]["agreement"] is None
    assert 0 < result["test"]["embedding/distance"] < 2
    # Such a run is probed on its own images.
    monkeypatch.setattr(probing, "STRENGTHS", (0.01,))
    found = probing.probe_run(folder / "labeled", of=("student",))
    assert found["student"]["accuracy"] > 0.2


def test_what_the_teacher_says_is_kept_as_if_it_were_asked(run, folder):
    """The embedding alone is recorded, and no result depends on it."""
    whole = config(folder, **{"teacher.cache": "recording"})
    cached = training.train(whole, folder / "cached", runs_folder=folder)
    assert runs.read_json(cached.folder, "result.json")["test"] == run.result["test"]
    assert tiny.identical(jax.device_get(cached.state.params), jax.device_get(run.state.params))


def test_a_program_of_a_run_without_labels_returns_the_embedding(run, tmp_path):
    said = export.export(run.folder, tmp_path / "model.stablehlo")
    assert "it differs from the network by at most" in said
    pixels = RNG.integers(0, 256, (2, 8, 8, 3), np.uint8)
    loaded = kd_jax.load(run.folder)
    expected = jax.jit(lambda x: loaded.network.apply(loaded.variables, loaded.preprocess(x), train=False)[0].embedding)
    found = exporting.runner("stablehlo", str(tmp_path / "model.stablehlo"))(pixels)
    np.testing.assert_allclose(found, expected(pixels), rtol=1e-4, atol=1e-5)
