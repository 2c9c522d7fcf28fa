"""Where numbers go: the file, the event file, the terminal."""

import hashlib
import io
import json
import pathlib
import shutil
import sys
import types

import numpy as np
import pytest

from kd_jax import loop, writers
from kd_jax.types import InputError
from tests import tiny


@pytest.fixture
def without_tensorflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def test_scalars_become_a_line_with_step_and_seconds(tmp_path, without_tensorflow):
    writer = writers.Writer(str(tmp_path), 0)
    writer.write(3, {"train/loss": 0.5, "validation/agreement": None})
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert line.pop("seconds") >= 0
    assert line == {"step": 3, "train/loss": 0.5, "validation/agreement": None}


def test_one_line_says_that_tensorflow_is_missing(tmp_path, without_tensorflow, capsys):
    writers.Writer(str(tmp_path), 0).close()
    said = capsys.readouterr().out
    assert said == "tensorflow is not installed: metrics go to metrics.jsonl and the terminal, not to TensorBoard\n"


def test_a_restart_cuts_the_lines_behind_its_step_and_those_cut_short(tmp_path, without_tensorflow):
    lines = [{"step": step, "seconds": 10.0 * step} for step in (1, 2, 3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "sec')
    writer = writers.Writer(str(tmp_path), 2)
    assert writer.elapsed() >= 20.0
    writer.write(3, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in writers.read(str(tmp_path))] == [1, 2, 3]
    assert writers.read(str(tmp_path))[-1]["loss"] == 1.0


def test_what_a_power_cut_left_is_no_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "seconds": 2.0}\n' + bytes(40) + b"\n")
    assert [line["step"] for line in writers.read(str(tmp_path))] == [1]


def test_a_long_file_is_thinned_by_kind_and_keeps_the_last_of_each(tmp_path):
    lines = [{"step": step, ("validation/nll" if step % 100 == 0 else "train/loss"): 1.0} for step in range(1, 1001)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = writers.read(str(tmp_path), most=20)
    assert [line["step"] for line in read if "validation/nll" in line] == list(range(100, 1001, 100))
    steps = [line["step"] for line in read if "train/loss" in line]
    assert (15 <= len(steps) <= 21, steps[-1], steps == sorted(steps)) == (True, 999, True)


def test_scalars_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    writer = writers.Writer(str(tmp_path), 0)
    writer.write(7, {"train/loss": 0.25, "validation/agreement": None})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Tensors("train/loss")
    assert (event.step, tensor_util.make_ndarray(event.tensor_proto)) == (7, 0.25)


class FakeWandb(types.ModuleType):
    """Records what is mirrored."""

    class Error(Exception):
        pass

    def __init__(self, mode="online", logged_in=True, fails=()):
        """`fails`: the functions that raise."""
        super().__init__("wandb")
        self.started, self.logged, self.finished = [], [], 0
        self.disabled, self.starting_step = mode == "disabled", 0
        self.summary = types.SimpleNamespace(update=self._update)
        self._mode, self._logged_in, self._fails = mode, logged_in, fails

    def _fail(self, name):
        if name in self._fails:
            raise ConnectionResetError(f"{name}:\nno connection")

    def _update(self, values):
        self._fail("summary")
        self.result = values

    def setup(self):
        if isinstance(self._mode, Exception):
            raise self._mode
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=self._mode))

    def login(self, prompt):
        assert not prompt
        if isinstance(self._logged_in, Exception):
            raise self._logged_in
        return self._logged_in

    def init(self, **options):
        self._fail("init")
        self.started.append(options)
        return self

    def log(self, values, step=None):
        self._fail("log")
        self.logged.append((step, values))

    def finish(self, exit_code=0):
        self.finished += 1
        self._fail("finish")

    Settings = Image = staticmethod(lambda *arguments, **options: arguments or options)


@pytest.fixture
def wandb(monkeypatch):
    """Puts a fake wandb in place."""

    monkeypatch.delenv("WANDB_MODE", raising=False)

    def place(**options):
        fake = FakeWandb(**options)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return place


MIRRORED = {"hash": "abc", "config": {"name": "kd", "seed": 3, "log": {"wandb": "project"}}}


