"""Losses and methods against what the authors' PyTorch code computes, as `record_originals.py` recorded it.

In float64, so that the formulas alone are compared. What a case's inputs are is in `derived`.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses, methods
from kd_jax.methods import original
from kd_jax.types import Head, MethodVariables, Norm, Outputs
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


class Case:
    """The inputs and options of a case."""

    def __init__(self, name: str):
        self.name = name
        self.method = name.split("/")[0]
        self.options = derived.CASES[name]
        self.student = derived.inputs(name, "student")
        self.teacher = derived.inputs(name, "teacher") if "teacher" in self.options else None

    def told(self, *names: str, **renamed: str) -> dict[str, Any]:
        """Options of these names; `ours="theirs"` where ours is another."""
        return {ours: self.options[theirs] for ours, theirs in {**{name: name for name in names}, **renamed}.items()}

    @property
    def labels(self) -> np.ndarray:
        return derived.labels(self.name, self.teacher)


def ours(x: Inputs) -> Any:
    """Maps [B, c, h, w] as [B, h, w, c]; anything else as it is."""
    if isinstance(x, list):
        return [ours(one) for one in x]
    return jnp.moveaxis(jnp.asarray(x), 1, -1) if x.ndim == 4 else jnp.asarray(x)


def plain(
    loss: str,
    *names: str,
    labels: bool = False,
    on: Callable = ours,
    factor: Callable[[dict[str, Any]], float] = lambda options: 1.0,
    **renamed: str,
) -> Callable[[Case], Loss]:
    """The mean of a function of both networks, with the case's options of these names.

    `factor` of the options is what the original has beside it, here the weight of a term.
    """

    def of_case(case: Case) -> Loss:
        function, options = getattr(losses, loss), case.told(*names, **renamed)
        last = (case.labels,) if labels else ()
        scale = factor(case.options)
        return lambda student: scale * function(on(student), on(case.teacher), *last, **options).mean()

    return of_case


def standardized(x: np.ndarray) -> jax.Array:
    return losses.standardize(jnp.asarray(x))


def reports(x: Inputs, *, stem: bool = True, head: Head | None = None, norms: tuple[Norm, ...] = ()) -> Outputs:
    """What a network reports that has these maps behind its stem's, or this embedding, or both."""
    parts = ours(x) if isinstance(x, list) else [ours(x)]
    maps = tuple(part for part in parts if part.ndim == 4)
    pooled = next((part for part in parts if part.ndim == 2), None)
    pooled = maps[-1].mean((1, 2)) if pooled is None else pooled
    logits = jnp.zeros((len(pooled), 5)) if head is None else pooled @ head.kernel + head.bias
    maps = (jnp.zeros((len(pooled), 1, 1, 1)),) * (stem and bool(maps)) + maps
    return Outputs(logits, maps, maps, pooled, pooled, head, norms, maps[-1] if maps else None)


def logits_of(logits: np.ndarray, embedding: np.ndarray | None = None) -> Outputs:
    logits = jnp.asarray(logits)
    return Outputs(logits, embedding=logits if embedding is None else jnp.asarray(embedding))


def adapted(
    case: Case,
    method: str,
    parameters: dict[str, str],
    *,
    student: Callable[[Inputs], Outputs] = reports,
    teacher: Callable[[Inputs], Outputs] = reports,
    part: str = "",
    context: Callable[..., Any] = context,
    **options,
) -> Loss:
    """A method with adapters. `parameters` says of each in Flax what it is in PyTorch, behind the case's name."""
    made = methods.create({method: options})

    def seen(x):
        return context(student(x), teacher(case.teacher))

    shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), seen(case.student)))
    variables = MethodVariables(derive(case.name, shapes.params, parameters), zeros(shapes.state))
    return lambda x: made.apply(variables, seen(x))[0][method + part]


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


def kernel(own: str, theirs: str) -> dict[str, str]:
    return {f"{own}/kernel": f"{theirs}.weight"}


def layer(own: str, theirs: str) -> dict[str, str]:
    """A kernel and a bias."""
    return kernel(own, theirs) | {f"{own}/bias": f"{theirs}.bias"}


