"""The command `kd_jax plan`: its words, its flags, and that it writes nothing."""

import json
import subprocess
import sys

import pytest

from kd_jax import plan
from kd_jax.advice import Advice

TIME = {"compiling": 2.0, "step": 0.05, "epoch": 5.0, "run": 152.0, "steps": 3000, "epochs": 30.0}
FOUND = {
    "name": "kd",
    "device": "1 x cpu",
    "accelerator": False,
    "data": {
        "images": 6400,
        "classes": 10,
        "shape": [32, 32, 3],
        "source": "digits",
        "shorter_side": 32,
        "channels": 3,
    },
    "student": {"name": "resnet8", "parameters": 5142, "flops": 365855.0, "bytes": 41808},
    "teacher": {"name": "resnet14, seed 0", "parameters": 11302, "flops": None, "bytes": 46328},
    "terms": {"crd": {"parameters": 56, "bytes": 2184}},
    "batch": 64,
    "step_flops": 1.2e12,
    "memory": {"argument": 2**20, "output": 3072, "alias": 2048, "temp": 2**22, "peak": 5 * 2**20, "room": 2**30},
    "fits": True,
    "largest_batch": 1024,
    "time": TIME,
    "teachers_to_train": [{"name": "resnet14", "folder": "runs/teachers/1", "time": TIME | {"run": 60.0}}],
    "cache": {
        "kept": "logits",
        "step": 0.02,
        "saved": 0.6,
        "recording": 2**21,
        "table": 2**23,
        "passes": 81,
        "table_seconds": 1200.0,
        "advised": "recording",
        "why": "later runs read it",
    },
}


def lines(**changes):
    return list(plan.described(FOUND | changes))


def test_a_plan_has_a_line_for_everything():
    assert lines() == [
        "kd on 1 x cpu: 6,400 images of 32x32x3 of 10 classes to train on",
        "            parameters   FLOPs of an image      memory",
        "student          5,142               366 k    40.8 KiB  resnet8",
        "teacher         11,302                   ?    45.2 KiB  resnet14, seed 0",
        "method              56                         2.1 KiB  crd",
        "a step of 64 images: 1.2 T FLOPs, 5.0 MiB on a device: arguments 1.0 MiB, temporary 4.0 MiB, output 1.0 KiB"
        " more",
        "it fits into the 1.0 GiB that there are; the largest batch that does, by doubling, is 1024",
        "first the teacher resnet14 is trained: 50ms a step, 5s an epoch, 1m00s for 3,000 steps (30 epochs), of which"
        " compiling 2s  runs/teachers/1",
        "then the student: 50ms a step, 5s an epoch, 2m32s for 3,000 steps (30 epochs), of which compiling 2s",
        "together 3m32s, without evaluations and checkpoints",
        "without the teacher a step takes 20ms, 60% less, where its logits are kept: 2.0 MiB for a recording of this"
        " run",
        "a table of all views takes 8.0 MiB, and the teacher 81 passes over the images to make, about 20m00s",
        "advised: --config.teacher.cache=recording; later runs read it",
    ]


def test_what_does_not_fit_is_said():
    said = "\n".join(lines(fits=False, time=None, cache=None, largest_batch=0, teachers_to_train=[]))
    assert "it does NOT fit into the 1.0 GiB that there are; no smaller batch does either" in said
    assert "its time was not measured, as a step does not fit" in said
    assert "together" not in said


def test_a_cache_that_is_not_advised_says_why():
    cache = {"advised": "none", "why": "nothing can be kept: it reads the teacher's maps"}
    assert lines(cache=cache)[-1] == "advised: no teacher.cache; nothing can be kept: it reads the teacher's maps"


def test_advice_is_printed_as_flags():
    advice = [Advice("train.batch_size", 16, "few images"), Advice("dataset.unlabeled", False, "so it is")]
    assert list(plan.in_words(("kd:", "for photographs"), advice)) == [
        "by rule of thumb, for so many images:",
        "  --config=kd  (for photographs; another plan says what it takes)",
        "  --config.train.batch_size=16  (few images)",
        "  --config.dataset.unlabeled=false  (so it is)",
    ]
    assert list(plan.in_words(None, [])) == ["by rule of thumb, the config suits so many images"]


def test_the_command_prints_json_and_writes_nothing(call, tmp_path):
    small = ("--config=student:smoke", "--config.model.width=0.125", "--config.dataset.image_size=8")
    status, out, err = call("kd_jax.plan", *small, "--json", f"--runs={tmp_path / 'runs'}")
    assert status == 0, err
    found = json.loads(out)
    assert found["time"]["step"] > 0
    assert [each["key"] for each in found["advice"]] == ["train.epochs"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x"], "error: the argument 'x' is not known; expected flags only, see --help"),
        (["--config=kd:smoke", "--config.model.width=-1.0"], "error: model.width is -1.0; expected a factor above 0"),
        (["--config=kd:smoke", "--term=x"], "error: method.x.method is 'x'; expected one of"),
        (["--config=kd:smok"], "the config's argument is 'smok'"),
        (["--config=kd:smoke", "--config.dataset.path=/x", "--config.dataset.source=folder"], "error: dataset.path"),
    ],
)
def test_bad_input_is_one_line_and_status_2(call, arguments, said):
    status, out, err = call("kd_jax.plan", *arguments)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err


def test_it_speaks_before_it_loads_what_is_slow():
    program = "import kd_jax.plan, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not {"jax", "numpy", "orbax", "PIL"} & set(loaded)


@pytest.mark.parametrize(
    ("config", "expected"),
    [("kd:smoke", "kd:laptop"), ("kd:laptop", None), ("quickstart:kd", None), ("method:dkd,smoke", None)],
)
def test_another_scale_is_advised_where_the_experiment_has_some(monkeypatch, config, expected):
    name, _, argument = config.partition(":")
    monkeypatch.setattr(
        plan.config_flags, "get_config_filename", lambda flag: f"{plan.config.shipped()[name]}:{argument}"
    )
    data = FOUND["data"] | {"source": "folder"}
    tree = plan.config.experiment(name).get_config(argument).to_dict()
    at, _ = plan.advised(FOUND | {"data": data}, tree)
    assert (at and at[0]) == expected
