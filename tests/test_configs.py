"""Every experiment at every scale can be built and traced; on digits, where its own data would be a download."""

import importlib
import warnings
from pathlib import Path

import pytest

from kd_jax import experiment
from kd_jax.config import recipes, shipped
from kd_jax.configs import original
from kd_jax.errors import InputError
from kd_jax.models import cifar_resnet, resnet

DISTILLED = ("kd", "rkd", "adversarial", "gradcam", "dkd", "fitnet", "crd", "simkd", "mlkd", "embedding")
NAMES = ("student", "teacher", *DISTILLED)


def get_config(name, arg):
    package = "kd_jax.config" if name == "base" else "kd_jax.configs"
    return importlib.import_module(f"{package}.{name}").get_config(arg)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("scale", sorted({*recipes.SCALES} - {"lite"}))  # whose networks are traced whole, below
@pytest.mark.parametrize("name", [*NAMES, "function_matching"])
def test_the_experiment_can_be_trained(name, scale):
    assert_trainable(get_config(name, scale), has_teacher=name in (*DISTILLED, "function_matching"))


@pytest.fixture
def shallow(monkeypatch):
    """Networks of one block per stage: a method sees the same shapes, and tracing takes a third of the time."""
    residual = {name: (block, (1,) * len(sizes)) for name, (block, sizes) in resnet.FAMILY.items()}
    monkeypatch.setattr(resnet, "FAMILY", residual)
    small = {name: (8, widths) for name, (_, widths) in cifar_resnet.FAMILY.items()}
    monkeypatch.setattr(cifar_resnet, "FAMILY", small)


def assert_trainable(config, has_teacher):
    config.dataset.source, config.dataset.normalize, config.dataset.train_images = "digits", "dataset", 0
    config.model.pretrained = config.model.normalize = ""  # digits are gray
    if has_teacher:
        config.teacher.config.model.pretrained = config.teacher.config.model.normalize = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # digits are small for the larger stems
        made = experiment.create(config)
    assert (made.teacher is not None) == has_teacher


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("arg", ["", "mobilenetv1,dkd", "crd"])
def test_imagenets_pairs_can_be_trained(arg):
    config = get_config("imagenet", arg)
    config.dataset.image_size, config.dataset.path = 16, ""  # there are no more pixels of digits
    config.teacher.kind, config.teacher.path = "config", ""
    assert_trainable(config, has_teacher=True)


def test_imagenet_is_trained_as_papers_do():
    config = get_config("imagenet", "")
    assert (config.model.name, config.teacher.config.model.name) == ("resnet18", "resnet34")
    assert (config.optimizer.learning_rate, tuple(config.optimizer.milestones)) == (0.1, (30, 60, 90))
    assert (config.train.batch_size, config.train.epochs, config.optimizer.weight_decay) == (256, 100, 1e-4)
    assert config.method.kd.to_dict() == {"weight": 0.5, "temperature": 1.0}
    assert get_config("imagenet", "mobilenetv1").teacher.path.startswith("timm/resnet50.tv_in1k")
    assert get_config("imagenet", "cross_entropy").teacher.kind == "none"


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        (
            "resnet18,mobilenetv1",
            "the config's argument is 'resnet18,mobilenetv1'; expected one of resnet18, mobilenetv1",
        ),
        ("kd,dkd", "expected one of resnet18, mobilenetv1, and a method"),
        ("sp", "the method is 'sp'; expected one of: at,"),
    ],
)
def test_imagenet_refuses_what_it_does_not_know(arg, said):
    with pytest.raises(InputError, match=said):
        get_config("imagenet", arg)


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_the_whole_networks_of_a_scale_can_be_trained(scale):
    assert_trainable(get_config("kd", scale), has_teacher=True)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("preset", ["", ",faithful"])
@pytest.mark.parametrize("row", original.ROWS)
def test_every_row_of_the_original_table_can_be_trained(row, preset):
    config = original.get_config(f"{row}{preset},smoke")
    assert_trainable(config, has_teacher=not row.startswith(("student", "teacher")))
    assert config.model.freeze == ("backbone" if row.endswith("_frozen") else "none")


