"""Tables that LaTeX reads."""

import re
import shutil
import subprocess

import pytest

from kd_jax.reporting import latex

HOSTILE = 'a_b & 50% $x$ #1 {~^\\} <c> | "d" ±'
TABLE = latex.table(
    ["Method", HOSTILE, "n"],
    [[[HOSTILE, "+1.50 ± 0.25", "1,234"], ["", "", ""]], [["b", "-0.1", "2; no"]]],
    HOSTILE,
    "a_b c",
)


def test_every_row_has_its_cells_and_braces_close():
    lines = [line for line in TABLE.splitlines() if line.endswith(" \\\\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in lines] == [2] * 4
    bare = re.sub(r"\\[{}]", "", TABLE)
    assert bare.count("{") == bare.count("}")


def test_numbers_are_mathematics_and_text_is_text():
    assert "& $+1.50 \\pm 0.25$ & $1{,}234$ \\\\" in TABLE
    assert "b & $-0.1$ & 2; no \\\\" in TABLE
    assert "a\\_b \\& 50\\% \\$x\\$ \\#1 \\{\\textasciitilde{}\\textasciicircum{}\\textbackslash{}\\}" in TABLE


def test_a_label_is_one_word():
    assert "\\label{a-b-c}" in TABLE


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_it_compiles(tmp_path):
    head = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,graphicx}\\begin{document}"
    (tmp_path / "a.tex").write_text(head + TABLE + "\\end{document}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-800:]
