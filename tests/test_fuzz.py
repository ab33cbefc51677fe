"""A short run of tests/benchmarks/fuzz.py: damaged files of every format are read or refused, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
FAULTY = f"""
import os, sys, time, types
import numpy as np
sys.path.insert(0, {str(BENCHMARKS)!r})

def read(folder, path):
  match int(path.read_text()):
    case 1:
      raise ValueError(f"{{path}} is damaged")
    case 2:
      raise KeyError("a")
    case 3:
      raise ValueError("damaged")
    case 4:
      return 0, "something else"
    case 5:
      (folder.parents[3] / "outside").touch()
    case 6:
      np.ones(1 << 50)
    case 7:
      os.abort()
    case 8:
      time.sleep(600)
  return 0, "what was written"

form = types.SimpleNamespace(
  make=lambda folder: (folder / "file").write_text("0"), files="file", read=read, refusals=(ValueError,), named=True,
  damage=(lambda data, rng: str(rng.randrange(9)).encode(),))
sys.modules["fuzz_formats"] = types.SimpleNamespace(FORMATS={{"faults": form}})
import fuzz
fuzz.main()
"""


@pytest.mark.slow
def test_damaged_files_of_every_format(tmp_path):
  done = subprocess.run(
    [sys.executable, BENCHMARKS / "fuzz.py", f"--out={tmp_path}", "--mutants=15", "--limit=300"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("| 15 |") >= 30  # formats
  assert list(tmp_path.iterdir()) == []


def test_what_the_fuzzer_looks_for(tmp_path):
  """Nine mutants of a reader, each with a fault of its own at this seed: it is found, counted and kept."""
  script, out = tmp_path / "faulty.py", tmp_path / "out"
  script.write_text(FAULTY)
  done = subprocess.run(
    [sys.executable, script, f"--out={out}", "--mutants=9", "--limit=12", "--seed=4180"], capture_output=True, text=True
  )
  assert done.returncode == 1, done.stdout + done.stderr
  row = next(line for line in done.stdout.splitlines() if line.startswith("| faults |"))
  assert [int(cell) for cell in row.split("|")[2:13]] == [9, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1], done.stdout
  assert sorted(path.read_text() for path in out.iterdir()) == ["2", "3", "4", "5", "6", "7", "8"]
