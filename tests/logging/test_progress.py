"""The progress line, in a terminal and in a file."""

import io
import types

import pytest

from kd_jax import terminal
from kd_jax.batches import Epoch
from kd_jax.logging import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time of `now`, which a test moves."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def stream(monkeypatch, request):
    """The terminal, or with the parameter `io.StringIO` the file, in the place of stderr."""
    stream = getattr(request, "param", Terminal)()
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    return stream


in_file = pytest.mark.parametrize("stream", [io.StringIO], indirect=True)


def drawn(stream):
    """What stood on the line, one text after another."""
    return stream.getvalue().removesuffix("\n").split("\r\033[K")[1:]


def train(clock, seconds, steps=2, terms=("kd",), total=10):
    """A run of steps of four images, in epochs of five, that shows numbers after each of these times."""
    line = progress.Progress(total, Epoch(4, 5))
    for count, passed in enumerate(seconds, start=1):
        clock.now += passed
        line.show(count * steps, {"loss": 0.5, **{f"loss/{name}": 0.25 for name in terms}, "accuracy": 1.0})
    return line


def test_a_terminal_says_what_matters_most_first(clock, stream):
    train(clock, [30, 4])
    assert drawn(stream) == [
        "compiling the training step ...  step 0/10  epoch 0/2",
        "step 2/10  epoch 1/2  loss 0.5  kd 0.25",
        "12s left  step 4/10  epoch 1/2  loss 0.5  2 images/s  100% in steps  kd 0.25",
    ]


