"""The student of a scale, taught by its teacher through a method as it was published: NAME[,SCALE][,imagenet].

`kd_jax/config/published.py` has every method and recipe with its paper, terms and accuracies. The terms are those for
CIFAR-100, with `imagenet` those for ImageNet; networks, data and the optimizer are the scale's, so that methods can be
compared with one another.

    kd_jax --config=method:dkd
    python -m kd_jax.main --config=configs/method.py:crd,small
    python -m kd_jax.main --config=configs/method.py:wkd_logits,smoke,imagenet
"""

from kd_jax.config import recipes
from kd_jax.config.published import PUBLISHED
from kd_jax.errors import InputError, choose


def get_config(arg="kd"):
    name, *others = arg.split(",")
    choose("the method", name, PUBLISHED)
    for other in others:
        choose("a part of the config's argument", other, (*filter(None, recipes.SCALES), "imagenet"))
    scales = [other for other in others if other != "imagenet"]
    if len(scales) > 1:
        raise InputError(f"the config's argument names {' and '.join(scales)}; expected one scale")
    return recipes.published(name, *scales or [""], imagenet="imagenet" in others)
