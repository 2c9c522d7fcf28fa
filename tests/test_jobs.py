"""Runs as processes: what has a result is not run, what fails says why, what is interrupted stops."""

import concurrent.futures
import os
import time

import pytest

from kd_jax import jobs
from tests.engines.programs import FAIL, job, writes
from tests.reporting import made_up


def test_a_run_returns_the_result_that_its_process_wrote(tmp_path):
    assert jobs.run(job(tmp_path / "runs" / "a", writes(0.5)), "runs")["test"] == {"accuracy": 0.5}


def test_a_run_that_has_a_result_is_not_run_again(tmp_path):
    made_up.write_run(tmp_path / "a", "kd")
    assert jobs.run(job(tmp_path / "a", FAIL), "runs")["name"] == "kd"


def test_a_failure_is_the_last_line_of_the_log_and_the_status(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert jobs.run(job(tmp_path / "a", FAIL), "runs").reason == f"no memory (exit status 3, see {tmp_path / 'a.log'})"


def test_a_process_that_dies_silently_is_a_failure_too(tmp_path):
    assert jobs.run(job(tmp_path / "a", "import os; os._exit(9)"), "runs").reason.startswith(
        "no message (exit status 9"
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot set which cores a process has")
def test_a_process_runs_on_its_share_of_the_cores(tmp_path):
    core = min(os.sched_getaffinity(0))
    # It is set just after the process has started.
    program = (
        "import os, sys, time; end = time.monotonic() + 20\n"
        "while len(os.sched_getaffinity(0)) > 1 and time.monotonic() < end: pass\n"
        "sys.exit(str(os.sched_getaffinity(0)))"
    )
    assert jobs.run(job(tmp_path / "a", program), "runs", [core]).reason.startswith(f"{{{core}}} (exit status 1")


COUNTS = (  # its starts, in a file beside its folder; the third one has a result
    "import os, sys; folder = sys.argv[-1].partition('=')[2]; file = open(folder + '.starts', 'a+'); file.write('x');"
    " file.flush(); file.seek(0); starts = len(file.read())\nif starts < 3: sys.exit({})\n"
)


@pytest.mark.parametrize(
    ("restarts", "status", "starts"), [(0, 3, 1), (1, 3, 2), (5, 3, 3), (5, 2, 1)], ids=["none", "one", "done", "input"]
)
def test_a_run_that_fails_is_started_again_but_for_bad_input(tmp_path, restarts, status, starts):
    outcome = jobs.run(job(tmp_path / "a", COUNTS.format(status) + writes(0.5)), "runs", (), restarts)
    assert len((tmp_path / "a.starts").read_text()) == starts
    assert isinstance(outcome, dict) == (starts == 3)


def test_a_run_that_is_asked_to_stop_is_not_started_again(tmp_path):
    waits = "import os, sys, time; open(sys.argv[-1].partition('=')[2] + '.starts', 'a').write('x'); time.sleep(20)"
    one = job(tmp_path / "a", waits)
    jobs.stop(one)  # of which there is no process
    with concurrent.futures.ThreadPoolExecutor() as threads:
        outcome = threads.submit(jobs.run, one, "runs", restarts=3)
        while not (tmp_path / "a.starts").exists():
            time.sleep(0.01)
        jobs.stop(one)
        assert outcome.result().reason.startswith("no message (exit status -15")
    assert (tmp_path / "a.starts").read_text() == "x"


def test_what_wants_a_teacher_waits_for_the_first_that_does(tmp_path):
    plain = job(tmp_path, "")
    teacher = plain._replace(key="a")
    students = [plain._replace(key=key, teacher=of) for key, of in (("s", "a"), ("t", "b"), ("u", "b"), ("v", ""))]
    first, rest = jobs.waves([teacher, *students])
    assert [one.key for one in first] == ["a", "t", "v"]
    assert [one.key for one in rest] == ["s", "u"]
    assert jobs.waves([]) == []
