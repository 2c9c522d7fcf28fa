"""The notebooks: stripped of outputs, and executed as they stand."""

import ast
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each
def test_a_notebook_has_code_that_parses_and_no_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    for cell in cells:
        ast.parse("".join(cell["source"]))
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
@each
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_a_notebook_runs_as_it_stands(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert sorted(tmp_path.glob("runs/*/result.json"))
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code" and "= train(" in cell.source):
        bars = [out for out in cell.outputs if "<progress" in out.get("data", {}).get("text/html", "")]
        assert bars
        assert len(cell.outputs) <= 10  # the bars are updated in place
