"""A run in stages: where they begin, the rates and images of each, other grids of positions, and going on in any."""

import dataclasses
import math
import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import coca
from coca.config import Optim, Stage, default, parse, to_dict
from coca.config.stages import spans
from coca.data import pipeline
from coca.models.positions import resize_positions
from coca.planning import arithmetic
from coca.training import loop
from coca.training.flops import flops_per_pair
from coca.training.metrics import read
from coca.training.optim import make_schedule
from coca.training.state import Setup
from coca.training.step import TrainStep, batch_shapes
from support.align import tiny_align
from support.common import make_mesh, tiny
from support.pipeline import make_config, open_sources, take, trained_words

ROOT = Path(__file__).parents[2]
STAGES = {"b": Stage(size=16, until="75%", lr=0.2, warmup="0"), "a": Stage(size=8, until="4 steps", warmup="2")}


def staged(config):
  return dataclasses.replace(config, stages=STAGES)


def test_stages_come_in_the_order_of_their_ends():
  found = spans(staged(tiny(steps="20")))
  assert [(s.first, s.last, s.config.model.image.size) for s in found] == [(0, 4, 8), (4, 15, 16), (15, 20, 16)]
  assert [s.config.optim.lr for s in found] == [1e-2, 0.2, 1e-2] and not any(s.config.stages for s in found)
  ((first, last, alone),) = spans(tiny(steps="20"))
  assert (first, last, alone) == (0, 20, tiny(steps="20"))


def test_each_stage_warms_up_and_decays_by_itself():
  config = staged(tiny(steps="20"))
  config = dataclasses.replace(config, optim=Optim(lr=0.1, schedule="cosine", warmup="1"))

  def rate(step, lr, first, last, warmup):
    at, length = step - first, last - first
    if at < warmup:
      return lr * (at + 1) / warmup
    return lr * (1 + math.cos(math.pi * (at - warmup) / (length - warmup))) / 2

  stages = [(0.1, 0, 4, 2), (0.2, 4, 15, 0), (0.1, 15, 20, 1)]
  expected = [rate(step, *stage) for stage in stages for step in range(*stage[1:3])]
  schedule = make_schedule(config, 20)
  np.testing.assert_allclose([float(schedule(step)) for step in range(20)], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("stage", "said"),
  [
    (Stage(size=10), "config.stages.a.size 10 is no multiple of config.model.image.patch 18"),
    (Stage(size=18, until="100%"), "each needs a step of its own"),
    (Stage(size=18, until="soon"), "config.stages.a.until: 'soon' is no duration"),
  ],
)
def test_stages_that_are_refused(stage, said):
  config = default()
  config.stages = {"a": to_dict(stage)}
  with pytest.raises(ValueError, match=said):
    parse(config)


@pytest.mark.slow
def test_a_convolutional_tower_sees_images_of_any_size():
  config = tiny_align(stages={"a": {"size": 50}})
  setup = Setup(config, make_mesh())
  for stage in spans(config):
    TrainStep(setup).trace(setup.planned, batch_shapes(config, setup.mesh, stage.config.model.image.size))


@pytest.mark.slow
def test_costs_are_told_by_stages():
  config = staged(tiny(steps="20"))
  small = flops_per_pair(spans(config)[0].config)["total"]
  assert small < flops_per_pair(config)["total"]
  said = arithmetic.describe(config, 1)
  assert f"stage: steps 1 to 4, images of 8 pixels, {small / 1e6:,.2f} MFLOPs a pair" in said
  assert "stage: steps 16 to 20, images of 16 pixels" in said and "stage:" not in arithmetic.describe(tiny(), 1)


@pytest.mark.parametrize(("old", "new"), [(12, 5), (24, 14), (4, 6), (6, 6)])
def test_positions_of_another_grid_are_those_of_pillow(old, new):
  """Pillow's bilinear filter widens where the image shrinks, too."""
  grid = np.random.default_rng(0).normal(size=(old, old, 3)).astype(np.float32)
  first = np.ones((1, 3), np.float32)
  found = resize_positions(np.concatenate([first, grid.reshape(-1, 3)]), new**2, 1)
  expected = [np.asarray(Image.fromarray(grid[..., i]).resize((new, new), Image.Resampling.BILINEAR)) for i in range(3)]
  np.testing.assert_allclose(found[1:].reshape(new, new, 3), np.stack(expected, -1), atol=1e-5)
  np.testing.assert_array_equal(found[:1], first)


def test_images_change_their_size_between_two_steps_and_nothing_else_does():
  """Each batch is that of a run with its size from the beginning, wherever the run goes on."""
  words, config = trained_words(), make_config()
  config = dataclasses.replace(
    config, steps="9", stages={"a": Stage(size=8, until="3"), "b": Stage(size=24, until="5")}
  )

  def batches(c, start, steps):
    return [batch for batch, _ in take(pipeline.train_batches(c, open_sources(), words, [0, 3, 7], start), steps)]

  alone = {stage.config.model.image.size: batches(stage.config, 0, 7) for stage in spans(config)}
  for start in (0, 2, 3, 4, 5, 6):
    found = batches(config, start, 7 - start)
    for step, batch in enumerate(found, start):
      expected = alone[(8, 8, 8, 24, 24, 16, 16)[step]][step]
      assert all(np.array_equal(batch[name], expected[name]) for name in expected), step


@pytest.mark.slow
def test_a_run_goes_on_from_an_earlier_stage(tmp_path, monkeypatch):
  """Left with the checkpoint of a step, as a kill leaves it, a run ends with the same parameters, bit for bit."""
  config = runpy.run_path(str(ROOT / "configs" / "coca_tiny.py"))["get_config"]("emoji,runlocal")
  config.update(steps="5", log_every="1", stages={"a": to_dict(Stage(size=24, until="3", lr=1e-3))})
  config.evals = {}
  config.optim.name = "adamw"
  config.data.update(batch=8, tokenizer_texts=300)
  config.checkpoint.update(every="1", keep_every="1")
  config.model.image.update(layers=1, width=16, mlp=16, heads=2, patch_dropout=0.3)
  config.model.text.update(vocab=300, width=16, mlp=16, heads=2)
  config.model.poolers.heads = 2
  compiled, trace = [], TrainStep.trace

  def traced(step, state, batch):
    compiled.append(batch["image"].shape[1])
    return trace(step, state, batch)

  monkeypatch.setattr(TrainStep, "trace", traced)
  assert loop.run(parse(config), tmp_path / "whole") == 0
  assert compiled == [24, 48]
  whole, lines = coca.load(tmp_path / "whole").params, read(tmp_path / "whole" / "metrics.jsonl")
  workdir = tmp_path / "killed"  # after the second of three small steps
  shutil.copytree(tmp_path / "whole", workdir)
  for later in (3, 4, 5):
    shutil.rmtree(workdir / "checkpoints" / str(later))
  assert loop.run(parse(config), workdir) == 0
  jax.tree.map(np.testing.assert_array_equal, coca.load(workdir).params, whole)
  found = read(workdir / "metrics.jsonl")
  assert len(found) == 5 and [x["train/loss"] for x in found] == [x["train/loss"] for x in lines]
  assert compiled == 2 * [24, 48]
