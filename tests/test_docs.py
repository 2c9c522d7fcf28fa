"""The documents: links lead somewhere, every method is described, and the code of adding.md runs."""

import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kd_jax import cli, methods, models
from kd_jax.config import base, checks, experiment, shipped
from kd_jax.keys import TERM
from kd_jax.main import add_term

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
METHODS = [name for name in methods.METHODS if name != "squared_error"]  # of a doctest


def anchors(page):
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if link.startswith("http"):
            continue
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_network_stands_on_its_page():
    families = (module.FAMILY for module in vars(models).values() if hasattr(module, "FAMILY"))
    listed = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "networks.md").read_text()))
    assert {name for family in families for name in family} - listed == set()


@pytest.fixture(scope="module")
def method_pages():
    spec = importlib.util.spec_from_file_location("method_pages", ROOT / "launch" / "method_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_has_its_page_and_no_page_is_of_another(method_pages):
    assert {path.stem for path in method_pages.PAGES.glob("*.md")} == set(METHODS)


def test_the_pages_of_the_methods_are_what_the_code_says(method_pages):
    """Otherwise: python launch/method_pages.py."""
    stale = [name for name in METHODS if (method_pages.PAGES / f"{name}.md").read_text() != method_pages.page(name)]
    assert stale == []
    text = method_pages.INDEX.read_text()
    assert method_pages.index(text, METHODS) == text


def test_every_method_has_its_costs(method_pages):
    """Otherwise: python launch/method_costs.py."""
    lines = [json.loads(line) for line in method_pages.COSTS.read_text().splitlines()]
    assert {"networks", *METHODS} - {line["method"] for line in lines} == set()


def test_every_option_of_a_method_is_described():
    pages = {name: (ROOT / "docs" / "methods" / f"{name}.md").read_text() for name in METHODS}
    missing = [
        f"{name}: {option}"
        for name, page in pages.items()
        for option in list(inspect.signature(methods.METHODS[name]).parameters)[1:]
        if f"`{option}`" not in page
    ]
    assert missing == []


def test_every_shared_option_and_every_key_of_a_term_is_described(method_pages):
    index, guide = method_pages.INDEX.read_text(), (ROOT / "docs" / "guide.md").read_text()
    assert [
        option for option in method_pages.SHARED if f"* `{option}` (" not in index and f"* `{option}`:" not in index
    ] == []
    assert [key for key in TERM if f"| `{key}` |" not in guide] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_tree_that_a_page_names_exists(page):
    own = r"`((?:kd_jax|configs|launch|tests|docs|examples)/[\w./-]*)`"
    named = set(re.findall(own, page.read_text())) - {"configs/__init__.py", "configs/seed.py"}  # the original's; 0.1's
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_experiment_of_a_page_exists(page):
    text = page.read_text()
    commands = set(re.findall(r"kd_jax ([a-z_]+) (?:--|runs)", text)) | set(re.findall(r"kd_jax\.(\w+) --", text))
    experiments = set(re.findall(r"kd_jax (?:.* )?--config=(?:configs/)?(\w+)", text))
    assert sorted(commands - set(cli.COMMANDS) - {"main"}) == []
    assert sorted(experiments - set(shipped()) - {"everything"}) == []  # the code of adding.md


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_of_a_command_on_a_page_exists(page):
    text, config = page.read_text(), base.get_config().to_dict()
    keys = {key.removeprefix("teacher.config.") for key in re.findall(r"--config\.([\w.]+)=", text)}
    keys = {re.sub(r"(optimizer\.\w*options)\.\w+", r"\1", key) for key in keys}  # which the optimizer checks
    assert sorted(key for key in keys if checks.get(config, key, "missing") == "missing") == []


def test_every_command_of_the_methods_pages_makes_a_method():
    texts = [path.read_text() for path in (ROOT / "docs" / "methods.md", *(ROOT / "docs" / "methods").glob("*.md"))]
    commands = {line for text in texts for line in re.findall(r"^kd_jax ([^#\n]*)", text, re.MULTILINE)}
    for command in commands - {"--config=original:ROW,faithful"}:
        given, *terms = (text.removeprefix("--config=") for text in shlex.split(command) if text != "--term")
        name, _, argument = given.partition(":")
        tree = experiment(name).get_config(*filter(None, [argument])).to_dict()["method"]
        for term in terms:
            add_term(tree, term)
        methods.create(tree)
    assert len(commands) > len(METHODS) / 2


def test_the_code_of_adding_runs(tmp_path, no_tensorflow):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding.md").read_text(), re.DOTALL)
    (tmp_path / "adding.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "adding.py"],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([no_tensorflow, str(ROOT)]),
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.splitlines()[-1]) <= 1
    lines = (tmp_path / "runs" / "everything" / "metrics.jsonl").read_text()
    assert "squared_error" in lines
    assert "regress" in lines
