"""What `python -m kd_jax.explain` left in the folders of runs: gaze.json and gaze.png."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from kd_jax.reporting.finished import is_number
from kd_jax.reporting.groups import Group
from kd_jax.reporting.page import Block, Image, Table, count

PICTURES = 6


def blocks(groups: Sequence[Group]) -> list[Block]:
    """What kd_jax.explain left in the folders of runs: numbers of gaze.json, and gaze.png."""
    found: list[Block] = []
    pictures = 0
    for run in (run for group in groups for run in group.runs):
        numbers, picture = _numbers(run.folder), os.path.join(run.folder, "gaze.png")
        if numbers:
            found += [f"{run.folder}:", Table(("agreement of the maps", "mean"), numbers)]
        if os.path.isfile(picture):
            pictures += 1
            if pictures <= PICTURES:
                with open(picture, "rb") as file:
                    found.append(Image(file.read(), f"Grad-CAM: {run.folder}"))
    if pictures > PICTURES:
        found.append(f"{count(pictures - PICTURES, 'more picture')} in the folders of the runs: gaze.png.")
    return found


def _numbers(folder: str) -> list[tuple[str, str]]:
    """(where it stands, "mean (low to high)") for every mean in gaze.json."""
    try:
        with open(os.path.join(folder, "gaze.json")) as file:
            return list(_means(json.load(file), ""))
    except (OSError, ValueError):
        return []


def _means(tree: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, list):
        tree = {str(one.get("name", i)) if isinstance(one, dict) else str(i): one for i, one in enumerate(tree)}
    if not isinstance(tree, dict):
        return
    if is_number(tree.get("mean")):
        low, high = tree.get("low"), tree.get("high")
        interval = f" ({low:.3f} to {high:.3f})" if is_number(low) and is_number(high) else ""
        yield path, f"{tree['mean']:.3f}{interval}"
        return
    for key, value in tree.items():
        yield from _means(value, f"{path}, {key}".removeprefix(", "))