def test_scalars_and_the_result_reach_wandb(tmp_path, without_tensorflow, wandb):
    fake = wandb()
    writer = writers.Writer(str(tmp_path), 0, MIRRORED)
    writer.write(3, {"train/loss": 0.5, "validation/agreement": None})
    writer.write_result({"seed": 3})
    writer.close()
    assert fake.logged == [(3, {"train/loss": 0.5})]
    assert (fake.result, fake.finished) == ({"result": {"seed": 3}}, 1)
    (start,) = fake.started
    assert (start["project"], start["name"], start["config"]["seed"]) == ("project", "kd", 3)


def mirrored_ids(fake, *folders, saved=MIRRORED, step=0):
    """The ids of the W&B runs that runs in these folders open, one after another."""
    for folder in folders:
        folder.mkdir(exist_ok=True)
        writers.Writer(str(folder), step, saved).close()
    return [start["id"] for start in fake.started[-len(folders) :]]


def test_wandb_leaves_the_terminal_to_the_run(tmp_path, without_tensorflow, wandb):
    fake = wandb()
    mirrored_ids(fake, tmp_path)
    settings = fake.started[0]["settings"]
    assert (settings["console"], settings["quiet"]) == ("off", True)


def test_a_restart_goes_on_in_the_same_wandb_run(tmp_path, without_tensorflow, wandb):
    fake = wandb()
    first, again = mirrored_ids(fake, tmp_path, tmp_path)
    assert (first, fake.started[1]["resume"]) == (again, "allow")


def test_another_folder_is_another_wandb_run(tmp_path, without_tensorflow, wandb):
    first, other = mirrored_ids(wandb(), tmp_path / "a", tmp_path / "b")
    assert first != other


