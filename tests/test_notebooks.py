"""Every notebook runs from its first cell to its last, with fewer steps, and holds the outputs of a whole run."""

import json
import os
import re
from pathlib import Path

import pytest

from support import forked

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Of every run there: few steps, and a model of few programs that are compiled soon.
SHORT = (
  "steps=2",
  "data.batch=16",
  "model.image.layers=1",
  "model.unroll=1",
  "optim.name=adamw",
  "checkpoint.every=100%",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where all of them run: one uses the other's model."""
  folder = tmp_path_factory.mktemp("notebooks")
  for name in ("coca", "configs", "launch"):
    (folder / name).symlink_to(ROOT / name)
  startup = folder / "ipython" / "profile_default" / "startup"
  startup.mkdir(parents=True)
  (startup / "forked.py").write_text(f"import sys\nsys.executable = {forked.python()!r}\n")  # for what cells start
  return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, folder, monkeypatch):
  for name, value in {
    "COCA_SHORT": " ".join(f"--config.{setting}" for setting in SHORT),
    "IPYTHONDIR": str(folder / "ipython"),
    "PYTHONPATH": str(ROOT),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
  }.items():
    monkeypatch.setenv(name, value)
  notebook = nbformat.read(path, as_version=4)
  # A cell that raises fails the test with its traceback.
  nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
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
