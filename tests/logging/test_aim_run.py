"""The mirror of a run in Aim, in a repository of its own."""

import json
import subprocess
import sys

import PIL.Image
import pytest

from kd_jax import training
from kd_jax.errors import InputError
from kd_jax.logging import mirrors
from tests import tiny

pytestmark = [
    pytest.mark.slow,  # it needs the extra `aim`
    pytest.mark.filterwarnings("ignore"),  # of Aim's own
]
aim = pytest.importorskip("aim", reason="aim is not installed")


def saved(repo):
    return {"hash": "abc", "config": {"name": "kd", "seed": 3, "log": {"aim": str(repo)}, "none": None, "of": [1, 2]}}


def mirrored(folder, steps, repo):
    """A run in a folder that writes numbers at these steps; its id in Aim."""
    folder.mkdir(exist_ok=True)
    own = mirrors.Mirrors(str(folder), saved(repo))
    for step in steps:
        own.write(step, {"train/loss": 1 / step})
    own.close()
    return note(folder)


def note(folder):
    return json.loads((folder / "aim.json").read_text())["id"]


def read(repo, identity):
    """The run as `aim up` shows it, and {metric: [(step, value)]}."""
    from aim.sdk.index_manager import RepoIndexManager

    RepoIndexManager.get_index_manager(aim.Repo.from_path(str(repo))).index(identity)
    run = aim.Run(identity, repo=str(repo), read_only=True)
    tables = {metric.name: metric.dataframe() for metric in run.metrics()}
    return run, {name: sorted(zip(table["step"], table["value"], strict=True)) for name, table in tables.items()}


def test_numbers_config_and_result_reach_aim(tmp_path):
    own = mirrors.Mirrors(str(tmp_path), saved(tmp_path))
    own.write(5, {"train/loss": 0.25})
    own.write_result({"checkpoint": 5, "teacher": None}, {"test/accuracy": 0.5})
    own.close()
    run, metrics = read(tmp_path, note(tmp_path))
    assert (run.experiment, run["hash"], run["config"]) == ("kd", "abc", saved(tmp_path)["config"])
    assert run["result"] == {"checkpoint": 5, "teacher": None}
    assert metrics == {"train/loss": [(5, 0.25)], "test/accuracy": [(5, 0.5)]}


def test_a_restart_goes_on_in_the_same_run_and_no_step_stands_twice(tmp_path):
    first = mirrored(tmp_path / "run", (1, 2, 4), tmp_path)
    assert mirrored(tmp_path / "run", (4, 5), tmp_path) == first
    assert read(tmp_path, first)[1]["train/loss"] == [(1, 1.0), (2, 0.5), (4, 0.25), (5, pytest.approx(0.2))]


def test_a_run_whose_process_was_killed_goes_on(tmp_path):
    program = (
        "import os; from kd_jax.logging import mirrors; from tests.logging.test_aim_run import saved;"
        f"own = mirrors.Mirrors({str(tmp_path)!r}, saved({str(tmp_path)!r})); own.write(1, {{'train/loss': 1.0}});"
        "os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=100).returncode == 9
    killed = note(tmp_path)
    assert mirrored(tmp_path, (2,), tmp_path) == killed
    assert [step for step, _ in read(tmp_path, killed)[1]["train/loss"]] == [1, 2]


@pytest.mark.parametrize("change", ["another folder", "another repository", "gone"])
def test_what_is_no_restart_is_another_run(tmp_path, change):
    first, folder, repo = mirrored(tmp_path / "run", (1,), tmp_path), tmp_path / "run", tmp_path
    if change == "another folder":
        folder = tmp_path / "other"
    elif change == "another repository":
        repo = tmp_path / "repo"
        repo.mkdir()
    else:
        changed = json.loads((folder / "aim.json").read_text())
        del changed["checksum"]
        (folder / "aim.json").write_text(json.dumps(changed | {"id": "0" * 24}))
    assert mirrored(folder, (1,), repo) != first


def test_an_image_reaches_the_run_that_has_finished(tmp_path):
    from aim.storage.context import Context

    identity = mirrored(tmp_path / "run", (1,), tmp_path)
    whole = saved(tmp_path) | {"identity": {}, "data": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(whole))
    PIL.Image.new("RGB", (3, 2)).save(tmp_path / "saliency.png")
    mirrors.add_image(str(tmp_path / "run"), "saliency", str(tmp_path / "saliency.png"), 12)
    run = read(tmp_path, identity)[0]
    sequence = run.get_image_sequence("saliency", Context({}))
    assert [(image.width, image.height) for image in sequence.values.values_list()] == [(3, 2)]


def test_a_repository_that_cannot_be_written_is_one_line_and_the_run_goes_on(tmp_path, capsys):
    (tmp_path / ".aim").write_text("no folder")
    own = mirrors.Mirrors(str(tmp_path), saved(tmp_path))
    own.write(1, {"train/loss": 1.0})
    own.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Aim fails, and the run goes on without it: ")
    assert not (tmp_path / "aim.json").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"log\.aim is '.*'; expected a folder that is there, or aim://HOST:PORT"):
        mirrors.check({"aim": str(tmp_path / "none")})


def test_a_real_run_is_mirrored(tmp_path):
    config = tiny.config(**{"train.epochs": 1, "dataset.train_images": 32, "log.aim": str(tmp_path)})
    result = training.train(config, str(tmp_path / "run"))
    run, metrics = read(tmp_path, note(tmp_path / "run"))
    assert [value for _, value in metrics["test/accuracy"]] == [pytest.approx(result.accuracy)]
    assert run["config"]["train"]["epochs"] == 1
