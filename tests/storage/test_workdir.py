"""A workdir that was made before coca's files moved into rooms (golden/workdir.tar.xz): it is one still.

It is of two steps of a captioner of a few hundred parameters, over the built-in corpus, with a vocabulary of 25 words.
"""

import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

import coca
from coca.devices.sharding import make_mesh
from coca.inference import identity
from coca.storage.checkpoint import Checkpoints
from coca.storage.workdir import read_workdir, saved_steps
from coca.training.begin import check_same_run
from coca.training.metrics import read
from coca.training.state import Setup

# As `coca.inference.identity` had it when the workdir was made.
IDENTITY = "sha256:a51d7e72604e8f6a00422688dfc62fa393c7e633c475504451eebf26e6f6ef7f"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("before")
  with tarfile.open(Path(__file__).parent / "golden" / "workdir.tar.xz") as tar:
    tar.extractall(folder, filter="data")
  return folder


@pytest.mark.slow
def test_it_is_the_same_model(workdir):
  model = coca.load(workdir)
  assert identity(model) == IDENTITY
  assert isinstance(model.caption(np.zeros((8, 8, 3), np.uint8))[0], str)


@pytest.mark.slow
def test_its_run_goes_on(workdir):
  config, _ = read_workdir(workdir)
  assert not check_same_run(config, workdir) and saved_steps(workdir) == [2]
  checkpoints = Checkpoints(workdir / "checkpoints")
  state, meta, step = checkpoints.restore(Setup(config, make_mesh(config.mesh, jax.devices()[:1])).planned)
  checkpoints.close()
  assert step == int(state.step) == 2 and meta["data"] == {"seed": config.seed, "step": 2}
  assert [line["step"] for line in read(workdir / "metrics.jsonl") if "train/loss" in line] == [1, 2]
