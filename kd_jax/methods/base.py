"""From losses and modules to methods, and from methods to one."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import losses, registry
from kd_jax.errors import InputError, check_callable, choose, one_line
from kd_jax.keys import Kind, listing, traced, whole
from kd_jax.losses import masks
from kd_jax.types import (
    Array,
    Batch,
    Context,
    Head,
    Method,
    MethodVariables,
    Missing,
    Outputs,
    Terms,
    View,
    at_least_float32,
    no_others,
    student_logits,
)

Constructor = Callable[..., Method]  # (name of the term, **options) -> Method

TAPS = {
    "logits": "logits",
    "probabilities": "logits",
    "log_probabilities": "logits",
    "embedding": "embedding",
    "pooled": "pooled",
}
MAPS = {"feature": "features", "preactivation": "preactivations"}
STAGES = "stages"
ON = Kind(
    lambda v: type(v) is str or (isinstance(v, list | tuple) and bool(v) and all(type(x) is str for x in v)),
    f"one or a list of: {', '.join(TAPS)}, feature:N, preactivation:N, {STAGES}",
)
VIEWS = listing(whole(0, 100), least=1, expected="a list: numbers of views, the first being 0")
SIDES = ("student", "teacher", "targets", "labels")


def taps(outputs: Outputs, on: str | Sequence[str], who: str = "the network") -> list[Array]:
    """What each name of a list stands for (see `tap`); `stages` for every map but the stem's."""
    arrays = []
    for name in [on] if isinstance(on, str) else on:
        if name == STAGES:
            count = len(reported(outputs, "features", who))
            arrays += [stage_map(outputs, stage, who) for stage in range(1, count)]
        else:
            arrays.append(tap(outputs, name, who))
    return arrays


def tap(outputs: Outputs, on: str, who: str = "the network") -> Array:
    """What `on` names: a key of `TAPS`, or `feature:N` for the N-th map, the stem's being 0 and the last -1.

    `preactivation:N` is the same map before its last ReLU.

    Raises:
      InputError: for an unknown name, and where `who` does not report it.
    """
    check_tap(on)
    kind, _, stage = on.partition(":")
    if stage:
        return stage_map(outputs, int(stage), who, MAPS[kind])
    value = reported(outputs, TAPS[on], who)
    if on == "probabilities":
        return jax.nn.softmax(value)
    return jax.nn.log_softmax(value) if on == "log_probabilities" else value


def reported(outputs: Outputs, field: str, who: str) -> Any:
    """A field of `Outputs`; raises InputError where it is missing."""
    value = getattr(outputs, field)
    if isinstance(value, Missing):
        value.refuse()
    if field == "head" and not outputs.num_classes and not outputs.members:
        raise InputError(
            f"it reads the head of {who}, and a network without classes has none; expected a method of embeddings, such"
            " as 'embedding'"
        )
    if _is_missing(value):
        members = outputs.members.items() if outputs.members else ()
        report = sorted(name for name, member in members if not _is_missing(getattr(member, field)))
        if report and who == "the teacher":
            raise InputError(
                f"{who} is an ensemble and reports no {field} of its own; expected the term's `teacher`, one of:"
                f" {', '.join(report)}"
            )
        said = {name: x for name, x in outputs._asdict().items() if not isinstance(x, Missing)}
        has = ", ".join(name for name, x in said.items() if x is not None and len(x))
        raise InputError(f"{who} reports {has} and no {field}; expected a network that does, or a method without it")
    return value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and not len(value))


def stage_map(outputs: Outputs, stage: int, who: str, field: str = "features") -> Array:
    """The map [B, h, w, c] of a stage, at least float32: relations and norms lose too much in bfloat16."""
    maps = reported(outputs, field, who)
    if not -len(maps) <= stage < len(maps):
        last = len(maps) - 1
        kind = next(kind for kind, of in MAPS.items() if of == field)
        raise InputError(f"{who} has no {kind}:{stage}; expected {kind}:0 (the stem's map) to {kind}:{last}")
    return at_least_float32(maps[stage])


def linear_head(outputs: Outputs, who: str) -> tuple[Array, Head]:
    """The map [B, h, w, c] that the backbone ends with, and the final layer, which reads the averages of its channels.

    Raises:
      InputError: for a head that reads anything else.
    """
    head = reported(outputs, "head", who)
    last = outputs.last
    if last is None:
        raise InputError(f"{who}'s head reads no averaged map; expected a network with a linear head on one")
    if head.kernel.shape[0] != last.shape[-1]:
        raise InputError(
            f"{who}'s head reads {head.kernel.shape[0]} values, and its last map has {last.shape[-1]} channels;"
            " expected a network with a linear head on the averaged map"
        )
    return at_least_float32(last), Head(at_least_float32(head.kernel), at_least_float32(head.bias))


