"""Many runs: the file of their results, and which teachers have to be trained first."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from kd_jax import checksums, jobs, many
from kd_jax.errors import InputError
from tests.engines.programs import FAIL, job, writes
from tests.reporting import made_up

flags.FLAGS.mark_as_parsed()


def test_a_line_that_was_cut_short_is_passed_over_with_a_word(tmp_path, capsys):
    path = str(tmp_path / "results.jsonl")
    (tmp_path / "results.jsonl").write_text('{"key": "a", "result": {}}\n{"key": "b", "res')
    many.append(path, '{"key": "c", "result": {}}')
    assert many.read(path).keys() == {"a", "c"}
    assert capsys.readouterr().out == f"line 2 of {path} is no result, or is damaged, and is passed over\n"


def test_a_damaged_line_is_no_result(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    lines = [json.dumps(checksums.add({"key": key, "result": {"test": 0.5}})) for key in "ab"]
    path.write_text(lines[0] + "\n" + lines[1].replace("0.5", "0.7") + "\n")
    assert many.read(str(path)) == {"a": {"test": 0.5}}
    assert "line 2 of" in capsys.readouterr().out


def test_a_run_is_started_again_as_often_as_is_said(tmp_path):
    own = {"runs": str(tmp_path), "results": str(tmp_path / "results.jsonl"), "restart": 2}
    starts = f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); {FAIL}"
    with flagsaver.flagsaver(**own):
        done, (failure,) = many.run([job(tmp_path / "a", starts)], "name")
    assert (tmp_path / "starts").read_text() == "xxx"
    assert failure.reason.startswith("no memory")
    assert done == {}


def test_a_run_of_another_machine_does_not_say_how_many_cores_this_one_has(tmp_path):
    result = {"device": "1 x gpu"}
    assert jobs.line(job(tmp_path / "a", ""), result, "ray")["hardware"] == "1 x gpu, through ray"


def test_an_option_without_a_value_is_one_line_and_nothing_runs(tmp_path):
    own = {"runs": str(tmp_path / "runs"), "results": str(tmp_path / "results.jsonl"), "engine_options": ["gpu"]}
    with flagsaver.flagsaver(**own), pytest.raises(InputError, match="--engine_options has 'gpu'; expected KEY=VALUE"):
        many.run([job(tmp_path / "runs" / "a", writes(0.5))], "name")
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_has_finished_is_not_waited_for(tmp_path):
    tree, identity = {"teacher": {"kind": "config"}}, {"teacher": {"run": {"seed": 0}}}
    with flagsaver.flagsaver(runs=str(tmp_path)):
        digest = many.untrained(tree, identity)
        assert len(digest) == 64
        made_up.write_run(tmp_path / "teachers" / digest[:8], "teacher")
        assert many.untrained(tree, identity) == ""
    assert many.untrained({"teacher": {"kind": "run"}}, identity) == ""
