"""Where numbers go: the file, the event file, the terminal."""

import json
import sys
import types

import numpy as np
import pytest

from kd_jax.logging import metrics_file


@pytest.fixture
def without_tensorflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def test_scalars_become_a_line_with_step_and_seconds(tmp_path, without_tensorflow):
    writer = metrics_file.Writer(str(tmp_path), 0)
    writer.write(3, {"train/loss": 0.5, "validation/agreement": None})
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert line.pop("seconds") >= 0
    assert len(line.pop("checksum")) == 16
    assert line == {"step": 3, "train/loss": 0.5, "validation/agreement": None}


def test_one_line_says_that_tensorflow_is_missing(tmp_path, without_tensorflow, capsys):
    writer = metrics_file.Writer(str(tmp_path), 0)
    assert capsys.readouterr().out == ""
    for step in (1, 2):
        writer.write(step, {"loss": 1.0})
    writer.close()
    said = capsys.readouterr().out
    assert said == "tensorflow is not installed: metrics go to metrics.jsonl and the terminal, not to TensorBoard\n"


def test_a_restart_cuts_the_lines_behind_its_step_and_those_cut_short(tmp_path, without_tensorflow):
    lines = [{"step": step, "seconds": 10.0 * step} for step in (1, 2, 3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "sec')
    writer = metrics_file.Writer(str(tmp_path), 2)
    assert writer.elapsed() >= 20.0
    writer.write(3, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in metrics_file.read(str(tmp_path))] == [1, 2, 3]
    assert metrics_file.read(str(tmp_path))[-1]["loss"] == 1.0


def written(folder, steps):
    """The file of a run that has logged these steps."""
    writer = metrics_file.Writer(str(folder), 0)
    for step in steps:
        writer.write(step, {"loss": 1.0 + step})
    writer.close()
    return folder / "metrics.jsonl"


def test_what_a_power_cut_left_is_no_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "seconds": 2.0}\n' + bytes(40) + b"\n")
    assert [line["step"] for line in metrics_file.read(str(tmp_path))] == [1]


@pytest.mark.parametrize(("old", "new"), [("3.0", "3.1"), ('"loss": 3', '"lost": 3'), ("}\n", "\n"), ("{", "[")])
def test_a_damaged_line_is_named_and_those_after_it_are_read(tmp_path, without_tensorflow, capsys, old, new):
    path = written(tmp_path, (1, 2, 3))
    first, second, third = path.read_text().splitlines(keepends=True)
    path.write_text(first + second.replace(old, new) + third)
    assert [line["step"] for line in metrics_file.read(str(tmp_path))] == [1, 3]
    assert f"{path}: line 2 is damaged and is left out\n" in capsys.readouterr().err


@pytest.mark.parametrize("line", ['{"step": 1e999}', '{"step": 2, "train/loss": NaN}', '{"step": null}', "3"])
def test_an_odd_line_is_named_and_does_not_stop_the_run(tmp_path, without_tensorflow, capsys, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 2.0}\n' + line + "\n")
    metrics_file.Writer(str(tmp_path), 5).close()
    assert [line["step"] for line in metrics_file.read(str(tmp_path))] == [1]
    assert "metrics.jsonl: line 2 is damaged and is left out" in capsys.readouterr().err


def test_lines_of_an_older_version_are_read_and_said_once_to_be_unchecked(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 2.0}\n{"step": 2, "seconds": 3.0}\n')
    assert [line["step"] for line in metrics_file.read(str(tmp_path))] == [1, 2]
    assert capsys.readouterr().err.count("was written without checksums, by an older version") == 1


def test_after_a_restart_no_step_stands_twice_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written(tmp_path, (1, 2, 3))
    again = metrics_file.Writer(str(tmp_path), 2)
    again.write(3, {"loss": 7.0})
    again.close()
    steps = [event.step for event in EventAccumulator(str(tmp_path)).Reload().Tensors("loss")]
    assert sorted(steps) == [1, 2, 3]  # in the order of the files, whose names are of the same second


def test_a_long_file_is_thinned_by_kind_and_keeps_the_last_of_each(tmp_path):
    lines = [{"step": step, ("validation/nll" if step % 100 == 0 else "train/loss"): 1.0} for step in range(1, 1001)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = metrics_file.read(str(tmp_path), most=20)
    assert [line["step"] for line in read if "validation/nll" in line] == list(range(100, 1001, 100))
    steps = [line["step"] for line in read if "train/loss" in line]
    assert (15 <= len(steps) <= 21, steps[-1], steps == sorted(steps)) == (True, 999, True)


def test_lines_of_the_test_set_take_no_place_of_others_where_a_file_is_thinned(tmp_path):
    names = ("train/loss", "validation/nll", "test/nll")
    lines = [{"step": step, name: 1.0} for step in range(1, 101) for name in names]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = metrics_file.read(str(tmp_path), most=10)
    assert [[line["step"] for line in read if name in line] for name in names] == [[*range(1, 101, 10), 100]] * 3


def test_scalars_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    writer = metrics_file.Writer(str(tmp_path), 0)
    writer.write(7, {"train/loss": 0.25, "validation/agreement": None})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Tensors("train/loss")
    assert (event.step, tensor_util.make_ndarray(event.tensor_proto)) == (7, 0.25)


SAVED = {"hash": "abc", "config": {"name": "kd", "log": {}, "train": {"batch_size": 64, "ema": 0.5, "last": None}}}


@pytest.fixture
def events(tmp_path):
    """What TensorBoard finds in the folder of a run of seven steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = metrics_file.Writer(str(tmp_path), 0, SAVED)
    writer.write(7, {"train/loss": 0.25})
    writer.write_result({"checkpoint": 5, "test": {"accuracy": 0.5, "agreement": None}})
    writer.close()
    return EventAccumulator(str(tmp_path)).Reload()


def value(event):
    from tensorboard.util import tensor_util

    return tensor_util.make_ndarray(event.tensor_proto)


def test_metrics_of_the_test_set_stand_in_tensorboard_at_the_step_of_their_checkpoint(events):
    (event,) = events.Tensors("test/accuracy")
    assert (event.step, value(event)) == (5, 0.5)
    assert "test/agreement" not in events.Tags()["tensors"]


def test_a_run_that_goes_on_from_its_last_step_has_its_test_metrics_in_tensorboard(events, tmp_path):
    again = metrics_file.Writer(str(tmp_path), 7, SAVED)
    again.write_result({"checkpoint": 7, "test": {"accuracy": 0.75}})
    again.close()
    assert [value(event) for event in type(events)(str(tmp_path)).Reload().Tensors("test/accuracy")][-1] == 0.75


def test_tensorboard_has_the_config_as_a_text(events):
    (event,) = events.Tensors("config")
    (text,) = value(event).ravel()
    assert text.startswith(b"run abc\n")
    assert b"| train.batch_size | 64 |\n" in text
    assert events.PluginTagToContent("text") == {"config": b""}


def test_tensorboards_table_of_hyperparameters_has_the_config(events):
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    (content,) = events.PluginTagToContent("hparams").values()
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert list(events.PluginTagToContent("hparams")) == [metadata.SESSION_START_INFO_TAG]
    assert start.hparams["train.batch_size"].number_value == 64
    assert start.hparams["train.ema"].number_value == 0.5
    assert start.hparams["train.last"].string_value == "null"
    assert start.hparams["name"].string_value == "kd"


def test_a_run_that_starts_again_has_its_config_in_tensorboard_once(events, tmp_path):
    again = metrics_file.Writer(str(tmp_path), 0, SAVED)
    again.write(7, {"train/loss": 0.5})
    again.close()
    after = type(events)(str(tmp_path)).Reload()
    assert [event.step for event in after.Tensors("config")] == [0]
    assert [value(event) for event in after.Tensors("train/loss")] == [0.5]


def test_scalars_and_the_result_reach_the_mirrors_of_the_folder(tmp_path, without_tensorflow, monkeypatch):
    calls = []

    class Recorder:
        def __init__(self, *arguments):
            calls.append(arguments)

        def __getattr__(self, name):
            return lambda *arguments, **named: calls.append((name, *arguments, *named.items()))

    monkeypatch.setattr(metrics_file, "Mirrors", Recorder)
    writer = metrics_file.Writer(str(tmp_path), 0, {"hash": "abc"})
    writer.write(3, {"train/loss": 0.5, "validation/agreement": None})
    writer.write_result({"checkpoint": 3, "test": {"accuracy": 0.5, "agreement": None}})
    writer.close()
    assert calls == [
        (str(tmp_path), {"hash": "abc"}),
        ("write", 3, {"train/loss": 0.5}),
        ("write_result", {"checkpoint": 3, "test": {"accuracy": 0.5, "agreement": None}}, {"test/accuracy": 0.5}),
        ("close", ("failed", False)),
    ]


def test_a_run_that_stops_before_its_result_has_failed_in_the_mirrors(tmp_path, without_tensorflow, monkeypatch):
    closed = []
    mirrors = types.SimpleNamespace(write=lambda *arguments: None, close=lambda *, failed: closed.append(failed))
    monkeypatch.setattr(metrics_file, "Mirrors", lambda *arguments: mirrors)
    writer = metrics_file.Writer(str(tmp_path), 0, {"hash": "abc"})
    writer.write(3, {"train/loss": 0.5})
    writer.close()
    assert closed == [True]


def test_an_image_reaches_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    metrics_file.write_image(str(tmp_path), 5, "saliency", np.zeros((2, 3, 3), np.uint8))
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("saliency")
    width, height, png = tensor_util.make_ndarray(event.tensor_proto)
    assert (event.step, width, height, png[1:4]) == (5, b"3", b"2", b"PNG")


def test_without_tensorflow_an_image_is_a_line_that_says_so(tmp_path, without_tensorflow, capsys):
    metrics_file.write_image(str(tmp_path), 5, "saliency", np.zeros((2, 3, 3), np.uint8))
    assert (
        capsys.readouterr().out
        == "tensorflow is not installed: the image saliency goes to its file, not to TensorBoard\n"
    )
