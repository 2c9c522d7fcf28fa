"""The mirror of a run in Weights & Biases, with a fake module in its place."""

import json
import shutil
import sys
import types

import pytest

from kd_jax import training
from kd_jax.errors import InputError
from kd_jax.logging import mirrors
from tests import tiny


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


def test_scalars_and_the_result_reach_wandb(tmp_path, wandb):
    fake = wandb()
    own = mirrors.Mirrors(str(tmp_path), MIRRORED)
    own.write(3, {"train/loss": 0.5})
    own.write_result({"seed": 3}, {})
    own.close()
    assert fake.logged == [(3, {"train/loss": 0.5})]
    assert (fake.result, fake.finished) == ({"result": {"seed": 3}}, 1)
    (start,) = fake.started
    assert (start["project"], start["name"], start["config"]["seed"]) == ("project", "kd", 3)


def mirrored_ids(fake, *folders, saved=MIRRORED):
    """The ids of the W&B runs that runs in these folders open, one after another."""
    for folder in folders:
        folder.mkdir(exist_ok=True)
        mirrors.Mirrors(str(folder), saved).close()
    return [start["id"] for start in fake.started[-len(folders) :]]


def test_wandb_leaves_the_terminal_to_the_run(tmp_path, wandb):
    fake = wandb()
    mirrored_ids(fake, tmp_path)
    settings = fake.started[0]["settings"]
    assert (settings["console"], settings["quiet"]) == ("off", True)


def test_a_restart_goes_on_in_the_same_wandb_run(tmp_path, wandb):
    fake = wandb()
    first, again = mirrored_ids(fake, tmp_path, tmp_path)
    assert (first, fake.started[1]["resume"]) == (again, "allow")


def test_another_folder_is_another_wandb_run(tmp_path, wandb):
    first, other = mirrored_ids(wandb(), tmp_path / "a", tmp_path / "b")
    assert first != other


