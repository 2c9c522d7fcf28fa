"""Every scheme's smoke config, made smaller still, runs and shows what defines the scheme."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from kd_jax import checkpoint, experiment, runs, steps, training
from kd_jax.config.checks import plain, teacher_sections
from kd_jax.configs import scheme
from kd_jax.errors import InputError
from kd_jax.types import Method, student_logits
from tests import tiny

SMALL = {
    "dataset": {"image_size": 8, "train_images": 64, "holdout": 0.0},
    "model": {"width": 1 / 8},
    "train": {"batch_size": 16, "epochs": 2},
}


def small(name, **changes):
    """The smoke config of a scheme with networks of two channels, down to its teachers: eight steps on 8x8 digits."""
    config = plain(scheme.get_config(f"{name},smoke"))
    shrink(config)
    for key, value in changes.items():
        section, own = key.split(".")
        config[section][own] = value
    return config


def shrink(config):
    for section, values in SMALL.items():
        config[section] |= values
    config["checkpoint"]["keep"] = 9  # for those that want an earlier one
    for section in teacher_sections(config["teacher"]):
        if section.get("config"):
            shrink(section["config"])


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """A folder of runs that the workers of the suite share, so that a teacher of several schemes is trained once."""
    folder = tmp_path_factory.getbasetemp()
    return str((folder.parent if folder.name.startswith("popen-") else folder) / "schemes")


def trained(config, folder, name):
    """result.json of the config's run."""
    return training.train(config, f"{folder}/{name}", runs_folder=folder).result


def test_mutual_learning_trains_and_reports_both_networks(teachers, capfd):
    result = trained(small("mutual"), teachers, "mutual")
    assert 0 <= result["test"]["mutual/peer1/accuracy"] <= 1
    assert f"mutual/peer1 {100 * result['test']['mutual/peer1/accuracy']:.2f}%" in capfd.readouterr().out
    logged = [line for line in runs_lines(teachers, "mutual") if "train/loss/mutual/peers" in line]
    assert logged[-1]["train/loss/mutual/peers"] != logged[0]["train/loss/mutual/peers"]


def runs_lines(folder, name):
    """The lines of a run's metrics."""
    return [json.loads(line) for line in Path(folder, name, "metrics.jsonl").read_text().splitlines()]


def test_every_exit_of_be_your_own_teacher_is_evaluated(teachers):
    test = trained(small("byot"), teachers, "byot")["test"]
    # Behind the first two of three stages.
    assert [name for name in test if name.startswith("byot/")] == ["byot/exit1/accuracy", "byot/exit2/accuracy"]


def test_one_command_trains_the_teacher_the_assistant_and_the_student(teachers):
    config = small("assistant")
    made = experiment.create(config, runs_folder=teachers)
    trained(config, teachers, "assistant")
    assistant = made.teacher
    teacher = assistant.untrained.teacher
    names = [runs.read_config(folder)["config"]["model"]["name"] for folder in (assistant.source, teacher.source)]
    assert names == ["resnet8", "resnet14"]
    assert runs.read_config(f"{teachers}/assistant")["teacher_hash"] == runs.read_config(assistant.source)["hash"]
    assert runs.read_config(assistant.source)["teacher_hash"] == runs.read_config(teacher.source)["hash"]


def test_a_dense_student_learns_from_teacher_and_assistant(teachers):
    result = trained(small("dense"), teachers, "dense")
    assert result["teacher"]["name"] == "assistant and teacher"
    means = runs_lines(teachers, "dense")[0]
    assert means["train/loss/teacher"] > 0
    assert means["train/loss/assistant"] > 0
    assert means["train/loss/teacher"] != means["train/loss/assistant"]


def test_each_generation_is_taught_by_the_one_before(teachers):
    config = small("born_again")
    trained(config, teachers, "born_again")
    second = runs.read_config(f"{teachers}/born_again")
    first = runs.read_config(second["teacher_source"])
    assert first["hash"] == second["teacher_hash"]
    assert first["config"]["model"] == second["config"]["model"]
    assert first["config"]["teacher"]["config"]["teacher"]["kind"] == "none"
    assert first["config"]["teacher"]["config"]["model"] == second["config"]["model"]


def test_a_designed_teacher_needs_no_training(teachers):
    result = trained(small("teacher_free"), teachers, "teacher_free")
    assert result["teacher"] is None
    assert runs_lines(teachers, "teacher_free")[0]["train/loss/teacher_free"] > 0


