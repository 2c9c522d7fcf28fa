"""Losses and methods against what the authors' PyTorch code computes, as `record_originals.py` recorded it.

In float64, so that the formulas alone are compared. What a case's inputs are is in `derived`.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses, methods
from kd_jax.types import MethodVariables, Outputs
from tests.methods import derived
from tests.methods.numeric import context

FOLDER = Path(__file__).parent
Inputs = np.ndarray | list[np.ndarray]
Loss = Callable[[Inputs], jax.Array]  # of what the student reports, in PyTorch's layout


@functools.cache
def recordings() -> dict[str, dict[str, np.ndarray]]:
    """{repository: {"METHOD/CASE/value": ...}}"""
    return {path.stem: dict(np.load(path)) for path in sorted((FOLDER / "originals").glob("*.npz"))}


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    return {key: x for arrays in recordings().values() for key, x in arrays.items() if "/" in key}


CASES = sorted({"/".join(key.split("/")[:2]) for key in recorded()})


class Case:
    """The inputs and options of a case."""

    def __init__(self, name: str):
        self.name = name
        self.method = name.split("/")[0]
        self.options = derived.CASES[name]
        self.student = derived.inputs(name, "student")
        self.teacher = derived.inputs(name, "teacher") if "teacher" in self.options else None

    @property
    def labels(self) -> np.ndarray:
        return derived.labels(self.name, self.teacher)


def ours(x: Inputs) -> jax.Array | list[jax.Array]:
    """Maps [B, c, h, w] as [B, h, w, c]; anything else as it is."""
    if isinstance(x, list):
        return [ours(one) for one in x]
    return jnp.moveaxis(jnp.asarray(x), 1, -1) if x.ndim == 4 else jnp.asarray(x)


def plain(loss: Callable, *options: str, labels: bool = False, on: Callable = ours) -> Callable[[Case], Loss]:
    """The mean of a function of both networks, with the case's options of these names."""

    def of_case(case: Case) -> Loss:
        told = {name: case.options[name] for name in options}
        last = (case.labels,) if labels else ()
        return lambda student: loss(on(student), on(case.teacher), *last, **told).mean()

    return of_case


def standardized(x: np.ndarray) -> jax.Array:
    return losses.standardize(jnp.asarray(x))


def reports(x: Inputs) -> Outputs:
    """What a network reports that has these maps, or this embedding."""
    parts = ours(x) if isinstance(x, list) else [ours(x)]
    maps = tuple(part for part in parts if part.ndim == 4)
    pooled = next((part for part in parts if part.ndim == 2), None)
    pooled = maps[-1].mean((1, 2)) if pooled is None else pooled
    return Outputs(jnp.zeros((len(parts[0]), 5)), maps, maps, pooled, pooled)


def adapted(method: str, parameters: dict[str, str], **options) -> Callable[[Case], Loss]:
    """A method with adapters. `parameters` says of each one in Flax what it is in PyTorch, behind the case's name."""

    def of_case(case: Case) -> Loss:
        made = methods.create({method: options})

        def seen(student):
            return context(reports(student), reports(case.teacher))

        shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), seen(case.student)))
        variables = MethodVariables(derive(case.name, shapes.params, parameters), zeros(shapes.state))
        return lambda student: made.apply(variables, seen(student))[0][method]

    return of_case


def zeros(shapes):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def derive(prefix: str, shapes, names: dict[str, str]):
    """The parameters of a method's only term. A name that begins with ~ is that of a transposed convolution."""
    ((term, shapes),) = shapes.items()
    leaves = flax.traverse_util.flatten_dict(shapes, sep="/")
    assert sorted(leaves) == sorted(names)
    values = {key: derived_leaf(prefix, leaf.shape, names[key]) for key, leaf in leaves.items()}
    return {term: flax.traverse_util.unflatten_dict(values, sep="/")}


def derived_leaf(prefix: str, shape: tuple[int, ...], name: str) -> jax.Array:
    if name.startswith("~"):
        height, width, own, others = shape
        x = derived.parameter(prefix + name[1:], (own, others, height, width))
        return jnp.asarray(x.transpose(2, 3, 0, 1)[::-1, ::-1])
    if len(shape) == 4:
        height, width, own, others = shape
        return jnp.asarray(derived.parameter(prefix + name, (others, own, height, width)).transpose(2, 3, 1, 0))
    return jnp.asarray(derived.parameter(prefix + name, shape[::-1]).T)


