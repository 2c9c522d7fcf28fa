"""Two processes that train one run: how they meet, what each decides, and that they train what one process would."""

import json
import os
import re
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from kd_jax import distributed, runs
from kd_jax.errors import TOLD, InputError
from tests import pair, tiny

VARIABLES = (
    distributed.TPU_HOSTS,
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    *distributed.SCHEDULERS.values(),
)
JAXS = dict(zip(VARIABLES[1:4], ("first:1234", "4", "3"), strict=True))
ALL = {"coordinator_address": "first:1234", "num_processes": 4, "process_id": 3}


@pytest.fixture
def variables(monkeypatch):
    """Sets these variables, and none of the others that could tell of many processes."""

    def set_only(some):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in some.items():
            monkeypatch.setenv(name, value)

    return set_only


@pytest.mark.parametrize(
    ("flags", "set_variables", "given"),
    [
        ((None, None, None), {}, None),
        (("first:1234", 4, 3), {}, ALL),
        ((None, None, None), JAXS, ALL),
        ((None, None, 1), JAXS, ALL | {"process_id": 1}),
        (("first:1234", 1, 0), {}, None),
        ((None, None, None), {"SLURM_STEP_NUM_TASKS": "2"}, {}),
        ((None, None, None), {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ((None, None, None, True), {}, {}),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "first,second"}, {}),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "first"}, None),
        (("first:1234", None, None), {"OMPI_COMM_WORLD_SIZE": "2"}, {"coordinator_address": "first:1234"}),
    ],
)
def test_flags_and_variables_say_whether_there_are_many_processes(variables, flags, set_variables, given):
    variables(set_variables)
    assert distributed.given(*flags) == given


@pytest.mark.parametrize(
    ("flags", "set_variables", "said"),
    [
        (("first:1234", None, None), {}, "only coordinator_address first:1234 is given; expected .* --process_id"),
        ((None, 2, 0), {}, "only num_processes 2, process_id 0 is given"),
        ((None, None, None), {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; expected a number"),
        (("first:1234", 2, 2), {}, "--process_id is 2; expected 0 to 1, as --processes is 2"),
        (("first", 2, 0), {}, "--coordinator is 'first'; expected HOST:PORT"),
    ],
)
def test_a_part_of_them_is_refused(variables, flags, set_variables, said):
    variables(set_variables)
    with pytest.raises(InputError, match=said):
        distributed.given(*flags)


@pytest.fixture(scope="module")
def seen():
    """What two processes saw, see `pair.seen`."""
    found = pair.ended(pair.start("tests.pair"))
    for status, _, err in found:
        assert status == 0, err
    return [json.loads(out.splitlines()[-1]) for _, out, _ in found]


def test_processes_meet_by_the_variables_of_slurm():
    shared = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    variables = [
        shared | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
        for number in (0, 1)
    ]
    found = pair.ended([pair.process("tests.pair", **own) for own in variables])
    assert [status for status, _, _ in found] == [0, 0], found


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("count", 2),
        ("first", 10),
        ("sent", {"a": [0, 1, 2], "b": [[0, 1, 2], "text", None]}),
        ("after all that", 0),
        ("on all", [0, 1, 2]),
        # The numbers of one call are known at the next: 15 of the second process, then 2 of the first.
        ("agreement", [0, 0, 15, 0, 2]),
    ],
)
def test_both_processes_see_the_same(seen, what, expected):
    assert [one[what] for one in seen] == [expected, expected]


@pytest.mark.parametrize(
    ("what", "expected"), [("together", [0, 1]), ("inside together", [0, 1]), ("own part", [[[0, 1]], [[2, 3]]])]
)
def test_each_process_has_its_own(seen, what, expected):
    assert [one[what] for one in seen] == expected


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("first that fails", "InputError", "no folder"),
        ("sent that fails", "InputError", "no file"),
        ("fails on one", "InputError", "process 1: no data"),
        ("fails on the first", "TrainingError", "no disk"),
        ("differs", "InputError", "process 1 has another config, or other images or weights, than the first"),
    ],
)
def test_all_learn_of_an_error_and_the_first_says_it(seen, what, kind, text):
    assert [one[what][0] for one in seen] == [kind, kind]
    assert all(one[what][1].startswith(text) for one in seen)
    assert [one[what][2] for one in seen] == [[], [TOLD]]


RUN = [
    "--config=configs/kd.py:smoke",
    *(f"--config.{key}={value}" for key, value in tiny.CHANGES.items() if key != "name"),
    *("--config.train.epochs=6", "--config.teacher.cache=recording", "--config.teacher.config.model.name=resnet8"),
    *("--config.teacher.config.model.width=0.25", "--config.teacher.config.dataset.image_size=8"),
    *("--config.teacher.config.dataset.train_images=64", "--config.teacher.config.train.batch_size=16"),
    "--config.teacher.config.train.epochs=1",
]