@pytest.mark.parametrize("row", [row for row in original.ROWS if not row.startswith("teacher")])
def test_the_corrected_rows_share_one_recipe_and_one_teacher(row):
    config, student, teacher = (original.get_config(f"{name},laptop") for name in (row, "student", "teacher"))
    for section in ("optimizer", "train", "evaluate", "precision"):
        assert config[section] == student[section]
    if config.teacher.kind == "config":
        assert config.teacher.config.to_dict() | {"name": "original-teacher"} == teacher.to_dict() | {
            "name": "original-teacher"
        }


def test_the_faithful_rows_have_the_originals_schedules():
    config = original.get_config("kd_frozen,faithful")
    assert (config.optimizer.learning_rate, config.optimizer.gamma, config.train.batch_size) == (1e-3, 0.7, 32)
    assert config.teacher.mode == "train"
    teacher = config.teacher.config
    assert (teacher.optimizer.learning_rate, teacher.optimizer.gamma) == (3e-4, 0.95)
    assert (teacher.model.freeze, teacher.model.head) == ("backbone", "mlp")


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_the_faithful_rows_have_the_originals_15_epochs_at_every_scale(scale):
    config = original.get_config(f"kd,faithful,{scale}" if scale else "kd,faithful")
    for train in (config.train, config.teacher.config.train):
        assert (train.epochs, train.steps) == (15, 0)


@pytest.mark.parametrize("row", ["alone", "kd_same", "kd", "rkd_same", "rkd"])
def test_the_quickstart_gives_every_row_the_same_recipe(row):
    first, config = get_config("quickstart", "alone"), get_config("quickstart", row)
    for section in ("seed", "model", "optimizer", "train", "precision"):
        assert config[section] == first[section]
    assert config.dataset.labeled == 200


@pytest.mark.parametrize("name", DISTILLED)
def test_the_experiments_share_one_recipe_and_one_teacher(name):
    config = get_config(name, "small")
    assert config.teacher == get_config("kd", "small").teacher
    student = get_config("student", "small")
    for section in ("optimizer", "train", "model"):
        assert config[section] == student[section]
    own = {"extra_views": (), "label_free": False}  # of a method, and of the experiment without labels
    assert {**config.dataset, **own} == {**student.dataset}


@pytest.mark.parametrize("key", ["path", "source", "train_images", "holdout", "image_size"])
def test_a_key_of_the_data_reaches_the_teacher(key):
    config = get_config("rkd", "small")
    config.dataset[key] = type(config.dataset[key])(7)
    assert config.to_dict()["teacher"]["config"]["dataset"][key] == config.dataset[key]


def test_the_original_pair_and_size_are_the_default():
    config = get_config("rkd", "")
    assert (config.model.name, config.teacher.config.model.name) == ("resnet18", "resnet50")
    assert (config.dataset.name, config.dataset.image_size) == ("cifar10", 128)


@pytest.mark.parametrize(
    ("name", "said"), [("rkd", "'laptop' or 'smoke'"), ("quickstart", "alone"), ("base", "small, smoke")]
)
def test_an_unknown_scale_is_refused_with_the_choices(name, said):
    with pytest.raises(InputError, match=said):
        get_config(name, "huge")


@pytest.mark.parametrize(
    ("name", "arg"), [("quickstart", "kd,huge"), ("original", "kd,laptop,huge"), ("original", "kd,faithfull")]
)
def test_no_part_of_an_argument_is_passed_over(name, arg):
    with pytest.raises(
        InputError, match=f"a part of the config's argument is '{arg.rpartition(',')[2]}'; expected one of"
    ):
        get_config(name, arg)


@pytest.mark.parametrize(
    ("name", "arg", "said"),
    [
        ("quickstart", "kd,rkd", "kd and rkd; expected one row"),
        ("original", "kd,small,laptop", "small and laptop; expec"),
    ],
)
def test_two_answers_to_one_question_are_refused(name, arg, said):
    with pytest.raises(InputError, match=f"the config's argument names {said}"):
        get_config(name, arg)


def test_every_file_of_the_experiments_is_shipped_by_name():
    folder = Path(__file__).parent.parent / "configs"
    assert {Path(path) for path in shipped().values()} == {*folder.glob("[!_]*.py")}


def test_the_rows_of_the_original_table_have_labels_and_baselines():
    assert original.LABELS.keys() == set(original.ROWS)
    assert {*original.BASELINES, "teacher", "teacher_frozen"} == set(original.ROWS)
    assert {*original.BASELINES.values(), *original.PUBLISHED} <= set(original.ROWS)
