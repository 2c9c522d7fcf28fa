"""Accuracy against parameters and latency."""

import pytest

from kd_jax.reporting import cost, figures
from tests.reporting.made_up import groups, write_run

TFLITE = {"name": "tflite", "megabytes": 1.5, "accuracy": 0.5, "same": 1.0, "milliseconds": {"1": 0.25, "32": 4.0}}
JAX = {"name": "kd_jax", "megabytes": 2.0, "accuracy": 0.75, "same": 1.0, "milliseconds": {"1": 0.5, "32": 2.0}}
MISSING = {"name": "onnx", "megabytes": None, "accuracy": None, "same": None, "milliseconds": None, "why": "no"}


@pytest.fixture
def measured(tmp_path):
    """The group of one run of which two formats were measured."""
    write_run(tmp_path / "one")
    (group,) = groups(tmp_path)
    return group._replace(runs=(group.runs[0]._replace(formats=[JAX, MISSING, TFLITE]),))


def test_formats_are_listed_with_the_fastest_first_and_without_what_was_not_measured(measured):
    assert cost.formats([measured])[1].rows == [
        ("student, seed 0", "tflite", "1.50", "50.00", "100.0", "0.25", "4"),
        ("student, seed 0", "kd_jax", "2.00", "75.00", "100.0", "0.5", "2"),
    ]


def test_without_a_measurement_the_command_for_it_is_named(tmp_path):
    write_run(tmp_path / "one")
    assert cost.formats(groups(tmp_path)) == [cost.UNMEASURED]


def test_latency_is_drawn_where_it_was_measured_and_size_where_it_differs(measured):
    (page,) = figures.pages([measured])
    (_, drawn) = cost.figures(page)
    assert ["accuracy and latency" in svg for svg in drawn.svgs] == [True]
    larger = measured.runs[0]._replace(result=measured.runs[0].result | {"parameters": 10**6})
    (page,) = figures.pages([measured, measured._replace(runs=(larger,))])
    assert ["accuracy and size" in svg for svg in cost.figures(page)[1].svgs] == [True, False]


def test_without_anything_that_differs_nothing_is_drawn(tmp_path):
    write_run(tmp_path / "one")
    (page,) = figures.pages(groups(tmp_path))
    assert cost.figures(page) == []
