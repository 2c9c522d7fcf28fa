"""The numbers of the benchmark's table."""

import numpy as np
import pytest
from scipy import stats

from kd_jax.reporting import benchmark
from tests.reporting.benchmark_results import METHODS, PAIRS, given, random, result

T = 4.3027  # the 97.5% quantile of Student's t with two degrees of freedom


def rows(results, **others):
    """The rows of one pair, {method: row}, of {method: {seed: result}}."""
    (pair,) = benchmark.pairs(given({f"resnet56-resnet20,{name}": own for name, own in results.items()}, **others))
    return {row.method: row for row in pair.rows}


def of(*accuracies, **others):
    return {seed: result(accuracy, **others) for seed, accuracy in enumerate(accuracies)}


def test_the_difference_to_kd_is_paired_by_seed():
    gains = np.array([1.0, 0.5, 2.0])
    row = rows({"kd": of(0.70, 0.72, 0.71), "dkd": of(0.71, 0.725, 0.73)})["dkd"]
    assert row.last == pytest.approx({0: 71.0, 1: 72.5, 2: 73.0})
    assert row.differences["kd"].points == pytest.approx(gains.mean())
    assert row.differences["kd"].half == pytest.approx(T * gains.std(ddof=1) / 3**0.5, rel=1e-4)


def test_a_seed_that_one_of_two_lacks_does_not_count():
    own = rows({"kd": {0: result(0.70), 2: result(0.60)}, "dkd": {0: result(0.71), 1: result(0.99), 2: result(0.61)}})
    assert own["dkd"].differences["kd"].points == pytest.approx(1)


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [((0.71, 0.72, 0.73), "wins"), ((0.69, 0.70, 0.71), "loses"), ((0.70, 0.71, 0.73), "neither"), ((0.9,), "")],
)
def test_a_method_wins_or_loses_by_more_than_its_interval(accuracies, verdict):
    assert rows({"kd": of(0.70, 0.71, 0.72), "dkd": of(*accuracies)})["dkd"].differences["kd"].verdict == verdict


def test_cross_entropy_again_is_no_pair_of_cross_entropy():
    once, again = (0.690, 0.700, 0.695), (0.692, 0.706, 0.701)
    difference = rows({"kd": of(0.9), "cross_entropy": of(*once), "again": of(*again)})["again"].differences
    theirs = stats.ttest_ind(again, once, equal_var=False).confidence_interval(0.95)
    assert difference.keys() == {"cross_entropy"}
    assert difference["cross_entropy"].half == pytest.approx(50 * (theirs.high - theirs.low))


def test_only_what_reads_two_views_is_compared_with_twice_the_epochs():
    own = rows({"kd": of(0.70, 0.71), "kd_twice": of(0.72, 0.72), "mlkd": of(0.73, 0.74), "dkd": of(0.73, 0.74)})
    assert own["mlkd"].differences["kd_twice"].points == pytest.approx(1.5)
    assert "kd_twice" not in own["dkd"].differences
    assert {"crld", "mlkd", "mlkd_ls"} == benchmark.VIEWS


def test_times_of_other_hardware_are_not_compared():
    kd = {0: result(0.7, speed=900.0), 1: result(0.7, speed=90.0, device="1 x cpu")}
    dkd = {n: result(0.7, speed=speed, device="1 x cpu") for n, speed in enumerate((30.0, 45.0, 60.0))}
    other = {0: result(0.7, device="1 x A100")}
    own = rows({"kd": kd, "dkd": dkd, "at": other})
    assert own["dkd"].seconds == {"1 x cpu": 1000}
    assert own["dkd"].time == pytest.approx(2)  # of the medians, 45 and 90 images per second
    assert own["at"].time is None
    assert own["kd"].time == 1


def test_a_run_that_writes_a_recording_has_no_time_and_one_that_reads_it_has():
    wrote, read, live = (
        {"teacher_cache": kind, "teacher_ran": ran} for kind, ran in (("recording", 1), ("recording", 0), ("none", 1))
    )
    kd = {0: result(0.7, speed=10.0, **wrote), 1: result(0.7, speed=100.0, **read)}
    own = rows({"kd": kd, "at": of(0.7, speed=25.0, **live), "dkd": of(0.7, **wrote), "cross_entropy": of(0.7)})
    assert {name: row.teacher for name, row in own.items()} == {
        "kd": "kept",
        "at": "live",
        "dkd": "kept",
        "cross_entropy": "",
    }
    assert (own["at"].time, own["dkd"].time) == (4, None)


