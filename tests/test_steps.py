"""The training step: who moves, what is traced, what is random."""

import contextlib
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import eval_steps, methods, steps
from kd_jax.checkpoint import Checkpoints
from kd_jax.types import Method, MethodVariables, RawBatch
from tests import tiny
from tests.methods.numeric import convolve, doubles, log_softmax

TEACH = functools.partial(eval_steps.teach_evaluation, num_classes=tiny.CLASSES)

GAME = {"cross_entropy": {}, "fitnet": {"stage": 1}, "adversarial": {"hidden": [8], "turns": [3, 4]}}


@pytest.fixture(scope="module")
def game():
    """The states before and after each of fourteen steps, in which a discriminator takes turns with the student."""
    run = tiny.Run(GAME)
    states = [run.state]
    states += [run.step() for _ in range(14)]
    return list(itertools.pairwise(states))


def groups(state, name):
    return state.params[name], state.optimizer_state[name], state.stats[name]


def test_who_waits_keeps_parameters_moments_and_statistics(game):
    for step, (before, after) in enumerate(game):
        waits = "student" if step % 7 < 3 else "adversarial"
        assert tiny.identical(groups(before, waits), groups(after, waits))


def test_who_does_not_wait_moves(game):
    for step, (before, after) in enumerate(game):
        moves = "adversarial" if step % 7 < 3 else "student"
        assert not tiny.identical(before.params[moves], after.params[moves])
        assert not tiny.identical(before.optimizer_state[moves], after.optimizer_state[moves])


def test_a_waiting_discriminator_leaves_another_terms_adapter_moving(game):
    for before, after in game:
        assert not tiny.identical(before.params["fitnet"], after.params["fitnet"])
        assert not tiny.identical(before.stats["fitnet"], after.stats["fitnet"])


def test_outside_of_its_epochs_a_terms_adapter_waits():
    run = tiny.Run({"cross_entropy": {}, "fitnet": {"stage": 1, "epochs": [1, 2]}})
    moved = []
    for _ in range(9):  # three steps are an epoch
        before = run.state
        moved.append(not tiny.identical(before.params["fitnet"], run.step().params["fitnet"]))
    assert moved == [False] * 3 + [True] * 3 + [False] * 3


def test_a_schedule_multiplies_the_weight_of_its_term():
    run = tiny.Run({"cross_entropy": {"warmup_epochs": 2}})
    plain = tiny.Run(tiny.METHODS["cross_entropy"])
    run.step(), plain.step()
    np.testing.assert_allclose(run.scalars["loss/cross_entropy"], plain.scalars["loss/cross_entropy"] / 2, rtol=1e-5)


def test_a_term_counts_by_its_weight():
    quarter, whole = (tiny.Run({"cross_entropy": {"weight": weight}}) for weight in (0.25, 1.0))
    quarter.step(), whole.step()
    for scalar in ("loss", "loss/cross_entropy", "gradient_norm"):
        np.testing.assert_allclose(quarter.scalars[scalar], whole.scalars[scalar] / 4, rtol=1e-5)


def test_a_weight_reaches_the_parts_of_its_term_that_have_none():
    weights, table = {"a": 2.0, "a/own": 3.0}, []
    for name in ("a", "a/part", "a/own", "b"):
        table.append(steps._of_term(weights, name, 1.0))
    assert table == [2.0, 2.0, 3.0, 1.0]


class Slope(nn.Module):
    """A term with one parameter, by which its gradient is 1."""

    needs_teacher = False

    @nn.compact
    def __call__(self, context):
        return self.param("own", nn.initializers.ones, ())


def test_a_term_moves_by_its_own_rate_schedule_decay_and_momentum(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "slope", methods.from_module(Slope))
    own = {"learning_rate": 0.5, "weight_decay": 0.25, "momentum": 0.5, "schedule": "constant"}
    run = tiny.Run({"slope": {"optimizer": own}}, **{"train.steps": 4})
    expected, p, buffer = [], 1.0, 0.0
    for _ in range(4):
        buffer = 0.5 * buffer + 1 + 0.25 * p
        p -= 0.5 * buffer
        expected.append(p)
    moved = [float(run.step().params["slope"]["own"]) for _ in range(4)]
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_a_terms_optimizer_is_its_own_and_otherwise_the_students():
    made = tiny.create({"cross_entropy": {}, "fitnet": {}, "adversarial": {"optimizer": {"learning_rate": 0.5}}})
    rates = made.components.optimizer.learning_rates
    assert (rates["student"], rates["fitnet"], rates["adversarial"]) == (0.05, 0.05, 0.5)