def norm(own: str, theirs: str) -> dict[str, str]:
    """A batch normalization's parameters."""
    return {f"{own}/scale": f"{theirs}.weight", f"{own}/bias": f"{theirs}.bias"}


def regressor(own: str, theirs: str, *, transposed: bool = False) -> dict[str, str]:
    """The original's convolution has a bias, which the batch normalization behind it takes away again."""
    return kernel(f"{own}/conv", f"{'~' * transposed}{theirs}.conv") | norm(f"{own}/bn", f"{theirs}.bn")


def derived_head(case: Case, name: str, width: int, classes: int) -> Head:
    weight = derived.parameter(f"{case.name}/{name}.weight", (classes, width))
    return Head(jnp.asarray(weight.T), jnp.asarray(derived.parameter(f"{case.name}/{name}.bias", (classes,))))


def nce(case: Case) -> Loss:
    return lambda x: losses.nce(jnp.exp(x[:, 0]), jnp.exp(x[:, 1:]), **case.told("num_examples")).mean()


def fitnet(case: Case) -> Loss:
    return adapted(case, "fitnet", regressor("regressor", "/regressor", transposed="twice" in case.name), stage=-1)


def crd(case: Case) -> Loss:
    """With the recording's negatives in the place of drawn ones. The second case goes on from the first's memory."""
    made = methods.create({"crd": case.told("features", "negatives")})

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
        names = layer("student_embed", ".embed_s.linear") | layer("teacher_embed", ".embed_t.linear")
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


def simkd(case: Case) -> Loss:
    names = {}
    for i in range(3):
        names |= kernel(f"projector/conv{i + 1}", f".transfer.{3 * i}") | norm(
            f"projector/bn{i + 1}", f".transfer.{3 * i + 1}"
        )
    head = Head(jnp.zeros((case.teacher.shape[1], 5)), jnp.zeros(5))
    return adapted(case, "simkd", names, teacher=functools.partial(reports, head=head), **case.told("factor"))


def beside_labels(loss: Callable, kd_weight: str, label_weight: Callable[[float], float]) -> Callable[[Case], Loss]:
    """The sum with the cross entropy, which the original's losses are."""

    def of_case(case: Case) -> Loss:
        weight = case.options[kd_weight]
        targets = jnp.asarray(np.eye(case.teacher.shape[1])[case.labels])

        def both(x):
            own = loss(x, jnp.asarray(case.teacher), **case.told("temperature")).mean()
            return weight * own + label_weight(weight) * losses.cross_entropy(x, targets).mean()

        return both

    return of_case


def wkd_logits(case: Case) -> Loss:
    prototypes, kappa = (case.options[name] for name in ("prototypes", "sharpening"))
    prototypes = derived.array(f"{case.name}/prototypes", prototypes)
    cost = losses.class_cost(jnp.asarray(prototypes.T), kappa=kappa) if kappa else derived.cosine_cost(prototypes, 0.0)
    options = case.told("gamma", "temperature", regularization="reg", iterations="steps")
    return lambda x: losses.wkd_logits(x, case.teacher, case.labels, cost=jnp.asarray(cost), **options).mean()


def abkd(case: Case) -> Loss:
    """Where alpha, beta or their sum is zero, the original divides by the other once, the formula's limit twice."""
    alpha, beta = case.options["alpha"], case.options["beta"]
    scale = 1.0 if alpha * beta * (alpha + beta) else alpha or beta or 1.0
    return plain("abkd", "alpha", "beta", "temperature", factor=lambda options: scale)(case)


def ctkd(case: Case) -> Loss:
    return lambda x: ctkd_term(case, jnp.asarray(case.options["theta"]), x, {-0.5: 4, -1.0: 9}[case.options["factor"]])


def ctkd_term(case: Case, theta, student, step) -> jax.Array:
    """At a step, of which each is an epoch."""
    made = methods.create({"ctkd": case.told(t_start="start", t_end="end")})
    seen = context(logits_of(student), logits_of(case.teacher), step=step)
    return made.apply(MethodVariables({"ctkd": {"theta": theta}}, {"ctkd": {}}), seen)[0]["ctkd"]