def test_a_run_that_is_begun_anew_is_another_wandb_run(tmp_path, without_tensorflow, wandb):
    fake = wandb()
    (first,) = mirrored_ids(fake, tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    assert mirrored_ids(fake, tmp_path / "a") != [first]


def test_a_run_that_was_moved_keeps_its_wandb_run(tmp_path, without_tensorflow, wandb):
    fake = wandb()
    first = mirrored_ids(fake, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert mirrored_ids(fake, tmp_path / "b", step=2) == first


def test_a_run_of_an_older_version_keeps_the_wandb_run_of_its_path(tmp_path, without_tensorflow, wandb):
    place = hashlib.sha256(f"abc {tmp_path}".encode()).hexdigest()[:16]
    assert mirrored_ids(wandb(), tmp_path, step=2) == [place]


def test_another_project_is_where_a_run_goes_on(tmp_path, without_tensorflow, wandb):
    fake = wandb()
    mirrored_ids(fake, tmp_path)
    mirrored_ids(fake, tmp_path, saved=MIRRORED | {"config": {"name": "kd", "log": {"wandb": "other"}}})
    assert fake.started[1]["project"] == json.loads((tmp_path / "wandb.json").read_text())["project"] == "other"


def test_a_disabled_wandb_leaves_no_note_that_a_run_is_mirrored(tmp_path, without_tensorflow, wandb):
    mirrored_ids(wandb(mode="disabled"), tmp_path)
    assert not (tmp_path / "wandb.json").exists()


def test_a_note_that_cannot_be_read_is_one_line(tmp_path, without_tensorflow, wandb, capsys):
    wandb()
    (tmp_path / "wandb.json").write_text('{"project": "project"}')
    writers.Writer(str(tmp_path), 0, MIRRORED).close()
    line = f"W&B fails, and the run goes on without it: {tmp_path / 'wandb.json'} cannot be read; expected the project"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("part", ["init", "log", "summary", "finish"])
def test_where_wandb_fails_the_run_goes_on_and_one_line_says_so(tmp_path, without_tensorflow, wandb, capsys, part):
    wandb(fails=[part])
    writer = writers.Writer(str(tmp_path), 0, MIRRORED)
    for step in (1, 2):
        writer.write(step, {"loss": 0.5})
    writer.write_result({"seed": 3})
    writer.close()
    said = [line for line in capsys.readouterr().out.splitlines() if "W&B" in line]
    assert said == [f"W&B fails, and the run goes on without it: {part}: no connection"]
    assert len(writers.read(str(tmp_path))) == 2


def test_a_wandb_run_that_fails_is_finished_for_the_next_one(tmp_path, without_tensorflow, wandb):
    fake = wandb(fails=["log"])
    writer = writers.Writer(str(tmp_path), 0, MIRRORED)
    writer.write(1, {"loss": 0.5})
    assert fake.finished == 1
    writer.close()


@pytest.mark.parametrize("config", [{"log": {"wandb": ""}}, {"log": {}}], ids=["empty", "of an older version"])
def test_without_a_project_wandb_is_left_alone(tmp_path, without_tensorflow, monkeypatch, config):
    monkeypatch.setitem(sys.modules, "wandb", None)
    writers.Writer(str(tmp_path), 0, {"hash": "abc", "config": config}).close()


@pytest.fixture
def mirrored(tmp_path):
    """The folder of a run that is mirrored."""
    (tmp_path / "config.json").write_text(json.dumps(MIRRORED | {"identity": {}, "data": {}}))
    return str(tmp_path)


def test_an_image_reaches_the_run_of_its_folder(mirrored, wandb):
    fake = wandb()
    writers.mirror_image(mirrored, "gaze", "gaze.png")
    assert (fake.logged, fake.finished) == ([(1, {"gaze": ("gaze.png",)})], 1)


@pytest.mark.parametrize(("starting", "step"), [(0, 13), (13, 13), (15, 15)], ids=["offline", "online", "again"])
def test_an_image_stands_behind_the_last_step(mirrored, wandb, starting, step):
    fake = wandb()
    fake.starting_step = starting
    lines = [{"step": 12, "train/loss": 0.5}, {"step": 12, "validation/nll": 0.5}]
    (pathlib.Path(mirrored) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    writers.mirror_image(mirrored, "gaze", "gaze.png")
    assert [at for at, _ in fake.logged] == [step]


def test_an_image_reaches_a_run_that_was_mirrored_after_a_restart(mirrored, without_tensorflow, wandb):
    fake = wandb()
    later = MIRRORED | {"config": {"name": "kd", "log": {"wandb": "later"}}}
    writers.Writer(mirrored, 2, later).close()
    writers.mirror_image(mirrored, "gaze", "gaze.png")
    begun, opened = fake.started
    assert (opened["project"], opened["id"]) == ("later", begun["id"])


@pytest.mark.parametrize("part", ["init", "log", "finish"])
def test_an_image_that_wandb_fails_to_take_is_one_line(mirrored, wandb, capsys, part):
    wandb(fails=[part])
    writers.mirror_image(mirrored, "gaze", "gaze.png")
    assert capsys.readouterr().out == f"gaze.png does not go to W&B: {part}: no connection\n"


def test_an_image_without_a_login_is_one_line(mirrored, wandb, capsys):
    wandb(logged_in=False)
    writers.mirror_image(mirrored, "gaze", "gaze.png")
    assert capsys.readouterr().out.startswith("gaze.png does not go to W&B: log.wandb is 'project' and nobody is")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"logged_in": False}, "nobody is logged in; see `wandb login`, or set WANDB_MODE=offline"),
        ({"logged_in": FakeWandb.Error("bad key")}, "W&B refuses the login: bad key"),
        ({"logged_in": ConnectionResetError("no\nnetwork")}, "W&B refuses the login: no network"),
        ({"mode": ValueError("quiet\n  is 'maybe'")}, "W&B refuses its settings: quiet is 'maybe'"),
    ],
    ids=["nobody", "refused", "out of reach", "settings"],
)
def test_what_wandb_refuses_is_one_line(wandb, options, said):
    wandb(**options)
    with pytest.raises(InputError, match=f"log.wandb is 'project' and {said}"):
        writers.check_wandb("project")


@pytest.mark.parametrize("mode", ["offline", "dryrun", "disabled"])
def test_wandb_offline_needs_no_login(wandb, monkeypatch, mode):
    wandb(mode=mode, logged_in=False)
    monkeypatch.setenv("WANDB_MODE", mode)
    writers.check_wandb("project")


@pytest.mark.parametrize("mode", ["shared", "bogus", ""])
def test_a_mode_of_wandb_that_does_not_mirror_steps_is_refused_with_the_choices(wandb, monkeypatch, mode):
    wandb(mode=mode)
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(
        InputError, match=f"WANDB_MODE is '{mode}'; expected one of: disabled, dryrun, offline, online, run$"
    ):
        writers.check_wandb("project")


