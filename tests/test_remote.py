"""Runs in an object store, here a folder that fsspec calls file://: what is there, what another process finds, outages.

Stores themselves, with real processes, are in tests/test_object_stores.py.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import fsspec
import numpy as np
import pytest

from kd_jax import distributed, evaluation, many, remote, runs, stopping, sweep, table
from kd_jax.errors import InputError, Preempted, TrainingError
from kd_jax.explaining import agreement
from kd_jax.logging import metrics_file
from kd_jax.reporting import finished
from kd_jax.teacher_cache.store import Store
from tests import tiny


def forget():
    """What a new process knows: nothing."""
    remote._fetched.clear()
    if remote._copies.cache_info().currsize:
        shutil.rmtree(remote._copies().folder)
        remote._copies.cache_clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "EVERY", 0.05)
    monkeypatch.setattr(remote, "RENEW", 0.05)
    monkeypatch.setattr(remote, "LEASE", 0.4)
    forget()
    yield
    forget()


@pytest.fixture
def store(tmp_path):
    """(the folder that is the store, its URL)."""
    return tmp_path / "store", f"file://{tmp_path / 'store'}"


def train(whole, url):
    """What `tiny.train` returns of a run whose folder and teacher lie in a store."""
    from kd_jax import training

    state = training.train(whole, f"{url}/run", runs_folder=url).state
    return state, runs.read_json(f"{url}/run", "result.json")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A run with a teacher in a folder of this machine: (folder, (state, result))."""
    folder = tmp_path_factory.mktemp("here")
    return folder, tiny.train(tiny.taught(), folder)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """The same in a store: (its folder, its URL, (state, result))."""
    folder = tmp_path_factory.mktemp("there")
    url = f"file://{folder}"
    return folder, url, train(tiny.taught(), url)


def same(a, b):
    assert tiny.identical((a[0].params, a[0].stats), (b[0].params, b[0].stats))
    assert (a[1]["test"], a[1]["config_hash"]) == (b[1]["test"], b[1]["config_hash"])


