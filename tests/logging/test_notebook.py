"""Progress and results in a notebook, with a stand-in for IPython, and in a real kernel."""

import os
import re
import sys
import types
from pathlib import Path

import pytest

from kd_jax.batches import Epoch
from kd_jax.errors import InputError
from kd_jax.logging import notebook, progress

ROOT = Path(__file__).parent.parent.parent


class Output:
    """What a cell shows; a stand-in for IPython's handle too."""

    def __init__(self):
        self.displayed, self.updates = [], []

    def display(self, shown, display_id):
        assert display_id is True
        self.displayed.append(shown)
        return self

    def update(self, shown):
        self.updates.append(shown)


@pytest.fixture
def output(monkeypatch):
    """A kernel of a notebook, as far as the package sees."""
    output = Output()
    fake = types.ModuleType("IPython")
    fake.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    fake.display = types.ModuleType("IPython.display")
    fake.display.HTML, fake.display.display = str, output.display
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", fake.display)
    return output


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


def run(clock, seconds, folder=""):
    """A run of ten steps that shows numbers after every second one, so many seconds apart."""
    line = progress.Progress(10, Epoch(4, 5), folder)
    for step in range(2, 11, 2):
        clock.now += seconds
        line.show(step, {"loss": 0.5, "loss/<a>": 0.25, "loss/b": 0.25})
    line.close()


def test_a_cell_gets_one_output_that_is_updated(output, clock, capsys):
    run(clock, 1.0)
    assert len(output.displayed) == 1
    assert "compiling the training step ..." in output.displayed[0]
    assert len(output.updates) == 6
    assert '<progress max="1" value="1.0000"' in output.updates[-1]
    assert "step 10/10" in output.updates[-1]
    assert capsys.readouterr() == ("", "")


def test_updates_are_not_more_than_a_person_sees(output, clock):
    run(clock, 0.1)
    assert [re.findall("step [0-9]+", text) for text in output.updates] == [["step 10"]]


def test_names_are_text(output, clock):
    run(clock, 1.0)
    assert "&lt;a&gt; 0.25" in output.updates[-1]


def test_the_runs_curves_are_drawn_with_the_bar(output, clock, tmp_path):
    lines = [f'{{"step": {step}, "epoch": {step / 5}, "train/loss": {1 / step}}}\n' for step in (2, 4, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    run(clock, 1.0, str(tmp_path))
    assert output.updates[-1].count("<svg") == 1
    assert 'aria-label="loss"' in output.updates[-1]


@pytest.mark.parametrize("shell", [None, types.SimpleNamespace(kernel=None)], ids=["a program", "a terminal's IPython"])
def test_ipython_alone_is_no_notebook(output, monkeypatch, shell):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    assert not notebook.is_running()


def test_without_ipython_there_is_no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not notebook.is_running()
    assert "IPython" not in sys.modules


def test_a_mistake_is_one_line_in_a_notebook():
    assert InputError("train.epochs is 0")._render_traceback_() == ["error: train.epochs is 0"]


CELL = """
from tests import tiny
import kd_jax
kd_jax.train(tiny.taught(**{"dataset.holdout": 0.1, "log.every_steps": 1}), "run")
"""


@pytest.mark.slow  # it needs the extra `all`
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_a_real_cell_shows_a_bar_for_each_run_and_the_result(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    cell = nbformat.v4.new_code_cell(CELL)
    kinds = []

    class Client(nbclient.NotebookClient):
        def process_message(self, msg, *arguments):
            kinds.append(msg["msg_type"])
            return super().process_message(msg, *arguments)

    book = nbformat.v4.new_notebook(cells=[cell])
    Client(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    bars = [out.data["text/html"] for out in cell.outputs if out.output_type == "display_data"]
    (result,) = [out.data["text/html"] for out in cell.outputs if out.output_type == "execute_result"]
    assert len(bars) == kinds.count("display_data") == 2  # the teacher's and the student's
    assert kinds.count("update_display_data") >= 2
    assert len(cell.outputs) <= 8  # with what is printed between
    for bar in bars:
        assert "step 12/12" in bar
        assert ">took " in bar
        assert bar.count("<polyline") == 3  # loss, accuracy of training and of validation
    assert "test accuracy" in result
    assert result.count("<polyline") == 3
