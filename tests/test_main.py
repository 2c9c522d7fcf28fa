"""Where --config is looked for, and what --term says."""

import os

import pytest

from kd_jax import main
from kd_jax.config import shipped
from kd_jax.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", ["kd", "configs/kd.py"])
def test_an_experiment_is_found_by_name_from_any_folder(given, capsys):
    path = shipped()["kd"]
    assert main.with_config([f"--config={given}:smoke", "--x=1"]) == [f"--config={path}:smoke", "--x=1"]
    assert capsys.readouterr().out == f"--config={given} is {path}\n"


def test_the_value_of_config_may_be_an_argument_of_its_own():
    assert main.with_config(["--config", "kd"]) == ["--config", shipped()["kd"]]


@pytest.mark.parametrize("name", ["configs/kd.py", "kd"])
def test_an_existing_file_wins_over_an_experiment(folder, name, capsys):
    os.makedirs(folder / "configs")
    (folder / name).write_text("")
    assert main.with_config([f"--config={name}:smoke"]) == [f"--config={name}:smoke"]
    assert capsys.readouterr().out == ""


def test_the_quickstart_is_the_default(capsys):
    path = shipped()["quickstart"]
    assert main.with_config(["--config.seed=1"]) == [f"--config={path}", "--config.seed=1"]
    assert capsys.readouterr().out == f"--config=quickstart is {path}\n"


@pytest.mark.parametrize(
    ("given", "near"), [("kdd", "kd"), ("configs/rkdd.py", "configs/rkd.py"), ("own.pi", "own.py")]
)
def test_the_near_choice_has_the_form_that_was_given(folder, given, near):
    (folder / "own.py").write_text("")
    with pytest.raises(InputError, match=f"--config is '{given}'; .*; did you mean '{near}'"):
        main.with_config([f"--config={given}"])


def test_options_that_no_config_has_are_given_one_by_one(capsys):
    given = ["--config=kd", "--config.optimizer.options.b1=0.95", "--seeds=1", "--config.optimizer.options.mu=bfloat16"]
    config, seeds, options = main.with_config(given)
    assert (config, seeds) == (f"--config={shipped()['kd']}", "--seeds=1")
    assert options == "--config.optimizer.options={'b1': 0.95, 'mu': 'bfloat16'}"


def test_an_options_value_may_be_an_argument_of_its_own():
    given = ["--config=kd", "--config.optimizer.options.b1", "0.95", "--seeds=1"]
    assert main.with_config(given)[1:] == ["--seeds=1", "--config.optimizer.options={'b1': 0.95}"]


@pytest.mark.parametrize("flag", [["--config=own.py:0.8"], ["--config", "own.py:0.8"]])
def test_an_option_leaves_the_others_of_the_config(folder, flag):
    text = "def get_config(b1): return {'optimizer': {'options': {'b1': float(b1), 'b2': 0.9}}}"
    (folder / "own.py").write_text(text)
    given = [*flag, "--config.optimizer.options.b2=0.5"]
    assert main.with_config(given)[-1] == "--config.optimizer.options={'b1': 0.8, 'b2': 0.5}"


def test_an_option_leaves_the_others_of_the_section_that_is_given():
    given = ["--config=kd", "--config.optimizer.options={'b1': 0.8}", "--config.optimizer.options.b2=0.5"]
    assert main.with_config(given)[-1] == "--config.optimizer.options={'b1': 0.8, 'b2': 0.5}"


def test_options_of_the_teachers_schedule_are_its_own():
    given = ["--config=kd", "--config.teacher.config.optimizer.schedule_options.end_value=0"]
    assert main.with_config(given)[1] == "--config.teacher.config.optimizer.schedule_options={'end_value': 0}"


def test_a_term_gains_the_options_of_the_flag():
    terms = {"kd": {"weight": 0.9}}
    main.add_term(terms, "kd:temperature=2,name=x")
    main.add_term(terms, "new:turns=[3,4]")
    assert terms == {"kd": {"weight": 0.9, "temperature": 2, "name": "x"}, "new": {"turns": [3, 4]}}


@pytest.mark.parametrize("text", [":weight=1", "kd:weight", "kd:=1"])
def test_a_term_that_does_not_parse_is_refused(text):
    with pytest.raises(InputError, match="expected TERM:KEY=VALUE,KEY=VALUE"):
        main.add_term({}, text)