def stage_pairs(
    context: Context, field: str = "features", of_teacher: str | None = None, *, first: int = 1
) -> list[tuple[Array, Array]]:
    """The maps [B, h, w, c] of student and teacher at every stage from `first`, the stem being 0.

    Args:
      context: of the step.
      field, of_teacher: "features" or "preactivations", of the student and of the teacher (None for the same).
      first: stage.
    Raises:
      InputError: where the networks have not equally many, or too few.
    """
    sides = []
    for outputs, who, kind in (
        (context.student, "the student", field),
        (jax.lax.stop_gradient(context.teacher), "the teacher", of_teacher or field),
    ):
        count = len(reported(outputs, kind, who))
        sides.append([stage_map(outputs, stage, who, kind) for stage in range(first, count)])
    students, teachers = sides
    if len(students) != len(teachers) or len(students) < 2 - first:
        raise InputError(
            f"the student has {len(students)} maps to compare, and the teacher {len(teachers)}; expected equally many,"
            f" at least {2 - first}"
        )
    return list(zip(students, teachers, strict=True))


def check_tap(on: str) -> None:
    """Raises InputError for a name that `tap` does not know."""
    kind, _, stage = on.partition(":") if isinstance(on, str) else ("", "", "")
    if not (kind in MAPS and stage.removeprefix("-").isdecimal()):
        choose("on", on, (*TAPS, *(f"{kind}:N" for kind in MAPS)))


def check_taps(on: Any) -> None:
    """Raises InputError for names that `taps` does not know."""
    ON.check("on", on)
    for name in [on] if isinstance(on, str) else on:
        if name != STAGES:
            check_tap(name)


def labeled_mean(loss: Array, batch: Batch) -> Array:
    """The mean [] of a loss [B] over the images that have a label, each weighed as its class is.

    Every term that reads labels takes its mean here. What is divided by is the number of labeled images, not the sum of
    their weights as in PyTorch's cross entropy: that changes from batch to batch, so that an image would count for less
    beside a rare one, and the mean over micro-batches would be another. Without a label it is zero. A loss [] of the
    whole batch is taken as it is, and refused where images have weights.
    """
    where = batch.labels >= 0
    if batch.weights is not None:
        if not loss.ndim:
            raise InputError(
                "the loss is one number for the batch, in which no image can be weighed; expected [B], or"
                " train.class_weights 'none'"
            )
        loss = loss * batch.weights
    return masks.mean(masks.keep(where, loss) if loss.ndim else loss, where)


