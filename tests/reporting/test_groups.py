"""Runs of one recipe are one group, and a group has the baseline of its student."""

from kd_jax.reporting.groups import baseline
from tests import tiny
from tests.reporting.made_up import groups, write_run, write_table


def test_the_baseline_is_the_same_student_without_a_teacher(tmp_path):
    write_table(tmp_path)
    found = {group.label: group for group in groups(tmp_path)}
    assert baseline(found["kd"], list(found.values())) is found["student"]
    assert baseline(found["student"], list(found.values())) is None


def test_a_student_of_another_recipe_is_no_baseline(tmp_path):
    write_run(tmp_path / "a", "student", **{"optimizer.learning_rate": 0.3})
    teacher = write_run(tmp_path / "t", "teacher", **{"model.width": 0.25})
    write_run(tmp_path / "b", "kd", teacher=teacher)
    found = groups(tmp_path)
    assert baseline(next(group for group in found if group.label == "kd"), found) is None


def test_seeds_of_the_teacher_do_not_split_a_group(tmp_path):
    for seed in range(2):
        teacher = write_run(tmp_path / f"t{seed}", "teacher", seed, **{"model.width": 0.25})
        write_run(tmp_path / f"kd{seed}", "kd", seed, teacher=teacher)
    assert {group.label: len(group.runs) for group in groups(tmp_path)} == {"kd": 2, "teacher": 2}


def test_a_recipe_that_teaches_another_is_marked(tmp_path):
    teacher = write_run(tmp_path / "big", "resnet", **{"model.width": 0.25})
    write_run(tmp_path / "kd", "kd", teacher=teacher)
    write_run(tmp_path / "teachers" / "lonely", "wide", **{"model.width": 0.5})
    assert {group.label for group in groups(tmp_path)} == {"kd", "resnet (teacher)", "wide (teacher)"}


def test_recipes_of_one_name_are_told_apart_by_what_differs(tmp_path):
    for width in (0.25, 0.5):
        write_run(tmp_path / str(width), "student", **{"model.width": width})
    assert {group.label for group in groups(tmp_path)} == {"student", "student (model.width 0.5)"}


def test_of_recipes_that_each_add_a_key_the_one_without_has_no_remark(tmp_path):
    for name, term in (("b", {"weight": 1.0}), ("a", {"weight": 5.0}), ("c", None)):
        write_run(tmp_path / name, "student", method=tiny.METHODS["cross_entropy"] | ({"more": term} if term else {}))
    expected = {"student", "student (more.weight 1)", "student (more.weight 5)"}
    assert {group.label for group in groups(tmp_path)} == expected


def test_recipes_that_share_their_first_differences_have_other_names(tmp_path):
    for name, last in (("a", 1.0), ("b", 2.0), ("c", None)):
        terms = {f"more{i}": {"weight": 1.0} for i in range(3)} | {"other": {"weight": last}}
        write_run(tmp_path / name, "student", method=tiny.METHODS["cross_entropy"] | (terms if last else {}))
    assert len({group.label for group in groups(tmp_path)}) == 3
