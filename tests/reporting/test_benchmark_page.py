"""What the benchmark's table says, in its four forms."""

import csv
import io
import json
import re

import pytest
from scipy import stats

from kd_jax import runs
from kd_jax.config.numbers import Number
from kd_jax.config.pairs import in_words
from kd_jax.reporting import benchmark_page
from tests.reporting.benchmark_results import METHODS, PAIRS, given, random, result

WHY = 'no "memory", or | <b>so\nit says'
NUMBERS = [
    Number("vgg13-vgg8", "kd", accuracy, source, deviation, chosen)
    for accuracy, source, deviation, chosen in (
        (71.97, "a/b", 0.1, "best"),
        (70.66, "c", None, "best"),
        (70.0, "d", None, "last"),
    )
]


@pytest.fixture(scope="module")
def made():
    """(Markdown, numbers, files) of two pairs, where a run has failed."""
    results = random()
    del results["resnet56-resnet20,dkd"][1]
    return benchmark_page.files(
        given(
            results,
            failed={"resnet56-resnet20,dkd": {1: WHY}},
            published=lambda pair, method: NUMBERS if (pair, method) == ("vgg13-vgg8", "kd") else [],
            note="Half of the training set.",
        )
    )


def tables(markdown):
    """The tables of Markdown, each a list of {heading: cell}."""
    found = []
    for text in re.findall(r"(?:^\|.*\n?)+", markdown, re.MULTILINE):
        head, _, *lines = [
            re.split(r"(?<!\\) \| ", line.strip("| ")) for line in text.replace("|  |", "| |").split("\n") if line
        ]
        found.append([dict(zip(head, cells, strict=False)) for cells in lines])
    return found


def section(markdown, name):
    return markdown.split(f"## {in_words(name) if name in PAIRS else name}\n")[1].split("\n## ")[0]


def test_the_page_says_what_its_numbers_are(made):
    said = section(made[0], "What the numbers are")
    assert "Preset honest: a part of the training set is held out" in said
    assert "Half of the training set." in said
    assert "Training images: 45,000; epochs: 240; hardware: 1 x H100. The teacher has 72.40%, +3." in made[0]


def test_a_pair_has_its_methods_and_below_them_its_controls(made):
    methods, controls, *_ = tables(section(made[0], "vgg13-vgg8"))
    assert [row["method"] for row in methods] == list(METHODS)
    assert [row["method"] for row in controls] == [
        "teacher alone",
        "cross entropy, other seeds",
        "KD, an untrained teacher",
        "KD, twice the epochs",
    ]


def test_published_numbers_stand_beside_those_of_the_same_epoch(made):
    row = next(row for row in tables(section(made[0], "vgg13-vgg8"))[0] if row["method"] == "kd")
    headings = list(row)
    assert row["published, last epoch, %"] == "70.00"
    assert headings.index("published, last epoch, %") == headings.index("last epoch, %") + 1
    assert row["published, best on test, %"] == "71.97 ± 0.10"  # the first, its authors'
    said = "The settings are those of Tian et al., ICLR 2020."
    assert f"| kd | 71.97 ± 0.10 | best | a/b | {said} |\n| kd | 70.66 | best | c | {said} |" in made[0]


def test_the_heading_says_what_chose_the_best_epoch():
    honest, published = (benchmark_page.files(given(random(on=on)))[0] for on in ("validation", "test"))
    assert ("best on validation, %" in honest, "best on test, %" in honest) == (True, False)
    assert ("best on validation, %" in published, "best on test, %" in published) == (False, True)


def test_a_failure_is_named_at_its_row(made):
    text = section(made[0], "resnet56-resnet20")
    (row,) = [line for line in text.splitlines() if line.startswith("| dkd |") and "seed 1 failed" in line]
    assert row.endswith("| 2; seed 1 failed |")
    assert '| dkd | 1 | no "memory", or \\| &lt;b&gt;so it says |' in text
    assert "&lt;b&gt;so" in made[2]["table.html"]


def test_methods_with_two_views_are_compared_with_twice_the_epochs(made):
    (row,) = tables(section(made[0], "vgg13-vgg8"))[2]
    assert row["two views of every image"] == "mlkd"
    assert re.fullmatch(r"[+-]\d\.\d\d ± \d\.\d\d", row["against KD for twice the epochs, points"])


def test_the_ranks_are_drawn_and_told(made):
    text = section(made[0], "Ranks over pairs")
    assert "4 methods on 2 pairs: p = 0.042, so that the ranks differ by more than chance. The critical" in text
    assert "Without a rank, as runs of them are missing: dkd." in text
    assert 'aria-label="methods over pairs"' in made[2]["table.html"]


