"""Runs whose files are made up; no network is trained."""

import json
import os

import numpy as np

from kd_jax import runs
from kd_jax.reporting import finished
from kd_jax.reporting.groups import Group, by_recipe
from kd_jax.reporting.page import Block, Section, markdown
from tests import tiny

CLASSES = ("cat", "<i>dog</i>", "price in $\\frac")


def write_run(
    folder, name="student", seed=0, accuracy=0.5, teacher=None, details=True, steps=4, said=None, **overrides
):
    """A finished run of made-up numbers, of so many `steps` an epoch; returns its identity.

    `teacher` is the identity of its teacher's run, `said` what else stands in result.json.
    """
    config = tiny.config(name=name, seed=seed, **overrides)
    identity = runs.identity(config, "f" * 64, teacher)
    config["teacher"]["kind"] = "run" if teacher else "none"
    data = {"fingerprint": "f" * 64, "class_names": CLASSES, "train_images": 64}
    digest = runs.digest(identity)
    test = {"accuracy": accuracy, "top5": 1.0, "nll": 0.7, "ece": 0.02, "agreement": None, "fidelity_kl": None}
    if teacher:
        test |= {"agreement": 0.8, "fidelity_kl": 0.1}
    result = {
        "name": name,
        "model": "resnet8",
        "seed": seed,
        "config_hash": digest,
        "teacher": teacher and {"name": "teacher", "accuracy": 0.9},
        "test": test | {"images": 300},
        "checkpoint": 12,
        "parameters": 1234,
        "seconds": 5.0,
        "images_per_second": 100.0,
        "metrics_lines": 6,
        "device": "1 x cpu",
        "versions": {"jax": "0.10.2"},
        **(said or {}),
    }
    os.makedirs(folder)
    runs.write_json(
        f"{folder}/config.json", {"config": config, "identity": identity, "hash": digest, "data": data}, indent=None
    )
    runs.write_json(f"{folder}/result.json", result, indent=None)
    if details:
        confusion = np.eye(len(CLASSES)) * 90 + np.roll(np.eye(len(CLASSES)), 1, 1) * 10
        bins = {"bin_confidence": [5.0, 80.0], "bin_correct": [4, 96], "bin_count": [10, 100]}
        runs.write_json(f"{folder}/test_details.json", bins | {"confusion": confusion.tolist()}, indent=None)
    with open(f"{folder}/metrics.jsonl", "w") as file:
        for epoch in (1.0, 2.0, 3.0):
            values = {"train/accuracy": accuracy, "train/loss": 1 / epoch, "train/loss/cross_entropy": 1 / epoch}
            for line in (values, {"validation/accuracy": accuracy, "validation/nll": 1.0}):
                file.write(json.dumps({"step": int(steps * epoch), "seconds": epoch, "epoch": epoch, **line}) + "\n")
    return identity


def write_table(folder):
    """Three seeds of a student alone and distilled, and their teacher."""
    teacher = write_run(folder / "teacher", "teacher", accuracy=0.97, **{"model.width": 0.25})
    for seed, alone, distilled in ((0, 0.90, 0.93), (1, 0.92, 0.94), (2, 0.91, 0.95)):
        write_run(folder / f"student-{seed}", "student", seed, alone)
        write_run(folder / f"kd-{seed}", "kd", seed, distilled, teacher, method=tiny.METHODS["kd"])


def groups(folder) -> list[Group]:
    """The recipes of the runs in a folder."""
    return by_recipe(finished.read([str(folder)])[0])


def text(blocks: list[Block]) -> str:
    """Blocks as Markdown, without its escapes."""
    return markdown("title", [Section("section", blocks)]).replace("\\", "")


def row(markdown: str, name: str) -> list[str]:
    """The cells of the first row of a table that begins with a name."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]
