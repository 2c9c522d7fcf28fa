"""A run's folder: what decides its identity, who may write into it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
from flax.traverse_util import unflatten_dict

from kd_jax import runs
from kd_jax.errors import InputError
from tests import tiny


def identity(fingerprint="a", teacher=None, **overrides):
    return runs.identity(tiny.config(**overrides), fingerprint, teacher)


NOT_IDENTITY = ("name", "log.", "checkpoint.", "teacher.kind", "teacher.path", "teacher.config")
NOT_IDENTITY += ("dataset.path", "dataset.class_names", "dataset.stream", "dataset.workers")
KEYS = [key for key in runs.flat(tiny.config()) if not key.startswith(("method.", "teacher."))]


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, dict):
        return {"x": 1}
    return [*value, 9] if isinstance(value, list) else f"{value or ''}x"


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_part_of_the_identity_but_those_that_affect_nothing(key):
    changed = runs.digest(identity(**{key: other(runs.flat(tiny.config())[key])}))
    assert (changed == runs.digest(identity())) == key.startswith(NOT_IDENTITY)


def test_the_method_is_part_of_the_identity():
    methods = [{"kd": {}}, {"kd": {"weight": 0.5}}, {"dkd": {}}]
    digests = {runs.digest(runs.identity(tiny.config() | {"method": method}, "a", None)) for method in methods}
    assert len(digests) == 3


def test_the_data_and_the_teacher_are_part_of_the_identity():
    pairs = [("a", None), ("b", None), ("a", {"seed": 1}), ("a", {"seed": 2})]
    assert len({runs.digest(identity(*pair)) for pair in pairs}) == 4


def test_how_a_teacher_teaches_is_part_of_the_identity_and_where_it_lies_is_not():
    first = identity("a", {"seed": 1})
    assert runs.digest(identity("a", {"seed": 1}, **{"teacher.mode": "train"})) != runs.digest(first)
    assert runs.digest(identity("a", {"seed": 1}, **{"teacher.path": "/elsewhere"})) == runs.digest(first)


def test_a_whole_number_may_be_written_with_a_point():
    assert (
        runs.digest({"a": 4, "b": [1, 2]})
        == runs.digest({"a": 4.0, "b": [1.0, 2]})
        != runs.digest({"a": 4.5, "b": [1, 2]})
    )
    assert runs.differences({"a": 4}, {"a": 4.0}) == []


def test_the_digest_does_not_depend_on_the_order_of_keys():
    value = identity()
    assert runs.digest(dict(reversed(value.items()))) == runs.digest(value)


def test_differences_name_the_key_and_both_values():
    assert runs.differences(identity(seed=3), identity()) == ["seed is 3 there, 0 here"]
    assert runs.differences({"a": 2}, {"a": {"b": 1}}) == ["a is 2 there, absent here", "a.b is absent there, 1 here"]


@pytest.mark.parametrize("key", ["dataset.path", "model.pretrained", "teacher.run.dataset.path"])
def test_a_fingerprint_is_not_called_a_path(key):
    there, here = (unflatten_dict({tuple(key.split(".")): content}) for content in ("a1", "b2"))
    assert runs.differences(there, here) == [f"the fingerprint of {key} is 'a1' there, 'b2' here"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    runs.write_json(str(path), {"a": 1})
    with pytest.raises(TypeError):
        runs.write_json(str(path), {"a": object()})
    assert json.loads(path.read_text())["a"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


RESULT = {"name": "run", "checkpoint": 12, "test": {"accuracy": 0.5}}


@pytest.mark.parametrize(("old", "new"), [("12", "13"), ("0.5", "0.7"), ('"run"', '"ran"'), ("accuracy", "accurate")])
def test_a_changed_file_is_refused_by_its_checksum(tmp_path, old, new):
    path = tmp_path / "result.json"
    runs.write_json(str(path), RESULT)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=r"result\.json cannot be used: its content does not match its checksum"):
        runs.read_json(str(tmp_path), "result.json")


def test_a_file_is_read_as_it_was_written(tmp_path, capsys):
    runs.write_json(str(tmp_path / "result.json"), RESULT)
    assert runs.read_json(str(tmp_path), "result.json") == RESULT
    assert capsys.readouterr().err == ""


def test_a_file_without_a_checksum_is_read_and_a_line_says_so(tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    assert runs.read_json(str(tmp_path), "result.json") == RESULT
    said = f"{tmp_path} was written without checksums, by an older version; it is read unchecked\n"
    assert capsys.readouterr().err == said


def test_what_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.write_json(str(tmp_path / "result.json"), {"nll": float("nan")})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "expected the folder of a run"),
        ("{", "cannot be read"),
        ("null", "holds no keys"),
        ("{}", "lacks checkpoint, name, test; expected"),
        ('{"name": 1, "checkpoint": 2, "test": 3}', "lacks test; expected"),
    ],
)
def test_a_missing_or_broken_file_is_named(tmp_path, text, said):
    if text:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(InputError, match=said):
        runs.read_json(str(tmp_path), "result.json")


def test_a_run_that_has_not_finished_is_named_as_one(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has not finished; the command that began it goes on"):
        runs.read_json(str(tmp_path), "result.json")


def test_a_folder_of_another_config_is_refused_with_the_keys_that_differ(tmp_path):
    saved = {"format": 2, "identity": identity(seed=3), "config": {}, "hash": "", "data": {}}
    runs.write_json(str(tmp_path / "config.json"), saved)
    with pytest.raises(InputError, match="seed is 3 there, 0 here"):
        runs.check(str(tmp_path), identity())
    runs.check(str(tmp_path), identity(seed=3))


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a writable folder"):
        runs.check(str(tmp_path / "file" / "run"), identity())


def test_checking_writes_nothing(tmp_path):
    runs.check(str(tmp_path / "a" / "b"), identity())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("metrics.jsonl", os.mkdir, "metrics.jsonl in it is a folder"),
        ("metrics.jsonl", os.mkfifo, "metrics.jsonl in it is no ordinary file"),
        (".lock", os.mkdir, ".lock in it is a folder"),
        ("checkpoints", lambda path: open(path, "w").close(), "is not a folder; expected that of the run's"),
    ],
)
def test_what_is_of_another_kind_in_the_folder_is_refused(tmp_path, name, make, said):
    make(str(tmp_path / name))
    with pytest.raises(InputError, match=said):
        runs.check(str(tmp_path), identity())


def test_without_locks_a_line_warns_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(runs.fcntl, "flock", no_locks)
    with runs.locked(str(tmp_path), wait=False):
        pass
    assert "lies on a file system without locks (No locks available)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, OSError), (errno.EDQUOT, OSError), (errno.EROFS, InputError)]
)
def test_only_what_the_disk_does_is_no_fault_of_the_input(tmp_path, monkeypatch, number, kind):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(runs.os, "makedirs", fails)
    with pytest.raises(kind), runs.locked(str(tmp_path), wait=False):
        pass
    with pytest.raises(kind):
        runs.write_files(str(tmp_path), {"a": b""})


@pytest.mark.parametrize("again", [False, True], ids=["", "and made again by another"])
def test_a_folder_that_was_removed_while_waited_for_is_made_again(tmp_path, monkeypatch, again):
    folder, waits, order = tmp_path / "run", threading.Event(), []
    monkeypatch.setattr(runs, "print", lambda *_, **__: waits.set(), raising=False)

    def second():
        with runs.locked(str(folder), wait=True):
            with pytest.raises(InputError, match="in use"), runs.locked(str(folder), wait=False):
                pass
            order.append((folder / ".lock").exists())

    with runs.locked(str(folder), wait=False):
        thread = threading.Thread(target=second)
        thread.start()
        waits.wait()
        shutil.rmtree(folder)
        if again:
            folder.mkdir()
            (folder / ".lock").touch()
    thread.join()
    assert order == [True]


def test_a_folder_in_use_is_refused(tmp_path):
    refused = pytest.raises(InputError, match="in use by another process")
    with runs.locked(str(tmp_path), wait=False), refused, runs.locked(str(tmp_path), wait=False):
        pass


def test_a_second_starter_waits_for_the_first(tmp_path, monkeypatch):
    order, said, waits = [], [], threading.Event()
    monkeypatch.setattr(runs, "print", lambda line, **_: (said.append(line), waits.set()), raising=False)
    with runs.locked(str(tmp_path), wait=False):

        def second():
            with runs.locked(str(tmp_path), wait=True):
                order.append("second")

        thread = threading.Thread(target=second)
        thread.start()
        waits.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert said == [f"waiting for another process to finish the run in {tmp_path}"]


def test_a_killed_process_releases_its_folder(tmp_path):
    hold = "with runs.locked(sys.argv[1], wait=False): print(flush=True); sys.stdin.read()"
    program = [sys.executable, "-c", f"import sys; from kd_jax import runs\n{hold}", str(tmp_path)]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(InputError), runs.locked(str(tmp_path), wait=False):
        pass
    process.kill()
    process.communicate()
    with runs.locked(str(tmp_path), wait=False):
        assert os.path.exists(tmp_path / ".lock")


def test_a_folder_in_a_files_place_is_refused(tmp_path):
    (tmp_path / "a.json").mkdir()
    runs.check_writable(str(tmp_path), files=["b.json"])
    with pytest.raises(
        InputError, match=r"--to: '.*' cannot be written: a\.json in it is a folder; expected a file or n"
    ):
        runs.check_writable(str(tmp_path), "--to:", ["b.json", "a.json"])


def test_files_are_written_all_of_them_or_none(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / f"b.{os.getpid()}.tmp").mkdir()
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        runs.write_files(str(tmp_path), {"a": b"new", "b": b"new"})
    assert (tmp_path / "a").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", f"b.{os.getpid()}.tmp"]