def files(folder):
    """The files below a folder, without what differs from run to run: random and numbered names, the lock."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in found if "d" not in path.parts and not path.name.startswith((".lock", "events"))}


def test_a_run_in_a_store_ends_as_one_in_a_folder(here, there):
    same(there[2], here[1])


def test_the_store_has_what_a_folder_would_have(here, there):
    assert files(there[0]) == files(here[0])


def test_a_finished_run_is_found_again(there, capsys):
    same(train(tiny.taught(), there[1]), there[2])
    assert f"finished already: test accuracy {100 * there[2][1]['test']['accuracy']:.2f}%" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on_in_a_process_that_has_nothing(store, here, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        tiny.interrupt(patched, 5)
        with pytest.raises(Preempted, match="stopped at step 5 of 12"):
            train(tiny.taught(), store[1])
    assert not (store[0] / "run" / remote.LEASE_FILE).exists()
    forget()
    same(train(tiny.taught(), store[1]), here[1])
    assert "going on with the teacher resnet6 from step 5" in capsys.readouterr().out
    assert files(store[0]) == files(here[0])  # the checkpoint of step 5 is gone there too


@pytest.mark.parametrize("stops", [False, True])
def test_all_processes_wait_until_the_store_has_everything(store, monkeypatch, stops):
    """JAX ends them half a minute after the first one that does not."""
    awaited, first = [], distributed.first
    monkeypatch.setattr(distributed, "first", lambda decide, *given: awaited.append(decide) or first(decide, *given))
    if stops:
        tiny.interrupt(monkeypatch, 5)
    with pytest.raises(Preempted) if stops else contextlib.nullcontext():
        train(tiny.config(), store[1])
    assert [decide.__name__ for decide in awaited].count("close") == 1


def test_a_part_of_a_checkpoint_is_none(store, here, there, capsys):
    """As one is that a process was writing which was killed."""
    shutil.copytree(there[0], store[0])
    (store[0] / "run/result.json").unlink()
    shutil.copytree(store[0] / "run/checkpoints/12", store[0] / "run/checkpoints/99")
    (store[0] / "run/checkpoints/99" / remote.RECORD).unlink()
    same(train(tiny.taught(), store[1]), here[1])
    said = capsys.readouterr().out
    assert "going on with resnet6 from step 12 to 12" in said
    assert "cannot be read" not in said
    assert not (store[0] / "run/checkpoints/99/_CHECKPOINT_METADATA").exists()


def test_a_finished_run_is_evaluated_and_reported_on(here, there):
    forget()
    found = evaluation.evaluate_run(f"{there[1]}/run", runs_folder=there[1])
    assert found == evaluation.evaluate_run(here[0] / "run", runs_folder=here[0])
    shown, left_out = finished.read([there[1]])
    teacher = runs.read_json(f"{there[1]}/run", "config.json")["teacher_hash"][:8]
    assert {run.folder for run in shown} == {f"{there[1]}/run", f"{there[1]}/teachers/{teacher}"}
    assert not left_out


def test_what_is_explained_lies_in_the_store(there):
    agreement.explain_run(f"{there[1]}/run", runs_folder=there[1], num_images=1)
    assert {*agreement.OUTPUT_FILES} <= {path.name for path in (there[0] / "run").iterdir()}


def test_the_name_of_the_teachers_folder_is_that_of_the_store(there):
    assert json.loads((there[0] / "run" / "config.json").read_text())["teacher_source"].startswith(there[1])


class Watched:
    """A file system that says what is written and removed, and can be out of reach."""

    def __init__(self, monkeypatch):
        self.calls, self.reachable = [], True
        self._real = fsspec.filesystem("file", auto_mkdir=True)
        monkeypatch.setattr(fsspec, "filesystem", lambda *arguments, **options: self)

    def __getattr__(self, name):
        def call(path, *arguments, **options):
            if not self.reachable:
                raise OSError("no route to host")
            if name in ("pipe_file", "rm_file") and not path.endswith(remote.LEASE_FILE):
                self.calls.append((name, os.path.basename(path)))
            return getattr(self._real, name)(path, *arguments, **options)

        return call if name in ("pipe_file", "rm_file", "cat_file", "find") else getattr(self._real, name)


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


def write(url, **contents):
    """Files of a held folder; __ stands for /."""
    for name, content in contents.items():
        path = os.path.join(remote.local(url), *name.split("__")).replace("_json", ".json")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(content)


def until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_speaks_of_other_files_is_written_behind_them_and_removed_before_them(store, watched, monkeypatch):
    monkeypatch.setattr(remote, "EVERY", 100)
    with remote.held(store[1], wait=False):
        write(store[1], result_json="r", checkpoints__1__checkpoint_json="c", checkpoints__1__state="s", metrics="m")
    assert [name for _, name in watched.calls] == ["state", "metrics", "checkpoint.json", "result.json"]
    watched.calls.clear()
    with remote.held(store[1], wait=False):
        shutil.rmtree(os.path.join(remote.local(store[1]), "checkpoints"))
    assert watched.calls == [("rm_file", "checkpoint.json"), ("rm_file", "state")]


def test_what_is_cleared_from_the_copy_stays_in_the_store(store, watched, monkeypatch):
    """As files are by who removes what is old from the folder of temporary files."""
    monkeypatch.setattr(remote, "EVERY", 100)
    with remote.held(store[1], wait=False):
        write(store[1], config_json="c", checkpoints__1__checkpoint_json="c", checkpoints__1__state="s")
    watched.calls.clear()
    with remote.held(store[1], wait=False):
        for name in ("config.json", "checkpoints/1/state"):
            os.remove(os.path.join(remote.local(store[1]), name))
    assert watched.calls == []


def test_only_what_has_changed_is_written(store, watched):
    with remote.held(store[1], wait=False):
        write(store[1], a="1", b="1")
        until(lambda: len(watched.calls) == 2)
        write(store[1], a="22")
    assert watched.calls == [("pipe_file", name) for name in "aba"]


def test_what_is_not_finished_or_hidden_stays_here(store, watched):
    with remote.held(store[1], wait=False):
        for name in (".5.tmp/state", "config.json.tmp", ".lock"):
            path = os.path.join(remote.local(store[1]), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "w").close()
    assert not watched.calls


def test_a_store_that_is_gone_for_a_while_costs_nothing(store, watched, capsys):
    with remote.held(store[1], wait=False):
        watched.reachable = False
        write(store[1], a="1")
        time.sleep(0.3)
        threading.Timer(0.3, setattr, (watched, "reachable", True)).start()
    assert (store[0] / "a").read_text() == "1"
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{store[1]} cannot be written: no route to host; the run goes on, and what it writes waits in"
        f" {remote.local(store[1])}",
        f"{store[1]} can be written again, and has everything",
    ]


def test_a_store_that_stays_away_leaves_what_was_written_here(store, watched, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", 0.1)
    ends = []
    monkeypatch.setattr(remote.atexit, "register", ends.append)
    monkeypatch.setattr(remote.atexit, "unregister", lambda end: ends.remove(end) if end in ends else None)
    stack = contextlib.ExitStack()
    stack.enter_context(remote.held(store[1], wait=False))
    write(store[1], a="1")
    watched.reachable = False
    with pytest.raises(TrainingError, match=r"could not be written for 0 s: no route to host; what the run wrote"):
        stack.close()
    for end in (*ends, lambda: stopping._remove(tuple(stopping._unfinished))):  # of the process
        end()
    assert os.path.exists(os.path.join(remote.local(store[1]), "a"))


def test_a_stop_does_not_end_the_last_writing(store, watched, monkeypatch):
    monkeypatch.setattr(remote, "EVERY", 100)
    left = []
    with stopping.listening(lambda number, message: left.append(message)):
        with remote.held(store[1], wait=False):
            write(store[1], a="1")
            monkeypatch.setattr(remote, "_content", lambda path: os.kill(os.getpid(), signal.SIGTERM) or b"1")
        assert not left
    assert (store[0] / "a").read_text() == "1"


def test_a_stop_ends_the_waiting_for_a_store_that_is_gone(store, watched, monkeypatch):
    stack = contextlib.ExitStack()
    with stopping.listening():
        stack.enter_context(remote.held(store[1], wait=False))
        write(store[1], a="1")
        watched.reachable = False
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(TrainingError, match=r"could not be written for .* s: .*; what the run wrote stays in"):
            stack.close()
    assert os.listdir(remote.local(store[1])) == ["a"]


def test_a_folder_below_one_that_is_held_is_not_fetched_again(store, watched, monkeypatch):
    """As that of a teacher is, where --runs is the run's own folder: the store lost what the copy lacked meanwhile."""
    (store[0] / "teachers/t").mkdir(parents=True)
    (store[0] / "teachers/t/a").touch()
    with remote.held(store[1], wait=False):
        monkeypatch.setattr(remote, "_fetch", lambda *_, **__: time.sleep(0.3))
        with remote.held(f"{store[1]}/teachers/t", wait=True):
            assert os.listdir(remote.local(f"{store[1]}/teachers/t")) == ["a"]
            write(f"{store[1]}/teachers/t", b="1")
    assert sorted(os.listdir(store[0] / "teachers/t")) == ["a", "b"]


