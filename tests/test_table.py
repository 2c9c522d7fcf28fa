"""The table of experiments: what is missing is run, what is there is picked up, what fails stands at its row."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from kd_jax import cli, experiment, jobs, table
from kd_jax.errors import InputError, TrainingError
from tests.engines import programs

flags.FLAGS.mark_as_parsed()


def result(accuracy, model="resnet8"):
    test = {"accuracy": accuracy, "images": 10}
    return {"name": "x", "model": model, "checkpoint": 1, "test": test, "seconds": 1.0, "device": "1 x cpu"}


ORIGINAL = table.read("original")
RESULTS = {
    "student": {0: result(0.90), 1: result(0.92), 2: result(0.91)},
    "kd": {0: result(0.93), 1: result(0.94), 2: result(0.95)},
    "kd_frozen": {0: result(0.5)},
    "rkd_angle": {},
}


def test_a_row_is_compared_with_cross_entropy_seed_by_seed():
    row = table.summary(ORIGINAL, RESULTS)["kd"]
    gains = np.array([3.0, 2.0, 4.0])
    assert (row["mean"], row["difference"]) == (pytest.approx(94), pytest.approx(3))
    assert row["deviation"] == pytest.approx(1)
    assert row["interval"] == pytest.approx(4.3027 * gains.std(ddof=1) / 3**0.5, rel=1e-4)
    assert row["published"] == 94.26


def test_frozen_rows_are_compared_with_the_frozen_student_only():
    assert table.summary(ORIGINAL, RESULTS)["kd_frozen"]["difference"] is None
    both = RESULTS | {"student_frozen": {0: result(0.4)}}
    assert table.summary(ORIGINAL, both)["kd_frozen"]["difference"] == pytest.approx(10)


def test_the_table_has_the_originals_columns_and_names_failures_at_their_row():
    lines = table.table(ORIGINAL, RESULTS, [jobs.Failure("rkd_angle", 0, "no | memory")]).splitlines()
    assert lines[2] == "| resnet8 | cross entropy | trained | 91.00 ± 1.00 |  | 93.65 | 3 |"
    assert lines[3].startswith("| resnet8 | KD | trained | 94.00 ± 1.00 | +3.00 ± 2.48 | 94.26 | 3 |")
    assert lines[4] == "| resnet8 | KD | frozen | 50.00 |  | 93.29 | 1 |"
    assert lines[5] == "| student | RKD angle | trained |  |  |  | 0; seed 0 failed: no \\| memory |"


@pytest.fixture
def settings(tmp_path):
    """The flags of a small table whose files lie in a folder of the test's own."""
    own = {"scale": "smoke", "seeds": 2, "only": ["student", "kd"], "results": str(tmp_path / "results.jsonl")}
    with flagsaver.flagsaver(runs=str(tmp_path / "runs"), **own):
        yield tmp_path


@pytest.fixture
def fake(monkeypatch):
    """Takes the place of the processes: what was run, and which of it fails."""
    return programs.stand_in(monkeypatch, lambda row, seed: result(0.9 if row == "kd" else 0.8 + seed / 100))


def test_every_row_is_run_once_and_picked_up_afterwards(settings, fake, capsys):
    ran, _ = fake
    table.main([])
    assert ran == [("student", 0), ("kd", 0), ("student", 1), ("kd", 1)]
    table.main([])
    assert len(ran) == 4
    assert "4 of 4 runs are in" in capsys.readouterr().out
    numbers = json.loads((settings / "runs" / "original-smoke" / "table.json").read_text())
    assert numbers["kd"]["difference"] == pytest.approx(9.5)
    text = (settings / "runs" / "original-smoke" / "table.md").read_text()
    assert "| resnet8 | KD | trained | 90.00 ± 0.00 | +9.50 ± 6.35 | 94.26 | 2 |" in text


def test_a_row_that_fails_does_not_stop_the_others_and_is_tried_again(settings, fake, capsys):
    ran, fails = fake
    fails.add(("student", 0))
    with pytest.raises(TrainingError, match="1 of 4 runs failed; the same command tries them again"):
        table.main([])
    assert len(ran) == 4
    assert "seed 0 failed: it broke" in capsys.readouterr().out
    fails.clear()
    table.main([])
    assert ran[4:] == [("student", 0)]


def test_a_line_of_the_results_says_how_it_was_made(settings, fake):
    table.main([])
    line = json.loads((settings / "results.jsonl").read_text().splitlines()[1])
    assert (line["row"], line["seed"], line["result"]["test"]["accuracy"]) == ("kd", 0, 0.9)
    assert line["command"] == "python -m kd_jax.main --config=configs/original.py:kd,smoke --config.seed=0"
    assert line["hardware"].startswith("1 x cpu, ")
    assert len(line["date"]) == len("2026-01-01")


def test_a_change_reaches_every_row_and_its_teacher_and_is_another_table(settings):
    plain, changed = (table.job(ORIGINAL, "kd", 0, changes) for changes in ([], ["optimizer.learning_rate=0.3"]))
    assert changed.key != plain.key
    assert "--config.optimizer.learning_rate=0.3" in changed.command
    assert "--config.teacher.config.optimizer.learning_rate=0.3" in changed.command


def test_the_key_is_that_of_the_run(settings):
    tree = ORIGINAL.get_config("kd,smoke")
    assert table.job(ORIGINAL, "kd", 0, []).key == experiment.create(tree).digest


def images(folder, pixels):
    """A data set of two classes."""
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (pixels, 4), (index, 0, 0)).save(folder / name / f"{index}.bmp")
    return f"dataset.path={folder}"


