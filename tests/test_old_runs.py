"""Runs that version 0.1 made can be evaluated, explained and reported, and are told from today's.

version_0_1.tar.gz holds two runs and their teacher, made by that version with configs/kd.py:smoke and
configs/adversarial.py:smoke at 8 pixels, two channels, twelve steps.
"""

import json
import tarfile
from pathlib import Path

import pytest

from kd_jax import evaluation, keys, report, runs, training
from kd_jax.config import base, translate
from kd_jax.errors import InputError
from kd_jax.explaining import agreement
from tests import tiny

ARCHIVE = Path(__file__).parent / "version_0_1.tar.gz"
NAMES = ("kd-a0305313", "adversarial-ef432a30")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The folder of the old runs."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.0 to 3.11.3 have none
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_evaluates_to_what_it_recorded(old, name):
    recorded = json.loads((old / name / "result.json").read_text())["test"]
    measured = evaluation.evaluate_run(str(old / name), runs_folder=str(old))
    assert measured.keys() - recorded.keys() == {"balanced_accuracy", "macro_f1", "agreement_on_errors"}
    assert {name: measured[name] for name in recorded} == pytest.approx(recorded, rel=1e-5)


def test_an_old_run_is_explained(old, tmp_path):
    summary = agreement.explain_run(str(old / NAMES[0]), to=str(tmp_path), runs_folder=str(old))
    recorded = json.loads((old / NAMES[0] / "gaze.json").read_text())
    got, expected = (x["students"][0]["agreement"]["all"]["cosine"]["mean"] for x in (summary, recorded))
    assert got == pytest.approx(expected, rel=1e-3)


def test_old_runs_are_reported_with_their_saliency(old, tmp_path):
    assert report.report([str(old)], str(tmp_path)) == (3, 0)
    text = (tmp_path / "report.md").read_text()
    assert "## Saliency maps" in text


def test_an_old_config_has_todays_keys(old):
    saved = runs.read_json(str(old / NAMES[1]), "config.json")
    config = saved["config"]
    assert "method" not in config["optimizer"]
    assert config["teacher"]["mode"] == "eval"
    assert config["model"]["freeze"] == "none"
    assert config["dataset"]["labeled"] == 0
    assert saved["teacher_hash"].startswith("6a257ce3")


def test_an_old_runs_recipe_is_that_of_the_same_command_today(old):
    saved = runs.read_json(str(old / NAMES[0]), "config.json")
    config = dict(saved["config"])
    from kd_jax import experiment

    differences = runs.differences(saved["identity"], experiment.create(config).identity)
    assert differences == []


def old_config(**changes):
    """A config.json of the first format."""
    config = {
        "name": "x",
        "dataset": {"source": "digits", "name": "", "path": "", "labelled": 20, "unlabelled": False},
        "model": {"name": "resnet18", "stem": "cifar", "head": "mlp", "shortcut": "conv", "freeze": "encoder"},
        "teacher": {"kind": "none", "path": "", "config": {}, "batch_statistics": True},
        "method": {},
        "optimizer": {"name": "sgd", "method": translate.METHOD_OPTIMIZER | {"learning_rate": 0.5}},
        **changes,
    }
    identity = {**config, "teacher": None}
    return {"config": config, "identity": identity, "hash": "", "data": {"labelled": 20}}


def test_words_and_defaults_of_then_become_those_of_today():
    config = translate.translate(old_config(), None)["config"]
    assert config["model"] == {
        "name": "resnet18",
        "stem": "cifar",
        "head": "mlp",
        "shortcut": None,
        "freeze": "backbone_and_norms",
        "image_size": 0,
        "normalize": "",
        "quantize": "",
    }
    assert config["teacher"]["mode"] == "train"
    assert (config["dataset"]["labeled"], config["dataset"]["unlabeled"]) == (20, False)


def test_the_optimizer_of_all_methods_becomes_that_of_each_term_that_trains():
    method = {"adversarial": {"weight": 0.3}, "game": {"loss": "seed_adversarial"}, "soft": {"loss": "kd"}}
    config = translate.translate(old_config(method=method), None)["config"]
    assert config["optimizer"] == {"name": "sgd", **keys.later("optimizer")}
    assert config["method"]["adversarial"] == {"weight": 0.3, "optimizer": {"learning_rate": 0.5}}
    assert config["method"]["game"] == {
        "method": "original_adversarial",
        "optimizer": translate.METHOD_OPTIMIZER | {"learning_rate": 0.5},
    }
    assert config["method"]["soft"] == {"method": "kd"}


def test_todays_files_get_the_keys_that_were_added_since_and_nothing_else():
    saved = {"format": translate.FORMAT, "config": {"optimizer": {"method": 1, "delta": 0.05}, "seed": 1}}
    optimizer = {"method": 1, "delta": 0.05, "gradients": "sum", "options": {}, "schedule_options": {}}
    assert translate.translate(saved, None) == {**saved, "config": {"optimizer": optimizer, "seed": 1}}


def test_the_teachers_of_todays_files_get_the_keys_that_were_added_since():
    inner = {"optimizer": {}, "teacher": {"kind": "none", "config": {}}}
    config = translate.translate({"format": 2, "config": {"teacher": {"config": inner}}}, None)["config"]
    assert config["teacher"]["epoch"] == 0
    assert config["teacher"]["config"]["optimizer"] == keys.later("optimizer")
    assert config["teacher"]["config"]["teacher"]["members"] == {}


def test_a_key_that_was_added_is_no_part_of_an_identity_until_it_is_used():
    config = base.get_config().to_dict()
    assert not {"delta", "gradients"} & runs.identity(config, "", None)["optimizer"].keys()
    config["optimizer"]["delta"] = 0.05
    assert runs.identity(config, "", None)["optimizer"]["delta"] == 0.05


def test_an_old_run_is_not_gone_on_with_by_a_newer_version(old):
    with pytest.raises(InputError, match=r"holds a run of version 0\.1, .*; expected another --workdir"):
        training.train(tiny.config(), old / NAMES[0])