def test_a_new_folder_below_one_that_is_held_is_made(store):
    with remote.held(store[1], wait=False), remote.held(f"{store[1]}/teachers/t", wait=True):
        assert os.listdir(remote.local(f"{store[1]}/teachers/t")) == []


def test_a_folder_in_use_is_refused(store, monkeypatch):
    monkeypatch.setattr(remote, "EVERY", 100)
    with (
        remote.held(store[1], wait=False),
        pytest.raises(InputError, match=r"the work directory 'file://.*' is in use by another process; expected a fr"),
        remote.held(store[1], wait=False),
    ):
        pass
    assert not (store[0] / remote.LEASE_FILE).exists()


def test_who_waits_gets_it_when_it_is_free_with_what_was_written(store):
    with remote.held(store[1], wait=False):
        threading.Timer(0.3, write, (store[1],), {"a": "1"}).start()
        other = threading.Thread(target=time.sleep, args=(0.4,))
        other.start()
        other.join()
    forget()
    with remote.held(store[1], wait=True):
        assert os.listdir(remote.local(store[1])) == ["a"]


def test_the_lease_of_a_process_that_is_gone_ends(store):
    store[0].mkdir()
    (store[0] / remote.LEASE_FILE).write_text(json.dumps({"holder": "gone"}))
    start = time.monotonic()
    with remote.held(store[1], wait=False):
        assert time.monotonic() - start > remote.LEASE
        assert json.loads((store[0] / remote.LEASE_FILE).read_text())["holder"] != "gone"