@pytest.mark.parametrize("project", ["a/b", " \t", "x" * 129], ids=["slash", "blank", "long"])
def test_a_project_that_wandb_would_refuse_is_refused_first(wandb, project):
    wandb()
    with pytest.raises(InputError, match=r"log\.wandb is '.*'; expected a project of W&B: up to 128 characters"):
        writers.check_wandb(project)


def test_without_wandb_a_run_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny.config(**{"log.wandb": "project"})
    with pytest.raises(InputError, match=r"log\.wandb is 'project' and wandb is not installed"):
        loop.train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_says_that_wandb_gets_nothing(tmp_path, without_tensorflow, wandb, capsys):
    fake = wandb()
    changes = {"train.epochs": 1, "dataset.train_images": 32}
    loop.train_and_evaluate(tiny.config(**changes), str(tmp_path / "run"))
    loop.train_and_evaluate(tiny.config(**changes, **{"log.wandb": "project"}), str(tmp_path / "run"))
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "nothing new for W&B's 'project': a run is mirrored while it trains; another --workdir trains it"
    assert fake.started == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, times):
    """What a run of ten steps of four images prints, at the given times of the clock."""
    clock = iter(times)
    monkeypatch.setattr(writers.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", stream)
    progress = writers.Progress(10, 4)
    for step in range(2, 2 * len(times) + 1, 2):
        progress.show(step, 1, {"loss": 0.5, "loss/kd": 0.25, "accuracy": 1.0})
    progress.close()
    return stream.getvalue(), progress


def test_a_terminal_gets_one_line_that_is_overwritten(monkeypatch):
    text, _ = shown(monkeypatch, Terminal(), [0.0, 4.0])
    first, second = text.removesuffix("\n").split("\r\033[K")[1:]
    assert first == "step 2/10  epoch 1  loss 0.5 (kd 0.25)"
    assert second == "step 4/10  epoch 1  loss 0.5 (kd 0.25)  2 images/s  12s left"


def test_a_file_gets_a_line_now_and_then_and_the_last(monkeypatch):
    text, _ = shown(monkeypatch, io.StringIO(), [100.0, 101.0, 112.0, 113.0, 114.0])
    assert [line.split()[1] for line in text.splitlines()] == ["2/10", "6/10", "10/10"]


def test_speed_leaves_out_the_time_before_the_first_line_and_pauses(monkeypatch):
    clock = iter([100.0, 102.0, 150.0, 151.0])
    monkeypatch.setattr(writers.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = writers.Progress(10, 4)
    progress.show(2, 1, {"loss": 0.5})
    progress.show(4, 1, {"loss": 0.5})  # two steps of four images in two seconds
    progress.pause(4)
    progress.show(6, 1, {"loss": 0.5})  # and in one
    assert progress.images_per_second() == round(16 / 3, 1)


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9s"), (125, "2m05s"), (3720, "1h02m"), (59.6, "1m00s")])
def test_durations_are_written_for_people(seconds, text):
    assert writers.duration(seconds) == text


def test_an_image_reaches_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    writers.write_image(str(tmp_path), 5, "gaze", np.zeros((2, 3, 3), np.uint8))
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("gaze")
    width, height, png = tensor_util.make_ndarray(event.tensor_proto)
    assert (event.step, width, height, png[1:4]) == (5, b"3", b"2", b"PNG")


def test_without_tensorflow_an_image_is_a_line_that_says_so(tmp_path, without_tensorflow, capsys):
    writers.write_image(str(tmp_path), 5, "gaze", np.zeros((2, 3, 3), np.uint8))
    assert (
        capsys.readouterr().out == "tensorflow is not installed: the image gaze goes to its file, not to TensorBoard\n"
    )


def test_batches_are_counted_in_images_with_speed_and_time_left(monkeypatch):
    clock, stream = iter([10.0, 12.0, 14.0]), Terminal()
    monkeypatch.setattr(writers.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(writers.counted("abc", 4, 10)) == ["a", "b", "c"]
    lines = stream.getvalue().removesuffix("\n").split("\r\033[K")[1:]
    assert lines == ["4/10 images", "8/10 images  2 images/s  1s left", "10/10 images  2 images/s  0s left"]