def test_ranks_that_may_be_chance_are_said_to_be():
    scores = {"kd": (0.70, 0.71, 0.72), "dkd": (0.71, 0.70, 0.75), "at": (0.69, 0.72, 0.70)}
    results = {
        f"{pair},{method}": {0: result(accuracy)}
        for method, accuracies in scores.items()
        for pair, accuracy in zip((*PAIRS, "wrn_40_2-wrn_16_2"), accuracies, strict=True)
    }
    text, *_ = benchmark_page.files(given(results, seeds=1))
    chi = stats.friedmanchisquare(*scores.values()).statistic
    f = 2 * chi / (3 * 2 - chi)
    assert f"3 methods on 3 pairs: F(2, 4) = {f:.2f}, p = {stats.f.sf(f, 2, 4):.2g}, so that the ranks may" in text
    assert "The best is dkd; not told apart from it: kd, at." in text


def test_with_one_pair_there_is_no_diagram_and_the_text_says_why():
    text, numbers, files = benchmark_page.files(given(random(pairs=PAIRS[:1])))
    assert (
        "No ranks: they take three methods that have every seed on two pairs or more; here are 5 methods and 1" in text
    )
    assert "<svg" not in files["table.html"]
    assert numbers["ranks"] is None


@pytest.mark.parametrize(("taught", "said"), [(0.72, True), (0.7205, False)])
def test_a_teacher_that_is_little_better_is_said_to_be(taught, said):
    own = {"cross_entropy": {0: result(0.6901, taught=None)}, "kd": {0: result(0.7, taught=taught)}}
    text, *_ = benchmark_page.files(given({f"vgg13-vgg8,{name}": results for name, results in own.items()}))
    assert ("With under 3 points to gain from it, differences between methods mean little." in text) == said


def test_rows_without_a_result_print(made):
    text, numbers, files = benchmark_page.files(given({"vgg13-vgg8,kd": {}, "vgg13-vgg8,teacher": {}}))
    assert "| kd | 0 |" in text
    assert numbers["pairs"]["vgg13-vgg8"]["kd"]["last"] == {}
    assert len(files["table.csv"].splitlines()) == 3


def test_a_line_of_the_csv_is_a_row(made):
    lines = list(csv.DictReader(io.StringIO(made[2]["table.csv"])))
    assert len(lines) == 2 * (len(METHODS) + 4)
    row = next(line for line in lines if (line["pair"], line["method"]) == ("resnet56-resnet20", "dkd"))
    assert (row["seeds"], row["failed"], row["seed_1_last"]) == ("2", f"seed 1: {WHY}", "")
    numbers = made[1]["pairs"]["resnet56-resnet20"]["dkd"]
    assert float(row["seed_2_last"]) == numbers["last"][2]
    assert float(row["difference_to_kd"]) == numbers["differences"]["kd"]["points"]
    assert float(row["interval_to_kd"]) == numbers["differences"]["kd"]["interval"]
    row = next(line for line in lines if (line["pair"], line["method"]) == ("vgg13-vgg8", "kd"))
    best = [row[f"published_best{end}"] for end in ("", "_source", "_deviation")]
    assert best == ["71.97", "a/b", "0.1"]
    assert (row["difference_to_kd"], row["time_to_kd"], row["peak_memory_bytes"]) == ("", "1.0", str(512 * 2**20))


def test_methods_are_called_by_their_titles_in_tables_and_by_their_names_in_data():
    own = given(random(), failed={})._replace(titles={"dkd": "The Best", "kd": "Plain"})
    text, numbers, files = benchmark_page.files(own)
    assert "The best is The Best" in text
    assert text.count("| The Best |") == 3  # in the table of each pair, and in that of the ranks
    assert "    The Best & " in files["table.tex"]
    assert ",dkd," in files["table.csv"]
    assert "dkd" in numbers["pairs"]["vgg13-vgg8"]


def test_another_recipe_has_no_published_numbers_and_is_named():
    own = given(random(), published=lambda pair, method: NUMBERS)
    text, *_ = benchmark_page.files(own)
    assert "published, last epoch, %" in text
    changed, *_ = benchmark_page.files(own._replace(changes=["train.epochs=30"]))
    assert "published, last epoch, %" not in changed
    assert "Another recipe than the benchmark's (train.epochs=30): no published numbers stand here." in changed


def test_latex_has_a_table_for_each_pair(made):
    text = made[2]["table.tex"]
    assert text.count("\\begin{table}") == text.count("\\end{tabular}}") == len(PAIRS)
    assert "    cross\\_entropy & $69.0" in text
    assert text.count("\\midrule") == 2 * len(PAIRS)  # methods, and controls


def test_numbers_are_a_file_of_json_even_of_one_seed():
    _, numbers, _ = benchmark_page.files(given(random(seeds=1), seeds=1))
    read = json.loads(runs.json_text(numbers))
    difference = read["pairs"]["vgg13-vgg8"]["dkd"]["differences"]["kd"]
    assert (difference["interval"], difference["verdict"]) == (None, "")
    assert read["ranks"]["methods"]


def test_imagenet_has_a_preset_of_its_own():
    own = given({"resnet34-resnet18,kd": {0: result(0.7)}})._replace(data="imagenet")
    text, *_ = benchmark_page.files(own)
    assert "Nothing is held out" in text
    assert "Preset" not in text