def from_loss(function: Callable[..., Array], *, on: str | tuple[str, ...] = "logits") -> Constructor:
    """Makes a method's constructor out of a plain function of arrays.

    Args:
      function: its positional parameters are named after what they are: `student...` and `teacher...` (see `tap`; the
        teacher's without gradient), `targets` [B, K] or `labels` [B]. Its keyword-only ones are the config's options.
        It returns [B] or []. With targets or labels, images without a label do not count: where it takes `where`, it
        is told which ones do.
      on: what the first two are by default, see `taps`.
    Returns:
      constructor(name, *, on, teacher_on, standardize, views, teacher_views, **options) -> Method with one term of
      that name. It is the sum over several `views` (numbers, the first augmentation being 0), where the teacher sees
      its own view of `teacher_views` (None: the same one), and over what `on` names, a list or
      `stages`, with what `teacher_on` names of the teacher at the same places (None: the same names).
    """
    parameters = check_callable("a loss", function)
    sides = [
        _side(function, p.name) for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    options = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name != "where"]
    takes_where = "where" in parameters
    labeled_only = bool({"targets", "labels"} & set(sides))
    if takes_where and not labeled_only and parameters["where"].default is inspect.Parameter.empty:
        raise InputError("a loss has the parameter 'where' (which images are labeled); expected targets or labels too")
    default = on

    def construct(
        name: str,
        *,
        on: Annotated[str | tuple[str, ...], ON] = default,
        teacher_on: Annotated[str | tuple[str, ...], ON] | None = None,
        standardize: bool = False,
        views: Annotated[tuple[int, ...], VIEWS] = (0,),
        teacher_views: Annotated[tuple[int, ...], VIEWS] | None = None,
        **chosen: Any,
    ) -> Method:
        of_teacher = on if teacher_on is None else teacher_on
        check_taps(on)
        check_taps(of_teacher)
        seen = tuple(views), tuple(views if teacher_views is None else teacher_views)
        for key, numbers in zip(("views", "teacher_views"), seen, strict=True):
            VIEWS.check(f"method.{name}.{key}", numbers)
        if len(seen[0]) != len(seen[1]):
            raise InputError(
                f"method.{name}.teacher_views is {list(seen[1])}; expected as many as views, {list(seen[0])}"
            )

        def side(outputs: Outputs, on: str | tuple[str, ...], who: str) -> list[Array]:
            values = taps(outputs, on, who)
            return [losses.standardize(value) for value in values] if standardize else values

        def loss_of(view: View, of_teacher_view: View, told: Mapping[str, Any]) -> Array:
            batch = view.batch
            students = side(view.student, on, "the student")
            teachers: list[Any] = [None] * len(students)
            if "teacher" in sides:
                teachers = jax.lax.stop_gradient(side(of_teacher_view.teacher_outputs, of_teacher, "the teacher"))
            if len(students) != len(teachers):
                raise InputError(
                    f"the student has {len(students)} maps or vectors at {on}, the teacher {len(teachers)} at"
                    f" {of_teacher}; expected as many, named one by one in the lists `on` and `teacher_on`"
                )
            where = batch.labels >= 0 if labeled_only else None
            told = {**told, **({"where": where} if takes_where and labeled_only else {})}
            total = jnp.zeros((), students[0].dtype)
            for student, teacher in zip(students, teachers, strict=True):
                values = {"student": student, "teacher": teacher, "targets": batch.targets, "labels": batch.labels}
                loss = function(*(values[name] for name in sides), **{**chosen, **told})
                loss = _checked(loss, len(batch.labels), of=function)
                if labeled_only:
                    total += labeled_mean(loss, batch)
                else:
                    total += masks.mean(masks.keep(None, loss) if loss.ndim else loss, None)
            return total

        def init(rng: Array, context: Context) -> MethodVariables:
            return MethodVariables({}, {})

        def apply(variables: MethodVariables, context: Context) -> tuple[Terms, Any]:
            pairs = [(context.views[own], context.views[other]) for own, other in zip(*seen, strict=True)]
            terms = [loss_of(*pair, context.options) for pair in pairs]
            return {name: sum(terms[1:], terms[0])}, variables.state

        return Method(
            init,
            apply,
            needs_teacher="teacher" in sides,
            needs_labels=frozenset({name}) if labeled_only else frozenset(),
            views=1 + max(map(max, seen)),
            carries=False,
            traced=traced(options, chosen),
        )

    own = {name: p for name, p in inspect.signature(construct).parameters.items() if p.kind is not p.VAR_KEYWORD}
    return _with_signature(construct, [*own.values(), *options], function)


def _checked(loss: Any, count: int | None = None, of: Any = None, part: str = "") -> Array:
    """A loss [], or with a count of images [B]; raises InputError for anything else.

    Args:
      of: the function or class that it comes from.
      part: its name, of several losses of one term.
    """
    name = f"the loss {part!r}" if part else "the loss"
    is_number = isinstance(loss, int | float | complex | np.generic | np.ndarray | jax.Array)
    if not is_number or jnp.shape(loss) not in ((), (count,)):
        what = f"{loss.dtype} {list(loss.shape)}" if is_number else f"of type {type(loss).__name__}"
        expected = f"[], or [{count}], one for each image" if count else "[]"
        raise InputError(f"{name} is {what}; expected {expected}{_where(of)}")
    if jnp.iscomplexobj(loss):
        what = loss.dtype if hasattr(loss, "dtype") else "complex"
        raise InputError(f"{name} is {what}; expected real numbers{_where(of)}")
    return jnp.asarray(loss)


def _where(function: Any) -> str:
    """Where a user's function stands, for the end of a line."""
    where = "" if function is None else registry.defined(function)
    return f" ({where})" if where else ""


def _side(function: Callable[..., Any], name: str) -> str:
    """Which side of a loss a parameter is."""
    for side in SIDES:
        if name.startswith(side):
            return side
    near = difflib.get_close_matches(name, SIDES, n=1)
    raise InputError(
        f"a loss has the parameter {name!r}; expected one that begins with {', '.join(SIDES)}"
        f"{f'; did you mean {near[0]!r}?' if near else ''}{_where(function)}"
    )


