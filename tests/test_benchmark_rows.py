"""The benchmark's rows: the recipe of every pair, the presets, the controls; and how its table is made of them."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from kd_jax import methods, table
from kd_jax.config import checks
from kd_jax.config.pairs import PAIRS
from kd_jax.configs import benchmark
from kd_jax.errors import InputError, TrainingError
from tests.engines import programs
from tests.test_table import result

flags.FLAGS.mark_as_parsed()
DIGITS = ["dataset.source=digits", "dataset.normalize=dataset", "dataset.train_images=0"]


CONFIGS = [f"{pair},{name}" for pair in PAIRS for name in ("cross_entropy", "kd", "teacher")]
CONFIGS += [
    f"resnet56-resnet20,{name}{preset}" for name in benchmark.METHODS for preset in ("", ",published", ",laptop")
]


@pytest.mark.parametrize("arg", CONFIGS)
def test_every_row_is_a_whole_config_whose_terms_make_a_method(arg):
    config = benchmark.get_config(arg).to_dict()
    checks.check(config)
    made = methods.create(config["method"])
    assert made.views == 1 + len(config["dataset"]["extra_views"])
    assert made.needs_teacher == (config["teacher"]["kind"] != "none")
    pair, name, *_ = arg.split(",")
    networks = (PAIRS[pair].teacher, PAIRS[pair].student)
    assert config["model"]["name"] == networks[name != "teacher"]
    if made.needs_teacher:
        assert config["teacher"]["config"]["model"]["name"] == networks[0]


@pytest.mark.parametrize("preset", ["", ",published", ",laptop"])
def test_the_recipe_is_one_for_all_methods_of_a_student(preset):
    first = benchmark.get_config(f"resnet56-resnet20,cross_entropy{preset}")
    own = {"train.epochs": {"kd_twice"}, "optimizer.milestones": {"kd_twice"}, "optimizer.gradients": {"dhkd"}}
    own["train.mixup"] = {"function_matching"}
    for name in benchmark.METHODS.keys() - {"teacher"}:
        config = benchmark.get_config(f"resnet56-resnet20,{name}{preset}")
        for section in ("optimizer", "train", "evaluate", "model"):
            differs = {f"{section}.{key}" for key in first[section] if config[section][key] != first[section][key]}
            assert all(name in own[key] for key in differs), (name, differs)


def test_the_recipe_is_the_published_one():
    config = benchmark.get_config("vgg13-vgg8,kd,published")
    assert (config.train.epochs, config.train.batch_size, config.train.last_batch) == (240, 64, "keep")
    assert (config.optimizer.learning_rate, config.optimizer.momentum, config.optimizer.nesterov) == (0.05, 0.9, False)
    assert (config.optimizer.schedule, config.optimizer.milestones) == ("step", (150, 180, 210))
    assert (config.optimizer.weight_decay, config.optimizer.decay_norms_and_biases) == (5e-4, True)
    assert (config.dataset.holdout, config.dataset.augment) == (0, "crop_flip")
    assert config.optimizer.warmup_epochs == config.train.clip == 0
    assert config.evaluate.test_every_epoch
    assert config.evaluate.select == "last"
    for slow in ("vgg13-mobilenetv2_half", "resnet32x4-shufflenetv1", "resnet32x4-shufflenetv2"):
        assert benchmark.get_config(f"{slow},kd,published").optimizer.learning_rate == 0.01
        assert benchmark.get_config(f"{slow},kd").teacher.config.optimizer.learning_rate == 0.05


def test_the_honest_preset_holds_a_tenth_out_and_never_reads_the_test_set_in_training():
    for arg in ("vgg13-vgg8,kd", "vgg13-vgg8,teacher", "cifar10-resnet56-resnet8,kd,laptop"):
        config = benchmark.get_config(arg)
        assert (config.dataset.holdout, config.evaluate.test_every_epoch) == (0.1, False)


def test_settings_of_a_pair_take_the_place_of_the_usual_ones():
    betas = {pair: benchmark.get_config(f"{pair},dkd").method.dkd.beta for pair in ("resnet56-resnet20", "vgg13-vgg8")}
    assert betas["resnet56-resnet20"] == 2
    assert benchmark.get_config("cifar10-resnet56-resnet8,dkd,laptop").method.dkd.beta == 2
    assert benchmark.get_config("resnet32x4-resnet8x4,dkd").method.dkd.beta == 8


def test_the_controls_differ_from_what_they_are_beside_in_one_thing():
    kd, twice, untrained = (
        benchmark.get_config(f"resnet56-resnet20,{name}").to_dict() for name in ("kd", "kd_twice", "random_teacher")
    )
    assert (twice["train"]["epochs"], twice["optimizer"]["milestones"]) == (480, (300, 360, 420))
    assert twice["method"] == untrained["method"] == kd["method"]
    assert untrained["teacher"]["kind"] == "untrained"
    assert untrained["teacher"]["config"]["model"] == kd["teacher"]["config"]["model"]


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("resnet56-resnet21,kd", "the pair is 'resnet56-resnet21'; expected one of.*did you mean 'resnet56-resnet20'"),
        ("resnet56-resnet20", "the method is ''; expected one of"),
        ("resnet56-resnet20,kdd", "the method is 'kdd'; expected one of.*did you mean 'kd'"),
        ("resnet56-resnet20,kd,honest", "a part of the config's argument is 'honest'; expected one of"),
        (
            "resnet56-resnet20,kd,published,laptop",
            "expected resnet56-resnet20,kd with 'published' or, for CIFAR, 'laptop'",
        ),
        (
            "resnet34-resnet18,kd,laptop",
            "expected resnet34-resnet18,kd with 'published' or, for CIFAR, 'laptop', and one",
        ),
        ("resnet56-resnet20,kd,30,40", "expected .* and one number of epochs"),
        ("resnet56-resnet20,kd,0", "expected .* and one number of epochs"),
        ("resnet34-resnet18,fitnet", "no terms of the method for ImageNet were published"),
    ],
)
def test_an_argument_that_names_no_row_is_refused(arg, said):
    with pytest.raises(InputError, match=said):
        benchmark.get_config(arg)


@pytest.fixture
def settings(tmp_path):
    own = {"scale": "laptop", "seeds": 2, "results": str(tmp_path / "results.jsonl"), "runs": str(tmp_path / "runs")}
    own |= {"rows": ["cifar10"], "pairs": ["cifar10-resnet56-resnet8"], "methods": ["kd", "cross_entropy"]}
    with flagsaver.flagsaver(**own):
        yield tmp_path


def test_rows_run_in_the_order_of_the_methods_and_every_row_once_before_any_twice(settings, monkeypatch):
    ran, _ = programs.stand_in(monkeypatch, lambda row, seed: result(0.8))
    weights = settings / "teacher.safetensors"
    weights.write_bytes(b"x")
    with flagsaver.flagsaver(methods=["kd", "cross_entropy", "again"]):
        table.main([*DIGITS, f"teacher.path={weights}"])
    pair = "cifar10-resnet56-resnet8"
    first = [(f"{pair},kd", 0), (f"{pair},cross_entropy", 0), (f"{pair},again", 0)]
    assert ran == [*first, *((row, 1) for row, _ in first)]
    assert len((settings / "results.jsonl").read_text().splitlines()) == 6


def test_the_table_is_written_in_every_form_and_names_what_failed(settings, monkeypatch, capsys):
    accuracies = {"kd": 0.80, "cross_entropy": 0.78}
    _, fails = programs.stand_in(monkeypatch, lambda row, seed: result(accuracies[row.partition(",")[2]] + seed / 100))
    pair = "cifar10-resnet56-resnet8"
    fails.add((f"{pair},kd", 1))
    (settings / "teacher.safetensors").write_bytes(b"x")
    with flagsaver.flagsaver(note="An eighth of it."), pytest.raises(TrainingError, match="1 of 4 runs failed"):
        table.main([*DIGITS, f"teacher.path={settings / 'teacher.safetensors'}"])
    folder = settings / "runs" / "cifar10-laptop"
    assert f"{folder} holds table.md, table.csv, table.tex, table.html and table.json" in capsys.readouterr().out
    texts = {path.suffix: path.read_text() for path in folder.glob("table.*")}
    assert texts.keys() == {".md", ".csv", ".tex", ".html", ".json"}
    assert "| KD | 80.00 |  | +2.00 | 1; seed 1 failed |" in texts[".md"]
    assert "| KD | 1 | it broke |" in texts[".md"]
    assert "An eighth of it." in texts[".html"]
    assert f"{pair},cross_entropy,2,78.5," in texts[".csv"]
    assert "\\label{cifar10-resnet56-resnet8-honest}" in texts[".tex"]
    assert json.loads(texts[".json"])["pairs"][pair]["kd"]["failed"] == {"1": "it broke"}


def test_the_second_training_has_seeds_of_its_own(settings):
    own = table.read("cifar10")
    once, again = (table.job(own, f"cifar10-resnet56-resnet8,{name}", 1, DIGITS) for name in ("cross_entropy", "again"))
    assert "--config.seed=1" in once.command
    assert "--config.seed=1001" in again.command
    assert once.key != again.key


def test_a_teacher_that_is_given_is_that_of_the_rows_that_are_taught(settings):
    own, change = table.read("cifar10"), ["teacher.path=weights.safetensors"]
    rows = {
        name: table.job(own, f"cifar10-resnet56-resnet8,{name}", 0, DIGITS) for name in ("cross_entropy", "teacher")
    }
    for name, job in rows.items():
        assert table.job(own, f"cifar10-resnet56-resnet8,{name}", 0, [*DIGITS, *change]).key == job.key
    untrained = table.job(own, "cifar10-resnet56-resnet8,random_teacher", 0, [*DIGITS, *change])
    assert not any("teacher.path" in part for part in untrained.command)


def flags_of(job):
    return {part.partition("=")[0].removeprefix("--config."): part.partition("=")[2] for part in job.command[3:]}


def test_another_length_fits_the_whole_recipe_and_that_of_the_teacher(settings):
    with flagsaver.flagsaver(
        scale="", rows=["cifar100"], pairs=["resnet56-resnet20"], methods=["kd", "kd_twice", "ab"]
    ):
        own = table.read("cifar100")
        jobs = {
            n: table.job(own, f"resnet56-resnet20,{n}", 0, [*DIGITS, "train.epochs=24"]) for n in ("kd", "kd_twice")
        }
    assert jobs["kd"].command[2] == "--config=configs/benchmark.py:resnet56-resnet20,kd,24"
    assert "train.epochs" not in flags_of(jobs["kd"])
    assert jobs["kd"].key != jobs["kd_twice"].key
    kd, twice, ab = (benchmark.get_config(f"resnet56-resnet20,{name},24") for name in ("kd", "kd_twice", "ab"))
    for config in (kd, kd.teacher.config):
        assert (config.train.epochs, config.optimizer.milestones) == (24, (15, 18, 21))
    assert (twice.train.epochs, twice.optimizer.milestones) == (48, (30, 36, 42))
    assert [*ab.method.ab.epochs] == [0, 3]


def test_the_row_of_the_teacher_is_the_run_that_teaches(settings):
    changes = [*DIGITS, "teacher.config.model.width=0.5", "model.width=0.25"]
    with flagsaver.flagsaver(scale="", rows=["cifar100"], pairs=["vgg13-vgg8"]):
        own = table.read("cifar100")
        teacher, kd = (table.job(own, f"vgg13-vgg8,{name}", 0, changes) for name in ("teacher", "kd"))
    assert flags_of(teacher)["model.width"] == "0.5"
    assert (flags_of(kd)["model.width"], flags_of(kd)["teacher.config.model.width"]) == ("0.25", "0.5")
    assert kd.teacher == teacher.key


def test_an_untrained_teacher_changes_as_one_that_is_trained_would(settings):
    changes = [*DIGITS, "model.width=0.25", "teacher.kind=weights", "teacher.path=x"]
    with flagsaver.flagsaver(scale="", rows=["cifar100"], pairs=["vgg13-vgg8"]):
        job = table.job(table.read("cifar100"), "vgg13-vgg8,random_teacher", 0, changes)
    assert flags_of(job)["teacher.config.model.width"] == "0.25"
    assert not {"teacher.kind", "teacher.path"} & flags_of(job).keys()


def test_a_table_of_imagenet_has_the_methods_that_were_published_for_it(settings):
    with flagsaver.flagsaver(scale="", rows=["imagenet"], pairs=[], methods=[]):
        rows = table.read("imagenet").rows
    names = {row.partition(",")[2] for row in rows}
    assert {"kd", "dkd", "crd", "again", "kd_twice"} <= names
    assert not {"fitnet", "teacher", "teacher_free"} & names
    for row in rows:
        benchmark.get_config(row)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pairs": ["resnet56-resnet20"]}, "--pairs is 'resnet56-resnet20'; expected one of: cifar10-"),
        ({"methods": ["kdd"]}, "--methods is 'kdd'; expected one of"),
        ({"only": ["kd"]}, "--only is given with --rows=cifar10; expected --pairs and --methods"),
        ({"preset": "faithful"}, "--preset is 'faithful'; expected one of: honest, published"),
    ],
)
def test_what_a_benchmark_does_not_have_is_refused(settings, given, said):
    with flagsaver.flagsaver(rows=["cifar10"], **given), pytest.raises(InputError, match=said):
        table.main([])


def test_pairs_are_of_a_benchmark_alone(settings):
    with pytest.raises(
        InputError, match="--pairs or --methods is given with --rows=original; expected one of cifar100"
    ):
        table.read("original")


def test_pairs_name_networks_of_their_own():
    from kd_jax.models import NETWORKS

    for name, pair in PAIRS.items():
        assert name.removeprefix("cifar10-") == f"{pair.teacher}-{pair.student}"
        assert {pair.teacher, pair.student} <= NETWORKS.keys()
        assert pair.like in PAIRS
    assert len([pair for pair in PAIRS.values() if pair.data == "cifar100"]) == 17