def crld(case: Case) -> Loss:
    within, across = case.options["weights"]
    weak, strong = case.options["confidences"]
    confidences = {"weak_confidence": weak, "strong_confidence": strong}
    made = methods.create({"crld": {"within": within, "across": across, **confidences, **case.told("temperature")}})

    def loss(student):
        views = [context(*map(logits_of, view)).views[0] for view in zip(student, case.teacher, strict=True)]
        seen = dataclasses.replace(context(logits_of(student[0])), views=tuple(views))
        terms, _ = made.apply(made.init(jax.random.key(0), seen), seen)
        return sum(terms.values())

    return loss


def deit(case: Case) -> Loss:
    """The soft form of the original is divided by the number of classes."""
    kind, (_, classes) = case.name.split("/")[1], case.teacher.shape
    names = layer("head/linear", "/head")
    student = functools.partial(logits_of, np.zeros(case.teacher.shape))
    options = {"distillation": kind, **case.told("temperature")}
    loss = adapted(case, "deit", names, student=student, teacher=logits_of, **options)
    return lambda x: loss(x) / (classes if kind == "soft" else 1)


def sdd(case: Case) -> Loss:
    """The original averages the scales 1 and 2 from the scale 4, which is the same where it divides the map."""
    names, inner = ("temperature", "scales"), "kd"
    if "beta" in case.options:
        names, inner = (*names, "alpha", "beta"), "dkd"
    made = methods.create({"sdd": {"inner": inner, **case.told(*names)}})

    def report(side, x):
        return reports(x, head=derived_head(case, f"{side}_head", case.options[side][1], case.options["classes"]))

    teacher = report("teacher", case.teacher)
    labels = derived.labels(case.name, np.asarray(teacher.logits))

    def loss(student):
        seen = context(report("student", student), teacher, labels)
        return made.apply(MethodVariables({"sdd": {}}, {"sdd": {}}), seen)[0]["sdd"]

    return loss


def cc(case: Case) -> Loss:
    if "features" not in case.options:
        return plain("cc")(case)
    names = layer("student_embed", "/student_embed.linear") | layer("teacher_embed", "/teacher_embed.linear")
    return adapted(case, "cc", names, **case.told("features"))


def nd(case: Case) -> Loss:
    classes = case.options["num_classes"]
    means = derived.array(f"{case.name}/centers", (classes, case.teacher.shape[1]))
    labels = derived.integers(f"{case.name}/labels", case.teacher.shape[:1], classes)
    return lambda x: losses.nd(x, jnp.asarray(case.teacher), jnp.asarray(means[labels])).mean()


def srd(case: Case) -> Loss:
    return adapted(case, "srd", layer("projector", ".embed"))


def pefd(case: Case) -> Loss:
    """The original's three layers side by side."""
    width, own = case.teacher.shape[1], case.student.shape[1]
    heads = [derived_head(case, f"projector{i}.linear", own, width) for i in range(3)]
    params = {
        "projectors": {name: jnp.concatenate([getattr(head, name) for head in heads], -1) for name in Head._fields}
    }
    made = methods.create({"pefd": {}})
    variables = MethodVariables({"pefd": params}, {"pefd": {}})
    return lambda x: made.apply(variables, context(reports(x), reports(case.teacher)))[0]["pefd"]


def vid(case: Case) -> Loss:
    names = {"stage1_scale": "/vid.log_scale"}
    for i in range(3):
        names |= kernel(f"stage1_conv{i + 1}", f"/vid.regressor.{2 * i}")
    return adapted(case, "vid", names)


def ab(case: Case) -> Loss:
    """The original's factor of 3 / 1000 is here the weight of the term; without a connector, the loss alone."""
    if case.name == "ab/plain":
        return lambda x: 0.003 * losses.ab(ours(x)[0], ours(case.teacher)[0]).mean()
    names = {}
    for i in range(2):
        names |= regressor(f"stage{i + 1}", f"/connector.connectors.{i}")
    loss = adapted(case, "ab", names)
    return lambda x: 0.003 * loss(x)


def fsp(case: Case) -> Loss:
    both = functools.partial(reports, stem=False)
    return adapted(case, "fsp", {}, student=both, teacher=both)


