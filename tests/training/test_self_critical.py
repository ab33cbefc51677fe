"""Captions that are drawn before a step: rewards are pycocoevalcap's, and a run that was killed goes on the same."""

import dataclasses
import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from coca.config import SelfCritical, parse
from coca.data.records import Record, Text
from coca.evals.cider import cider_d
from coca.evals.ptb import tokens
from coca.inference.load import load
from coca.training import loop, metrics
from coca.training.self_critical import END, Critic
from support.common import BOS, EOS, tiny

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "evals" / "golden" / "captions.json").read_text())
SAID, TRUE = GOLDEN["captions"], GOLDEN["references"]
COUNT = len(SAID)


class Listed(list):
  name, problems = "golden", ()


SOURCES = {"golden": Listed(Record(str(i), b"", tuple(map(Text, texts))) for i, texts in enumerate(TRUE))}
TOKENIZER = SimpleNamespace(bos=BOS, eos=EOS, decode=lambda ids: SAID[ids[0] - 4] if ids[0] >= 4 else "nothing")


class Writer:
  """In place of a model: of image i it draws captions i, i + 1, ... and writes caption i + 2; the last has no end."""

  def __init__(self):
    self.seeds = []

  def put(self, tree):
    return tree

  def writer(self, params):
    return params

  def encode(self, params, image):
    return image

  def caption(self, writer, image, decoding, *, special, ids):
    del writer, special
    np.testing.assert_array_equal(ids, np.arange(COUNT))
    self.seeds.append(decoding.seed)
    first = image[:, None] + (np.arange(decoding.n) if decoding.strategy == "sample" else 2)
    text = np.stack([np.full_like(first, BOS), 4 + first % COUNT, np.where(first % COUNT < COUNT - 1, EOS, 9)], axis=-1)
    return SimpleNamespace(text=text.astype(np.int32))


def rewarded(step=1, **settings):
  """What a critic makes of a batch with all images, and the seeds with which captions were drawn."""
  config, writer = tiny(self_critical__weight=1.0), Writer()
  config = dataclasses.replace(config, self_critical=SelfCritical(weight=1.0, **settings))
  critic = Critic(config, writer, TOKENIZER, SOURCES, np.arange(COUNT))
  references = np.array(["\n".join(texts) for texts in TRUE], object)
  made = critic(None, critic.put({"image": np.arange(COUNT), "references": references}), step)
  assert set(made) == {"image", "samples", "reward", "baseline"}  # what goes to the device
  return made, writer.seeds


def test_rewards_are_those_of_pycocoevalcap():
  """Among the evaluated images, which are the training images here, without the end of a text as a word."""
  made, _ = rewarded(samples=3, ends=False)
  assert made["samples"].shape == (COUNT, 3, 3) and made["reward"].dtype == np.float32
  np.testing.assert_allclose(made["reward"][:, 0], GOLDEN["cider"], rtol=1e-6)
  others = cider_d([tokens(SAID[(i + 2) % COUNT]) for i in range(COUNT)], [[*map(tokens, texts)] for texts in TRUE])
  np.testing.assert_allclose(made["reward"][:, 2], others, rtol=1e-6, atol=1e-9)
  np.testing.assert_allclose(made["baseline"], np.repeat(others[:, None], 3, axis=1), rtol=1e-6, atol=1e-9)


def test_the_end_is_a_word_and_the_mean_of_the_others_a_baseline():
  made, seeds = rewarded(samples=3, baseline="mean")
  true = [[[*tokens(text), END] for text in texts] for texts in TRUE]
  for k in range(3):
    said = [[*tokens(SAID[j]), *[END] * (j < COUNT - 1)] for j in [*range(k, COUNT), *range(k)]]
    np.testing.assert_allclose(made["reward"][:, k], cider_d(said, true), rtol=1e-6, atol=1e-9)
  others = np.stack([np.delete(made["reward"], k, axis=1).mean(axis=1) for k in range(3)], axis=1)
  np.testing.assert_allclose(made["baseline"], others, rtol=1e-5, atol=1e-6)
  assert len(seeds) == 1  # there is no caption beside
  assert rewarded(samples=3, baseline="mean")[1] == seeds != rewarded(2, samples=3, baseline="mean")[1]


def test_images_with_one_reference_set_are_refused():
  with pytest.raises(ValueError, match=r"needs images with texts, and few have 1: no n-gram"):
    Critic(tiny(self_critical__weight=1.0), Writer(), TOKENIZER, {"few": SOURCES["golden"][:1]}, np.arange(1))


def small_run():
  config = runpy.run_path(str(ROOT / "configs" / "coca_tiny.py"))["get_config"]("runlocal")
  config.update(steps="4", log_every="1")
  config.evals = {}
  config.data.sources = {"scenes": config.data.sources.scenes}
  config.data.sources.scenes.scenes.texts = 3
  config.data.update(batch=8, tokenizer_texts=200)
  config.optim.name = "adamw"
  config.checkpoint.every = "2"
  config.contrastive.weight = config.captioning.weight = 0.0
  config.self_critical.update(weight=1.0, samples=2, baseline="mean", images=50)
  config.model.image.update(layers=1, width=16, mlp=16, heads=2)
  config.model.text.update(width=16, mlp=16, heads=2, vocab=120)
  config.model.poolers.heads = 2
  return parse(config)


@pytest.mark.slow
def test_a_run_that_lost_its_end_comes_to_the_same_parameters(monkeypatch, tmp_path):
  """On eight devices; what was drawn is rewarded by the texts of its own image."""
  seen, call = [], Critic.__call__

  def watched(critic, params, batch, step):
    made = call(critic, params, batch, step)
    seen.append((step, batch["references"], *(np.asarray(made[name]) for name in ("samples", "reward"))))
    return made

  monkeypatch.setattr(Critic, "__call__", watched)
  config = small_run()
  assert loop.run(config, tmp_path / "whole") == 0
  whole, seen[:] = seen[:], []
  shutil.copytree(tmp_path / "whole", tmp_path / "killed")
  shutil.rmtree(tmp_path / "killed" / "checkpoints" / "4")
  assert loop.run(config, tmp_path / "killed") == 0
  assert [step for step, *_ in whole] == [1, 2, 3, 4] and [step for step, *_ in seen] == [3, 4]
  for (_, *a), (_, *b) in zip(whole[2:], seen, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)
  params = [load(tmp_path / name).params for name in ("whole", "killed")]
  jax.tree.map(np.testing.assert_array_equal, *params)
  lines = metrics.read(tmp_path / "whole" / "metrics.jsonl")
  logged = [line["train/reward"] for line in lines if "train/reward" in line]
  np.testing.assert_allclose(logged, [reward.mean() for *_, reward in whole], rtol=1e-5)
  assert max(logged) > 0 and len({samples.tobytes() for _, _, samples, _ in whole}) == 4
