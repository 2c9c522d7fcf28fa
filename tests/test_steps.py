"""The training step: who moves, what is traced, what is random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import steps
from tests import tiny


def test_the_waiting_discriminator_keeps_parameters_and_moments_and_the_waiting_student_its_statistics_too():
    run = tiny.Run(tiny.parts({"cross_entropy": {}, "adversarial": {"hidden": [8], "turns": [3, 4]}}))
    for step in range(14):
        before = run.state
        after = run.step()
        discriminator_moves = step % 7 < 3
        waits, moves = ("student", "method") if discriminator_moves else ("method", "student")
        assert tiny.identical(before.params[waits], after.params[waits])
        assert tiny.identical(before.optimizer_state[waits], after.optimizer_state[waits])
        assert tiny.identical(before.stats[waits], after.stats[waits])
        assert not tiny.identical(before.params[moves], after.params[moves])
        assert not tiny.identical(before.optimizer_state[moves], after.optimizer_state[moves])


def test_the_learning_rate_follows_its_schedule_through_30_discriminator_and_170_student_steps():
    terms = {"cross_entropy": {}, "adversarial": {"hidden": [2], "turns": [30, 170]}}
    run = tiny.Run(tiny.parts(terms, length=400))
    rates, moved = [], []
    for _ in range(400):
        before = run.state.params["student"]["fc"]["bias"]
        run.step(batch_size=4) if run.state.step < 100 else _step_at(run, 4)
        rates.append(float(run.scalars["learning_rate"]))
        moved.append(not np.array_equal(before, run.state.params["student"]["fc"]["bias"]))
    expected = 0.05 * 0.5 * (1 + np.cos(np.pi * np.arange(400) / 400))
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-7)
    assert moved == [step % 200 >= 30 for step in range(400)]


def _step_at(run, batch_size):
    order = run.order(int(run.state.step) % 100, batch_size=batch_size)
    run.state, run.scalars = run.compiled(run.state, run.teacher, run.data, order, run.hyper)


def test_many_steps_in_one_call_equal_one_step_per_call():
    with jax.enable_x64(True):
        made = tiny.parts(tiny.METHODS["kd"], dtype=jnp.float64)
        single, many = (tiny.Run(made, dtype=jnp.float64) for _ in range(2))
        single.step(4)
        state, scalars = many.compiled(many.state, many.teacher, many.data, many.order(0, 4), many.hyper)
        assert tiny.largest_difference(single.state.params, state.params) < 1e-10
        assert scalars["loss"].shape == ()


def test_accumulation_averages_the_gradients_of_its_parts():
    # Without batch norm in the trunk's training mode the parts are independent, so the gradient is the batch's.
    with jax.enable_x64(True):
        options = {"dtype": jnp.float64, "kind": "none", "freeze": "encoder"}
        whole, parted = (
            tiny.Run(tiny.parts(tiny.METHODS["kd"], accumulate=n, **options), dtype=jnp.float64) for n in (1, 4)
        )
        whole.step(3), parted.step(3)
        assert tiny.largest_difference(whole.state.params, parted.state.params) < 1e-12


def test_moving_average_follows_its_recursion():
    run = tiny.Run(tiny.parts(tiny.METHODS["cross_entropy"], ema=0.75))
    expected = np.asarray(run.state.params["student"]["fc"]["kernel"], np.float64)
    for _ in range(4):
        run.step()
        expected = 0.75 * expected + 0.25 * np.asarray(run.state.params["student"]["fc"]["kernel"], np.float64)
    np.testing.assert_allclose(run.state.ema["params"]["fc"]["kernel"], expected, atol=1e-6)


def test_another_weight_or_learning_rate_does_not_recompile():
    run = tiny.Run(tiny.parts(tiny.METHODS["kd"]))
    run.step()
    run.hyper = jax.device_put(
        run.hyper.replace(learning_rate=jnp.float32(0.2), weights={k: 2 * v for k, v in run.hyper.weights.items()}),
        run.hyper.learning_rate.sharding,
    )
    run.step()
    assert run.compiled._cache_size() == 1


def test_the_loss_is_the_sum_of_its_weighted_terms():
    run = tiny.Run(tiny.parts(tiny.METHODS["adversarial"]))
    run.step()
    terms = [float(value) for name, value in run.scalars.items() if name.startswith("loss/")]
    assert len(terms) == 3
    np.testing.assert_allclose(float(run.scalars["loss"]), sum(terms), rtol=1e-6)


def test_a_term_that_runs_the_networks_itself_moves_the_student():
    run = tiny.Run(tiny.parts({"gradcam_alignment": {"stage": -2}}))
    run.step()
    assert run.scalars["gradient_norm"] > 1e-3


def test_images_without_a_label_do_not_change_the_cross_entropy():
    made = tiny.parts(tiny.METHODS["cross_entropy"])
    batch = made.augment(jax.random.key(0), tiny.data(8).images[:16], tiny.data(8).labels[:16], jnp.arange(16))
    outputs, _ = made.student.apply(made.student.init(jax.random.key(0), batch.images), batch.images, train=False)
    terms, _ = made.method.apply(
        made.method.init(jax.random.key(0), outputs, None),
        outputs,
        None,
        batch,
        step=0,
        rng=jax.random.key(0),
        train=True,
        networks=None,
    )
    logits = np.asarray(outputs.logits, np.float64)[:8]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -log_p[np.arange(8), tiny.data().labels[:8]].mean()
    np.testing.assert_allclose(float(terms["cross_entropy"]), expected, rtol=1e-5)


@pytest.mark.parametrize("freeze", ["convolutions", "encoder"])
def test_frozen_parameters_stay_and_no_optimizer_state_is_kept_for_them(freeze):
    run = tiny.Run(tiny.parts(tiny.METHODS["kd"], freeze=freeze))
    before = run.state.params["student"]
    after = run.step(2).params["student"]
    assert np.array_equal(before["layer1_0"]["conv1"]["kernel"], after["layer1_0"]["conv1"]["kernel"])
    assert not np.array_equal(before["fc"]["kernel"], after["fc"]["kernel"])
    norm_moves = not np.array_equal(before["layer1_0"]["bn1"]["scale"], after["layer1_0"]["bn1"]["scale"])
    assert norm_moves == (freeze == "convolutions")
    traced = [x for x in jax.tree.leaves(run.state.optimizer_state["student"]) if x.shape == (3, 3, 2, 2)]
    assert traced == []


def test_frozen_encoder_keeps_its_batch_statistics():
    run = tiny.Run(tiny.parts(tiny.METHODS["kd"], freeze="encoder"))
    before = run.state.stats["student"]
    assert tiny.identical(before, run.step(2).stats["student"])


def test_frozen_convolutions_cost_no_weight_gradients():
    def flops(freeze):
        run = tiny.Run(tiny.parts(tiny.METHODS["cross_entropy"], freeze=freeze))
        lowered = run.compiled.lower(run.state, run.teacher, run.data, run.order(0), run.hyper)
        return lowered.compile().cost_analysis()["flops"]

    assert flops("encoder") < 0.6 * flops("none")


def test_mlp_head_trains_with_dropout_that_differs_between_steps():
    run = tiny.Run(tiny.parts(tiny.METHODS["cross_entropy"], model={"head": "mlp"}, kind="none"))
    run.hyper = run.hyper.replace(learning_rate=0 * run.hyper.learning_rate)
    order = run.order(0)
    losses = []
    for _ in range(2):
        run.state, scalars = run.compiled(run.state, run.teacher, run.data, order, run.hyper)
        losses.append(float(scalars["loss"]))
    assert losses[0] != losses[1]


def test_the_seed_decides_the_initial_parameters():
    made = tiny.parts(tiny.METHODS["kd"])
    first, again, other = (tiny.Run(made, seed=s).state.params for s in (0, 0, 1))
    assert tiny.identical(first, again)
    assert not tiny.identical(first, other)


def test_evaluation_ignores_what_the_mask_leaves_out():
    made = tiny.parts(tiny.METHODS["kd"])
    run = tiny.Run(made)
    variables = {"params": run.state.params["student"], "batch_stats": run.state.stats["student"]}
    method_variables = steps.MethodVariables(run.state.params["method"], run.state.stats["method"])
    step = jax.jit(
        lambda index, mask: steps.eval_step(variables, method_variables, run.teacher, run.data, index, mask, parts=made)
    )
    index = jnp.arange(16)
    kept = step(index.at[8:].set(0), index < 8)
    assert kept["images"] == 8
    whole = step(index, index < 16)
    rest = step(jnp.roll(index, -8).at[8:].set(0), index < 8)
    for name in whole:
        np.testing.assert_allclose(kept[name] + rest[name], whole[name], rtol=1e-5)