def ft(case: Case) -> Loss:
    """The second phase, or of "reconstruction" the first, where the recording's map is the teacher's."""
    names = {}
    for i in range(3):
        names |= layer(f"encoder/conv{i + 1}", f"/paraphraser.encoder.{3 * i}")
        names[f"decoder/conv{i + 1}/kernel"] = f"~/paraphraser.decoder.{3 * i}.weight"
        names[f"decoder/conv{i + 1}/bias"] = f"/paraphraser.decoder.{3 * i}.bias"
        names |= layer(f"translator/conv{i + 1}", f"/translator.encoder.{3 * i}")
        names |= norm(f"translator/bn{i + 1}", f"/translator.encoder.{3 * i + 1}")
    if case.name == "ft/reconstruction":
        case.teacher = case.student
        return adapted(case, "ft", names, part="/paraphraser", paraphraser_epochs=1, **case.told("rate"))
    return adapted(case, "ft", names, part="/factor", paraphraser_epochs=0, **case.told("rate"))


def ofd(case: Case) -> Loss:
    norms, names = [Norm(jnp.ones(1), jnp.zeros(1))], {}  # the first is the stem's
    for i, maps in enumerate(case.teacher):
        norms.append(Norm(*map(jnp.asarray, derived.norm(f"{case.name}/norm/{i}", maps.shape[1]))))
        names |= kernel(f"stage{i + 1}/conv", f"/connectors.connectors.{i}.0")
        names |= norm(f"stage{i + 1}/bn", f"/connectors.connectors.{i}.1")
    return adapted(case, "ofd", names, teacher=functools.partial(reports, norms=tuple(norms)))


def reviewkd(case: Case) -> Loss:
    names, count = {}, len(case.student)
    for stage in range(1, count + 1):
        own, theirs = f"abf{stage}", f".abfs.{count - stage}"  # from the embedding on
        for i in (1, 2):
            names |= kernel(f"{own}/conv{i}", f"{theirs}.conv{i}.0") | norm(f"{own}/bn{i}", f"{theirs}.conv{i}.1")
        if stage < count:
            names |= layer(f"{own}/attention", f"{theirs}.att_conv.0")
    return adapted(case, "reviewkd", names)


def mgd(case: Case) -> Loss:
    """With the recording's mask in the place of a drawn one; the weight, here the term's, is in the original's loss."""
    names = layer("conv1", ".generation.0") | layer("conv2", ".generation.2")
    if case.student.shape != case.teacher.shape:
        names |= layer("align", ".align")
    loss = adapted(case, "mgd", names, masked=case.options["ratio"])
    uniform = derived.generator(f"{case.name}/uniform").random((*case.teacher.shape[:2], 1, 1))
    kept = ours(uniform >= case.options["ratio"])

    def masked(x):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "bernoulli", lambda *_: kept)
            return case.options["alpha"] * loss(x)

    return masked


def ickd(case: Case) -> Loss:
    return adapted(case, "ickd", kernel("conv", ".embed_s.conv2d") | norm("bn", ".embed_s.l2norm"))


def wkd_features(case: Case) -> Loss:
    return adapted(case, "wkd_features", regressor("regressor", "/regressor"), **case.told("ratio", "grid"))


def srrl(case: Case) -> Loss:
    names = kernel("projector/conv", "/projector.Connectors.0") | norm("projector/bn", "/projector.Connectors.1")
    head = derived_head(case, "head", case.teacher.shape[1], case.options["classes"])
    return adapted(case, "srrl", names, teacher=functools.partial(reports, head=head), **case.told("alpha", "beta"))