@pytest.fixture(scope="module")
def start(no_tensorflow):
    """Starts a run in a folder: by two processes, or alone by one with two devices."""
    path = os.pathsep.join([no_tensorflow, os.environ.get("PYTHONPATH", "")])

    def run(folder, *arguments, alone=False, own=(), script=()):
        arguments = [*RUN, *arguments, f"--runs={folder}", f"--workdir={folder / 'run'}"]
        if not alone and not script:
            return pair.start("kd_jax.main", *arguments, own=own, PYTHONPATH=path)
        flags = pair.ENVIRONMENT["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2" * alone
        return [pair.process("kd_jax.main", *arguments, before=script, PYTHONPATH=path, XLA_FLAGS=flags)]

    return run


def after_first_line(process, folder):
    """Waits until a run has written its first line of metrics."""
    metrics = folder / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def numbers(folder):
    """What a run wrote, but for times and what it ran on."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    result = runs.read_json(str(folder / "run"), "result.json")
    return [{k: v for k, v in line.items() if k not in ("seconds", "checksum")} for line in lines], result["test"]


def files(folder):
    """The names of all files but for events, whose names hold the time, and for what Orbax makes of its own."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if "events" not in path.name and "state" not in path.parts)


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    """(folder, [(exit status, stdout, stderr)]) of a teacher and its student, which two processes trained."""
    folder = tmp_path_factory.mktemp("both")
    return folder, pair.ended(start(folder))


@pytest.fixture(scope="module")
def alike(start, tmp_path_factory):
    """The folder of the same, of one process with two devices."""
    folder = tmp_path_factory.mktemp("alone")
    (found,) = pair.ended(start(folder, alone=True))
    assert found[0] == 0, found
    return folder


def test_two_processes_train_what_one_with_two_devices_does(trained, alike):
    assert numbers(trained[0]) == numbers(alike)


def test_two_processes_write_what_one_does(trained, alike):
    assert files(trained[0]) == files(alike)


def test_the_first_process_says_what_happens_and_the_second_nothing(trained):
    (first, said, _), (second, nothing, none) = trained[1]
    assert (first, second, nothing, none) == (0, 0, "", "")
    assert "2 processes, 2 devices" in said
    assert "are recorded" in said
    assert "test accuracy" in said.splitlines()[-1]


def test_processes_stop_at_the_same_step_and_one_goes_on(start, tmp_path, alike):
    """A SIGTERM to one of them is one to all."""
    first, second = start(tmp_path)
    after_first_line(first, tmp_path)
    second.send_signal(signal.SIGTERM)
    (code, _, said), (other, _, nothing) = pair.ended([first, second])
    assert (code, other, nothing) == (143, 143, "")
    assert re.fullmatch("stopped at step .* of 24; the same command goes on from there", said.splitlines()[-1])
    ((code, said, _),) = pair.ended(start(tmp_path, alone=True))
    assert code == 0
    assert "going on with resnet8 from step" in said
    assert numbers(tmp_path) == numbers(alike)


@pytest.mark.slow
def test_a_run_that_one_process_began_is_gone_on_with_by_two(start, tmp_path, alike):
    process = after_first_line(*start(tmp_path, alone=True), tmp_path)
    process.send_signal(signal.SIGTERM)
    assert pair.ended([process])[0][0] == 143
    (code, said, errors), (other, _, _) = pair.ended(start(tmp_path))
    assert (code, other) == (0, 0), errors
    assert "going on with resnet8 from step" in said
    assert numbers(tmp_path) == numbers(alike)


def test_what_one_process_reads_otherwise_is_refused_by_all(start, tmp_path):
    first, second = pair.ended(start(tmp_path, own=((), ["--config.dataset.holdout=0.3"])))
    assert (first[0], second[0], second[2]) == (2, 2, "")
    assert "error: process 1 has another config, or other images" in first[2]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])  # the first is also where all meet
def test_where_one_process_dies_the_others_end_and_are_started_again(start, tmp_path, alike, dies):
    (script,) = start(tmp_path, script=("bash", "launch/local.sh", "2", "--restart=1"))
    after_first_line(script, tmp_path)
    children = subprocess.run(
        ["pgrep", "-P", str(script.pid), "-f", f"process_id={dies}"], capture_output=True, text=True
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    ((code, _, errors),) = pair.ended([script])
    assert code == 0, errors
    assert errors.count(f"process {dies} ended with exit status 137; the others end") == 1
    assert errors.count("starting again") == 1
    assert numbers(tmp_path) == numbers(alike)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_where_one_process_dies_the_other_ends_by_itself(start, tmp_path, dies):
    processes = start(tmp_path)
    after_first_line(processes[0], tmp_path)
    processes[dies].kill()
    ((code, _, errors),) = pair.ended([processes[1 - dies]], seconds=60)
    processes[dies].communicate()
    assert code not in (0, 2), errors
    assert "another process is gone" in errors or "another task died" in errors  # the first to see it, kd_jax or JAX


@pytest.mark.slow
def test_two_processes_stream_what_one_has_in_memory(start, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(80):
        folder = tmp_path / "images" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    data = ("--config.dataset.source=folder", f"--config.dataset.path={tmp_path / 'images'}")
    data = (*data, "--config.dataset.train_images=0")
    runs_of = tmp_path / "never", tmp_path / "always"
    ((code, _, errors),) = pair.ended(start(runs_of[0], *data, "--config.dataset.stream=never", alone=True))
    assert code == 0, errors
    found = pair.ended(start(runs_of[1], *data, "--config.dataset.stream=always"))
    assert [code for code, _, _ in found] == [0, 0], found
    assert "images are read at every step" in found[0][1]
    assert numbers(runs_of[1]) == numbers(runs_of[0])
