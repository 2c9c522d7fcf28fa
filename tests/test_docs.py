"""The documents: links lead somewhere, every method is described, and the code of adding.md runs."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kd_jax import cli, methods
from kd_jax.config import base, checks, experiment, shipped
from kd_jax.main import add_term

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


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


def test_every_method_has_its_section():
    shipped = [name for name in methods.METHODS if name != "squared_error"]  # of a doctest
    page = (ROOT / "docs" / "methods.md").read_text()
    assert [name for name in shipped if f"\n## `{name}`\n" not in page] == []


def test_every_option_of_a_method_is_described():
    page = (ROOT / "docs" / "methods.md").read_text()
    sections = dict(re.findall(r"\n## `(\w+)`\n(.*?)(?=\n## |\Z)", page, re.DOTALL))
    everywhere = ("name", "on", "standardize", "views")  # above the sections
    missing = [
        f"{name}: {option}"
        for name, section in sections.items()
        for option in inspect.signature(methods.METHODS[name]).parameters
        if option not in everywhere and f"`{option}`" not in section
    ]
    assert missing == []


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
    assert sorted(experiments - set(shipped())) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_of_a_command_on_a_page_exists(page):
    text, config = page.read_text(), base.get_config().to_dict()
    keys = {key.removeprefix("teacher.config.") for key in re.findall(r"--config\.([\w.]+)=", text)}
    assert sorted(key for key in keys if checks.get(config, key, "missing") == "missing") == []


def test_every_command_of_the_methods_page_makes_a_method():
    commands = re.findall(r"^kd_jax (.*)$", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE)
    for command in commands:
        given, *terms = (text.removeprefix("--config=") for text in shlex.split(command) if text != "--term")
        name, _, argument = given.partition(":")
        tree = experiment(name).get_config(*filter(None, [argument])).to_dict()["method"]
        for term in terms:
            add_term(tree, term)
        methods.create(tree)
    assert len(commands) > 8


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
