"""Finished runs are read, and others are left out with a reason."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kd_jax import runs
from kd_jax.errors import InputError
from kd_jax.reporting import finished
from tests.reporting.made_up import write_run


def left_out(folder):
    """{name of a run's folder: why it is left out}."""
    return {Path(path).name: why for path, why in finished.read([str(folder)])[1]}


def test_runs_are_found_at_any_depth_and_through_links_once(tmp_path):
    write_run(tmp_path / "runs" / "deep" / "deeper" / "one")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    found, left_out = finished.read([str(tmp_path / "runs"), str(tmp_path / "runs" / "deep")])
    assert (len(found), left_out) == (1, [])


def test_a_copy_of_a_run_does_not_count(tmp_path):
    write_run(tmp_path / "runs" / "one")
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "runs" / "two")
    (why,) = left_out(tmp_path / "runs").values()
    assert re.fullmatch(r"the same run as .*/runs/one", why)


def test_hashes_stand_where_two_sets_or_teachers_have_one_name_alone(tmp_path):
    for width in (0.25, 0.5):
        teacher = write_run(tmp_path / f"teacher-{width}", "teacher", **{"model.width": width})
        write_run(tmp_path / f"kd-{width}", "kd", teacher=teacher)
    two, one = (finished.read([str(tmp_path / name) for name in names])[0] for names in (("",), ("kd-0.5",)))
    named = {run.recipe["teacher"] for run in two} - {"none"}
    assert len(named) == 2
    assert all(re.fullmatch(r"\w+ \(hash [0-9a-f]{8}\)", name) for name in named)
    assert "hash" not in one[0].recipe["teacher"] + one[0].data


def measure(run, folder, rows):
    """What `kd_jax benchmark-export` leaves about a run's formats."""
    folder.mkdir()
    digest = runs.read_json(str(run), "config.json")["hash"]
    save_file({"a": np.zeros(1)}, str(folder / "model.safetensors"), {"hash": digest})
    runs.write_json(str(folder / "export_benchmark.json"), {"images": 8, "rows": rows})


def test_the_formats_of_a_run_are_found_by_the_hash_of_its_weights(tmp_path):
    for seed in range(2):
        write_run(tmp_path / str(seed), seed=seed)
    measure(tmp_path / "1", tmp_path / "formats", [{"name": "tflite"}])
    found, left_out = finished.read([str(tmp_path)])
    assert ([list(run.formats) for run in found], left_out) == ([[], [{"name": "tflite"}]], [])


def test_formats_may_lie_in_a_folder_of_their_own_beside_that_of_runs(tmp_path):
    write_run(tmp_path / "runs" / "one")
    measure(tmp_path / "runs" / "one", tmp_path / "formats", [{"name": "tflite"}])
    (run,) = finished.read([str(tmp_path / "formats"), str(tmp_path / "runs")])[0]
    assert list(run.formats) == [{"name": "tflite"}]
    with pytest.raises(InputError, match="holds no run"):
        finished.read([str(tmp_path / "formats")])


@pytest.mark.parametrize("name", ["model.safetensors", "export_benchmark.json"])
def test_damaged_figures_of_formats_do_not_stop_the_report(tmp_path, name):
    write_run(tmp_path / "one")
    measure(tmp_path / "one", tmp_path / "formats", [{"name": "tflite"}])
    (tmp_path / "formats" / name).write_bytes(b"\x00")
    (run,) = finished.read([str(tmp_path)])[0]
    assert list(run.formats) == []


def without(folder, *keys):
    """Takes a key out of a run's result."""
    result = runs.read_json(str(folder), "result.json")
    tree = result
    for key in keys[:-1]:
        tree = tree[key]
    del tree[keys[-1]]
    runs.write_json(str(folder / "result.json"), result)


def unsealed(folder):
    """The text of result.json without its checksum, as older versions wrote it."""
    return re.sub(r', "checksum": "\w+"', "", (folder / "result.json").read_text())


def test_a_run_that_keeps_smaller_batches_has_more_steps_to_go(tmp_path):
    write_run(tmp_path / "run", **{"train.last_batch": "keep", "train.batch_size": 24})  # of 64 images: 24, 24, 16
    (tmp_path / "run" / "result.json").unlink()
    ((_, why),) = finished.read([str(tmp_path)])[1]
    assert why.startswith("has not finished: step 12 of 9, ")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda run: (run / "result.json").unlink(), "has not finished: step 12 of 12, last written 20.*"),
        (lambda run: (run / "config.json").unlink(), ".*has no config.json; expected the folder of a run"),
        (lambda run: (run / "result.json").write_text('{"na'), ".*result.json cannot be read; expected .*"),
        (lambda run: (run / "result.json").write_bytes(b"\xff\x00"), ".*result.json cannot be read; expected .*"),
        (lambda run: without(run, "seconds"), "result.json lacks seconds; it is of another version"),
        (lambda run: without(run, "test", "nll"), "result.json lacks test.nll; it is of another version"),
        (
            lambda run: (run / "result.json").write_text(unsealed(run).replace("0.02", "NaN")),
            "test.ece of result.json is nan; expected a number",
        ),
        (
            lambda run: (run / "result.json").write_text(unsealed(run).replace("0.02", "9" * 400)),
            r"test.ece of result.json is 9{40}; expected a number",
        ),
        (lambda run: (run / "result.json").write_text("[" * 100_000), ".*result.json cannot be read; expected .*"),
        (
            lambda run: (run / "config.json").write_text(
                '{"config": {}, "identity": {"teacher": null}, "hash": "", "data": {"class_names": []}}'
            ),
            "config.json lacks 'dataset'; it is of another version",
        ),
    ],
    ids=[
        "going",
        "no config",
        "cut short",
        "no text",
        "older",
        "older test",
        "not a number",
        "too large",
        "too deep",
        "older config",
    ],
)
def test_a_run_that_cannot_be_shown_is_listed_with_the_reason(tmp_path, damage, why):
    write_run(tmp_path / "runs" / "good")
    write_run(tmp_path / "runs" / "bad", seed=1)
    damage(tmp_path / "runs" / "bad")
    reasons = left_out(tmp_path / "runs")
    assert reasons.keys() == {"bad"}
    assert re.fullmatch(why, reasons["bad"])


@pytest.mark.parametrize(("name", "said"), [("empty", "holds no run"), ("nowhere", "is not a folder")])
def test_a_folder_without_a_run_is_refused(tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=said):
        finished.read([str(tmp_path / name)])


def test_a_stray_file_above_runs_does_not_hide_them(tmp_path):
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "metrics.jsonl").write_text("")
    found, left_out = finished.read([str(tmp_path / "runs")])
    assert ([run.folder for run in found], len(left_out)) == ([str(tmp_path / "runs" / "one")], 1)


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    write_run(tmp_path / "one")
    (tmp_path / "two").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("two"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert left_out(tmp_path) == {"two": "cannot be read: Permission denied"}
