"""Which settings suit so many images of such a size: rules of thumb, in one table, `SIZES`."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kd_jax.config import recipes


class Size(NamedTuple):
    """What suits a set of so many training images, by rule of thumb."""

    below: float  # images
    steps: int  # that a run of new networks has at least; from published weights a sixth will do
    epochs: int  # which is enough, however few the steps
    augment: str  # of color images
    pretrained: bool  # whether networks for photographs start from published weights


SIZES = (
    Size(1_000, steps=2_000, epochs=100, augment="randaugment", pretrained=True),
    Size(10_000, steps=6_000, epochs=60, augment="crop_flip", pretrained=True),
    Size(math.inf, steps=15_000, epochs=30, augment="crop_flip", pretrained=False),
)
STEPS_OF_EPOCH, LEAST_BATCH = 10, 16  # so many steps in an epoch, unless batches get smaller than batch norm likes
SIDES = (16, 32, 48, 64, 96, 128, 160, 192, 224)  # of images, in pixels
PHOTOGRAPH = 48  # pixels; smaller ones gain little from weights that were trained on large ones
STRENGTH = {"none": 0, "crop": 1, "crop_flip": 2, "resized_crop": 3, "randaugment": 3}


class Advice(NamedTuple):
    """A key of the config that would better be another."""

    key: str
    value: Any
    why: str


def scale(data: Mapping[str, Any], *, accelerator: bool) -> tuple[str, str]:
    """(the argument of the experiments that come with kd_jax, why) for the data of a plan, by rule of thumb."""
    if (data["shorter_side"] or data["side"]) < PHOTOGRAPH:
        what = f"images of fewer than {PHOTOGRAPH} pixels"
        return ("small", f"networks for {what}") if accelerator else ("laptop", f"small networks for {what}, on a CPU")
    what = "start from ImageNet weights"
    return ("", f"ResNets that {what}") if accelerator else ("lite", f"networks for a CPU that {what}")


def advise(config: Mapping[str, Any], data: Mapping[str, Any], *, accelerator: bool, largest: int = 0) -> list[Advice]:
    """What of a config would better be otherwise for so many images, by rule of thumb.

    Args:
      config: of the student, with that of its teacher.
      data: of a plan.
      accelerator: whether there is more than a CPU.
      largest: batch that fits into memory; 0 where that is not known.
    """
    found, own = [], config["dataset"]
    if own["train_images"] > data["images"]:
        found.append(Advice("dataset.train_images", 0, f"there are {data['images']:,}"))
    if side := data["shorter_side"]:
        size = own["image_size"]
        most = max(size, 128 if accelerator else 64)
        fits = max([x for x in SIDES if x <= min(side, most)], default=SIDES[0])
        if fits > size or (fits < size and not config["model"]["pretrained"]):
            found.append(Advice("dataset.image_size", fits, f"the files' shorter side has {side} pixels, the median"))
    found += _of_section(config, data, largest)
    if config["teacher"]["kind"] == "config":
        theirs = _of_section(config["teacher"]["config"], data, largest)
        found += [each._replace(key=f"teacher.config.{each.key}") for each in theirs]
    return found


def _of_section(config: Mapping[str, Any], data: Mapping[str, Any], largest: int) -> Iterator[Advice]:
    """Of one network's run."""
    train, model, optimizer = config["train"], config["model"], config["optimizer"]
    count = min(data["images"], config["dataset"]["train_images"] or data["images"])
    rule = next(size for size in SIZES if count < size.below)
    few = "" if rule.below == math.inf else f"fewer than {rule.below:,} images: "
    color = data["channels"] == 3
    photographs = color and (data["shorter_side"] or data["side"]) >= PHOTOGRAPH
    advised = recipes.PRETRAINED.get(model["name"]) if rule.pretrained and photographs else None
    if advised and not model["pretrained"]:
        yield Advice("model.pretrained", advised, f"{few}published weights know more than these can teach")
    now = train["batch_size"]
    batch = min(now, max(LEAST_BATCH, 2 ** int(math.log2(max(1, count / STEPS_OF_EPOCH)))), count, largest or now)
    if batch < now:
        why = "what fits into memory" if batch == largest else f"{few}about {STEPS_OF_EPOCH} steps in an epoch"
        yield Advice("train.batch_size", batch, why)
        factor = batch / now if optimizer["name"] in ("sgd", "dot") else math.sqrt(batch / now)
        rate = float(f"{optimizer['learning_rate'] * factor:.2g}")
        yield Advice("optimizer.learning_rate", rate, "it follows the batch")
    per_epoch, total = count // batch, rule.steps // 6 if model["pretrained"] or advised else rule.steps
    epochs, why = min(rule.epochs, math.ceil(total / per_epoch)), f"{few}{total:,} steps or {rule.epochs} epochs"
    if 0 < train["steps"] < (enough := min(total, epochs * per_epoch)):
        yield Advice("train.steps", enough, why)
    elif not train["steps"] and train["epochs"] < epochs:
        yield Advice("train.epochs", epochs, why)
    augment = config["dataset"]["augment"]
    if color and STRENGTH[augment] < STRENGTH[rule.augment] and config["teacher"]["cache"] != "views":
        why = "strong augmentation" if STRENGTH[rule.augment] > 2 else "flips, where a mirrored image is of its class"
        yield Advice("dataset.augment", rule.augment, f"{few}{why}")
