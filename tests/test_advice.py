"""The rules of thumb, against what they say in words."""

import pytest

from kd_jax import advice
from kd_jax.config import recipes


def of(count, side=None, channels=3, size=64):
    return {"images": count, "side": size, "shorter_side": side, "channels": channels, "source": "folder"}


def advised(scale, data, *, accelerator=False, largest=0, **changes):
    tree = recipes.kd(scale)
    tree.dataset.train_images = 0
    tree.update_from_flattened_dict(changes)
    found = advice.advise(tree.to_dict(), data, accelerator=accelerator, largest=largest)
    return {each.key: each.value for each in found}


def test_few_photographs_get_small_batches_strong_augmentation_and_enough_steps():
    found = advised("lite", of(144, side=200))
    own = {key: value for key, value in found.items() if not key.startswith("teacher.")}
    assert own == {
        "train.batch_size": 16,
        "optimizer.learning_rate": 0.0005,  # of AdamW, by the root of the batch
        "train.epochs": 37,  # of nine steps: a sixth of 2,000, as the networks start from published weights
        "dataset.augment": "randaugment",
    }
    assert {key.removeprefix("teacher.config.") for key in found} == own.keys()


def test_many_images_leave_the_config_as_it_is():
    assert advised("small", of(45_000, size=32)) == {}


@pytest.mark.parametrize(
    ("scale", "data", "options", "key", "value"),
    [
        ("small", of(600, size=32), {}, "train.batch_size", 32),  # 18 steps in an epoch; 64 would make 9
        ("small", of(600, size=32), {}, "optimizer.learning_rate", 0.025),  # of SGD, in proportion
        ("small", of(600, size=32), {}, "train.epochs", 100),
        ("small", of(45_000, size=32), {"largest": 64}, "train.batch_size", 64),
        ("small", of(45_000, size=32), {"train.epochs": 5}, "train.epochs", 30),
        ("small", of(45_000, size=32), {"train.steps": 500}, "train.steps", 10_530),
        ("small", of(5_000, size=32), {"train.steps": 500}, "train.steps", 2_340),
        ("small", of(45_000, size=32), {"dataset.augment": "none"}, "dataset.augment", "crop_flip"),
        ("smoke", of(1_293, channels=1), {}, "dataset.augment", None),  # flipped digits are none
        ("small", of(45_000, side=300), {"accelerator": True}, "dataset.image_size", 128),
        ("small", of(45_000, side=300), {}, "dataset.image_size", 64),
        ("small", of(45_000, side=20), {}, "dataset.image_size", 16),
        ("", of(45_000, side=32, size=32), {}, "dataset.image_size", None),  # of published weights, on larger ones
        ("small", of(300, side=64), {}, "model.pretrained", None),  # there are none
        ("small", of(300), {"dataset.train_images": 4_000}, "dataset.train_images", 0),
        ("small", of(45_000, size=32), {"dataset.train_images": 600}, "train.batch_size", 32),
    ],
)
def test_a_rule_of_thumb(scale, data, options, key, value):
    assert advised(scale, data, **options).get(key) == value


def test_published_weights_are_advised_to_few_photographs_alone():
    changes = {"model.pretrained": "", "teacher.config.model.pretrained": ""}
    found = advised("", of(900, side=200), **changes)
    assert found["model.pretrained"] == recipes.PRETRAINED["resnet18"]
    assert found["teacher.config.model.pretrained"] == recipes.PRETRAINED["resnet50"]
    for data in (of(50_000, side=200), of(900, side=32), of(900, side=200, channels=1)):
        assert "model.pretrained" not in advised("", data, **changes)


@pytest.mark.parametrize(
    ("side", "accelerator", "expected"),
    [(200, True, ""), (200, False, "lite"), (32, True, "small"), (32, False, "laptop")],
)
def test_a_scale_is_of_the_images_and_the_machine(side, accelerator, expected):
    assert advice.scale(of(900, side=side), accelerator=accelerator)[0] == expected
    assert advice.scale(of(900, size=side), accelerator=accelerator)[0] == expected  # where no file says it