def test_where_the_images_lie_does_not_matter_and_which_they_are_does(settings, tmp_path):
    folders = [images(tmp_path / name, pixels) for name, pixels in (("a", 4), ("b", 4), ("c", 8))]
    keys = [table.job(ORIGINAL, "kd", 0, ["dataset.source=folder", folder]).key for folder in folders]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


def test_what_the_networks_are_pretrained_on_is_part_of_the_key(settings, tmp_path):
    images(tmp_path / "a", 4), images(tmp_path / "b", 8)
    small = ["dataset.source=digits", "dataset.normalize=dataset", "dataset.train_images=0"]
    with flagsaver.flagsaver(scale="laptop"):
        alone = table.job(ORIGINAL, "kd", 0, [*small, "model.pretrained=", "teacher.config.model.pretrained="]).key
    keys = []
    for name in ("a", "b"):
        with flagsaver.flagsaver(pretrain_on=str(tmp_path / name), scale="laptop"):
            keys.append(table.job(ORIGINAL, "kd", 0, small).key)
            with flagsaver.flagsaver(runs="elsewhere"):
                assert table.job(ORIGINAL, "kd", 0, small).key == keys[-1]
    assert len({alone, *keys}) == 3


@pytest.mark.parametrize("change", ["dataset.path", "--x=1", "no.key=1", "train.epochs=many", "seed=5"])
def test_a_change_that_does_not_fit_is_refused(settings, change):
    with pytest.raises(InputError, match=change.split("=")[0]):
        table.main([change])


def test_a_run_is_a_process_whose_last_line_says_why_it_failed(settings, monkeypatch, no_tensorflow):
    monkeypatch.setenv("PYTHONPATH", no_tensorflow)
    job = table.job(ORIGINAL, "student", 0, ["dataset.image_size=8", "train.steps=2"])
    assert jobs.run(job, str(settings / "runs"))["steps"] == 2
    other = job._replace(command=(*job.command, "--config.model.width=0.0"), folder=str(settings / "runs" / "b"))
    failed = jobs.run(other, str(settings / "runs"))
    assert failed.reason.startswith("model.width is 0.0; expected a factor above 0")


def test_the_teacher_of_the_others_lies_where_they_look_for_it(settings):
    first, second = (table.job(ORIGINAL, "teacher", number, []) for number in (0, 1))
    assert first.folder == f"{cli.RUNS.value}/teachers/{first.key[:8]}"
    assert second.folder.startswith(f"{cli.RUNS.value}/original-smoke/teacher-1-")


def test_one_table_is_made_at_a_time(settings):
    with (
        flagsaver.flagsaver(rows=["original", "other"]),
        pytest.raises(InputError, match=r"--rows is 'original,other'"),
    ):
        table.main([])


TABLE = """
from kd_jax.configs import kd

ROWS = ("hot", "cold")
PUBLISHED = {"cold": 95.5}
SOURCE = "a paper"


def get_config(arg="hot"):
    config = kd.get_config("smoke")
    config.method.kd.temperature = {"hot": 8.0, "cold": 1.0}[arg]
    return config
"""


def test_a_table_is_a_file_with_rows(tmp_path, monkeypatch, capsys):
    (tmp_path / "heat.py").write_text(TABLE)
    ran, _ = programs.stand_in(monkeypatch, lambda row, seed: result(0.9 if row == "cold" else 0.8))
    flags_of_it = {"rows": [str(tmp_path / "heat.py")], "runs": str(tmp_path / "runs"), "seeds": 2}
    with flagsaver.flagsaver(results=str(tmp_path / "results.jsonl"), **flags_of_it):
        table.main([])
    assert ran == [("hot", 0), ("cold", 0), ("hot", 1), ("cold", 1)]
    lines = (tmp_path / "runs" / "heat" / "table.md").read_text().splitlines()
    assert lines[0] == "| network | row | test accuracy, % | against hot, points | published, % | seeds |"
    assert lines[3] == "| resnet8 | cold | 90.00 ± 0.00 | +10.00 ± 0.00 | 95.50 | 2 |"
    assert lines[-1].endswith("Published: a paper.")
    first = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert f"--config={tmp_path / 'heat.py'}:hot --config.seed=0" in first["command"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist; expected a file with get_config"),
        ("x = 1 / 0", "cannot be run: ZeroDivisionError: division by zero"),
        ("ROWS = ('a',)", "has no get_config; expected a config's file"),
        (TABLE.replace("ROWS", "LINES"), r"where ROWS is \(\); expected a list of names"),
        (TABLE.replace('("hot", "cold")', '"hot"'), "where ROWS is 'hot'; expected a list of names"),
        (
            TABLE.replace('("hot", "cold")', '("hot", "hot")'),
            r"where ROWS is \('hot', 'hot'\); expected a list",
        ),
        (
            TABLE + "HEADINGS = ('temperature', 'unit')\n",
            r"the label of 'hot' is \('hot',\); expected one text",
        ),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, said):
    path = tmp_path / "own.py"
    if text:
        path.write_text(text)
    with pytest.raises(InputError, match=said):
        table.read(str(path))


def test_what_a_tables_config_does_not_take_is_one_line(tmp_path):
    (tmp_path / "heat.py").write_text(TABLE)
    with (
        flagsaver.flagsaver(rows=[str(tmp_path / "heat.py")], scale="laptop"),
        pytest.raises(InputError, match=r"heat\.py:hot,laptop: KeyError: hot,laptop"),
    ):
        table.main([])
