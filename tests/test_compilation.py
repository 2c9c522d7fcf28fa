"""Programs are compiled once: by rows that differ in what is traced, and by a run that calls what was traced."""

import os
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from kd_jax import compilation, experiment, steps
from tests import tiny


@pytest.fixture
def kept(tmp_path):
    """An empty folder for compiled programs, also those that take no time."""
    settings = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        compilation_cache.reset_cache()
        for name, value in values.items():
            jax.config.update(name, value)
        if values is settings:
            yield tmp_path
    compilation_cache.reset_cache()


def programs(folder, name):
    """The compiled programs of a function that a folder holds."""
    return [path for path in folder.glob(f"jit_{name}-*") if path.name.endswith("-cache")]


def compile_steps(terms, **overrides):
    """Compiles the steps of a run."""
    made = tiny.create(terms, **overrides)
    feed, state = made.feed(), made.state_shapes()
    rows, _ = next(feed.calls(0))
    teacher = made.place(made.teacher.load()[0])
    made.train_steps.lower(state, teacher, feed.constants, rows, made.place(made.hyper), feed.labels).compile()


def row(number):
    """A config's changes that are all traced, and its terms: as number 0, but for what number says."""
    terms = {
        "cross_entropy": {"weight": 1 + number},
        "kd": {"weight": 0.5, "temperature": 4 + number},
        "crd": {"features": 4, "negatives": 8, "temperature": 0.07 * (1 + number), "optimizer": {}},
    }
    if number % 2:
        terms["crd"]["optimizer"] = {"learning_rate": 0.1 * number, "weight_decay": 0.01 * number}
    return terms, {
        "seed": number,
        "name": f"row{number}",
        "optimizer.learning_rate": 0.05 * (1 + number),
        "optimizer.weight_decay": 0.0 if number == 1 else 1e-4 * number,
    }


def test_ten_rows_that_differ_in_what_is_traced_compile_one_program(kept):
    for number in range(10):
        terms, overrides = row(number)
        compile_steps(terms, **overrides)
    assert len(programs(kept, "train_steps")) == 1


def test_a_row_that_differs_in_what_is_not_traced_compiles_another(kept):
    for features in (4, 5):
        compile_steps({"cc": {"features": features}})
    assert len(programs(kept, "train_steps")) == 2


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_calls_what_was_traced_before_it_began(devices):
    traced = []

    def count(name):
        function = getattr(steps, name)

        def counted(*arguments, **options):
            traced.append(name)
            return function(*arguments, **options)

        return mock.patch.object(steps, name, counted)

    with count("train_step"), count("init_state"):
        config = tiny.config(**tiny.SMALL) | {"method": tiny.METHODS["kd"]}
        made = experiment.create(config, source=tiny.source(), devices=jax.devices()[:devices])
        assert sorted(traced) == ["init_state", "train_step"]
        feed, teacher = made.feed(), made.place(made.teacher.load()[0])
        state = made.init_state(np.uint32(0), teacher, feed.example, feed.labels)
        for rows, _ in [*feed.calls(0)][:2]:
            state, _ = made.steps_of(feed)(state, teacher, feed.constants, rows, made.place(made.hyper), feed.labels)
    assert sorted(traced) == ["init_state", "train_step"]


def test_a_start_runs_the_networks_only_where_a_term_reads_them(monkeypatch):
    def forward(*arguments, **options):
        raise AssertionError("the networks were run")

    monkeypatch.setattr(steps, "forward", forward)
    assert tiny.create(tiny.METHODS["kd"]).state_shapes().params.keys() == {"student", "cross_entropy", "kd"}
    with pytest.raises(AssertionError, match="the networks were run"):
        tiny.create({"kd": {}, "fitnet": {"stage": 1}}).state_shapes()


def test_a_teacher_that_has_finished_is_not_traced(tmp_path, monkeypatch):
    tiny.train(tiny.taught()["teacher"]["config"] | {"name": "x"}, tmp_path / "teachers", "x")
    made = experiment.create(tiny.taught(), runs_folder=str(tmp_path))
    os.rename(tmp_path / "teachers" / "x", made.teacher.source)
    seen = []
    monkeypatch.setattr("kd_jax.tracing.trace", lambda train_steps, state, teacher, *_: seen.append(teacher))
    experiment.create(tiny.taught(), runs_folder=str(tmp_path))
    assert [bool(teacher) for teacher in seen] == [True]
    experiment.create(tiny.taught(), runs_folder=str(tmp_path / "elsewhere"))
    assert [bool(teacher) for teacher in seen] == [True, False, True]


SHOW = """
import jax
from kd_jax import compilation
{before}
compilation.keep_programs()
print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
"""


@pytest.mark.parametrize(
    ("environment", "before", "expected"),
    [
        ({}, "", "HOME/.cache/kd_jax 0.0"),
        ({"JAX_COMPILATION_CACHE_DIR": "own"}, "", "own 0.0"),
        ({"JAX_COMPILATION_CACHE_DIR": ""}, "", " 0.0"),
        ({}, "jax.config.update('jax_compilation_cache_dir', 'own')", "own 0.0"),
        ({"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1.0"}, "", "HOME/.cache/kd_jax 1.0"),
    ],
)
def test_programs_are_kept_where_the_user_says_or_in_a_folder_of_the_users(environment, before, expected, tmp_path):
    clean = {
        name: value for name, value in os.environ.items() if name.upper() not in map(str.upper, compilation.SETTINGS)
    }
    process = [sys.executable, "-c", SHOW.format(before=before)]
    home = {"HOME": str(tmp_path)}
    said = subprocess.run(process, env=clean | home | environment, capture_output=True, text=True, check=True).stdout
    assert said.removesuffix("\n") == expected.replace("HOME", str(tmp_path))


def test_the_library_keeps_programs_as_the_command_does(monkeypatch):
    called = []
    monkeypatch.setattr(experiment, "keep_programs", lambda: called.append(True))
    experiment.create(tiny.config())
    assert called
