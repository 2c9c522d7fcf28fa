"""The report on runs, whose files are made up; no network is trained."""

import html
import json
import re
import shutil
import subprocess

import pytest

from kd_jax import report, runs
from kd_jax.errors import InputError
from tests.reporting.made_up import write_run, write_table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def made(folder, to):
    """The two files of a report on a folder, as (HTML, Markdown)."""
    report.report([str(folder)], str(to))
    return (to / "index.html").read_text(), (to / "report.md").read_text()


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    write_table(tmp_path / "runs")
    (tmp_path / "runs" / "kd-0" / "saliency.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    page = made(tmp_path / "runs", tmp_path / "report")[0]
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in page
    assert not re.search(r"<script[^>]|<link[^>]*href=\"(?!data:)|(src|href)=\"(?!data:|#)|url\((?!#)|@import", page)


def test_names_of_runs_and_classes_are_text_and_no_markup(tmp_path):
    name = '<script>alert("x")</script> | $\\frac'
    for seed in range(2):
        write_run(tmp_path / "runs" / str(seed), name, seed)
    for folder in ("runs/0", "runs"):  # the page of one run, and the report on both
        page_text, markdown = made(tmp_path / folder, tmp_path / "report")
        assert html.escape(name) in page_text
        assert not re.search("<script>alert|<i>", page_text)
        assert not re.search("<script|<i>", markdown)
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert any("alert" in one for one in tables)
    for one in tables:
        assert len({line.replace("\\|", "").count("|") for line in one.splitlines()}) == 1


def test_hundreds_of_runs_and_recipes_stand_in_one_report(tmp_path):
    write_run(tmp_path / "runs" / "0")
    for number in range(1, 300):
        folder = tmp_path / "runs" / str(number)
        shutil.copytree(tmp_path / "runs" / "0", folder)
        for file in ("config.json", "result.json"):
            tree = json.loads((folder / file).read_text())
            tree |= {"seed": number % 3, "config_hash": str(number)}
            if file == "config.json":
                tree["identity"]["optimizer"]["learning_rate"] = 1.0 + number // 3
            runs.write_json(str(folder / file), tree)
    assert report.report([str(tmp_path / "runs")], str(tmp_path / "report")) == (300, 0)
    assert "300 runs of 101 recipes" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize("inside", [False, True], ids=["a file", "below a file"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, inside):
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "file").write_text("kept")
    to = tmp_path / "file" / "report" if inside else tmp_path / "file"
    with pytest.raises(InputError, match=r"--to: '.*' cannot be written: .*file is not a writable folder"):
        report.report([str(tmp_path / "runs")], str(to))
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["index.html", "report.md"])
def test_a_folder_in_the_place_of_a_file_is_refused_and_nothing_is_written(tmp_path, name):
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "report" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=f"--to: '.*' cannot be written: {name} in it is a folder; expected"):
        report.report([str(tmp_path / "runs")], str(tmp_path / "report"))
    assert [path.name for path in (tmp_path / "report").rglob("*")] == [name]


def test_without_a_run_nothing_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no run"):
        report.report([str(tmp_path / "empty")], str(tmp_path / "report"))
    assert not (tmp_path / "report").exists()


ORDER = ["teacher", "kd", "student", "a-name-"]  # by accuracy; the beginnings of the names
FRAME = """<!DOCTYPE html><pre></pre><iframe src="report/index.html" width={width} height=900 onload="
  const page = this.contentDocument;
  page.querySelectorAll('details').forEach(one => one.open = true);
  const head = [...page.querySelectorAll('th')].find(one => one.textContent == 'test accuracy, %');
  const names = [];
  for (const click of [1, 2]) {{
    head.querySelector('button').click();
    names.push(head.ariaSort, ...[...page.querySelectorAll('table')[0].tBodies[0].rows].map(
      row => row.cells[0].textContent.slice(0, 7)));
  }}
  const pictures = [...page.querySelectorAll('.figures svg')];
  const seen = () => ({{names, hints: page.querySelectorAll('.more').length, pictures: pictures.length,
    inner: this.contentWindow.innerWidth, scrolled: page.documentElement.scrollWidth,
    right: Math.max(...pictures.map(one => one.getBoundingClientRect().right))}});
  setTimeout(() => document.querySelector('pre').textContent = JSON.stringify(seen()), 500);"></iframe>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1440])
def test_in_a_browser_tables_sort_nothing_overflows_and_the_console_is_silent(tmp_path, width):
    write_table(tmp_path / "runs")
    write_run(tmp_path / "runs" / "long", "a-name-that-never-ends-" * 12, **{"model.width": 0.5})
    made(tmp_path / "runs", tmp_path / "report")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--hide-scrollbars"]
    flags += ["--enable-logging=stderr", "--window-size=1600,1000", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [CHROMIUM, *flags, "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    seen = json.loads(re.search("<pre>(.*?)</pre>", done.stdout)[1])
    assert (seen["inner"], seen["pictures"] >= 8) == (width, True)
    assert max(seen["scrolled"], seen["right"]) <= width
    assert (seen["hints"] > 0) == (width == 390)
    assert seen["names"] == ["descending", *ORDER, "ascending", *ORDER[::-1]]
    assert "CONSOLE" not in done.stderr