def test_who_lost_the_lease_is_asked_to_stop_and_writes_no_more(store):
    stack = contextlib.ExitStack()
    with stopping.listening() as request:
        stack.enter_context(remote.held(store[1], wait=False))
        (store[0] / remote.LEASE_FILE).write_text(json.dumps({"holder": "another"}))
        until(lambda: bool(request))
    write(store[1], a="1")
    with pytest.raises(TrainingError, match=r"another process has taken file://"):
        stack.close()
    assert [path.name for path in store[0].iterdir()] == [remote.LEASE_FILE]
    assert os.listdir(remote.local(store[1])) == ["a"]


@pytest.mark.parametrize("lease", ['{"holder": "another"}', None])
def test_who_lost_the_lease_unseen_writes_nothing(store, monkeypatch, lease):
    """As where the store could not be reached for a while, and another process went on with the run, or ended it."""
    monkeypatch.setattr(remote, "RENEW", 100)
    stack = contextlib.ExitStack()
    stack.enter_context(remote.held(store[1], wait=False))
    (store[0] / remote.LEASE_FILE).unlink()
    if lease:
        (store[0] / remote.LEASE_FILE).write_text(lease)
    write(store[1], a="1")
    with pytest.raises(TrainingError, match=r"another process has taken file://"):
        stack.close()
    assert not (store[0] / "a").exists()


def test_what_a_teacher_said_is_shared_by_the_store(store):
    array = np.arange(6.0)
    first = Store(store[1], {"a": 1})
    first.write("logits", 0, array[:3])
    first.write("logits", 0, array)
    forget()
    np.testing.assert_array_equal(Store(store[1], {"a": 1}).array("logits", 0), array)
    assert len(list(store[0].rglob("*.npy"))) == 1


def test_what_a_teacher_said_is_kept_here_where_the_store_is_gone(store, watched, capsys):
    first = Store(store[1], {"a": 1})
    assert first.read("logits", 0) is None
    watched.reachable = False
    first.write("logits", 0, np.arange(3.0))
    assert first.array("logits", 0).shape == (3,)
    assert "cannot be written: no route to host; it is kept for this run alone" in capsys.readouterr().out


def test_what_vanishes_while_it_is_fetched_is_looked_for_again(store, watched):
    store[0].mkdir()
    (store[0] / "a").write_text("1")
    listed = iter([[f"{store[0]}/gone", f"{store[0]}/a"], [f"{store[0]}/a"]])
    watched.find = lambda root: next(listed)
    assert os.listdir(remote.local(store[1])) == ["a"]


def test_a_report_needs_no_checkpoint(store):
    (store[0] / "run/checkpoints/3").mkdir(parents=True)
    (store[0] / "run/checkpoints/3" / remote.RECORD).write_text("{}")
    (store[0] / "run/metrics.jsonl").write_text("")
    assert os.listdir(os.path.join(remote.local(store[1]), "run")) == ["metrics.jsonl"]
    assert metrics_file.read(f"{store[1]}/run") == []
    assert os.listdir(remote.local(f"{store[1]}/run/checkpoints")) == ["3"]


