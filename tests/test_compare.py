"""Tables of finished runs."""

import math

import numpy as np
import pytest
from absl import flags

from kd_jax import compare
from kd_jax.errors import InputError
from tests.reporting import made_up

flags.FLAGS.mark_as_parsed()


def result(accuracy):
    return {"test": {"accuracy": accuracy}, "seconds": 12.4}


ROWS = {
    "student": {0: result(0.90), 1: result(0.92), 2: result(0.91)},
    "kd": {0: result(0.93), 1: result(0.94), 2: result(0.95)},
    "teacher": {0: result(0.97)},
}


def test_the_table_pairs_each_row_with_the_one_it_is_compared_with():
    lines = compare.table(ROWS, "student", {"kd": "distilled"}).splitlines()
    gains = np.array([3.0, 2.0, 4.0])
    half = 4.3027 * gains.std(ddof=1) / math.sqrt(3)  # the 97.5% quantile of Student's t with two degrees of freedom
    assert lines[2] == "| student | 91.00 ± 1.00 |  | 3 | 12 |"
    assert lines[3] == f"| distilled | 94.00 ± 1.00 | +3.00 ± {half:.2f} | 3 | 12 |"
    assert lines[4] == "| teacher | 97.00 | +7.00 | 1 | 12 |"


def test_only_seeds_that_both_rows_have_are_paired():
    rows = {"student": {0: result(0.5), 1: result(0.9)}, "kd": {1: result(0.95), 2: result(0.1)}}
    assert "| +5.00 |" in compare.table(rows, "student")


def test_recipes_of_one_name_are_told_apart(tmp_path, capsys):
    made_up.write_run(tmp_path / "student", accuracy=0.9)
    for temperature, seed, accuracy in ((2.0, 0, 0.93), (4.0, 0, 0.95), (4.0, 1, 0.97)):
        method = {"kd": {"temperature": temperature}}
        made_up.write_run(tmp_path / f"{temperature}-{seed}", "kd", seed, accuracy, method=method)
    compare.main([str(tmp_path)])
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()]
    assert [" student ", " 90.00 ", "  "] in rows
    assert [" kd ", " 93.00 ", " +3.00 "] in rows
    assert [" kd (kd.temperature 4) ", " 96.00 ± 1.41 ", " +5.00 "] in rows  # seed 0 alone is in both


def test_what_has_no_accuracy_is_left_out_and_named(tmp_path, capsys):
    made_up.write_run(tmp_path / "student")
    made_up.write_run(tmp_path / "other", "kd")
    (tmp_path / "other" / "result.json").unlink()
    compare.main([str(tmp_path)])
    out, err = capsys.readouterr()
    assert "| student | 50.00 |" in out
    assert f"{tmp_path / 'other'} is left out: has not finished" in err


def test_where_no_row_has_the_name_of_the_default_the_flag_is_named(tmp_path):
    made_up.write_run(tmp_path / "a", "kd")
    with pytest.raises(InputError, match=r"no row is 'student'; expected --against=ROW, one of: kd$"):
        compare.main([str(tmp_path)])


def test_runs_on_different_images_are_not_compared(tmp_path):
    made_up.write_run(tmp_path / "student")
    made_up.write_run(tmp_path / "kd", "kd", **{"dataset.source": "npz", "dataset.path": "x.npz"})
    with pytest.raises(InputError, match=r"the runs have 2 test sets: .*; expected one"):
        compare.main([str(tmp_path)])
