"""The progress line, in a terminal and in a file."""

import io
import sys

import pytest

from kd_jax.logging import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, times):
    """What a run of ten steps of four images prints, at the given times of the clock."""
    clock = iter(times)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", stream)
    line = progress.Progress(10, 4)
    for step in range(2, 2 * len(times) + 1, 2):
        line.show(step, 1, {"loss": 0.5, "loss/kd": 0.25, "accuracy": 1.0})
    line.close()
    return stream.getvalue()


def test_a_terminal_gets_one_line_that_is_overwritten(monkeypatch):
    text = shown(monkeypatch, Terminal(), [0.0, 4.0])
    first, second = text.removesuffix("\n").split("\r\033[K")[1:]
    assert first == "step 2/10  epoch 1  loss 0.5 (kd 0.25)"
    assert second == "step 4/10  epoch 1  loss 0.5 (kd 0.25)  2 images/s  100% in steps  12s left"


def test_a_file_gets_a_line_now_and_then_and_the_last(monkeypatch):
    text = shown(monkeypatch, io.StringIO(), [100.0, 101.0, 112.0, 113.0, 114.0])
    assert [line.split()[1] for line in text.splitlines()] == ["2/10", "6/10", "10/10"]


@pytest.fixture
def paused(monkeypatch):
    """A line of ten steps of four images after six steps with two pauses, and what it printed."""
    clock, stream = iter([100.0, 102.0, 108.0, 110.0, 116.0, 118.0]), Terminal()
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", stream)
    line = progress.Progress(10, 4)
    line.show(2, 1, {"loss": 0.5})
    line.show(4, 1, {"loss": 0.5})  # two steps in two seconds
    line.pause(4)  # of six
    line.show(6, 1, {"loss": 0.5})  # two
    line.pause(6)  # six
    line.show(8, 1, {"loss": 0.5})  # two
    return line, stream.getvalue()


def test_speed_leaves_out_the_time_before_the_first_line_and_pauses(paused):
    assert paused[0].images_per_second() == 4.0


def test_the_share_in_steps_is_that_since_the_last_line_and_in_the_result_of_the_run(paused):
    assert [line.partition("images/s  ")[2] for line in paused[1].split("\r")[2:]] == [
        "100% in steps  6s left",
        "25% in steps  10s left",
        "25% in steps  6s left",
    ]
    assert paused[0].share_in_steps() == pytest.approx(6 / 18, abs=1e-4)


def test_a_run_that_wrote_one_line_has_no_share(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    line = progress.Progress(10, 4)
    line.show(10, 1, {"loss": 0.5})
    line.pause(10)
    assert (line.images_per_second(), line.share_in_steps()) == (None, None)


def test_a_line_with_many_terms_is_cut_to_its_width(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    clock = iter([100.0, 200.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    line = progress.Progress(100_000, 4)
    for step in (49_999, 50_000):
        line.show(step, 240, {"loss": 0.5, **{f"loss/cross_entropy/{i}": 1.2345 for i in range(9)}})
    first, second = stream.getvalue().splitlines()
    assert (len(first), len(second)) == (120, 120)
    assert first.endswith("...)")
    assert second.endswith("...)  0 images/s  100% in steps  1388h53m left")


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9s"), (125, "2m05s"), (3720, "1h02m"), (59.6, "1m00s")])
def test_durations_are_written_for_people(seconds, text):
    assert progress.duration(seconds) == text


def test_batches_are_counted_in_images_with_speed_and_time_left(monkeypatch):
    clock, stream = iter([10.0, 12.0, 14.0]), Terminal()
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress.counted("abc", 4, 10)) == ["a", "b", "c"]
    lines = stream.getvalue().removesuffix("\n").split("\r\033[K")[1:]
    assert lines == ["4/10 images", "8/10 images  2 images/s  1s left", "10/10 images  2 images/s  0s left"]