def norm(ours: str, theirs: str) -> dict[str, str]:
    """A batch normalization's parameters."""
    return {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def linear(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/kernel": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def mlkd(case: Case) -> Loss:
    """The losses of one view, without the masks and mistaken views of the official step."""
    return plain(losses.mlkd, "temperatures")(case)


def nce(case: Case) -> Loss:
    return lambda x: losses.nce(jnp.exp(x[:, 0]), jnp.exp(x[:, 1:]), num_examples=case.options["num_examples"]).mean()


def fitnet(case: Case) -> Loss:
    """The original's convolution has a bias, which the batch normalization behind it takes away again."""
    transposed = "~" if case.name.endswith("twice") else ""
    parameters = {"regressor/conv/kernel": f"{transposed}/regressor.conv.weight"}
    return adapted("fitnet", parameters | norm("regressor/bn", "/regressor.bn"), stage=0)(case)


def crd(case: Case) -> Loss:
    """With the recording's negatives in the place of drawn ones. The second case goes on from the first's memory."""
    options = {name: case.options[name] for name in ("features", "negatives")}
    made = methods.create({"crd": options})

    def seen(name, student):
        ids, _ = derived.drawn_pairs(name)
        size = case.options["num_examples"]
        teacher = reports(derived.inputs(name, "teacher"))
        train_labels = jnp.arange(size)
        given = context(reports(student), teacher, ids % 5, num_examples=size, train_labels=train_labels)
        (view,) = given.views
        batch = view.batch._replace(ids=jnp.asarray(ids))
        return dataclasses.replace(given, views=(view._replace(batch=batch),))

    def step(name, variables, student):
        _, pairs = derived.drawn_pairs(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kd_jax.methods.contrastive.draw_negatives", lambda *_: jnp.asarray(pairs[:, 1:]))
            terms, state = made.apply(variables, seen(name, student))
        return terms["crd"], MethodVariables(variables.params, state)

    def loss(student):
        shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), seen(case.name, case.student)))
        names = linear("student_embed", ".embed_s.linear") | linear("teacher_embed", ".embed_t.linear")
        state = zeros(shapes.state)
        memory = state["crd"]["memory"]
        for side, theirs in (("student", "memory_v1"), ("teacher", "memory_v2")):
            memory[f"{side}_bank"] = jnp.asarray(derived.array(f"crd.{theirs}", memory[f"{side}_bank"].shape, 0.5))
            memory[f"{side}_scale"] -= 1
        variables = MethodVariables(derive("crd", shapes.params, names), state)
        if case.name == "crd/second":
            _, variables = step("crd/first", variables, derived.inputs("crd/first", "student"))
        return step(case.name, variables, student)[0]

    return loss


TERMS: dict[str, Callable[[Case], Loss]] = {
    "kd": plain(losses.kd, "temperature"),
    "kd_standardized": plain(losses.kd, "temperature", on=standardized),
    "dkd": plain(losses.dkd, "alpha", "beta", "temperature", labels=True),
    "mlkd": mlkd,
    "rkd_distance": plain(losses.rkd_distance),
    "rkd_angle": plain(losses.rkd_angle),
    "nce": nce,
    "fitnet": fitnet,
    "crd": crd,
}
# Recorded, and not compared: why.
OTHERWISE: dict[str, str] = {}

COMPARED = [case for case in CASES if case.split("/")[0] in TERMS and case not in OTHERWISE]


@pytest.mark.parametrize("name", COMPARED)
def test_a_loss_and_its_gradient_are_the_originals(name):
    with jax.enable_x64(True):
        case = Case(name)
        value, gradient = jax.jit(jax.value_and_grad(TERMS[case.method](case)))(case.student)
    np.testing.assert_allclose(value, recorded()[f"{name}/value"], rtol=1e-6)
    parts = {f"/{i}": x for i, x in enumerate(gradient)} if isinstance(gradient, list) else {"": gradient}
    for part, x in parts.items():
        expected = recorded()[f"{name}/gradient{part}"]
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_what_several_repositories_compute_is_the_same():
    for arrays in recordings().values():
        for key in arrays.keys() & recorded().keys():
            np.testing.assert_allclose(arrays[key], recorded()[key], rtol=1e-12, atol=1e-15, err_msg=key)


def test_the_recordings_are_of_the_commits_that_the_script_names():
    script = (FOLDER / "record_originals.py").read_text()
    for repository, arrays in recordings().items():
        assert str(arrays["repository"]) == repository
        assert f"{repository} {arrays['commit']}" in " ".join(script.split())
