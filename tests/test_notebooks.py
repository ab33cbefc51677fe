"""Every notebook runs from its first cell to its last, with fewer steps, and holds the outputs of a whole run."""

import json
import re
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
  monkeypatch.setenv("COCA_SHORT", "1")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  for name in ("coca", "configs", "launch"):
    (tmp_path / name).symlink_to(ROOT / name)
  notebook = nbformat.read(path, as_version=4)
  # A cell that raises fails the test with its traceback.
  nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
  assert any(cell.cell_type == "code" and cell.outputs for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_saved_with_the_outputs_of_a_whole_run(path):
  notebook = json.loads(path.read_text())
  cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
  outputs = [output for cell in cells for output in cell["outputs"]]
  assert not [output for output in outputs if output["output_type"] == "error"]
  assert any("image/png" in output.get("data", ()) for output in outputs) or path.stem == "tpu"
  assert not re.search(r"/(home|root|work|tmp|Users)/", json.dumps(outputs))  # of the machine that ran it
  assert f"blob/main/notebooks/{path.name}" in path.read_text()  # Colab's badge
