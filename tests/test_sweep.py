"""A sweep: every setting is run over seeds, what is wrong is said before, the best on the validation split is first."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from kd_jax import experiment, jobs, sweep
from kd_jax.config import shipped
from kd_jax.errors import InputError, TrainingError
from tests.engines import programs

flags.FLAGS.mark_as_parsed()
TEMPERATURES = ["kd.temperature=2,4"]


def choose_config(value):
    name, _, argument = value.partition(":")
    flags.FLAGS["config"].parse(f"{shipped()[name]}:{argument}")


@pytest.fixture
def settings(tmp_path):
    """The flags of a small sweep whose files lie in a folder of the test's own."""
    own = {"seeds": 2, "sweep": TEMPERATURES, "results": str(tmp_path / "results.jsonl")}
    with flagsaver.flagsaver(runs=str(tmp_path / "runs"), **own):
        choose_config("kd:smoke")
        yield tmp_path


def result(validation, test):
    return {"validation": {"accuracy": validation}, "test": {"accuracy": test}, "seconds": 1.0, "device": "1 x cpu"}


@pytest.fixture
def fake(monkeypatch):
    """Takes the place of the processes: what was run, and which of it fails. 4 is the better temperature."""

    def outcome(row, seed):
        return result(0.8 + 0.05 * (row == "kd.temperature=4") + seed / 100, 0.7)

    return programs.stand_in(monkeypatch, outcome)


def test_every_setting_is_run_over_seeds_and_picked_up_afterwards(settings, fake, capsys):
    ran, _ = fake
    sweep.main([])
    assert ran == [(f"kd.temperature={t}", seed) for seed in (0, 1) for t in (2, 4)]
    sweep.main([])
    assert len(ran) == 4
    assert "4 of 4 runs are in" in capsys.readouterr().out


def test_the_best_on_the_validation_split_is_first_and_the_others_are_paired_with_it(settings, fake):
    sweep.main([])
    lines = (settings / "runs" / "sweep-kd-smoke" / "table.md").read_text().splitlines()
    assert lines[0].startswith(
        "| kd.temperature | validation accuracy, % | against the best, points | test accuracy, % |"
    )
    assert lines[2] == "| 4 | 85.50 ± 0.71 |  | 70.00 ± 0.00 | 2 |"
    assert lines[3] == "| 2 | 80.50 ± 0.71 | -5.00 ± 0.00 | 70.00 ± 0.00 | 2 |"
    numbers = json.loads((settings / "runs" / "sweep-kd-smoke" / "table.json").read_text())
    assert numbers["kd.temperature=4"]["validation"] == {"0": pytest.approx(85), "1": pytest.approx(86)}


def test_a_failure_is_named_at_its_row_and_the_others_go_on(settings, fake, capsys):
    ran, fails = fake
    fails |= {("kd.temperature=2", 0), ("kd.temperature=2", 1)}
    with pytest.raises(TrainingError, match="2 of 4 runs failed; the same command tries them again"):
        sweep.main([])
    assert len(ran) == 4
    assert "| 2 |  |  |  | 0; seed 0 failed: it broke; seed 1 failed: it broke |" in capsys.readouterr().out


def test_without_a_grid_the_config_itself_is_run_over_seeds(settings, fake, capsys):
    ran, _ = fake
    with flagsaver.flagsaver(sweep=[]):
        sweep.main([])
    assert ran == [("as it is", 0), ("as it is", 1)]
    assert "| 80.50 ± 0.71 |  | 70.00 ± 0.00 | 2 |" in capsys.readouterr().out


def test_the_grid_is_every_combination():
    points = sweep.grid(["a.x=1,2", "a.list=[1,2],[3]"])
    assert [(point["a.x"], point["a.list"]) for point in points] == [
        ("1", "[1,2]"), ("1", "[3]"), ("2", "[1,2]"), ("2", "[3]")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sweeps", "said"),
    [
        (["kd.temperature"], "--sweep is 'kd.temperature'; expected KEY=VALUE"),
        (["kd.temperature=2,2"], "every value of a key, once"),
        (["seed=1,2"], "--sweep is 'seed=1,2'; expected another key"),
        (["kd.temperatur=2,4"], "an option of method.kd is 'temperatur'; .* did you mean 'temperature'"),
        (["method.kt.temperature=2,4"], "the key is 'method.kt.temperature'; expected .*: cross_entropy, kd"),
        (["optimizer.rate=1"], "optimizer.rate=1 do not fit: .*does not exist"),
        (["optimizer.learning_rate=1,x"], "optimizer.learning_rate=x do not fit"),
        (["kd.temperature=2,-1"], "method.kd.temperature is -1; expected a number above 0"),
        (["train.batch_size=0"], "train.batch_size is 0; expected a whole number of at least 1"),
        (["log.every_steps=1,2"], "two settings that are one run"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_runs(settings, fake, sweeps, said):
    ran, _ = fake
    with flagsaver.flagsaver(sweep=sweeps), pytest.raises(InputError, match=said):
        sweep.main([])
    assert ran == []


def test_the_key_is_that_of_the_run_of_its_config(settings):
    made = experiment.create(sweep.config({"kd.temperature": "2"}, 1), traced=False)
    job = sweep.job("sweep", {"kd.temperature": "2"}, {}, 1)
    assert job.key == made.digest
    assert made.config["method"]["kd"]["temperature"] == 2
    assert job.teacher


def test_a_config_of_ones_own_keeps_its_path(settings):
    own = settings / "kd.py"
    own.write_text("from kd_jax.configs.kd import get_config")
    flags.FLAGS["config"].parse(f"{own}:smoke")
    assert sweep.job("sweep", {}, {}, 0).command[2] == f"--config={own}:smoke"


def test_the_command_is_that_of_the_config(settings, monkeypatch, no_tensorflow):
    monkeypatch.setenv("PYTHONPATH", no_tensorflow)
    choose_config("student:smoke")
    changes = {"train.steps": "2", "dataset.image_size": "8", "optimizer.name": "lion"}
    point = {"cross_entropy.weight": "0.5", "optimizer.learning_rate": "0.2", "optimizer.options.b1": "0.8"}
    job = sweep.job("sweep", point, changes, 1)
    assert job.command[2] == "--config=student:smoke"
    assert job.teacher == ""
    found = jobs.run(job, str(settings / "runs"))
    assert (found["config_hash"], found["seed"], found["steps"]) == (job.key, 1, 2)