def from_module(module: type[nn.Module]) -> Constructor:
    """Makes a method's constructor out of a Flax module, for a method with adapters or memory.

    The module's `__call__(context)` returns one loss [], or several as {part: loss}, which become the terms NAME/PART.
    Its collection "params" is trained, every other one (batch statistics, memory, a copied head) is state. Its fields
    are the config's options. It draws from `self.make_rng("method")`.

    Class attributes say what it asks of the step: `needs_teacher` (by default True), `views` (1), `optimizer` (what
    differs from the student's: {}), `weights` (of parts that the term's weight does not reach: {}), `phases` (whether
    its parts count in some epochs only: False). A module with a method `predict(outputs)` replaces the student's
    prediction; one with `others(context)` returns {part: logits} of what else is evaluated, by the context of an
    evaluation; one with `distances(context)` returns [B], how far each image is from what the teacher says of it, which
    evaluations report where the teacher has no logits. `needs_labels` says that it reads labels; it then takes the mean
    of what it computes of each image by `labeled_mean`, which weighs classes.
    """

    if not isinstance(module, type) or not issubclass(module, nn.Module):
        raise InputError(f"from_module is given a {type(module).__name__}; expected a class of Flax modules")

    def construct(name: str, **options: Any) -> Method:
        # Tuples, because a module is hashed.
        instance = module(**{key: tuple(v) if isinstance(v, list) else v for key, v in options.items()})

        def init(rng: Array, context: Context) -> MethodVariables:
            variables = dict(instance.init({"params": rng, "method": jax.random.fold_in(rng, 1)}, context))
            return MethodVariables(variables.pop("params", {}), variables)

        def apply(variables: MethodVariables, context: Context) -> tuple[Terms, Any]:
            loss, state = instance.clone(**context.options).apply(
                {"params": variables.params, **variables.state},
                context,
                mutable=list(variables.state),
                rngs={"method": context.key},
            )
            parts = loss if isinstance(loss, Mapping) else {"": loss}
            checked = {part: _checked(value, of=module, part=part) for part, value in parts.items()}
            return {f"{name}/{part}" if part else name: value for part, value in checked.items()}, dict(state)

        def others(variables: MethodVariables, context: Context) -> Mapping[str, Array]:
            logits: Any = instance.apply({"params": variables.params, **variables.state}, context, method="others")
            return {f"{name}/{part}": x for part, x in logits.items()}

        def measures(variables: MethodVariables, context: Context) -> Mapping[str, Array]:
            each: Any = instance.apply({"params": variables.params, **variables.state}, context, method="distances")
            return {f"{name}/distance": each}

        def predict(variables: MethodVariables, outputs: Outputs) -> Array:
            logits: Any = instance.apply({"params": variables.params, **variables.state}, outputs, method="predict")
            return logits

        return Method(
            init,
            apply,
            needs_teacher=getattr(module, "needs_teacher", True),
            views=getattr(module, "views", 1),
            weights={f"{name}/{part}": weight for part, weight in getattr(module, "weights", {}).items()},
            optimizers={name: getattr(module, "optimizer", {})},
            predict=predict if hasattr(module, "predict") else student_logits,
            others=others if hasattr(module, "others") else no_others,
            measures=measures if hasattr(module, "distances") else no_others,
            needs_labels=frozenset({name}) if getattr(instance, "needs_labels", False) else frozenset(),
            phases=getattr(module, "phases", False),
            traced=traced(fields, options),
        )

    fields = [
        p.replace(kind=p.KEYWORD_ONLY)
        for p in inspect.signature(module).parameters.values()
        if p.name not in ("parent", "name")
    ]
    name = inspect.Parameter("name", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return _with_signature(construct, [name, *fields], module)


def seeing(method: Method, change: Callable[[View], View]) -> Method:
    """The method that sees every view of a step changed."""

    def seen(context: Context) -> Context:
        return dataclasses.replace(context, views=tuple(map(change, context.views)))

    return method._replace(
        init=lambda rng, context: method.init(rng, seen(context)),
        apply=lambda variables, context: method.apply(variables, seen(context)),
    )


def standardizing(constructor: Constructor) -> Constructor:
    """The constructor with one more option, `standardize`: whether the logits of both networks are standardized first.

    For a method of logits that `from_loss` does not make.
    """

    def change(view: View) -> View:
        student, teacher = (
            outputs and outputs._replace(logits=losses.standardize(outputs.logits))
            for outputs in (view.student, view.teacher)
        )
        assert student is not None
        return view._replace(student=student, teacher=teacher)

    def construct(name: str, *, standardize: bool = False, **options: Any) -> Method:
        method = constructor(name, **options)
        return seeing(method, change) if standardize else method

    own = inspect.signature(construct).parameters["standardize"]
    return _with_signature(construct, [*inspect.signature(constructor).parameters.values(), own], constructor)


def _with_signature(construct: Constructor, parameters: Iterable[inspect.Parameter], of: Any) -> Constructor:
    """The same constructor, whose options can be read from its signature, and its text from what it is made of."""
    construct.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]
    construct.__doc__ = of.__doc__
    construct.__wrapped__ = getattr(of, "__wrapped__", of)  # type: ignore[attr-defined]
    return construct


