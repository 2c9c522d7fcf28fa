"""The sections of the report."""

from kd_jax.reporting import saliency
from kd_jax.reporting.page import Table
from kd_jax.reporting.sections import sections
from tests.reporting.made_up import groups, write_run


def test_a_section_with_nothing_to_say_is_left_out(tmp_path):
    for seed in range(2):
        write_run(tmp_path / str(seed), seed=seed)
    titles = [section.title for section in sections(groups(tmp_path), [])]
    assert titles == [
        "Results",
        "Learning curves",
        "Accuracy, size and latency",
        "Calibration",
        "Confusions",
        "What was run",
    ]


def test_one_run_has_a_page_of_its_own_that_says_what_is_left_out(tmp_path):
    write_run(tmp_path / "one")
    found = sections(groups(tmp_path), [("runs/two", "has not finished: step 12")])
    assert (found[0].title, found[-1].title) == ("Recipe", "Left out")


def test_numbers_and_pictures_of_saliency_maps_stand_in_one_section(tmp_path):
    write_run(tmp_path / "one")
    (tmp_path / "one" / "saliency.json").write_text("damaged")
    (tmp_path / "one" / "saliency.png").write_bytes(saliency.PNG_SIGNATURE)
    (section,) = (one for one in sections(groups(tmp_path), []) if one.title == "Saliency maps")
    left_out, picture = section.blocks
    assert "saliency.json. Such a file is damaged" in left_out
    assert picture.png == saliency.PNG_SIGNATURE


def test_runs_that_are_left_out_are_listed_even_where_nothing_else_is():
    (section,) = sections([], [("runs/one", "has not finished: step 12")])
    assert section.blocks == [Table(("run", "why"), [("runs/one", "has not finished: step 12")], numbers=False)]


def test_recipes_that_are_not_drawn_are_counted(tmp_path):
    write_run(tmp_path / "one")
    (group,) = groups(tmp_path)
    curves = next(section for section in sections([group] * 23, []) if section.title == "Learning curves")
    assert curves.blocks[-1] == "In the tables only: 2 more recipes; a report on fewer runs draws them."