def test_the_learning_rate_follows_its_schedule_whoever_moves():
    terms = {"cross_entropy": {}, "adversarial": {"hidden": [2], "turns": [6, 14]}}
    run = tiny.Run(terms, **{"train.steps": 40})
    rates, moved = [], []
    for _ in range(40):
        before = run.state.params["student"]["fc"]["bias"]
        run.step()
        rates.append(float(run.scalars["learning_rate"]))
        moved.append(not np.array_equal(before, run.state.params["student"]["fc"]["bias"]))
    expected = 0.05 * 0.5 * (1 + np.cos(np.pi * np.arange(40) / 40))
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-7)
    assert moved == [step % 20 >= 6 for step in range(40)]


def init_cost(terms):
    """The compiled initialization of a method."""
    made = tiny.create(terms)
    feed = made.feed()
    method = functools.partial(_init_method, components=made.components, options=made.options)
    return jax.jit(method).lower(made.teacher.load()[0], feed.example, feed.labels).compile()


def _init_method(teacher_variables, raw, labels, *, components, options):
    images = components.prepare(components.augment(jax.random.key(0), raw)[0].images)
    variables = components.student.init(jax.random.key(0), images)
    context, _ = steps.forward(
        variables,
        teacher_variables,
        raw,
        rng=jax.random.key(0),
        step=jnp.int32(0),
        train=False,
        train_labels=labels,
        components=components,
        options=options,
    )
    return components.method.init(jax.random.key(1), context)


@pytest.mark.parametrize("name", ["kd", "simkd"])
def test_initialization_computes_no_forward_pass_that_its_method_does_not_read(name):
    compiled = init_cost({name: {}})
    assert " convolution(" not in compiled.as_text()
    step = tiny.Run(tiny.METHODS["kd"]).lower().compile().cost_analysis()["flops"]
    assert compiled.cost_analysis().get("flops", 0) < 0.05 * step  # to draw an adapter's parameters takes some


def test_initialization_sees_the_teachers_real_head():
    run = tiny.Run({"simkd": {}})
    head = run.state.stats["simkd"]["head"]
    assert np.array_equal(head["kernel"], run.teacher["params"]["fc"]["kernel"])


def test_a_method_compares_as_many_views_as_there_are():
    run = tiny.Run({"mlkd": {"views": [0, 1]}}, **{"dataset.extra_views": ["crop_flip"]})
    run.step()
    crops = [batch.crop for batch in run.experiment.components.augment(jax.random.key(0), run.feed.example)]
    assert len(crops) == 2
    assert not np.array_equal(*crops)


@pytest.fixture(scope="module")
def twice():
    """A run that sees every image twice as it is, through a head with dropout."""
    options = {"dataset.augment": "none", "dataset.extra_views": ["none"], "model.head": "mlp"}
    return tiny.Run({"mlkd": {"views": [0, 1]}}, **options)


def test_each_view_has_dropout_of_its_own(twice):
    @jax.jit
    def logits(student, teacher, raw):
        common = {"components": twice.experiment.components, "options": twice.experiment.options}
        context, _ = steps.forward(
            student, teacher, raw, rng=jax.random.key(0), step=0, train=True, train_labels=None, **common
        )
        return [view.student.logits for view in context.views]

    first, second = logits(twice.student, twice.teacher, twice.feed.example)
    assert not np.array_equal(first, second)


def test_the_statistics_of_a_view_follow_those_of_the_one_before(twice):
    kernel = doubles(twice.state.params["student"]["conv1"]["kernel"])
    images = np.asarray(twice.experiment.components.prepare(twice.images(0)))
    expected = convolve(images, kernel, padding=1).mean((0, 1, 2))
    mean = twice.step().stats["student"]["bn1"]["mean"]
    np.testing.assert_allclose(mean, (0.9 * 0.1 + 0.1) * expected, rtol=1e-4, atol=1e-6)


def test_many_steps_in_one_call_equal_one_step_per_call():
    with jax.enable_x64(True):
        single, many = (tiny.Run(tiny.METHODS["kd"], precision="float64") for _ in range(2))
        single.step(4), many.call(many.rows(0, 4))
        assert tiny.largest_difference(single.state.params, many.state.params) < 1e-10