def _run(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the function returns. An error in it names the term, and the line of the user's file that it came from.

    One that no user's line has a part in stays as it is.
    """
    try:
        return function(*arguments, **options)
    except InputError as error:
        where = registry.place(error)
        raise InputError(f"method.{name}: {error}{f' ({where})' if where else ''}") from error
    except Exception as error:  # of whatever kind a user's function raises
        if not (where := registry.place(error)):
            raise
        said = one_line(error).partition(" The error occurred while tracing")[0][:200]
        if isinstance(error, jax.errors.ConcretizationTypeError):
            said += " Under jit no value is known: jnp.where chooses by one"
        raise InputError(f"method.{name}: {where}: {type(error).__name__}: {said}") from error


def combine(methods: Mapping[str, Method]) -> Method:
    """One method of several: all their terms, each with a group of variables of its own.

    The student moves at the steps at which all let it move; a term's group at those that its own method says.
    """
    overridden = [name for name, method in methods.items() if method.predict is not student_logits]
    if len(overridden) > 1:
        raise InputError(f"the terms {', '.join(overridden)} each replace the student's prediction; at most one may")

    def of_term(variables: MethodVariables, name: str) -> MethodVariables:
        return MethodVariables(variables.params[name], variables.state[name])

    def init(rng: Array, context: Context) -> MethodVariables:
        variables = {
            name: _run(name, method.init, jax.random.fold_in(rng, i), context)
            for i, (name, method) in enumerate(methods.items())
        }
        return MethodVariables(
            {name: own.params for name, own in variables.items()},
            {name: own.state for name, own in variables.items()},
        )

    def apply(variables: MethodVariables, context: Context) -> tuple[Terms, Any]:
        terms: Terms = {}
        state = {}
        for i, (name, method) in enumerate(methods.items()):
            rng = None if context.rng is None else jax.random.fold_in(context.rng, i)
            own = dataclasses.replace(context, rng=rng, options=context.options.get(name, {}))
            new, state[name] = _run(name, method.apply, of_term(variables, name), own)
            terms |= {part: _run(part, _checked, loss) for part, loss in new.items()}
        return terms, state

    def trains(step: Array | int) -> Mapping[str, Any]:
        each = [method.trains(step) for method in methods.values()]
        groups: dict[str, Any] = {group: moves for group_moves in each for group, moves in group_moves.items()}
        student = [group_moves["student"] for group_moves in each if "student" in group_moves]
        return groups | ({"student": jnp.all(jnp.array(student))} if student else {})

    def others(variables: MethodVariables, context: Context) -> Mapping[str, Array]:
        each = [method.others(of_term(variables, name), context) for name, method in methods.items()]
        return {name: logits for own in each for name, logits in own.items()}

    def measures(variables: MethodVariables, context: Context) -> Mapping[str, Array]:
        each = [_run(name, method.measures, of_term(variables, name), context) for name, method in methods.items()]
        return {name: values for own in each for name, values in own.items()}

    def predict(variables: MethodVariables, outputs: Outputs) -> Array:
        (name,) = overridden
        logits = methods[name].predict(of_term(variables, name), outputs)
        if logits.shape != outputs.logits.shape:
            shape, expected = (list(x.shape) for x in (logits, outputs.logits))
            raise InputError(
                f"method.{name}: it predicts {shape}; expected {expected}, logits of every image and class"
            )
        return logits

    return Method(
        init,
        apply,
        needs_teacher=any(method.needs_teacher for method in methods.values()),
        views=max((method.views for method in methods.values()), default=1),
        weights={term: weight for method in methods.values() for term, weight in method.weights.items()},
        schedules={term: factor for method in methods.values() for term, factor in method.schedules.items()},
        trains=trains,
        optimizers={term: options for method in methods.values() for term, options in method.optimizers.items()},
        predict=predict if overridden else student_logits,
        others=others if any(method.others is not no_others for method in methods.values()) else no_others,
        measures=measures,
        needs_labels=frozenset().union(*(method.needs_labels for method in methods.values())),
        phases=any(method.phases for method in methods.values()),
        distills=frozenset(name for name, method in methods.items() if method.needs_teacher),
        carries=any(method.carries for method in methods.values()),
        traced={name: method.traced for name, method in methods.items() if method.traced},
    )