def test_an_epoch_takes_as_long_as_its_images():
    own = rows({"kd": of(0.7, speed=100.0, train_images=1000), "dkd": of(0.7, speed=100.0, train_images=3000)})
    assert own["dkd"].time == pytest.approx(3)


def test_the_best_epoch_stands_by_the_split_that_chose_it():
    mixed = {0: result(0.7, best=0.71, on="test"), 1: result(0.7, best=0.72), 2: result(0.7)}
    row = rows({"kd": mixed})["kd"]
    assert row.best == {"test": {0: pytest.approx(71)}, "validation": {1: pytest.approx(72)}}


def test_costs_and_agreement_are_those_of_the_seeds():
    kd = {n: result(0.7, errors=0.5 + n / 10, peak_memory=n * 10, method_parameters=7) for n in range(3)}
    row = rows({"kd": kd})["kd"]
    assert (row.memory, row.parameters, row.agreement) == (10, 7, pytest.approx(60))


def test_what_an_old_result_lacks_is_unknown():
    kept = ("name", "model", "seconds", "device")
    old = {key: value for key, value in result(0.7).items() if key in kept} | {"test": {"accuracy": 0.7}}
    row = rows({"kd": {0: old, 1: old | {"images_per_second": None, "best": None, "peak_memory": None}}})["kd"]
    assert row.last == {0: pytest.approx(70), 1: pytest.approx(70)}
    assert (row.best, row.seconds, row.time, row.memory, row.parameters, row.agreement) == ({}, {}, *[None] * 4)


def test_the_teacher_is_that_of_the_methods_and_no_control():
    own = {"cross_entropy": of(0.69, taught=None), "kd": of(0.7, taught=0.72), "random_teacher": of(0.7, taught=0.01)}
    (pair,) = benchmark.pairs(given({f"vgg13-vgg8,{name}": results for name, results in own.items()}))
    assert (pair.teacher, pair.lead) == (pytest.approx(72), pytest.approx(3))


def test_a_teachers_own_row_stands_in_where_no_method_has_one():
    own = {"teacher": of(0.72, 0.74, taught=None), "kd": {}}
    (pair,) = benchmark.pairs(given({f"vgg13-vgg8,{name}": results for name, results in own.items()}))
    assert pair.teacher == pytest.approx(73)


def test_ranks_are_those_of_the_means_of_methods_alone():
    results = {
        f"{pair},{method}": of(*accuracies)
        for pair in PAIRS
        for method, accuracies in {"kd": (0.70, 0.71), "dkd": (0.72, 0.70), "at": (0.6, 0.9), "again": (1, 1)}.items()
    }
    own = given(results, seeds=2)
    found = benchmark.ranking(own, benchmark.pairs(own))
    assert (found.methods, found.ranks, found.pairs) == (["at", "dkd", "kd"], [1, 2, 3], list(PAIRS))
    assert found.critical == pytest.approx(2.343 * (3 * 4 / (6 * 2)) ** 0.5, abs=2e-3)
    assert found.groups == [(0, 2)]


def test_a_method_without_all_seeds_has_no_rank():
    results = random()
    del results["vgg13-vgg8,dist"][2]
    own = given(results)
    found = benchmark.ranking(own, benchmark.pairs(own))
    assert sorted(found.methods) == sorted(set(METHODS) - {"dist"})


def test_a_pair_that_nothing_has_run_on_hides_no_rank():
    own = given(random() | {f"wrn_40_2-wrn_16_2,{method}": {} for method in METHODS})
    assert benchmark.ranking(own, benchmark.pairs(own)).pairs == list(PAIRS)


@pytest.mark.parametrize("results", [random(pairs=PAIRS[:1]), random(METHODS[:2]), {"vgg13-vgg8,kd": {}}])
def test_ranks_take_two_pairs_and_three_methods(results):
    own = given(results)
    assert benchmark.ranking(own, benchmark.pairs(own)) is None
