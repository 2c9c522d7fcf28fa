"""Every value of a config is built or refused in one line; the keys are declared in one place."""

import inspect
import itertools
import warnings

import pytest

from kd_jax import experiment, keys, methods, models
from kd_jax.config import base, checks
from kd_jax.errors import InputError
from tests import tiny
from tests.odd_values import ODD, odd_configs


def refused(config):
    """The line that a config is refused with, "" where it is built."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a stem that does not suit the images
        try:
            experiment.create(config)
        except InputError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_an_odd_value_is_built_or_refused_in_one_short_line(first):
    for what, config in itertools.islice(odd_configs(), first * 17, None, 997):
        line = refused(config)
        assert len(line.splitlines()) <= 1, what
        assert len(line) < 1000, what


def test_there_are_odd_values_of_every_key_and_their_order_is_fixed():
    described = [what for what, _ in odd_configs()]
    assert len(described) > 1200
    assert described == [what for what, _ in odd_configs()]
    missing = [key for key in keys.KEYS if f"kd: {key} is missing" not in described]
    assert missing == []


def test_the_default_config_is_the_declaration():
    config = base.get_config().to_dict()
    for key, entry in keys.KEYS.items():
        value = checks.get(config, key, "missing")
        assert value == entry.default, key
        entry.kind.check(key, value)


@pytest.mark.parametrize("key", [key for key, entry in keys.KEYS.items() if entry.kind is keys.FLAG])
@pytest.mark.parametrize("value", [0, 1, "true", None, 1.0])
def test_only_true_and_false_are_booleans(key, value):
    config = base.get_config().to_dict()
    *section, last = key.split(".")
    (config[section[0]] if section else config)[last] = value
    with pytest.raises(InputError, match=f"{key} is .*; expected true or false"):
        checks.check(checks.plain(config))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train.steps": 10**30}, r"train.steps is 10{30}; expected a whole number of at least 0"),
        ({"train.epochs": 10**30}, r"train.epochs is 10{30}; expected a whole number from 1 to 1000000"),
        ({"dataset.image_size": 10**6}, "dataset.image_size is 1000000; expected a whole number from 1 to 4096"),
        ({"train.batch_size": 10**12}, "train.batch_size is 1000000000000; expected a whole number"),
        ({"model.width": 1e9}, "model.width is 1000000000.0; expected a factor above 0 and at most 64"),
        ({"model.width": "1"}, "model.width is '1'; expected a factor above 0 and at most 64"),
        ({"train.accumulate": 1.5}, "train.accumulate is 1.5; expected a whole number of at least 1"),
        ({"name": "a/b"}, "name is 'a/b'; expected the start of a folder's name"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_size_that_cannot_be_is_refused(overrides, said):
    config = tiny.config()
    for key, value in overrides.items():
        *section, last = key.split(".")
        (config[section[0]] if section else config)[last] = value
    with pytest.raises(InputError, match=said):
        experiment.create(config)


@pytest.mark.parametrize(
    "section", ["dataset", "model", "teacher", "optimizer", "train", "evaluate", "checkpoint", "log"]
)
@pytest.mark.parametrize("value", [None, 7, "x", [1]])
def test_a_section_that_is_no_dictionary_is_refused(section, value):
    with pytest.raises(InputError, match=f"{section} is .*; expected a section"):
        experiment.create(tiny.config() | {section: value})


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"dkd": {"beta": float("nan")}}, "method.dkd.beta is nan; expected a number that is finite"),
        (
            {"crd": {"momentum": float("nan")}},
            "method.crd.momentum is nan; expected a number of at least 0 and below 1",
        ),
        ({"crd": {"features": 10**9}}, "method.crd.features is 1000000000; expected a whole number from 1 to 65536"),
        ({"fitnet": {"teacher_stage": "x"}}, "method.fitnet.teacher_stage is 'x'; expected a whole number"),
        ({"adversarial": {"turns": [1.5, 2]}}, r"turns is \[1.5, 2\]; expected \[discriminator steps, student steps\]"),
        ({"adversarial": {"penalty": True}}, "penalty is True; expected a number of at least 0, or none"),
    ],
)
def test_an_option_of_a_method_is_checked_by_its_annotation(terms, said):
    with pytest.raises(InputError, match=said):
        methods.create(terms)


def test_an_option_of_a_network_is_checked_by_its_default(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "own", lambda num_classes, *, rate=0.5: None)
    with pytest.raises(InputError, match=r"model\.rate is nan; expected a number that is finite"):
        models.create("own", 10, rate=float("nan"))


@pytest.mark.parametrize("kind", ["config", "weights"])
def test_a_teachers_config_is_checked_and_said_to_be_its(kind):
    config = tiny.taught()
    config["teacher"] |= {"kind": kind, "path": "model.pth"}
    config["teacher"]["config"]["train"] = 7
    with pytest.raises(InputError, match="in the teacher's config, train is 7; expected a section"):
        experiment.create(config)


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_what_is_no_config_at_all_is_refused(value):
    assert refused(value)


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name != "squared_error"])  # of a doctest
def test_an_odd_option_of_a_method_is_taken_or_refused_in_one_short_line(name):
    def line(option, value):
        try:
            methods.create({"term": {"method": name, option: value}})
        except InputError as error:
            return str(error)
        return ""

    _, *options = inspect.signature(methods.METHODS[name]).parameters
    for option, value in itertools.product(options, ODD):
        said = line(option, value)
        assert len(said.splitlines()) <= 1, (option, value)
        assert len(said) < 1000, (option, value)
