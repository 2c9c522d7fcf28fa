"""Schemes: who teaches whom, and when. The argument names one, and may name a scale.

    python -m kd_jax.main --config=configs/scheme.py:NAME[,small|,lite|,laptop|,smoke]

* mutual: two networks of the student's kind learn from one another (Zhang et al., CVPR 2018).
* byot: exits along the student learn from its end (Zhang et al., "Be Your Own Teacher", ICCV 2019).
* assistant: the teacher teaches an assistant, which teaches the student (Mirzadeh et al., AAAI 2020). At the default
  scale it starts from scratch, as `mutual` does, and the others from ImageNet weights.
* dense: both teach the student (Son et al., "Densely Guided Knowledge Distillation", ICCV 2021, without its dropping).
* born_again: a student teaches the next of its own kind, twice (Furlanello et al., ICML 2018).
* teacher_free: a teacher that is designed and not trained (Yuan et al., CVPR 2020).
* mean_teacher: the student's moving average teaches it on another view (Tarvainen and Valpola, NeurIPS 2017).
* early_stopped: the teacher as it was half way through its training (Cho and Hariharan, ICCV 2019).
* two_phases: FitNet as published: first the hint alone, then KD (Romero et al., ICLR 2015).
* dual_head: a second head learns from the teacher, and its gradient gives way (Yang et al., 2024).
* dot: KD with a momentum of its own (Zhao et al., ICCV 2023).
"""

from kd_jax.config import base, recipes
from kd_jax.config.tree import ConfigDict
from kd_jax.errors import choose


def mutual(scale):
    return recipes.published("mutual", scale)


def byot(scale):
    return recipes.published("byot", scale)


def assistant(scale):
    return recipes.taught(recipes.student(scale), recipes.taught(recipes.assistant(scale), recipes.teacher(scale)))


def dense(scale):
    teachers = {
        "teacher": recipes.teacher(scale),
        "assistant": recipes.taught(recipes.assistant(scale), recipes.teacher(scale)),
    }
    config = base.with_teachers(recipes.student(scale), teachers)
    terms = {name: {"method": "kd", "teacher": name, "weight": 0.9 / len(teachers)} for name in teachers}
    config.method = ConfigDict({"cross_entropy": {"weight": 0.1}, **terms})
    return config


def born_again(scale):
    first = recipes.taught(recipes.student(scale), recipes.student(scale))
    return recipes.taught(recipes.student(scale), first)


def teacher_free(scale):
    return recipes.published("teacher_free", scale)


def mean_teacher(scale):
    config = recipes.student(scale)
    config.teacher.kind = "mean"
    config.train.ema = 0.9 if scale == "smoke" else 0.999
    config.dataset.extra_views = (config.dataset.augment,)
    consistency = {"method": "mse", "on": "probabilities", "teacher_views": (1,), "weight": 10.0, "warmup_epochs": 2}
    config.method = ConfigDict({"cross_entropy": {}, "consistency": consistency})
    return config


def early_stopped(scale):
    config = recipes.kd(scale)
    config.teacher.config.checkpoint.keep = 1000
    config.teacher.epoch = recipes.epochs(config) // 2
    return config


def two_phases(scale):
    config = recipes.kd(scale)
    first = max(1, recipes.epochs(config) // 8)
    for term in config.method.values():
        term.epochs = (first, None)
    config.method.fitnet = ConfigDict({"weight": 100.0, "stage": 2, "epochs": (0, first)})
    return config


def dual_head(scale):
    return recipes.published("dhkd", scale)


def dot(scale):
    config = recipes.kd(scale)
    config.optimizer.name = "dot"
    return config


SCHEMES = (
    *(mutual, byot, assistant, dense, born_again, teacher_free, mean_teacher, early_stopped),
    *(two_phases, dual_head, dot),
)


def get_config(arg="assistant"):
    name, _, scale = arg.partition(",")
    config = choose("the scheme", name, {scheme.__name__: scheme for scheme in SCHEMES})(scale)
    config.name = name
    return config