def raises(error, *_, **__):
    raise error


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("s3://", None, "'s3://' names no folder; expected s3://BUCKET/FOLDER"),
        ("s3:/b/r", None, "'s3:/b/r' has lost a slash, as by pathlib.Path; expected the text 's3://b/r'"),
        ("s4://bucket", None, "'s4://bucket' is of no object store that is known; expected gs://, s3://, or a folder"),
        ("s3://b/r", ImportError("s3fs"), "'s3://b/r' needs a package that is not installed; expected .*kd_jax.s3."),
        ("s3://b/r", OSError("no such bucket"), "'s3://b/r' cannot be read: no such bucket"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(monkeypatch, url, error, said):
    if error:
        monkeypatch.setattr(fsspec, "filesystem", functools.partial(raises, error))
    with pytest.raises(InputError, match=said):
        remote.local(url)


@pytest.mark.parametrize("name", ["/{}/outside", "{up}{}/outside", "b/./outside"])
def test_a_name_that_leads_out_of_the_copy_is_no_file_of_it(store, tmp_path, monkeypatch, name):
    """As an object store may have it, whose names are any text."""
    name = name.format(tmp_path, up="../" * 20)

    class Hostile:
        def find(self, root):
            return [f"{root}/{name}", f"{root}/a"]

        def get_file(self, _, place):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            open(place, "w").close()

        def invalidate_cache(self):
            pass

        def _strip_protocol(self, url):
            return url.partition("://")[2]

    monkeypatch.setattr(fsspec, "filesystem", lambda *arguments, **options: Hostile())
    assert os.listdir(remote.local(store[1])) == ["a"]
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("end", ["", "/", "//", "/./", "/b/../", "/../store"])
def test_a_folder_may_be_written_in_other_ways(store, end):
    (store[0] / "c").mkdir(parents=True)
    (store[0] / "c/a").touch()
    assert os.listdir(remote.local(f"{store[1]}{end}/c")) == ["a"]
    with remote.held(store[1] + end, wait=False):
        write(f"{store[1]}//c", a="1")
    assert (store[0] / "c/a").read_text() == "1"


def test_nothing_above_a_copy_is_touched(tmp_path):
    (tmp_path / "kept").mkdir()
    url = f"memory://{'../' * 30}{tmp_path}"
    os.makedirs(os.path.join(remote._copies().folder, "memory"))
    with remote.held(url, wait=False):
        pass
    assert (tmp_path / "kept").exists()


def test_of_many_processes_the_first_alone_fetches_checkpoints(store, tmp_path, monkeypatch):
    from kd_jax.checkpoint import Checkpoints

    of_first = {remote.local: str(tmp_path)}
    monkeypatch.setattr(distributed, "first", lambda decide, *_: of_first.get(decide, []))
    monkeypatch.setattr(remote, "_fetch", functools.partial(raises, AssertionError("it fetches")))
    Checkpoints(f"{store[1]}/checkpoints").close()


def test_what_a_store_says_is_said_once():
    with pytest.raises(InputError, match=r"^'s4://b/r' is of no object store"):
        runs.read_json("s4://b/r", "config.json")


def test_a_process_that_leaves_alone_leaves_no_copy():
    program = "\n".join(
        [
            "from kd_jax import cli, remote, stopping",
            "def main(arguments):",
            "    print(remote._copies().folder)",
            "    stopping.leaves_alone = True",
            "cli.run(main, '')",
        ]
    )
    folder = subprocess.check_output([sys.executable, "-c", program], text=True).strip()
    assert "kd_jax-" in folder
    assert not os.path.exists(folder)


@pytest.mark.parametrize("command", [sweep, table])
@pytest.mark.parametrize("flag", ["runs", "results"])
def test_many_runs_need_a_folder(monkeypatch, command, flag):
    """And say so before they read anything."""
    given = {"runs": "runs", "results": None, flag: "s3://bucket/a"}
    for where, name in ((many.cli, "runs"), (many, "results")):
        monkeypatch.setattr(where, name.upper(), types.SimpleNamespace(value=given[name]))
    with pytest.raises(InputError, match=rf"--{flag} is 's3://bucket/a', in an object store; expected one here"):
        command.main([])