def test_the_scalars_of_many_steps_in_one_call_are_their_sums():
    with jax.enable_x64(True):
        single, many = (tiny.Run(tiny.METHODS["kd"], precision="float64") for _ in range(2))
        each = [single.step() and single.scalars for _ in range(4)]
        many.call(many.rows(0, 4))
        assert many.scalars.keys() == each[0].keys()
        for name, total in many.scalars.items():
            np.testing.assert_allclose(total, sum(float(scalars[name]) for scalars in each), rtol=1e-6)


def test_accumulation_averages_the_gradients_of_its_micro_batches():
    # Without batch norm in the backbone's training mode they are independent, so the gradient is the batch's.
    with jax.enable_x64(True):
        options = {"precision": "float64", "dataset.augment": "none", "model.freeze": "backbone_and_norms"}
        whole, parted = (tiny.Run(tiny.METHODS["kd"], **options, **{"train.accumulate": n}) for n in (1, 4))
        whole.step(3), parted.step(3)
        assert tiny.largest_difference(whole.state.params, parted.state.params) < 1e-12


def test_the_statistics_of_a_batch_in_parts_are_those_of_one_part_after_another():
    with jax.enable_x64(True):
        run = tiny.Run(
            tiny.METHODS["cross_entropy"], precision="float64", **{"train.accumulate": 2, "dataset.augment": "none"}
        )
        kernel = np.asarray(run.state.params["student"]["conv1"]["kernel"])
        images = np.asarray(run.experiment.components.prepare(run.images(0)))
        mean = run.step().stats["student"]["bn1"]["mean"]
    maps = convolve(images, kernel, padding=1)
    first, second = (maps[part::2].mean((0, 1, 2)) for part in (0, 1))
    np.testing.assert_allclose(mean, 0.9 * 0.1 * first + 0.1 * second, rtol=1e-9)


def test_every_part_of_a_batch_draws_for_itself(monkeypatch):
    def draws(name):
        def apply(variables, context):
            value = jax.random.uniform(context.key)
            return {name: value, f"{name}/squared": value**2}, variables.state

        return Method(lambda rng, context: MethodVariables({}, {}), apply)

    monkeypatch.setitem(methods.METHODS, "draws", draws)
    run = tiny.Run({"draws": {}}, **{"train.accumulate": 2})
    run.step()
    variance = run.scalars["loss/draws/squared"] - run.scalars["loss/draws"] ** 2
    assert variance > 1e-4


@pytest.mark.parametrize("parts", [1, 4])
def test_accuracy_is_that_of_the_labeled_images(parts):
    options = {"dataset.augment": "none", "model.freeze": "backbone_and_norms", "train.accumulate": parts}
    run = tiny.Run(tiny.METHODS["cross_entropy"], **options)
    components, split, ids = run.experiment.components, run.feed.constants, np.asarray(run.rows(0)[0])
    predict = jax.jit(lambda v, x: components.student.apply(v, components.prepare(x), train=False)[0].logits.argmax(-1))
    predicted = np.asarray(predict(run.student, run.experiment.dataset.train.images))
    # Right and wrong ones of which every second has lost its label.
    labels = np.where(ids % 4 == 0, predicted[ids], (predicted[ids] + 1) % tiny.CLASSES)
    labels = np.where(np.arange(16) % 8 < 6, labels, -1)
    changed = np.asarray(split.labels).copy()
    changed[ids] = labels
    run.feed = run.feed._replace(constants=split._replace(labels=jax.device_put(changed, split.labels.sharding)))
    run.step()
    expected = (predicted[ids] == labels).sum() / (labels >= 0).sum()
    assert 0 < expected < 1
    np.testing.assert_allclose(run.scalars["accuracy"], expected, rtol=1e-6)


def test_a_profile_can_tell_the_parts_of_a_step_apart():
    program = tiny.Run(tiny.METHODS["kd"]).lower().as_text(debug_info=True)
    names = ["jvp(augmentation)", "jvp(teacher)", "jvp(student)", "transpose(jvp(student))", "jvp(method)", "optimizer"]
    assert [name for name in names if f"{name}/" not in program] == []


def test_the_moving_average_of_parameters_and_statistics_follows_its_recursion():
    run = tiny.Run(tiny.METHODS["cross_entropy"], **{"train.ema": 0.75})
    expected = doubles(run.student)
    for _ in range(4):
        run.step()
        expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * np.asarray(b, np.float64), expected, run.student)
    assert tiny.largest_difference(run.state.ema, expected) < 1e-6


