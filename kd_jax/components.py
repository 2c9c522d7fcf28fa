"""The functions and traced scalars of a step, as a config describes them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import augment, balance, data, networks, optim, weights
from kd_jax.steps import Components
from kd_jax.types import Hyper, Method, Network, Teacher, Variables


def create(
    config: dict[str, Any],
    dataset: data.Dataset,
    method: Method,
    teacher: Teacher | None,
    *,
    steps: int,
    steps_per_epoch: int,
) -> Components:
    """The functions of a step for a config's data, method and teacher, in a run of `steps`."""
    num_classes, train = len(dataset.class_names), config["train"]
    student = networks.create(config, num_classes)
    return Components(
        student=student,
        teacher=teacher,
        method=method,
        optimizer=create_optimizer(config, student, method, steps=steps, steps_per_epoch=steps_per_epoch),
        augment=augment.create(
            num_classes=num_classes,
            kinds=(config["dataset"]["augment"], *config["dataset"]["extra_views"]),
            label_smoothing=config["train"]["label_smoothing"],
            least_area=config["dataset"]["least_area"],
            cutout_share=config["dataset"]["cutout"],
            fill=255 * dataset.mean,
            mixup=config["train"]["mixup"],
            cutmix=config["train"]["cutmix"],
            class_weights=balance.class_weights(
                train["class_weights"], dataset.train.labels, num_classes, beta=train["class_weights_beta"]
            ),
            dtype=networks.precision(config),
        ),
        prepare=networks.preprocessor(config, student, dataset.mean, dataset.std),
    )


def create_optimizer(
    config: Mapping[str, Any], student: Network, method: Method, *, steps: int, steps_per_epoch: int
) -> optim.Optimizer:
    """The optimizer of the student and of every term; raises InputError for what is wrong with its options."""
    return optim.create(
        config["optimizer"],
        {term: method.optimizers.get(term, {}) for term in config["method"]},
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        freeze=config["model"]["freeze"],
        head=student.head,
        clip=config["train"]["clip"],
    )


def create_hyper(components: Components) -> Hyper:
    """The traced scalars as the components declare them."""
    optimizer, method = components.optimizer, components.method
    return Hyper(
        learning_rate={group: jnp.float32(rate) for group, rate in optimizer.learning_rates.items()},
        weight_decay={group: jnp.float32(decay) for group, decay in optimizer.weight_decays.items()},
        weights={term: jnp.float32(weight) for term, weight in method.weights.items()},
        options=jax.tree.map(jnp.asarray, dict(method.traced)),
    )


def load_pretrained(model: Mapping[str, Any], components: Components, dataset: data.Dataset) -> Variables | None:
    """What the student starts from, if it is told; a line says so."""
    if not (source := model["pretrained"]):
        return None
    images = jax.ShapeDtypeStruct((2, *dataset.train.images.shape[1:]), jnp.uint8)
    student = components.student
    shapes = jax.eval_shape(student.init, jax.random.key(0), jax.eval_shape(components.prepare, images))
    loaded = weights.load(source, shapes, student)
    again = ", and is reinitialized" if dataset.class_names else ""
    head = "is included" if loaded.head else loaded.why + again
    print(f"{model['name']} starts from weights of {source}; its head {head}", flush=True)
    return loaded.variables
