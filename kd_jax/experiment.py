"""From a config to an experiment: the data loaded, the networks and functions built, everything checked.

Nothing is written here, so that a refused run leaves nothing behind.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax import components, data, distributed, methods, networks, runs, sharding, steps, teachers, tracing
from kd_jax.allocation import keep_memory
from kd_jax.batches import Epoch, of_images
from kd_jax.compilation import keep_programs
from kd_jax.config import checks
from kd_jax.config.checks import check, plain
from kd_jax.data import resident, stream
from kd_jax.errors import InputError, shown
from kd_jax.identity import identify
from kd_jax.keys import LARGEST
from kd_jax.logging import mirrors
from kd_jax.models.convolution import KEEP_BARRIERS
from kd_jax.steps import Components, StepOptions
from kd_jax.types import Feed, Hyper, Method, Teacher, TrainState, Variables, student_logits

TrainSteps = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class Experiment(NamedTuple):
    """All that a run needs, built from its config."""

    config: dict[str, Any]
    identity: dict[str, Any]
    digest: str  # of the identity
    dataset: data.Dataset
    components: Components
    options: StepOptions
    hyper: Hyper
    mesh: jax.sharding.Mesh
    steps: int
    epoch: Epoch
    steps_per_call: int
    pretrained: Variables | None  # what the student starts from; without a head where that is a new one
    init_state: Callable[..., TrainState]  # `steps.init_state`, compiled
    train_steps: TrainSteps  # `steps.train_steps` of a set that lies in memory, compiled; it consumes the state
    runs_folder: str

    @property
    def teacher(self) -> Teacher | None:
        return self.components.teacher

    def jit(self, function: Callable[..., Any], *, fast_compile: bool = False, **options: Any) -> Callable[..., Any]:
        """Compiles one of the functions of `kd_jax.steps` for this experiment.

        Args:
          function: takes `components` and `options`.
          fast_compile: for a function that runs once: on a CPU it compiles in a tenth of the time, and runs slower.
          options: of `jax.jit`. What is returned lies on every device unless they say otherwise.
        """
        of_step = (self.components, self.options, self.config, self.mesh)
        return _jit(function, *of_step, fast_compile=fast_compile, **options)

    def steps_of(self, feed: Feed) -> TrainSteps:
        """`steps.train_steps` of a feed, compiled: what was traced already, where its set lies in memory."""
        if feed.fetch is _fetch(self.dataset, self.options):
            return self.train_steps
        return self.jit(functools.partial(steps.train_steps, fetch=feed.fetch), donate_argnums=0)

    def place(self, tree: Any) -> Any:
        """Puts arrays on every device."""
        return sharding.put(tree, sharding.replicated(self.mesh))

    def state_shapes(self) -> TrainState:
        """The shapes of the state, on every device: what a checkpoint is loaded into."""
        return tracing.state_shapes(self.init_state, self.teacher, self.dataset.train, self.mesh)

    def trace(self) -> None:
        """Traces initialization and steps, so that an error in them is seen before a teacher is trained or a file made.

        What a run calls is then traced already.
        """
        state = self.state_shapes()
        rest = [(1, self.epoch.rest)] if self.epoch.rest and self.steps >= self.epoch.steps else []
        for rows in [(min(self.steps_per_call, self.steps), self.epoch.batch_size), *rest]:
            tracing.trace(self.train_steps, state, self.teacher, self.dataset.train, rows, self.hyper, self.mesh)
        tracing.check_optimizers(self.config["method"], state.params)

    def lower(self, steps: int = 1, batch: int | None = None) -> jax.stages.Lowered:
        """`train_steps` of so many steps, of `batch` images each or as many as the config says, for the devices."""
        rows = steps, batch or self.config["train"]["batch_size"]
        jitted: Any = self.train_steps
        state, train = self.state_shapes(), self.dataset.train
        return jitted.lower(*tracing.call(state, self.teacher, train, rows, self.hyper, self.mesh))

    def missing_teachers(self) -> list[tuple["Experiment", str]]:
        """The runs that have to be trained before the teacher can be loaded, each with its folder."""
        teacher, missing = self.teacher, {}
        for one in (teacher, *((teacher and teacher.members) or {}).values()):
            if one and one.untrained is not None:
                source, untrained = one.source, one.untrained
                distributed.first(runs.check, source, untrained.identity)
                if not distributed.first(runs.has_result, source):
                    missing[source] = untrained
        return [(untrained, source) for source, untrained in missing.items()]

    def feed(self) -> Feed:
        """The training data: on the devices, or read as it is needed."""
        shared: Any = {
            "seed": self.config["seed"],
            "sampling": self.config["dataset"]["sampling"],
            "divided": self.epoch,
            "steps_per_call": self.steps_per_call,
            "total_steps": self.steps,
            "mesh": self.mesh,
        }
        if stream.is_streamed(self.dataset.train):
            return stream.feed(self.dataset.train, workers=self.config["dataset"]["workers"], **shared)
        return resident.feed(self.dataset.train, options=self.options, **shared)


def create(
    config: Mapping[str, Any],
    *,
    source: data.Source | None = None,
    runs_folder: str = "runs",
    devices: Sequence[jax.Device] | None = None,
    finished: Mapping[str, Any] | None = None,
    traced: bool = True,
) -> Experiment:
    """Checks a config, loads its data, and builds its functions.

    Args:
      config: a complete tree (see kd_jax/keys.py), a ConfigDict or plain.
      source: the images, where a program has them already; None to read what the config names.
      runs_folder: where the runs of teachers lie.
      devices: to run on; by default all.
      finished: `data` of the config.json of a run that is only evaluated, which needs neither a teacher nor a batch
        that the devices divide.
      traced: whether a run that is to be trained is traced, which a teacher's that has finished need not be.
    Raises:
      InputError: for anything that is wrong with the config or the data.
    """
    keep_programs()
    keep_memory()
    config = plain(config)
    if source is not None:
        _set_source(config, "memory")
    method = check_without_data(config)  # first: an unknown name is then reported before a long load
    training = finished is None
    if training:
        mirrors.check(config["log"])
    dataset = data.load(config["dataset"], source)
    if finished:  # normalized by what its version of this library took for the training images, and with its own names
        mean, std = (np.asarray(finished[key], np.float32) for key in ("mean", "std"))
        dataset = dataset._replace(mean=mean, std=std, class_names=tuple(finished["class_names"]))
    if training and not dataset.class_names:
        _check_label_free(config, method)
    mesh = sharding.mesh(devices)
    train, images = config["train"], len(dataset.train.labels)
    total, epoch = length(train, images, mesh.size) if training else (1, Epoch(train["batch_size"], 1))
    nested = functools.partial(create, source=source, runs_folder=runs_folder, devices=devices, traced=False)
    teacher = teachers.create(teachers.Setting(config, dataset, runs_folder, nested, training))
    method = methods.create(config["method"], steps_per_epoch=epoch.steps)
    if training and method.needs_teacher and teacher is None:
        raise InputError(
            f"teacher.kind is 'none' and the method's terms ({', '.join(config['method'])}) need a teacher; expected"
            f" one of: {', '.join(sorted(set(teachers.KINDS) - {'none'}))}"
        )
    identity = identify(config, fingerprint=dataset.fingerprint)
    functions = components.create(config, dataset, method, teacher, steps=total, steps_per_epoch=epoch.steps)
    # On a CPU, convolutions inside a loop are many times slower than the same ones outside.
    on_cpu = sharding.platform(mesh) == "cpu"
    options = StepOptions(
        num_examples=images,
        steps_per_epoch=epoch.steps,
        ema=train["ema"],
        micro_batches=train["accumulate"],
        unroll=on_cpu,
        batch_sharding=sharding.split(mesh),
        image_shape=dataset.train.images.shape[1:],
    )
    hyper = components.create_hyper(functions)
    per_call = train["steps_per_call"] or (1 if on_cpu else 50)
    if stream.is_streamed(dataset.train):
        per_call = stream.steps_per_call(per_call, dataset.train, train["batch_size"])
    train_steps = functools.partial(steps.train_steps, fetch=_fetch(dataset, options))
    of_step = (functions, options, config, mesh)
    made = Experiment(
        config=config,
        identity=identity,
        digest=runs.digest(identity),
        dataset=dataset,
        components=functions,
        options=options,
        hyper=hyper,
        mesh=mesh,
        steps=total,
        epoch=epoch,
        steps_per_call=min(per_call, epoch.whole),
        pretrained=components.load_pretrained(config["model"], functions, dataset),
        init_state=_jit(steps.init_state, *of_step, fast_compile=True),
        train_steps=_jit(train_steps, *of_step, donate_argnums=0),
        runs_folder=runs_folder,
    )
    if training and traced:
        made.trace()
    return made


def _fetch(dataset: data.Dataset, options: StepOptions) -> Callable[..., Any]:
    return stream.fetch if stream.is_streamed(dataset.train) else resident.fetch(options)


def check_without_data(config: Mapping[str, Any]) -> Method:
    """The method of a plain config.

    Raises:
      InputError: for whatever is wrong with the config, so far as no images are needed to say so.
    """
    check(config)
    method = methods.create(config["method"])
    components.create_optimizer(config, networks.create(config, num_classes=2), method, steps=1, steps_per_epoch=1)
    _check_views(config, method)
    if (weights := config["train"]["class_weights"]) != "none" and not method.needs_labels:
        raise InputError(
            f"train.class_weights is {shown(weights)}, and no term reads labels; expected 'none', or a term that does,"
            " such as 'cross_entropy'"
        )
    return method


def _jit(
    function: Callable[..., Any],
    components: Components,
    options: StepOptions,
    config: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    *,
    fast_compile: bool = False,
    **of_jit: Any,
) -> Callable[..., Any]:
    """See `Experiment.jit`."""
    compiler: dict[str, Any] = {}
    platform = sharding.platform(mesh)
    if platform == "gpu" and config["deterministic"]:
        compiler["xla_gpu_deterministic_ops"] = True
    if platform == "cpu":
        compiler |= KEEP_BARRIERS
        if fast_compile:
            compiler["xla_backend_optimization_level"] = 0
    return jax.jit(
        functools.partial(function, components=components, options=options),
        compiler_options=compiler,
        **{"out_shardings": sharding.replicated(mesh)} | of_jit,
    )


def _set_source(config: Any, source: str) -> None:
    """Sets where the data of a config and of its teachers comes from."""
    if isinstance(config, dict) and isinstance(config.get("dataset"), dict):
        config["dataset"]["source"] = source
        for section in checks.teacher_sections(config.get("teacher")):
            _set_source(section.get("config"), source)


def length(train: Mapping[str, Any], images: int, devices: int) -> tuple[int, Epoch]:
    """(steps of the run, its epoch), by the section `train` of a config; raises InputError."""
    batch_size, accumulate = train["batch_size"], train["accumulate"]
    if batch_size > images:
        raise InputError(f"train.batch_size is {batch_size}; expected at most the {images} training images")
    unit, of_what = devices * accumulate, f"{devices} devices times train.accumulate {accumulate}"
    if batch_size % unit:
        raise InputError(f"train.batch_size is {batch_size}; expected a multiple of {unit} ({of_what})")
    epoch = of_images(train, images)
    if epoch.rest % unit:
        raise InputError(
            f"train.last_batch is 'keep', and an epoch's last batch has {epoch.rest} of the {images} training images,"
            f" no multiple of {unit} ({of_what}); expected 'drop', or {images - images % unit} training images"
        )
    steps = train["steps"] or train["epochs"] * epoch.steps
    if steps > LARGEST:
        raise InputError(f"train.epochs is {train['epochs']}, which makes {steps} steps; expected at most {LARGEST}")
    return steps, epoch


def _check_label_free(config: Mapping[str, Any], method: Method) -> None:
    """Raises InputError for what cannot be without labels."""
    if terms := sorted(method.needs_labels):
        raise InputError(
            f"the images have no labels, which method.{' and method.'.join(terms)} would read; expected terms without,"
            " such as 'embedding'"
        )
    if method.predict is not student_logits:
        raise InputError("a term predicts classes in the student's place, and the images have none; expected others")
    if (freeze := config["model"]["freeze"]) != "none":
        raise InputError(f"model.freeze is {freeze!r}, and a network without classes has no head; expected 'none'")
    if smoothing := config["train"]["label_smoothing"]:
        raise InputError(f"train.label_smoothing is {smoothing}, and the images have no labels; expected 0")
    if (weights := config["train"]["class_weights"]) != "none":
        raise InputError(f"train.class_weights is {weights!r}, and the images have no labels; expected 'none'")
    if (sampling := config["dataset"]["sampling"]) != "shuffle":
        raise InputError(f"dataset.sampling is {sampling!r}, and the images have no labels; expected 'shuffle'")
    if (select := config["evaluate"]["select"]) != "last":
        raise InputError(f"evaluate.select is {select!r}, and without labels there is no accuracy; expected 'last'")
    if config["evaluate"]["test_every_epoch"]:
        raise InputError("evaluate.test_every_epoch is true, and without labels there is no accuracy; expected false")


def _check_views(config: Mapping[str, Any], method: Method) -> None:
    extra = config["dataset"]["extra_views"]
    if 1 + len(extra) != method.views:
        count = method.views - 1
        expected = f"the augmentation of {count} more, such as 'randaugment'" if count else "none, []"
        raise InputError(
            f"dataset.extra_views is {extra}; expected {expected}: the method's terms compare {method.views} view(s)"
        )
