"""What every method adds to a step, as XLA counts it, and what it reads: a line per method in docs/methods/costs.jsonl.

usage: python launch/method_costs.py [METHOD ...]

The pair is ResNet-56 and ResNet-20 at 32 pixels, 64 images of 100 classes, a training set of 50,000. Counted are the
method's terms alone, with their gradient by what the student reports and by the method's own parameters; the line
`networks` has the two networks: the teacher's forward pass, the student's with its gradient. Nothing runs, everything
is compiled for the CPU. A method that has a line of this version of JAX and of the same options is passed over.
"""

import datetime
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import methods, models
from kd_jax.config.published import PUBLISHED
from kd_jax.types import Batch, Context, MethodVariables, Networks, Outputs, View

LINES = Path(__file__).parents[1] / "docs" / "methods" / "costs.jsonl"
STUDENT, TEACHER, PIXELS, IMAGES, CLASSES, EXAMPLES = "resnet20", "resnet56", 32, 64, 100, 50_000
NETWORKS = {name: models.create(name, CLASSES) for name in (STUDENT, TEACHER)}
MAPS = {"features": "feature", "preactivations": "preactivation"}  # fields whose stages are named one by one


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def reported(name: str) -> tuple[Any, Outputs]:
    """The shapes of a network's variables, and of what it reports."""
    network, images = NETWORKS[name], shape(IMAGES, PIXELS, PIXELS, 3)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    return variables, jax.eval_shape(lambda v, x: network.apply(v, x, train=False)[0], variables, images)


def inputs(views: int) -> dict[str, Any]:
    """The shapes of all that a method may read."""
    ids = shape(IMAGES, dtype=jnp.int32)
    batch = Batch(shape(IMAGES, PIXELS, PIXELS, 3), ids, shape(IMAGES, CLASSES), ids, ids)
    (student_variables, student), (teacher_variables, teacher) = map(reported, (STUDENT, TEACHER))
    return {
        "batch": (batch,) * views,
        "student": (student,) * views,
        "teacher": (teacher,) * views,
        "networks": (student_variables, teacher_variables),
        "step": shape(dtype=jnp.int32),
        "rng": jax.eval_shape(lambda: jax.random.key(0)),
        "train_labels": shape(EXAMPLES, dtype=jnp.int32),
    }


def context(seen: Mapping[str, Any]) -> Context:
    student, teacher = ((NETWORKS[name], own) for name, own in zip((STUDENT, TEACHER), seen["networks"], strict=True))
    return Context(
        tuple(map(View, seen["batch"], seen["student"], seen["teacher"])),
        step=seen["step"],
        rng=seen["rng"],
        networks=Networks(student, teacher),
        num_examples=EXAMPLES,
        steps_per_epoch=EXAMPLES // IMAGES,
        train_labels=seen["train_labels"],
    )


def size(tree: Any, of: str = "size") -> int:
    return sum(int(np.prod(x.shape)) * (1 if of == "size" else x.dtype.itemsize) for x in jax.tree.leaves(tree))


def counted(function: Any, *arguments: Any) -> dict[str, float]:
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    return {"flops": compiled.cost_analysis().get("flops", 0.0), "temp_bytes": memory.temp_size_in_bytes}


def of_method(terms: Mapping[str, Any]) -> dict[str, Any]:
    method = methods.create(terms, steps_per_epoch=EXAMPLES // IMAGES)
    seen = inputs(method.views)

    def begin(seen: Mapping[str, Any]) -> MethodVariables:
        return method.init(jax.random.key(0), context(seen))

    start: MethodVariables = jax.eval_shape(begin, seen)

    def loss(params: Any, student: Any, own: Any, state: Any, others: Mapping[str, Any]) -> tuple[Any, Any]:
        networks = (own, others["networks"][1])
        losses, state = method.apply(
            MethodVariables(params, state), context({**others, "student": student, "networks": networks})
        )
        return sum(losses.values()), state

    def all_of_it(seen: Mapping[str, Any], params: Any, state: Any) -> Any:
        return loss(params, seen["student"], seen["networks"][0], state, seen), begin(seen)

    arguments = (start.params, seen["student"], seen["networks"][0], start.state, seen)
    return {
        "parameters": size(start.params),
        "state_bytes": size(start.state, "bytes"),
        **counted(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), *arguments),
        "views": method.views,
        "needs_teacher": method.needs_teacher,
        "reads": reads(all_of_it, seen, *start),
    }


def reads(program: Any, seen: Mapping[str, Any], *others: Any) -> list[str]:
    """What of `seen` a program depends on, as "teacher.logits"."""
    jaxpr = jax.make_jaxpr(program)(seen, *others).jaxpr
    live = {id(x) for x in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(x) in live for x in equation.outvars):
            live |= {id(x) for x in equation.invars}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(seen)]
    used = zip(paths, jaxpr.invars[: len(paths)], strict=True)
    return list(dict.fromkeys(called(path) for path, x in used if id(x) in live))


def called(path: tuple[Any, ...]) -> str:
    first, *rest = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path)
    if first == "networks":
        return f"{('student', 'teacher')[rest[0]]}.network"
    if first not in ("batch", "student", "teacher"):
        return first
    _, field, *index = rest  # the first is the view
    return f"{first}.{MAPS[field]}:{index[0]}" if field in MAPS else f"{first}.{field}"


def of_networks() -> dict[str, Any]:
    (student, _), (teacher, _) = map(reported, (STUDENT, TEACHER))

    def loss(params: Any, stats: Any, teacher: Any, images: Any) -> Any:
        outputs, stats = NETWORKS[STUDENT].apply({"params": params, "batch_stats": stats}, images, train=True)
        taught, _ = NETWORKS[TEACHER].apply(teacher, images, train=False)
        return jnp.square(outputs.logits - taught.logits).sum(), stats

    arguments = (student["params"], student["batch_stats"], teacher, shape(IMAGES, PIXELS, PIXELS, 3))
    return {
        "parameters": size(student["params"]),
        "state_bytes": size(student["batch_stats"], "bytes"),
        **counted(jax.value_and_grad(loss, has_aux=True), *arguments),
    }


def own_terms(name: str) -> dict[str, Any]:
    """The published options of the method's own term."""
    record = PUBLISHED.get(name)
    options = dict(record.cifar100.get(name, {})) if record else {}
    return {name: {key: x for key, x in options.items() if not key.endswith("epochs") and key != "weight"}}


def main(names: list[str]) -> None:
    stamp = {"jax": importlib.metadata.version("jax"), "date": datetime.date.today().isoformat()}
    lines = [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []
    known = {line["method"]: line for line in lines}
    for name in names or ["networks", *methods.METHODS]:
        terms = own_terms(name)
        if (old := known.get(name)) and (old["terms"], old["jax"]) == (json.loads(json.dumps(terms)), stamp["jax"]):
            continue
        print(name, flush=True)
        found = of_networks() if name == "networks" else of_method(terms)
        known[name] = {"method": name, "terms": terms, **found, **stamp}
        LINES.write_text("".join(f"{json.dumps(line)}\n" for line in known.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