def test_a_run_that_is_begun_anew_is_another_wandb_run(tmp_path, wandb):
    fake = wandb()
    (first,) = mirrored_ids(fake, tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    assert mirrored_ids(fake, tmp_path / "a") != [first]


def test_a_run_that_was_moved_keeps_its_wandb_run(tmp_path, wandb):
    fake = wandb()
    first = mirrored_ids(fake, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert mirrored_ids(fake, tmp_path / "b") == first


def test_another_project_is_where_a_run_goes_on(tmp_path, wandb):
    fake = wandb()
    mirrored_ids(fake, tmp_path)
    mirrored_ids(fake, tmp_path, saved=MIRRORED | {"config": {"name": "kd", "log": {"wandb": "other"}}})
    assert fake.started[1]["project"] == json.loads((tmp_path / "wandb.json").read_text())["project"] == "other"


def test_a_disabled_wandb_leaves_no_note_that_a_run_is_mirrored(tmp_path, wandb):
    mirrored_ids(wandb(mode="disabled"), tmp_path)
    assert not (tmp_path / "wandb.json").exists()


def test_a_restart_with_a_disabled_wandb_keeps_the_note(tmp_path, wandb):
    mirrored_ids(wandb(), tmp_path)
    before = (tmp_path / "wandb.json").read_text()
    mirrored_ids(wandb(mode="disabled"), tmp_path)
    assert (tmp_path / "wandb.json").read_text() == before


def test_a_note_that_cannot_be_read_is_one_line(tmp_path, wandb, capsys):
    wandb()
    (tmp_path / "wandb.json").write_text('{"project": "project"}')
    mirrors.Mirrors(str(tmp_path), MIRRORED).close()
    line = f"W&B fails, and the run goes on without it: {tmp_path / 'wandb.json'} lacks id; expected a run's wandb.json"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("part", ["init", "log", "summary", "finish"])
def test_where_wandb_fails_one_line_says_so_and_nothing_is_raised(tmp_path, wandb, capsys, part):
    wandb(fails=[part])
    own = mirrors.Mirrors(str(tmp_path), MIRRORED)
    for step in (1, 2):
        own.write(step, {"loss": 0.5})
    own.write_result({"seed": 3}, {})
    own.close()
    assert capsys.readouterr().out == f"W&B fails, and the run goes on without it: {part}: no connection\n"


def test_a_wandb_run_that_fails_is_finished_for_the_next_one(tmp_path, wandb):
    fake = wandb(fails=["log"])
    own = mirrors.Mirrors(str(tmp_path), MIRRORED)
    own.write(1, {"loss": 0.5})
    assert fake.finished == 1
    own.close()


def test_without_a_project_wandb_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirrors.Mirrors(str(tmp_path), {"hash": "abc", "config": {"log": {"wandb": ""}}}).close()


@pytest.fixture
def mirrored(tmp_path, wandb):
    """The folder of a run that is mirrored, as the run "abc"."""
    (tmp_path / "config.json").write_text(json.dumps(MIRRORED | {"identity": {}, "data": {}}))
    (tmp_path / "wandb.json").write_text(json.dumps({"project": "later", "id": "abc"}))
    return str(tmp_path)


def test_an_image_reaches_the_run_of_its_folder(mirrored, wandb):
    fake = wandb()
    mirrors.add_image(mirrored, "saliency", "saliency.png", 12)
    (start,) = fake.started
    assert (start["project"], start["id"]) == ("later", "abc")
    assert ([values for _, values in fake.logged], fake.finished) == ([{"saliency": ("saliency.png",)}], 1)


@pytest.mark.parametrize(("starting", "step"), [(0, 13), (13, 13), (15, 15)], ids=["offline", "online", "again"])
def test_an_image_stands_behind_the_last_step(mirrored, wandb, starting, step):
    fake = wandb()
    fake.starting_step = starting
    mirrors.add_image(mirrored, "saliency", "saliency.png", 12)
    assert [at for at, _ in fake.logged] == [step]


def test_an_image_of_a_run_that_is_not_mirrored_stays_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirrors.add_image(str(tmp_path), "saliency", "saliency.png", 12)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("part", ["init", "log", "finish"])
def test_an_image_that_wandb_fails_to_take_is_one_line(mirrored, wandb, capsys, part):
    wandb(fails=[part])
    mirrors.add_image(mirrored, "saliency", "saliency.png", 12)
    assert capsys.readouterr().out == f"saliency.png does not go to W&B: {part}: no connection\n"


def test_an_image_without_a_login_is_one_line(mirrored, wandb, capsys):
    wandb(logged_in=False)
    mirrors.add_image(mirrored, "saliency", "saliency.png", 12)
    assert capsys.readouterr().out.startswith("saliency.png does not go to W&B: log.wandb is 'later' and nobody is")


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
        mirrors.check({"wandb": "project"})


@pytest.mark.parametrize("mode", ["offline", "dryrun", "disabled"])
def test_wandb_offline_needs_no_login(wandb, monkeypatch, mode):
    wandb(mode=mode, logged_in=False)
    monkeypatch.setenv("WANDB_MODE", mode)
    mirrors.check({"wandb": "project"})


@pytest.mark.parametrize("mode", ["shared", "bogus", ""])
def test_a_mode_of_wandb_that_does_not_mirror_steps_is_refused_with_the_choices(wandb, monkeypatch, mode):
    wandb(mode=mode)
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(
        InputError, match=f"WANDB_MODE is '{mode}'; expected one of: disabled, dryrun, offline, online, run$"
    ):
        mirrors.check({"wandb": "project"})


@pytest.mark.parametrize("project", ["a/b", " \t", "x" * 129], ids=["slash", "blank", "long"])
def test_a_project_that_wandb_would_refuse_is_refused_first(wandb, project):
    wandb()
    with pytest.raises(InputError, match=r"log\.wandb is '.*'; expected (a|the) project of W&B"):
        mirrors.check({"wandb": project})


def test_without_wandb_a_run_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny.config(**{"log.wandb": "project"})
    with pytest.raises(InputError, match=r"log\.wandb is 'project' and wandb is not installed"):
        training.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_says_that_wandb_gets_nothing(tmp_path, wandb, capsys):
    fake = wandb()
    changes = {"train.epochs": 1, "dataset.train_images": 32}
    training.train(tiny.config(**changes), str(tmp_path / "run"))
    training.train(tiny.config(**changes, **{"log.wandb": "project"}), str(tmp_path / "run"))
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "nothing new for W&B's 'project': a run is mirrored while it trains; another --workdir trains it"
    assert fake.started == []