@pytest.fixture
def started():
    """The state before the first step of a run that starts from other variables, with a moving average; and those."""
    own, other = (tiny.Run(tiny.METHODS["kd"], seed=seed, **{"train.ema": 0.5}) for seed in (0, 1))
    variables = jax.tree.map(lambda x: x + 1, other.student)
    return steps.start_from(own.state, variables), variables


def test_a_start_from_other_variables_has_their_parameters_and_statistics(started):
    state, variables = started
    assert tiny.identical(state.params["student"], variables["params"])
    assert tiny.identical(state.stats["student"], variables["batch_stats"])


def test_the_moving_average_begins_where_the_student_starts(started):
    state, variables = started
    assert tiny.identical(state.ema, variables)


def test_a_state_that_starts_from_other_variables_can_be_given_away(started):
    give = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)
    state, _ = started
    give((state.params["student"], state.stats["student"], state.ema))  # a buffer in it twice would be an error


def test_a_start_without_a_head_keeps_the_states_own():
    run = tiny.Run(tiny.METHODS["kd"])
    params = {name: tree for name, tree in run.student["params"].items() if name != "fc"}
    state = steps.start_from(run.state, {**run.student, "params": jax.tree.map(lambda x: x + 1, params)})
    assert tiny.identical(state.params["student"]["fc"], run.state.params["student"]["fc"])
    assert not tiny.identical(state.params["student"]["conv1"], run.state.params["student"]["conv1"])


def moved_by(run):
    """How far a step of plain SGD moves the student's parameters, over its rate."""
    before = doubles(run.state.params["student"])
    after = doubles(run.step().params["student"])
    squares = jax.tree.map(lambda a, b: np.square(b - a).sum(), before, after)
    return sum(jax.tree.leaves(squares)) ** 0.5 / 0.05


PLAIN_SGD = {"optimizer.weight_decay": 0.0, "optimizer.momentum": 0.0}


def test_clipping_bounds_the_gradient_and_not_what_is_logged():
    run = tiny.Run(tiny.METHODS["cross_entropy"], **PLAIN_SGD, **{"train.clip": 1e-2})
    np.testing.assert_allclose(moved_by(run), 1e-2, rtol=1e-3)
    assert run.scalars["gradient_norm"] > 0.1


def test_the_gradients_norm_is_the_students():
    run = tiny.Run({"cross_entropy": {}, "fitnet": {"stage": 1}}, **PLAIN_SGD)
    np.testing.assert_allclose(moved_by(run), run.scalars["gradient_norm"], rtol=1e-4)


def test_a_teacher_in_train_mode_is_in_it_in_a_training_step():
    run = tiny.Run(tiny.METHODS["kd"], **{"teacher.mode": "train", "dataset.augment": "none"})
    components, raw = run.experiment.components, run.feed.example

    @jax.jit
    def said():
        context, _ = steps.forward(
            run.student,
            run.teacher,
            raw,
            rng=jax.random.key(0),
            step=0,
            train=True,
            train_labels=None,
            components=components,
            options=run.experiment.options,
        )
        own = components.teacher.network.apply(run.teacher, components.prepare(raw.images), train=True)[0]
        return context.teacher.logits, own.logits

    np.testing.assert_allclose(*said(), rtol=1e-5)


def test_the_accuracy_of_a_step_is_that_of_the_methods_prediction(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "always", methods.from_module(tiny.Always))
    run = tiny.Run({"always": {}})
    for step in range(4):  # the student's own may be the same by chance
        labels = np.asarray(run.feed.constants.labels)[np.asarray(run.rows(step)[0])]
        run.step()
        np.testing.assert_allclose(run.scalars["accuracy"], (labels == 2).mean(), rtol=1e-6)


def test_another_weight_or_learning_rate_does_not_recompile():
    run = tiny.Run(tiny.METHODS["kd"])
    run.step()
    compiled = run.compiled._cache_size()
    run.hyper = jax.device_put(jax.tree.map(lambda x: 2 * x, run.hyper), run.hyper.learning_rate["student"].sharding)
    run.step()
    assert run.compiled._cache_size() == compiled


