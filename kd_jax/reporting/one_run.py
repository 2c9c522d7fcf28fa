"""The page of one run: its recipe in words, and what is to be seen of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from kd_jax import runs
from kd_jax.metrics import METRICS
from kd_jax.reporting import cost, figures, saliency, tables
from kd_jax.reporting.finished import Run, is_number
from kd_jax.reporting.groups import Group, shown
from kd_jax.reporting.page import Folded, Section, Table


def sections(group: Group) -> list[Section]:
    """The sections on the one run of a group that have something to say."""
    (run,), (page,) = group.runs, figures.pages([group])
    settings = [(key, shown(value)) for key, value in sorted(run.recipe.items())]
    settings += [(f"version of {name}", str(version)) for name, version in run.result["versions"].items()]
    found = [
        Section("Recipe", list(words(run)), half=True),
        Section("Results", [_results(run.result), *_best(run.result), tables.MEASURES], half=True),
        Section("Learning curves", figures.curves_of_one(run)),
        Section("Calibration", figures.calibration(page), half=True),
        Section("Confusions", figures.confusions_of_one(page), half=True),
        Section("Classes", figures.classes_of_one(page), half=True),
        Section("Saliency maps", [*saliency.agreement([group]), *saliency.pictures([group])]),
        Section("Size and latency", cost.formats([group])),
        Section("Settings", [Folded("Every one that counts", [Table(("key", "value"), settings, numbers=False)])]),
    ]
    return [section for section in found if section.blocks]


def words(run: Run) -> Iterator[str]:
    """What was trained, how, on what, by whom, and how long it took, a paragraph each."""
    saved, result = runs.read_json(run.folder, "config.json"), run.result
    config = runs.flat(saved["config"])

    def value(key: str) -> str:
        return shown(config.get(key, "unknown"))

    images = saved["data"].get("train_images")
    yield (
        f"{value('model.name')} with {result['parameters']:,} parameters. Data: {run.data}"
        + (f", {images:,} training images" if is_number(images) else "")
        + f". Seed {result['seed']}."
    )
    length = f"{value('train.steps')} steps" if config.get("train.steps") else f"{value('train.epochs')} epochs"
    yield (
        f"Trained for {length} of {value('train.batch_size')} images a step by {value('optimizer.name')}: learning rate"
        f" {value('optimizer.learning_rate')}, schedule {value('optimizer.schedule')},"
        f" weight decay {value('optimizer.weight_decay')}."
    )
    yield f"The loss: {' + '.join(_terms(run.recipe))}."
    yield _teacher(result, saved)
    speed = result.get("images_per_second")
    yield (
        f"It took {result['seconds']:,.0f} seconds on {result['device']}"
        + (f", {speed:,.0f} images per second" if is_number(speed) else "")
        + f". The checkpoint of step {result['checkpoint']} was tested."
    )


def _terms(recipe: Mapping[str, Any]) -> Iterator[str]:
    """The terms of the loss with their options, as "0.9 kd (temperature 4)"."""
    options: dict[str, dict[str, Any]] = {}
    for key, value in recipe.items():
        if key.startswith("method."):
            _, term, option = key.split(".", 2)
            options.setdefault(term, {})[option] = value
    for term, own in options.items():
        rest = ", ".join(f"{option} {shown(value)}" for option, value in own.items() if option != "weight")
        yield f"{shown(own.get('weight', 1))} {term}" + (f" ({rest})" if rest else "")


def _teacher(result: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    teacher = result.get("teacher")
    if not isinstance(teacher, dict):
        return "It had no teacher."
    said = f"Its teacher is {teacher.get('name', 'without a name')}"
    if is_number(teacher.get("accuracy")):
        said += f", which has a test accuracy of {100 * teacher['accuracy']:.2f}%"
    if source := saved.get("teacher_source"):
        said += f"; it lies in {source}"
    return said + "."


def _results(result: Mapping[str, Any]) -> Table:
    """A row for each metric, and a column for each split that was measured."""
    splits = [split for split in ("test", "validation") if isinstance(result.get(split), dict)]
    rows = [
        (metric.title, *cells)
        for name, metric in METRICS.items()
        if any(cells := [_number(result[split].get(name), metric.factor, metric.digits) for split in splits])
    ]
    teacher = result.get("teacher")
    if isinstance(teacher, dict) and is_number(teacher.get("accuracy")):
        rows.append(("the teacher's accuracy, %", f"{100 * teacher['accuracy']:.2f}", *[""] * (len(splits) - 1)))
    return Table(("measure", *splits), rows)


def _best(result: Mapping[str, Any]) -> Iterator[str]:
    """Of a run that names its best epoch beside its result, which that is; and whether the test set chose it."""
    if result.get("test_every_epoch") is True:
        yield "The test set was read in training, which selected nothing above."
    best = result.get("best")
    if isinstance(best, dict) and isinstance(best.get("test"), dict) and is_number(best["test"].get("accuracy")):
        yield (
            f"The best on the {shown(best.get('on'))} split is epoch {shown(best.get('epoch'))}, with a test accuracy"
            f" of {100 * best['test']['accuracy']:.2f}%."
        )


def _number(value: Any, factor: float, digits: int) -> str:
    return f"{factor * value:.{digits}f}" if is_number(value) else ""
