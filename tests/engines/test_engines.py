"""What every engine has in common: teachers first, and a request to stop that reaches what runs elsewhere."""

import os
import signal

import pytest

from kd_jax import engines, jobs, stopping
from kd_jax.engines import polling
from kd_jax.errors import Preempted
from tests.engines.programs import job


def named(name, teacher=""):
    return job("runs/" + name, "", name)._replace(key=name, teacher=teacher)


RESULT = {"test": {"accuracy": 0.5}, "seconds": 1.0}


class Cluster:
    """An engine whose runs end in the order in which they started, one a look."""

    def __init__(self):
        self.started, self.stopped = [], []

    def start(self, new):
        self.started.append([job.row for job in new])
        return {job: None for job in new}

    def ended(self, running):
        return {next(iter(running)): RESULT}

    def stop(self, running):
        self.stopped += [job.row for job in running]

    def run_all(self, wanted, setting):
        return polling.until_done(wanted, setting.at_a_time, self.start, self.ended, self.stop)


def test_students_are_started_when_their_teacher_is_there(monkeypatch):
    cluster = Cluster()
    monkeypatch.setitem(engines.ENGINES, "ray", cluster.run_all)
    wanted = [named("teacher"), named("alone"), named("kd", "teacher"), named("rkd", "teacher")]
    outcomes = list(engines.run_all(wanted, "ray", jobs.Setting("runs")))
    assert [job.row for job, _ in outcomes] == ["teacher", "alone", "kd", "rkd"]
    assert cluster.started == [["teacher", "alone"], ["kd", "rkd"]]


def test_so_many_run_at_a_time():
    cluster = Cluster()
    assert len(list(cluster.run_all([named(name) for name in "abcd"], jobs.Setting("runs", at_a_time=3)))) == 4
    assert cluster.started == [["a", "b", "c"], ["d"]]


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_request_to_stop_reaches_what_runs_elsewhere(number, kind):
    cluster = Cluster()
    with stopping.listening():
        outcomes = cluster.run_all([named(name) for name in "abc"], jobs.Setting("runs"))
        next(outcomes)
        os.kill(os.getpid(), number)
        with pytest.raises(kind):
            next(outcomes)
    assert cluster.stopped == ["b", "c"]


def test_runs_without_an_accuracy_are_said_to_be_done(monkeypatch, capsys):
    monkeypatch.setitem(RESULT["test"], "accuracy", None)
    monkeypatch.setitem(engines.ENGINES, "ray", Cluster().run_all)
    list(engines.run_all([named("a")], "ray", jobs.Setting("runs")))
    assert capsys.readouterr().out.startswith("1/1  a, seed 0: done in 1s")
