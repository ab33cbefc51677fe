"""The loop in its steady state: it sends nothing to the devices unasked."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from coca.config import parse
from coca.training import loop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def guard():
  """Sets jax's transfer guard for all threads, and takes it away again."""
  yield lambda level: jax.config.update("jax_transfer_guard", level)
  jax.config.update("jax_transfer_guard", "allow")


@pytest.mark.slow
def test_steps_send_only_what_they_say(guard, monkeypatch, tmp_path):
  """From the second step to the fifth, with logs and a checkpoint among them, each transfer is an explicit one."""
  config = runpy.run_path(str(ROOT / "configs" / "coca_tiny.py"))["get_config"]("runlocal")
  config.update(steps="6", log_every="2")
  config.optim.name = "adamw"
  config.evals = {}
  config.checkpoint.every = "3"
  config.data.batch = 8
  config.model.image.update(layers=1, width=16, mlp=16, heads=2)
  config.model.text.update(width=16, mlp=16, heads=2)
  config.model.poolers.heads = 2
  guarded = []

  def at_the_end_of(preemption, step):
    guard("disallow" if step < 5 else "allow")
    if 1 < step < 6:
      guarded.append(step)
    return False

  def add(skipped, problems):
    if guarded == [2]:  # the guard bites
      with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        jax.jit(lambda x: x)(np.ones(3))

  monkeypatch.setattr(loop.Preemption, "__call__", at_the_end_of)
  monkeypatch.setattr(loop.Skipped, "add", add)
  assert loop.run(parse(config), tmp_path / "run") == 0
  assert guarded == [2, 3, 4, 5]
