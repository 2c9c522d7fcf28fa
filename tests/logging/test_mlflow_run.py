"""The mirror of a run in MLflow, in a store of files."""

import json
import time
from pathlib import Path

import pytest

from kd_jax import training
from kd_jax.errors import InputError
from kd_jax.logging import mirrors
from tests import tiny

pytestmark = [
    pytest.mark.slow,  # it needs the extra `mlflow`, and makes a database
    pytest.mark.filterwarnings("ignore"),  # of MLflow's own
]
mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
SAVED = {"hash": "abc", "config": {"name": "kd", "seed": 3, "log": {"mlflow": "tries"}, "text": "x" * 7000}}
RESULT = {"checkpoint": 5, "test": {"accuracy": 0.5}}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def client(database, tmp_path, monkeypatch):
    """Of a store, of which this process and the runs know by the environment."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)
    return mlflow.MlflowClient(database)


def mirrored(folder, steps, saved=SAVED):
    """A run in a folder that writes numbers at these steps; its id in MLflow."""
    folder.mkdir(exist_ok=True)
    own = mirrors.Mirrors(str(folder), saved)
    for step in steps:
        own.write(step, {"train/loss/a+b": 1 / step, "epoch": step / 10})
    own.close()
    return json.loads((folder / "mlflow.json").read_text())["id"]


def test_a_run_that_stops_before_its_end_has_failed_until_it_goes_on(client, tmp_path):
    own = mirrors.Mirrors(str(tmp_path), SAVED)
    own.close(failed=True)
    run = json.loads((tmp_path / "mlflow.json").read_text())["id"]
    assert client.get_run(run).info.status == "FAILED"
    again = mirrors.Mirrors(str(tmp_path), SAVED)
    assert client.get_run(run).info.status == "RUNNING"
    again.close()
    assert client.get_run(run).info.status == "FINISHED"


def test_numbers_config_and_result_reach_mlflow(client, tmp_path):
    own = mirrors.Mirrors(str(tmp_path), SAVED)
    own.write(5, {"train/loss/a+b": 0.25})
    own.write_result(RESULT, {"test/accuracy": 0.5})
    own.close()
    run = client.get_run(json.loads((tmp_path / "mlflow.json").read_text())["id"])
    assert (run.info.run_name, run.info.status, run.data.tags["hash"]) == ("kd", "FINISHED", "abc")
    assert run.data.metrics == {"train/loss/a_b": 0.25, "test/accuracy": 0.5}
    assert run.data.params == {"name": "kd", "seed": "3", "log.mlflow": "tries", "text": "x" * 6000}
    assert client.get_experiment(run.info.experiment_id).name == "tries"
    assert json.loads(Path(client.download_artifacts(run.info.run_id, "result.json")).read_text()) == RESULT


def test_a_restart_goes_on_in_the_same_run_and_no_step_stands_twice(client, tmp_path):
    first = mirrored(tmp_path / "run", (1, 2, 3))
    assert mirrored(tmp_path / "run", (3, 4)) == first
    assert [metric.step for metric in client.get_metric_history(first, "epoch")] == [1, 2, 3, 4]


def test_a_run_goes_on_in_the_store_of_its_note(client, tmp_path, monkeypatch):
    first = mirrored(tmp_path / "run", (1,))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mirrored(tmp_path / "run", (2,)) == first


@pytest.mark.parametrize("change", ["another folder", "another experiment", "gone"])
def test_what_is_no_restart_is_another_run(client, tmp_path, change):
    first, saved, folder = mirrored(tmp_path / "run", (1,)), SAVED, tmp_path / "run"
    if change == "another folder":
        folder = tmp_path / "other"
    elif change == "another experiment":
        saved = SAVED | {"config": SAVED["config"] | {"log": {"mlflow": "others"}}}
    else:
        note = json.loads((folder / "mlflow.json").read_text())
        del note["checksum"]
        (folder / "mlflow.json").write_text(json.dumps(note | {"id": "0" * 32}))
    assert mirrored(folder, (1,), saved) != first


def test_an_image_reaches_the_run_that_has_finished(client, tmp_path):
    run = mirrored(tmp_path / "run", (1,))
    (tmp_path / "run" / "config.json").write_text(json.dumps(SAVED | {"identity": {}, "data": {}}))
    (tmp_path / "saliency.png").write_bytes(b"PNG")
    mirrors.add_image(str(tmp_path / "run"), "saliency", str(tmp_path / "saliency.png"), 12)
    assert [file.path for file in client.list_artifacts(run)] == ["saliency.png"]
    assert client.get_run(run).info.status == "FINISHED"


def test_a_server_that_is_away_is_one_line_within_seconds(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # to which nobody listens
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    begin = time.monotonic()
    mirrors.Mirrors(str(tmp_path), SAVED).close()
    out, err = capfd.readouterr()
    assert out.startswith("MLflow fails, and the run goes on without it: ")
    assert (len(out.splitlines()), err) == (1, "")
    assert time.monotonic() - begin < 30


def test_a_store_that_is_broken_is_one_line_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    own = mirrors.Mirrors(str(tmp_path), SAVED)
    own.write(1, {"epoch": 1.0})
    own.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("MLflow fails, and the run goes on without it: ")
    assert not (tmp_path / "mlflow.json").exists()


def test_the_name_of_an_experiment_that_is_too_long_is_refused():
    with pytest.raises(InputError, match=r"log\.mlflow has 257 characters; expected an experiment's name, of at most"):
        mirrors.check({"mlflow": "x" * 257})


def test_a_real_run_is_mirrored(client, tmp_path):
    config = tiny.config(**{"train.epochs": 1, "dataset.train_images": 32, "log.mlflow": "real"})
    result = training.train(config, str(tmp_path / "run"))
    run = client.get_run(json.loads((tmp_path / "run" / "mlflow.json").read_text())["id"])
    assert run.data.metrics["test/accuracy"] == result.accuracy
    assert run.data.params["train.epochs"] == "1"
