"""Runs by recipe: runs whose configs differ by the seed alone are one group, and what a group is compared with."""

import collections
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kd_jax import runs
from kd_jax.reporting.finished import Run, is_number
from kd_jax.reporting.seeds import means

# Where a student alone may differ from a distilled one and still be what it is compared with.
NOT_RECIPE = (
    *("teacher", "method.", "dataset.unlabeled", "dataset.extra_views"),
    *("evaluate.every", "evaluate.batch", "evaluate.test_every_epoch"),
)


class Group(NamedTuple):
    """Runs of one recipe."""

    label: str
    runs: tuple[Run, ...]

    @property
    def recipe(self) -> dict[str, Any]:
        return self.runs[0].recipe

    @property
    def alone(self) -> bool:
        return self.recipe["teacher"] == "none"

    @property
    def student(self) -> str:
        """What the rows that are compared share."""
        return canonical({k: v for k, v in self.recipe.items() if not k.startswith(NOT_RECIPE)})

    def by_seed(self, name: str = "accuracy", factor: float = 1.0) -> dict[int, float]:
        """{seed: `factor` times the mean of a test metric over its runs}; without the runs that lack it."""
        results = [run.result for run in self.runs if is_number(run.result["test"].get(name))]
        return means((result["seed"], factor * result["test"][name]) for result in results)


def by_recipe(found: Sequence[Run]) -> list[Group]:
    """Runs by recipe: test set by test set, students with more recipes first, and of a student the one alone first."""
    same_recipe: dict[str, list[Run]] = collections.defaultdict(list)
    for run in found:
        same_recipe[canonical([run.data, run.recipe])].append(run)
    by_name: dict[str, list[list[Run]]] = collections.defaultdict(list)
    for members in same_recipe.values():
        members.sort(key=lambda run: (run.result["seed"], run.folder))
        by_name[members[0].result["name"]].append(members)
    groups: list[Group] = []
    for name, same in by_name.items():
        # Of values that are as frequent as one another, that of the shortest recipe is the usual one.
        usual = usual_values(sorted((members[0].recipe for members in same), key=len))
        for members in same:
            own = {
                k: v for k, v in unusual_values(members[0].recipe, usual).items() if not k.startswith("dataset.path")
            }
            apart = [f"{key.removeprefix('method.')} {shown(value)}" for key, value in list(own.items())[:3]]
            if name != "teacher" and any(run.teaches for run in members):
                apart.insert(0, "teacher")
            label = f"{name} ({', '.join(apart)})" if apart else name
            if any(group.label == label for group in groups):  # they differ in other keys
                label += f" (hash {runs.digest(members[0].recipe)[:8]})"
            groups.append(Group(label, tuple(members)))
    size = collections.Counter((group.runs[0].data, group.student) for group in groups)

    def order(group: Group) -> tuple[Any, ...]:
        family = (group.runs[0].data, group.student)
        return group.runs[0].data, -size[family], family, not group.alone, -statistics.fmean(group.by_seed().values())

    return sorted(groups, key=order)


def baseline(group: Group, groups: Sequence[Group]) -> Group | None:
    """The group without a teacher that has the same student and recipe; cross entropy before other losses."""
    alike = [g for g in groups if g.alone and g.runs[0].data == group.runs[0].data and g.student == group.student]
    if group.alone or not alike:
        return None

    def fitness(candidate: Group) -> tuple[bool, int]:
        plain = all(key.startswith("method.cross_entropy") for key in candidate.recipe if key.startswith("method."))
        return plain, len(candidate.by_seed().keys() & group.by_seed().keys())

    return max(alike, key=fitness)


def by_data(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups by test set."""
    members: dict[str, list[Group]] = collections.defaultdict(list)
    for group in groups:
        members[group.runs[0].data].append(group)
    return members


def usual_values(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The most frequent value of every key that most recipes have."""
    usual = {}
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        counts = collections.Counter(canonical(recipe[key]) if key in recipe else None for recipe in recipes)
        most = counts.most_common(1)[0][0]
        if most is not None:
            usual[key] = json.loads(most)
    return usual


def unusual_values(recipe: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """{key: value} where a recipe is not as usual; "absent" for a key it lacks."""
    keys = sorted(recipe.keys() | usual.keys())
    both = {key: (recipe.get(key, "absent"), usual.get(key, "absent")) for key in keys}
    return {key: own for key, (own, other) in both.items() if own != other}


def shown(value: Any) -> str:
    """A value of a config; a SHA-256 in short."""
    text = str(value)
    return f"SHA-256 {text[:8]}…" if re.fullmatch("[0-9a-f]{64}", text) else text


def canonical(value: Any) -> str:
    """A value of a config as text, the same for the same value."""
    return json.dumps(value, sort_keys=True)