def test_an_early_stopped_teacher_teaches_as_it_was_after_that_epoch(teachers):
    config = small("early_stopped", **{"teacher.epoch": 1})
    trained(config, teachers, "early_stopped")
    teacher = experiment.create(config, runs_folder=teachers).teacher
    saved = checkpoint.load_tree(f"{teacher.source}/checkpoints", 64 // 16)
    variables, result = teacher.load()
    assert tiny.identical(variables["params"], saved["params"]["student"])
    assert result is None  # it is measured anew


def test_a_teacher_that_did_not_keep_the_epoch_is_trained_beside(tmp_path):
    config = small("early_stopped", **{"teacher.epoch": 1})
    first = experiment.create(config, runs_folder=tmp_path).teacher.source
    saved = Path(first, "checkpoints", "8")
    saved.mkdir(parents=True)
    runs.write_json(f"{first}/result.json", {"name": "x", "test": {}, "checkpoint": 8, "steps": 8, "epochs": 2.0})
    second = experiment.create(config, runs_folder=tmp_path).teacher.source
    assert second == f"{first}-epoch1"


def test_an_epoch_after_which_nothing_is_kept_is_refused_before_the_teacher_is_trained(tmp_path):
    config = small("early_stopped", **{"teacher.epoch": 1})
    config["teacher"]["config"]["checkpoint"]["keep"] = 1
    config["teacher"]["config"]["seed"] = 7  # which no other test trains
    with pytest.raises(InputError, match=r"teacher.epoch is 1; expected one of 2, after which the teacher"):
        experiment.create(config, runs_folder=tmp_path)


def stepwise(config, folder):
    """(experiment, state before the first step, state -> (state, scalars) of one step), with the teacher untrained."""
    made = experiment.create(config, runs_folder=folder)
    feed = made.feed()
    teacher = {}
    if made.teacher and made.teacher.shapes:
        teacher = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), made.teacher.shapes)
    state = made.jit(steps.init_state, fast_compile=True)(np.uint32(0), teacher, feed.example, feed.labels)
    step = made.jit(functools.partial(steps.train_steps, fetch=feed.fetch))
    rows = [row for row, _ in feed.calls(0)]
    hyper = made.place(made.hyper)
    return made, state, lambda state: step(state, teacher, feed.constants, rows[int(state.step)], hyper, feed.labels)


@functools.cache
def mean_teacher(second):
    """`stepwise` where the student sees the image itself, and its teacher the augmentation `second` of it."""
    config = small("mean_teacher", **{"teacher.mode": "train", "dataset.augment": "none"})
    config["dataset"]["extra_views"] = [second]
    config["method"]["consistency"]["warmup_epochs"] = 0
    return stepwise(config, "runs")


def test_the_mean_teacher_is_the_moving_average_of_the_student():
    _, state, step = mean_teacher("crop")
    average = jax.device_get(state.params["student"])
    for _ in range(3):
        state, _ = step(state)
        average = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * np.asarray(b), average, state.params["student"])
    assert tiny.largest_difference(average, state.ema["params"]) < 1e-6


def test_the_mean_teacher_sees_the_second_view():
    # At first the average is the student itself, which predicts the same of the same image.
    losses = []
    for second in ("none", "crop"):
        _, state, step = mean_teacher(second)
        losses.append(float(step(state)[1]["loss/consistency"]))
    assert losses[0] < 1e-10 < losses[1]


def test_what_a_phase_leaves_out_is_bit_equal_after_it(tmp_path):
    made, state, step = stepwise(small("two_phases"), tmp_path)
    per_epoch = made.options.steps_per_epoch
    start = jax.device_get(state)
    for _ in range(per_epoch):
        state, _ = step(state)
    hinted = jax.device_get(state)
    moved = {
        path[0]
        for path, x in flatten_dict(start.params["student"]).items()
        if not np.array_equal(x, flatten_dict(hinted.params["student"])[path])
    }
    # The hint is at the second of three stages: the third and the head wait, with their averages.
    assert {"layer3_0", "fc"} & moved == set()
    assert {"conv1", "layer1_0", "layer2_0"} <= moved
    assert tiny.identical(start.stats["student"]["layer3_0"], hinted.stats["student"]["layer3_0"])
    assert not tiny.identical(start.stats["student"]["layer2_0"], hinted.stats["student"]["layer2_0"])
    state, _ = step(state)
    assert tiny.identical(hinted.params["fitnet"], state.params["fitnet"])
    assert tiny.identical(hinted.stats["fitnet"], state.stats["fitnet"])
    assert not tiny.identical(hinted.params["student"]["fc"], state.params["student"]["fc"])


def test_the_gradients_of_both_parts_sum_to_the_whole():
    def loss_of(params):
        task, taught = jnp.sin(params).sum(), jnp.square(params).sum()
        scalars = {"loss/cross_entropy": task, "loss/kd/part": taught, "loss": task + taught, "right": 1}
        return task + taught, ({}, scalars)

    params = jnp.linspace(-1.0, 1.0, 5)
    method = Method(None, None, distills=frozenset({"kd"}))
    parts, (_, scalars) = jax.jit(steps.gradient_of_parts(loss_of, method))(params)
    np.testing.assert_allclose(parts["task"], np.cos(params), rtol=1e-6)
    np.testing.assert_allclose(parts["distillation"], 2 * params, rtol=1e-6)
    np.testing.assert_allclose(sum(parts.values()), jax.grad(loss_of, has_aux=True)(params)[0], rtol=1e-6)
    assert scalars["right"] == 1


def test_the_step_of_dot_is_the_sum_of_both_parts_and_then_has_two_momenta(tmp_path):
    states = {}
    for name in ("sgd", "dot"):
        _, state, step = stepwise(small("dot", **{"optimizer.name": name}), tmp_path)
        states[name] = [(state := step(state)[0]).params for _ in range(2)]
    first, second = zip(*states.values(), strict=True)
    assert tiny.largest_difference(*first) < 1e-6  # without any momentum yet
    assert tiny.largest_difference(*second) > 1e-4


def test_a_second_head_learns_from_the_teacher_and_the_first_predicts(teachers):
    config = small("dual_head")
    state = training.train(config, f"{teachers}/dual_head", runs_folder=teachers).state
    made, start, _ = stepwise(config, teachers)
    assert made.components.optimizer.per_part
    assert not tiny.identical(start.params["dhkd"], state.params["dhkd"])
    assert made.components.method.predict is student_logits
