"""The commands, as people start them: what they print, their exit status, and what they leave behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_jax import runs, weights
from kd_jax.logging import metrics_file
from tests import tiny

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # one device
TINY = [
    "--config=configs/student.py:smoke",
    *(f"--config.{key}={value}" for key, value in tiny.CHANGES.items() if key != "name"),
]


# What a run leaves, events aside.
RUN = {".lock", "config.json", "metrics.jsonl", "checkpoints", "result.json", "test_details.json"}


def start(module, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def called(module, *arguments, **environment):
    """What `call` returns, of a process that begins as those of people do."""
    process = start(module, *arguments, **environment)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty images of each of two classes in `train`, six in `test`."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for name, color in (("cat", 40), ("dog", 200)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(color, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture
def broken(tmp_path):
    """A folder of images, `damage`d in one way."""

    def build(damage):
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                (tmp_path / "images" / split / name).mkdir(parents=True)
                for index in range(6):
                    Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "images" / split / name / f"{index}.png")
        damage(tmp_path / "images")
        return tmp_path / "images"

    return build


def remove(folder):
    for file in folder.iterdir():
        file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[:40])


@pytest.fixture
def refused(call, tmp_path):
    """The one line on stderr of a run that is refused, and that left nothing in its folders."""

    def line(arguments, **environment):
        status, out, err = call("kd_jax.main", *arguments, f"--runs={tmp_path / 'runs'}", **environment)
        assert (status, [line for line in out.splitlines() if not line.startswith("data ")]) == (2, [])
        assert not (tmp_path / "runs").exists()
        (line,) = err.splitlines()
        return line

    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--term=kdd:weight=1"], r"method.kdd.method is 'kdd'; expected one of: ab, abkd, .*; did you mean 'kd'\?"),
        (["--config.train.epoch=3"], r"--config.train.epoch=3: there is no key 'epoch'; .*; did you mean 'epochs'\?"),
        (["--config.train.epochs=many"], "--config.train.epochs=many: invalid literal for int"),
        (["--config.train.batch_size=9999"], "train.batch_size is 9999; expected at most the 64 training images"),
        (
            ["--config.dataset.source=folder", "--config.dataset.path=/no"],
            "dataset.path is '/no', which does not exist",
        ),
        (["--nonsense=1"], "Unknown command line flag 'nonsense'"),
        (["nonsense"], "the argument 'nonsense' is not known; expected flags only"),
    ],
    ids=lambda value: value[-1].split("=")[0] if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_status_2_and_leaves_nothing_behind(refused, arguments, said):
    assert re.search("^error: .*" + said, refused([*TINY, *arguments]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "studen:smoke"], r"--config is 'studen'; .*; did you mean 'student'\?"),
        (
            ["--config=configs/student.py:huge"],
            "the config's argument is 'huge'; expected nothing, 'small', 'lite', 'laptop' or 'smoke'",
        ),
    ],
)
def test_a_config_that_is_not_there_is_refused_with_the_choices(refused, arguments, said):
    assert re.search("^error: " + said, refused([*arguments, "--config.seed=1"]))


def test_a_batch_that_the_devices_do_not_divide_is_refused(refused):
    line = refused(TINY, XLA_FLAGS="--xla_force_host_platform_device_count=3")
    assert "train.batch_size is 16; expected a multiple of 3 (3 devices times train.accumulate 1)" in line


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: remove(folder / "train" / "dog"), "train/dog holds no images"),
        (lambda folder: cut(folder / "train" / "cat" / "3.png"), "train/cat/3.png cannot be read as an image"),
    ],
    ids=["no images", "truncated"],
)
def test_a_damaged_folder_of_images_is_refused_by_name(broken, refused, damage, said):
    data = [
        "--config.dataset.source=folder",
        f"--config.dataset.path={broken(damage)}",
        "--config.dataset.train_images=0",
    ]
    assert said in refused([*TINY, *data])


def test_a_flag_of_another_command_is_not_passed_over(refused):
    assert "--seeds is no flag of this command; expected those of its --help, or `kd_jax sweep`" in refused(
        [*TINY, "--seeds=5"]
    )


def test_a_work_directory_that_cannot_be_made_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused([*TINY, f"--workdir={tmp_path / 'file' / 'run'}"])
    assert "cannot be written" in line


def test_help_answers_with_the_flags_and_status_0():
    usages = {"main": "kd_jax"} | {name: f"kd_jax {name}" for name in ("evaluate", "predict", "explain")}
    for module, usage in usages.items():
        status, out, err = called(f"kd_jax.{module}", "--help")
        assert (status, err) == (0, "")
        assert f"usage: {usage} " in out
        assert "--workdir" in out


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A short run on the folder of images: (its folder, what it printed, its log)."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    data = ["--config.dataset.source=folder", f"--config.dataset.path={images}", "--config.dataset.train_images=36"]
    status, out, err = called("kd_jax.main", *TINY, *data, "--config.train.epochs=8", f"--workdir={folder}")
    assert status == 0, err
    return folder, out, err


def test_training_prints_where_it_lies_and_what_it_reached(trained):
    folder, out, err = trained
    accuracy = runs.read_json(str(folder), "result.json")["test"]["accuracy"]
    assert out.splitlines()[-1] == f"resnet8: test accuracy {100 * accuracy:.2f}% of 12 images  {folder}"
    assert re.search(r"\ntook \S+  step 16/16  epoch 8/8  loss \S+  \S+ images/s  val \S+%  \d+% in steps\n", err)
    assert err.count("compiling the training step ...\n") == 1


def test_training_goes_on_without_tensorflow_and_one_line_says_so(call, tmp_path, no_tensorflow):
    arguments = [*TINY, "--config.train.epochs=1", f"--workdir={tmp_path / 'run'}"]
    status, out, err = call("kd_jax.main", *arguments, PYTHONPATH=no_tensorflow)
    assert status == 0, err
    assert len([line for line in out.splitlines() if line.startswith("tensorflow is not installed")]) == 1
    assert runs.read_json(str(tmp_path / "run"), "result.json")["steps"] == 4
    assert {path.name for path in (tmp_path / "run").iterdir()} == RUN


def test_evaluate_prints_the_metrics_as_json(call, trained):
    folder, _, _ = trained
    status, out, _ = call("kd_jax.evaluate", f"--workdir={folder}")
    assert status == 0
    assert json.loads(out) == {"workdir": str(folder), **runs.read_json(str(folder), "result.json")["test"]}


def test_evaluate_finds_data_that_has_moved(call, trained, images, tmp_path):
    folder, _, _ = trained
    (tmp_path / "moved").symlink_to(images)
    status, out, _ = call("kd_jax.evaluate", f"--workdir={folder}", f"--path={tmp_path / 'moved'}")
    assert (status, json.loads(out)["images"]) == (0, 12)


def test_a_run_on_two_devices_can_be_evaluated_on_one(call, tmp_path, no_tensorflow):
    flags = f"{ENVIRONMENT['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    two = {"XLA_FLAGS": flags, "PYTHONPATH": no_tensorflow}
    status, _, err = call("kd_jax.main", *TINY, "--config.train.epochs=1", f"--workdir={tmp_path / 'run'}", **two)
    assert status == 0, err
    result = runs.read_json(str(tmp_path / "run"), "result.json")
    assert result["device"] == "2 x cpu"
    status, out, err = call("kd_jax.evaluate", f"--workdir={tmp_path / 'run'}")
    assert (status, err.startswith("data digits: 1438 train, "), err.count("\n")) == (0, True, 1)
    assert json.loads(out)["accuracy"] == result["test"]["accuracy"]


def test_predict_prints_class_names_and_probabilities(call, trained, images):
    folder, _, _ = trained
    files = [images / "test" / name / "0.png" for name in ("cat", "dog")]
    status, out, err = call("kd_jax.predict", f"--workdir={folder}", *files)
    assert status == 0, err
    for line, file in zip(out.splitlines(), files, strict=True):
        name, ranked = line.split(": ")
        assert name == str(file)
        shares = {name: float(share) for name, share in re.findall(r"(cat|dog) (\S+)%", ranked)}
        assert sum(shares.values()) == pytest.approx(100, abs=0.2)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("kd_jax.evaluate", [], "expected --workdir=FOLDER"),
        ("kd_jax.evaluate", ["--workdir=/nowhere"], "/nowhere has no config.json; expected the folder of a run"),
        ("kd_jax.predict", ["--workdir=/nowhere"], "one image file or more"),
        ("kd_jax.predict", ["--workdir=RUN", "/nowhere.png"], "/nowhere.png"),
        (
            "kd_jax.export",
            ["--workdir=RUN", "--to=/nowhere/x.safetensors"],
            "expected a file in an existing folder",
        ),
        ("kd_jax.explain", [], "expected --workdir=FOLDER, the folder of a finished run with a teacher"),
        ("kd_jax.explain", ["--workdir=RUN"], "has no teacher; expected a distilled one"),
        (
            "kd_jax.explain",
            ["--workdir=RUN", "--against="],
            "--against is empty; expected the folder of a finished run",
        ),
        ("kd_jax.explain", ["--workdir=RUN", "--variant=cam"], "--variant=cam: value should be one of"),
        ("kd_jax.report", [], "expected the folder of one run or more"),
        ("kd_jax.report", ["/nowhere"], "'/nowhere' is not a folder"),
        ("launch.compare", [], "expected the folder of one run or more"),
        ("kd_jax", ["compare"], "expected the folder of one run or more"),
        ("kd_jax", ["evaluate", "--to=x"], "--to is no flag of this command; expected those of its --help"),
        ("kd_jax", ["evaluat"], "the command is 'evaluat'; expected one of: benchmark-export, "),
    ],
)
def test_the_other_commands_refuse_bad_input_in_one_line_too(call, trained, module, arguments, said):
    status, out, err = call(module, *(a.replace("RUN", str(trained[0])) for a in arguments))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_a_checkpoint_cut_short_is_one_line(call, trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    evaluated = (
        run / "checkpoints" / str(runs.read_json(str(run), "result.json")["checkpoint"])
    )  # the best lies beside it
    largest = max(evaluated.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    os.truncate(largest, 200)
    status, out, err = call("kd_jax.evaluate", f"--workdir={run}")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "cannot be read; expected a whole checkpoint" in err


def test_report_writes_where_it_is_told_to(call, trained, tmp_path):
    status, out, err = call("kd_jax.report", trained[0], f"--to={tmp_path / 'report'}")
    assert (status, err) == (0, "")
    assert out == f"{tmp_path / 'report' / 'index.html'} and report.md: 1 run, 0 left out\n"
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"index.html", "report.md"}


def test_unreadable_images_can_be_skipped_and_are_counted(call, broken, tmp_path, no_tensorflow):
    folder = broken(lambda folder: cut(folder / "train" / "cat" / "3.png"))
    data = ["--config.dataset.source=folder", f"--config.dataset.path={folder}", "--config.dataset.train_images=0"]
    own = ["--config.dataset.skip_unreadable=true", "--config.train.batch_size=4", "--config.dataset.holdout=0."]
    steps = ["--config.train.steps=2", f"--workdir={tmp_path / 'run'}"]
    status, _, err = call("kd_jax.main", *TINY, *data, *own, *steps, PYTHONPATH=no_tensorflow)
    assert status == 0, err
    assert runs.read_json(str(tmp_path / "run"), "config.json")["data"]["skipped"] == 1


def test_a_loss_that_is_not_finite_is_one_line_and_status_1(call, tmp_path, no_tensorflow):
    own = ["--config.optimizer.learning_rate=1e30", f"--workdir={tmp_path / 'run'}"]
    status, _, err = call("kd_jax.main", *TINY, *own, PYTHONPATH=no_tensorflow)
    assert status == 1
    assert re.search("^error: .*loss.* is not finite by step .*", err.splitlines()[-1])
    assert "Traceback" not in err


def test_a_terminated_run_saves_its_state_and_exits_with_143(tmp_path, no_tensorflow):
    arguments = [*TINY, "--config.train.epochs=2000", f"--workdir={tmp_path / 'run'}"]
    process = start("kd_jax.main", *arguments, PYTHONPATH=no_tensorflow)
    _wait_for(lambda: len(metrics_file.read(str(tmp_path / "run"))) > 3, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143
    stopped = int(re.search(r"stopped at step (\d+) of 8000; the same command goes on from there", err)[1])
    assert (tmp_path / "run" / "checkpoints" / str(stopped)).is_dir()


def test_a_killed_run_goes_on_and_ends_bit_for_bit_as_one_that_was_not_killed(call, tmp_path, no_tensorflow):
    def arguments(name):
        return [*TINY, "--config.train.epochs=20", f"--workdir={tmp_path / name}"]

    process = start("kd_jax.main", *arguments("killed"), PYTHONPATH=no_tensorflow)
    _wait_for(lambda: len(metrics_file.read(str(tmp_path / "killed"))) > 10, process)
    process.kill()
    process.communicate()
    for name in ("killed", "whole"):
        status, _, err = call("kd_jax.main", *arguments(name), PYTHONPATH=no_tensorflow)
        assert status == 0, err
    killed, whole = (weights.read_run(str(tmp_path / name)) for name in ("killed", "whole"))
    assert tiny.identical(killed, whole)
    measured = [
        [{**line, "seconds": 0} for line in metrics_file.read(str(tmp_path / name))] for name in ("killed", "whole")
    ]
    assert measured[0] == measured[1]


def _wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
