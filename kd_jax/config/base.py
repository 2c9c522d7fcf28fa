"""The complete configuration: a small network trained alone on handwritten digits.

An experiment's file starts from `get_config()` and overrides a few keys; `kd_jax/keys.py` says what each key means and
may be. Values are numbers, strings, booleans, dictionaries, and lists (written as tuples where the command line should
be able to replace them).
"""

from collections.abc import Mapping

from kd_jax.config.tree import ConfigDict, placeholder
from kd_jax.errors import choose
from kd_jax.keys import KEYS

# Keys of `dataset` that a teacher has its own of.
OF_STUDENT = ("labeled", "unlabeled", "label_free", "sampling", "augment", "least_area", "cutout", "extra_views")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the complete tree: a small network already, so "small" is the default; "smoke" has two epochs."""
    choose("the config's argument", arg, ("", "small", "smoke"))
    config = ConfigDict()
    for name, key in KEYS.items():
        section, _, own = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        default = ConfigDict(key.default) if isinstance(key.default, Mapping) else key.default
        (config[section] if section else config)[own] = placeholder(str) if default is None else default
    if arg == "smoke":
        config.train.epochs = 2
    return config


def alone(config: ConfigDict) -> ConfigDict:
    """Makes a config one of plain training: no teacher, cross entropy on the labels."""
    config.teacher.kind = "none"
    config.method = ConfigDict({"cross_entropy": {"weight": 1.0}})
    return config


def with_teacher(config: ConfigDict, teacher: ConfigDict) -> ConfigDict:
    """Makes `teacher` the config of `config`'s teacher.

    It reads the same data in the same precision: an override of the outer key reaches it. Labels are its own: a
    teacher sees all of them unless `config.teacher.config.dataset.labeled` says otherwise.
    """
    config.teacher.kind = "config"
    config.teacher.config = _beside(config, teacher)
    return config


def with_teachers(config: ConfigDict, teachers: Mapping[str, ConfigDict]) -> ConfigDict:
    """Makes the configs those of several teachers, by name, which read what `with_teacher` says."""
    config.teacher.kind = "ensemble"
    config.teacher.members = ConfigDict(
        {name: {"kind": "config", "config": _beside(config, teacher)} for name, teacher in teachers.items()}
    )
    return config


def _beside(config: ConfigDict, teacher: ConfigDict) -> ConfigDict:
    """A teacher's config whose data and precision are those of its student."""
    for key in config.dataset:
        if key not in OF_STUDENT:
            teacher.dataset[key] = config.dataset.get_ref(key)
    teacher.precision = config.get_ref("precision")
    teacher.deterministic = config.get_ref("deterministic")
    return teacher