TERMS: dict[str, Callable[[Case], Loss]] = {
    "kd": plain("kd", "temperature"),
    "kd_standardized": plain("kd", "temperature", on=standardized),
    "dkd": plain("dkd", "alpha", "beta", "temperature", labels=True),
    "dkd_standardized": plain("dkd", "alpha", "beta", "temperature", labels=True, on=standardized),
    # One view, without the masks and the mistaken views of the official step.
    "mlkd": plain("mlkd", "temperatures"),
    "rkd_distance": plain("rkd_distance"),
    "rkd_angle": plain("rkd_angle"),
    "nce": nce,
    "fitnet": fitnet,
    "crd": crd,
    "simkd": simkd,
    "original_kd": beside_labels(original.kd, "alpha", lambda alpha: 1 - alpha),
    "original_rkd_distance": beside_labels(original.rkd_distance, "weight", lambda weight: 1.0),
    "original_rkd_angle": beside_labels(original.rkd_angle, "weight", lambda weight: 1.0),
    "nkd": plain("nkd", "gamma", "temperature", labels=True),
    "wsld": plain("wsld", "temperature", labels=True, factor=lambda options: options["alpha"]),
    "rld": plain("rld", "alpha", "beta", "temperature", labels=True, label_temperature="alpha_temperature"),
    "rld_standardized": plain(
        "rld",
        "alpha",
        "beta",
        "temperature",
        labels=True,
        label_temperature="alpha_temperature",
        on=standardized,
    ),
    "swap": plain("swapped_kd", "temperature", labels=True),
    "wkd_logits": wkd_logits,
    "dist": plain("dist", "beta", "gamma", temperature="tau"),
    "skd": plain("skd", "temperature", "ridge"),
    "ttm": plain("ttm", gamma="exponent"),
    "wttm": plain("wttm", gamma="exponent"),
    "normkd": plain("normkd", "temperature"),
    "luminet": plain("luminet", "temperature", factor=lambda options: options["alpha"] ** 2),
    "abkd": abkd,
    "bce": plain("bce"),
    "binary_kd": plain("binary_kd", "norm", "temperature"),
    "ctkd": ctkd,
    "crld": crld,
    "deit": deit,
    "sdd": sdd,
    "sp": plain("sp"),
    "pkt": plain("pkt"),
    "cc": cc,
    "nd": nd,
    "srd": srd,
    "pefd": pefd,
    "vkd": plain("vkd"),
    "at": plain("at"),
    "nst": plain("nst"),
    "vid": vid,
    "ab": ab,
    "fsp": fsp,
    "ft": ft,
    "ofd": ofd,
    "reviewkd": reviewkd,
    "mgd": mgd,
    "ickd": ickd,
    "wkd_features": wkd_features,
    "srrl": srrl,
    "catkd": plain("catkd", "size", "normalize"),
}
VALUE_ONLY = {"ft/reconstruction"}  # its input is the teacher's map, which has no gradient here

COMPARED = sorted(name for name in derived.CASES if name.split("/")[0] in TERMS)


@pytest.mark.parametrize("name", COMPARED)
def test_a_loss_and_its_gradient_are_the_originals(name):
    with jax.enable_x64(True):
        case = Case(name)
        value, gradient = jax.jit(jax.value_and_grad(TERMS[case.method](case)))(case.student)
    np.testing.assert_allclose(value, recorded()[f"{name}/value"], rtol=1e-5)
    parts = {f"/{i}": x for i, x in enumerate(gradient)} if isinstance(gradient, list) else {"": gradient}
    for part, x in parts.items() if name not in VALUE_ONLY else ():
        expected = recorded()[f"{name}/gradient{part}"]
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["ctkd/warm", "ctkd/cool"])
def test_ctkds_temperature_moves_as_the_originals_from_epoch_to_epoch(name):
    with jax.enable_x64(True):
        case = Case(name)
        term = functools.partial(ctkd_term, case, student=case.student)
        theta = jnp.asarray(case.options["theta"])
        gradients = jax.jit(jax.vmap(jax.grad(lambda theta, step: term(theta, step=step)), (None, 0)))(
            theta, jnp.arange(12)
        )
    forward = recorded()[f"{name}/gradient of theta"] / case.options["factor"]
    expected = recorded()["ctkd/factor/value"] * forward
    np.testing.assert_allclose(gradients, expected, rtol=1e-5)


def test_every_recorded_case_is_compared():
    names = {"/".join(key.split("/")[:2]) for key in recorded()}
    assert names - {"ctkd/factor"} == set(COMPARED)  # that one is no loss, and compared above


def test_what_several_repositories_compute_is_the_same():
    for arrays in recordings().values():
        for key in arrays.keys() & recorded().keys():
            np.testing.assert_allclose(arrays[key], recorded()[key], rtol=1e-12, atol=1e-15, err_msg=key)


def test_the_recordings_are_of_the_commits_that_the_script_names():
    script = (FOLDER / "record_originals.py").read_text()
    for repository, arrays in recordings().items():
        assert str(arrays["repository"]) == repository
        assert f"{repository} {arrays['commit']}" in " ".join(script.split())