@pytest.mark.parametrize("columns", [1, 10, 40, 79, 80, 200])
def test_no_line_is_as_wide_as_the_terminal(clock, stream, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    line = train(clock, [1, 1], terms=[f"term_{i}猫" for i in range(30)], total=100_000)
    line.evaluating("the validation split")
    line.measured(0.5)
    line.close()
    assert all(terminal.columns(text) < columns for text in drawn(stream))
    assert columns < 79 or all(len(text) > columns / 2 for text in drawn(stream)[2:])


def test_a_terminal_that_is_made_smaller_is_followed(clock, stream, monkeypatch):
    line = train(clock, [1, 1])
    monkeypatch.setenv("COLUMNS", "20")
    line.close()
    assert drawn(stream)[-1] == "3s left  step 4/10"


def test_a_term_that_is_the_whole_loss_is_not_said_twice(clock, stream):
    progress.Progress(10, Epoch(4, 5)).show(2, {"loss": 0.5, "loss/cross_entropy": 0.5})
    assert drawn(stream)[-1] == "step 2/10  epoch 1/2  loss 0.5"


def test_less_important_numbers_are_dim(clock, stream, monkeypatch):
    monkeypatch.delenv("NO_COLOR")
    train(clock, [1])
    assert drawn(stream)[-1] == "step 2/10  epoch 1/2  loss 0.5  \033[2mkd 0.25\033[0m"


class Result:
    """An array that is computed or not."""

    done = False

    def is_ready(self):
        return self.done


def test_the_notice_of_compilation_goes_when_steps_run(clock, stream):
    line = progress.Progress(10, Epoch(4, 5))
    line.started(2, Result())
    assert drawn(stream) == ["compiling the training step ...  step 0/10  epoch 0/2", "step 0/10  epoch 0/2"]


def test_before_the_first_numbers_the_steps_that_have_ended_are_shown_with_the_time_left(clock, stream):
    line, results = progress.Progress(10, Epoch(4, 5)), [Result() for _ in range(4)]
    for step, result in enumerate(results, start=1):
        clock.now += 3
        line.started(step, result)
        results[0].done = results[1].done = results[2].done = step > 2
    assert drawn(stream)[2:] == ["step 1/10  epoch 1/2"]
    clock.now += 3
    results[3].done = True
    line.started(5, Result())
    assert drawn(stream)[3:] == ["6s left  step 4/10  epoch 1/2"]


def test_steps_are_not_looked_at_all_the_time(clock, stream):
    line, result = progress.Progress(10, Epoch(4, 5)), Result()
    result.done = True
    for step in range(1, 6):
        clock.now += 0.06
        line.started(step, result)
    assert len(drawn(stream)) == 3


def test_a_run_that_stops_shows_the_step_that_it_has_saved(clock, stream):
    line = train(clock, [1, 1])
    line.started(7, Result())
    line.stopped(7)
    line.close()
    assert "  step 7/10  " in drawn(stream)[-1]


def test_an_evaluation_is_named_while_it_lasts_and_its_accuracy_stays(clock, stream):
    line = train(clock, [1, 1])
    line.evaluating("the validation split")
    line.measured(0.97214)
    begins = [text.split("  ")[0] for text in drawn(stream)[-2:]]
    assert begins == ["evaluating the validation split ...", "3s left"]
    assert "  8 images/s" in drawn(stream)[-1]
    assert "  val 97.21%  " in drawn(stream)[-1]


def test_the_accuracy_on_a_test_set_that_is_read_stands_beside_the_other(clock, stream):
    line = train(clock, [1, 1])
    line.measured(0.5)
    line.measured(0.25, "test")
    line.measured(0.75)
    assert "  val 75.00%  test 25.00%  " in drawn(stream)[-1]


def test_images_without_labels_have_no_accuracy(clock, stream):
    line = train(clock, [1])
    line.measured(None)
    assert "val" not in drawn(stream)[-1]


def test_the_line_of_a_run_that_has_finished_says_how_long_it_took(clock, stream):
    train(clock, [60, 5, 5, 5, 5]).close()
    assert drawn(stream)[-1].startswith("took 1m20s  step 10/10  epoch 2/2  loss 0.5  ")
    assert stream.getvalue().endswith("\n")


@in_file
def test_a_file_gets_a_line_now_and_then_and_the_last(clock, stream):
    train(clock, [0, 1, 11, 1, 1]).close()
    first, *lines = stream.getvalue().splitlines()
    assert first == "compiling the training step ..."
    assert [line.partition("/10")[0].split()[-1] for line in lines] == ["2", "6", "10"]


@in_file
def test_a_file_gets_no_line_for_each_evaluation(clock, stream):
    line = train(clock, [1])
    before = stream.getvalue()
    line.evaluating("the validation split")
    line.measured(0.5)
    assert stream.getvalue() == before


def test_a_dumb_terminal_is_a_file(clock, stream, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    train(clock, [1])
    assert "\r" not in stream.getvalue()


@pytest.fixture
def paused(clock, stream):
    """A run of ten steps of four images after six steps with two pauses."""
    line = progress.Progress(10, Epoch(4, 5))
    for step in (2, 4, 6, 8):
        clock.now += 2
        line.show(step, {"loss": 0.5})
        if step in (4, 6):
            clock.now += 6
            line.pause(step)
    return line


def test_speed_leaves_out_the_time_before_the_first_line_and_pauses(paused):
    assert paused.images_per_second() == 4.0


def test_a_smaller_batch_counts_by_its_images(clock, stream):
    line = progress.Progress(6, Epoch(4, 2, 1))  # epochs of nine images
    for step in (1, 3, 6):
        clock.now += 1
        line.show(step, {"loss": 0.5})
    assert line.images_per_second() == (5 + 9) / 2
    assert "  5 images/s" in drawn(stream)[2]
    assert "  epoch 2/2  " in drawn(stream)[3]


def test_the_time_in_which_another_program_was_compiled_is_not_measured(clock, stream):
    line = progress.Progress(10, Epoch(4, 5))
    for step, seconds in ((2, 60), (4, 2), (5, 60), (7, 2)):
        clock.now += seconds
        if seconds == 60:
            line.compiled()
        line.show(step, {"loss": 0.5})
    assert (line.images_per_second(), line.share_in_steps()) == (4.0, 1.0)
    assert "images/s" not in drawn(stream)[3]


def test_the_share_in_steps_is_that_since_the_last_line_and_in_the_result_of_the_run(paused, stream):
    assert [(text.split()[0], text.split("  ")[-1]) for text in drawn(stream)[2:]] == [
        ("6s", "100% in steps"),
        ("10s", "25% in steps"),
        ("6s", "25% in steps"),
    ]
    assert paused.share_in_steps() == pytest.approx(6 / 18, abs=1e-4)


def test_a_run_that_wrote_one_line_has_no_share(clock, stream):
    line = progress.Progress(10, Epoch(4, 5))
    line.show(10, {"loss": 0.5})
    line.pause(10)
    assert (line.images_per_second(), line.share_in_steps()) == (None, None)


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9s"), (125, "2m05s"), (3720, "1h02m"), (59.6, "1m00s")])
def test_durations_are_written_for_people(seconds, text):
    assert progress.duration(seconds) == text


def test_batches_are_counted_in_images_with_speed_and_time_left(clock, stream):
    found = []
    for batch in progress.counted("abc", 4, 10, "maps of images"):
        found.append(batch)
        clock.now += 2
    assert found == ["a", "b", "c"]
    assert drawn(stream) == [
        "compiling ...  maps of images 0/10",
        "maps of images 4/10",
        "1s left  maps of images 8/10  2 images/s",
        "maps of images 10/10  2 images/s",
    ]


def test_what_takes_a_while_is_said_as_long_as_it_does(stream):
    with progress.working("evaluating ..."):
        assert drawn(stream) == ["evaluating ..."]
    assert drawn(stream) == ["evaluating ...", ""]


@in_file
def test_a_file_is_not_told_what_takes_a_while(stream):
    with progress.working("evaluating ..."):
        pass
    assert stream.getvalue() == ""