def test_an_option_that_a_step_is_told_counts_as_one_that_a_config_has():
    told, plain, built = (tiny.Run({"kd": {"temperature": temperature}}) for temperature in (4.0, 4.0, 2.0))
    told.hyper = told.hyper.replace(options=built.hyper.options)
    for run in (told, plain, built):
        run.step()
    np.testing.assert_array_equal(told.scalars["loss"], built.scalars["loss"])
    assert told.scalars["loss"] != plain.scalars["loss"]


def test_the_options_that_a_step_is_told_leave_types_as_they_are():
    options = tiny.Run(tiny.METHODS["kd"]).hyper.options
    assert options == {"kd": {"temperature": 4.0}}
    assert (options["kd"]["temperature"] * jnp.ones(1, jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_loss_is_the_sum_of_its_weighted_terms():
    run = tiny.Run(tiny.METHODS["adversarial"])
    run.step()
    terms = [float(value) for name, value in run.scalars.items() if name.startswith("loss/")]
    assert len(terms) == 3
    np.testing.assert_allclose(float(run.scalars["loss"]), sum(terms), rtol=1e-6)


def test_a_term_that_runs_the_networks_itself_moves_the_student():
    run = tiny.Run({"gradcam_alignment": {"stage": -2}})
    run.step()
    assert run.scalars["gradient_norm"] > 1e-3


def test_images_without_a_label_do_not_change_the_cross_entropy():
    run = tiny.Run(tiny.METHODS["cross_entropy"], **{"dataset.augment": "none"})
    labels = np.where(np.arange(16) < 8, run.feed.example.labels[:16], -1)
    raw = RawBatch(run.feed.example.images[:16], labels, np.arange(16))
    common = {"components": run.experiment.components, "options": run.experiment.options}

    @jax.jit
    def logits_and_loss(student, teacher, raw):
        context, _ = steps.forward(
            student, teacher, raw, rng=jax.random.key(0), step=0, train=True, train_labels=None, **common
        )
        variables = steps.method_variables(run.state.params, run.state.stats)
        return context.student.logits, steps.losses(variables, context, run.hyper, common["components"].method)[0]

    logits, loss = logits_and_loss(run.student, run.teacher, raw)
    log_p = log_softmax(np.asarray(logits, np.float64)[:8])
    np.testing.assert_allclose(float(loss), -log_p[np.arange(8), labels[:8]].mean(), rtol=1e-5)


@pytest.mark.parametrize("freeze", ["backbone", "backbone_and_norms"])
def test_frozen_parameters_stay_and_no_optimizer_state_is_kept_for_them(freeze):
    run = tiny.Run(tiny.METHODS["kd"], **{"model.freeze": freeze})
    before = run.state.params["student"]
    after = run.step(2).params["student"]
    assert np.array_equal(before["layer1_0"]["conv1"]["kernel"], after["layer1_0"]["conv1"]["kernel"])
    assert not np.array_equal(before["fc"]["kernel"], after["fc"]["kernel"])
    norm_moves = not np.array_equal(before["layer1_0"]["bn1"]["scale"], after["layer1_0"]["bn1"]["scale"])
    assert norm_moves == (freeze == "backbone")
    traced = [x for x in jax.tree.leaves(run.state.optimizer_state["student"]) if x.shape == (3, 3, 2, 2)]
    assert traced == []


def test_a_frozen_backbone_keeps_its_batch_statistics():
    run = tiny.Run(tiny.METHODS["kd"], **{"model.freeze": "backbone_and_norms"})
    before = run.state.stats["student"]
    assert tiny.identical(before, run.step(2).stats["student"])


def test_a_frozen_backbone_costs_no_weight_gradients():
    def flops(freeze):
        run = tiny.Run(tiny.METHODS["cross_entropy"], **{"model.freeze": freeze})
        return run.lower().compile().cost_analysis()["flops"]

    assert flops("backbone_and_norms") < 0.6 * flops("none")


def test_mlp_head_trains_with_dropout_that_differs_between_steps():
    run = tiny.Run(tiny.METHODS["cross_entropy"], **{"model.head": "mlp", "dataset.augment": "none"})
    run.hyper = run.hyper.replace(learning_rate=jax.tree.map(lambda x: 0 * x, run.hyper.learning_rate))
    rows, losses = run.rows(0), []
    for _ in range(2):
        run.call(rows)
        losses.append(float(run.scalars["loss"]))
    assert losses[0] != losses[1]


def test_the_seed_decides_the_initial_parameters():
    first, again, other = (tiny.Run(tiny.METHODS["kd"], seed=s).state.params for s in (0, 0, 1))
    assert tiny.identical(first, again)
    assert not tiny.identical(first, other)


def test_evaluation_ignores_what_the_mask_leaves_out():
    run = tiny.Run(tiny.METHODS["kd"])
    method = steps.method_variables(run.state.params, run.state.stats)
    evaluate, teach = run.experiment.jit(eval_steps.eval_step), run.experiment.jit(TEACH)

    def step(ids, mask):
        taught = jax.tree.map(lambda x: x[0], teach(run.teacher, run.feed.constants, ids[None]))
        return evaluate(run.student, method, run.feed.constants, ids, mask, taught)

    ids = jnp.arange(16)
    kept = step(ids.at[8:].set(0), ids < 8)
    assert kept["images"] == 8
    whole = step(ids, ids < 16)
    rest = step(jnp.roll(ids, -8).at[8:].set(0), ids < 8)
    for name in whole:
        np.testing.assert_allclose(kept[name] + rest[name], whole[name], rtol=1e-5)


def test_batches_that_are_evaluated_in_one_call_add_up_as_those_of_many():
    run = tiny.Run(tiny.METHODS["kd"])
    method = steps.method_variables(run.state.params, run.state.stats)
    ids = jnp.arange(48).reshape(3, 16)
    mask = ids < 40
    one, many, teach = (run.experiment.jit(f) for f in (eval_steps.eval_step, eval_steps.eval_steps, TEACH))
    placed = (run.student, method, run.feed.constants)
    taught = teach(run.teacher, run.feed.constants, ids)
    rows = (jax.tree.map(lambda x, i=i: x[i], (ids, mask, taught)) for i in range(3))
    first, second, third = (one(*placed, *row) for row in rows)
    whole = many(*placed, ids, mask, taught)
    assert whole["images"] == 40
    for name in whole:
        np.testing.assert_allclose(whole[name], first[name] + second[name] + third[name], rtol=1e-6)


class Compares(nn.Module):
    """Evaluates what the teacher says."""

    def __call__(self, context):
        return context.teacher.logits.mean() * context.student.logits.mean()

    def others(self, context):
        return {"teacher": context.teacher.logits}


def test_an_evaluation_without_a_teacher_leaves_out_what_compares_with_it(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "compares", methods.from_module(Compares))
    run = tiny.Run({"compares": {}})
    method, ids = steps.method_variables(run.state.params, run.state.stats), jnp.arange(16)
    evaluate, asked = run.experiment.jit(eval_steps.eval_step), (run.student, method, run.feed.constants)
    taught = jax.tree.map(lambda x: x[0], run.experiment.jit(TEACH)(run.teacher, run.feed.constants, ids[None]))
    name = "compares/teacher/accuracy"
    assert name in evaluate(*asked, ids, ids < 16, taught)
    assert name not in evaluate(*asked, ids, ids < 16)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The states after two calls of two bfloat16 steps each, the second from memory and from a checkpoint."""
    run = tiny.Run(tiny.METHODS["kinds"], precision="bfloat16", **{"dataset.labeled": 24})
    half = run.call(run.rows(0, 2))
    with contextlib.closing(Checkpoints(str(tmp_path_factory.mktemp("checkpoints")))) as checkpoints:
        checkpoints.save(half, 2, None)
        whole = run.call(run.rows(2, 2))
        checkpoints.wait()
        run.state = checkpoints.load(2, half)
    return run.call(run.rows(2, 2)), whole


@pytest.mark.parametrize("group", ["student", *tiny.METHODS["kinds"]])
def test_a_state_that_was_saved_goes_on_bit_for_bit(resumed, group):
    again, whole = (groups(state, group) for state in resumed)
    assert tiny.identical(again, whole)


@pytest.mark.parametrize("group", ["student", *tiny.METHODS["kinds"]])
def test_bfloat16_steps_in_one_call_are_finite(resumed, group):
    leaves = jax.tree.leaves(groups(resumed[1], group))
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in leaves)


def test_the_mean_teacher_teaches_with_the_average():
    options = {"teacher.kind": "mean", "teacher.mode": "train", "train.ema": 0.5, "dataset.augment": "none"}
    run = tiny.Run({"mse": {"on": "probabilities"}}, **options)
    run.state = run.state.replace(ema=jax.tree.map(lambda x: x + 0.1, run.state.ema))
    run.step()
    assert run.scalars["loss/mse"] > 1e-6
