"""Finished runs are read, and others are left out with a reason."""

import os
import re
import shutil
from pathlib import Path

import pytest

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
