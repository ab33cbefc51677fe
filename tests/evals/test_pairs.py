"""Captions that are true against ones that are not, over a model whose scores are known and over a real one."""

import jax
import numpy as np
import pytest

from coca import config
from coca.config import Config, Contrastive, Eval, Matching, Source
from coca.data.tokenizers.sentencepiece import train
from coca.devices import sharding
from coca.evals import build
from coca.evals.pairs import Pairs, winoground
from coca.inference.forward import Forward
from coca.models.outputs import Scores
from support.common import random_params, tiny
from support.evals import CONFIG, NAMES, FakeForward, Source_, embeddings, record


@pytest.fixture(scope="module")
def tokenizer():
  return train([f"a photo of {name}" for name in NAMES] * 4, 100)


class Scoring(FakeForward):
  """Cosines of tables; the matching head's logit is their negative; likelihoods by a table of pictures and names."""

  def score(self, params, encoded, text):
    texts = np.stack([self.embed_texts(params, rows) for rows in np.asarray(text).swapaxes(0, 1)], axis=1)
    cosine = np.einsum("be,bke->bk", encoded.embedding, texts)
    return Scores(cosine, None, -cosine if self.matches else None)

  def log_likelihood(self, params, image, text):
    names = [NAMES.index(self.tokenizer.decode(row)) if row.any() else 0 for row in np.asarray(text)]
    return self.likely[self._numbers(image) % 12, names]


def make(tokenizer, source, limit=0, **settings):
  table = dict(zip(("", *NAMES), embeddings(1, 9, 4), strict=True))
  forward = Scoring(tokenizer, embeddings(2, 12, 4), table)
  forward.likely, forward.matches = np.random.default_rng(3).normal(size=(12, 8)), "matching" in settings
  settings = Config(model=CONFIG.model, evals={"x": Eval(kind="pairs", batch=8, limit=limit)}, **settings)
  return build.make_evaluators(settings, forward, tokenizer, {"x": source})["x"], forward


def pairs(each, parts=(), label_names=()):
  """Twelve pictures with the captions i and i + 3 (of Winoground i and its neighbour), one of them broken."""
  other = [i ^ 1 if each == 2 else i + 3 for i in range(12)]
  source = Source_([record(i, NAMES[i % 8], NAMES[other[i] % 8]) for i in range(12)], label_names)
  source.records[5], source.images_each, source.parts = None, each, list(parts) or [0] * 12
  return source


def test_accuracies_of_the_parts_of_sugar_crepe(tokenizer):
  parts = [0] * 4 + [1] * 6 + [2] * 2
  source = pairs(1, parts, ("add_att", "replace_rel", "swap_obj"))
  evaluator, forward = make(tokenizer, source, matching=Matching(weight=1.0))
  found = dict(evaluator.run(None))
  texts = np.stack([forward.text_table[name] for name in NAMES]).astype(np.float64)
  scores = {"cosine": forward.image_table.astype(np.float64) @ texts.T}
  scores |= {"matching": -scores["cosine"], "likelihood": forward.likely}
  want = {"examples": 11}
  for method, of in scores.items():
    right = np.array([of[i, i % 8] > of[i, (i + 3) % 8] for i in range(12)])
    shares = [np.mean([right[i] for i in range(12) if parts[i] == n and i != 5]) for n in range(3)]
    want |= {f"{method}_{name}": share for name, share in zip(source.label_names, shares, strict=True)}
    want[method] = np.mean(shares)
  assert found == pytest.approx(want) and 0 < found["cosine"] < 1


def test_winogrounds_scores(tokenizer):
  evaluator, forward = make(tokenizer, pairs(2), contrastive=Contrastive(weight=0.0))
  found = dict(evaluator.run(None))
  text, image = [], []
  for a in (0, 2, 6, 8, 10):  # of 4 and 5 one is broken
    (own, other), (others, mine) = (forward.likely[i, [a % 8, (a + 1) % 8]] for i in (a, a + 1))
    text.append(own > other and mine > others)
    image.append(own > others and mine > other)
  both = [a and b for a, b in zip(text, image, strict=True)]
  want = {"text": text, "image": image, "group": both}
  assert found == {f"likelihood_{name}": np.mean(x) for name, x in want.items()} | {"examples": 5}
  few, _ = make(tokenizer, pairs(2), limit=2)
  assert [few.records[i].key for i in range(4)] == ["0", "1", "6", "7"] and dict(few.run(None))["examples"] == 2


def test_ties_and_nan_count_against_the_model():
  scores = np.array([[[1, 0], [1, 0]], [[1, 1], [1, 0]], [[2, 1], [2, 2]], [[3, 1], [2, 2]], [[np.nan, 0], [1, 0]]])
  found = {name: right.tolist() for name, right in winoground(scores).items()}
  assert found["text"] == [True, False, False, False, False] and found["group"] == [True] + [False] * 4
  assert found["image"] == [True, False, False, True, False]


@pytest.mark.slow
def test_likelihoods_are_the_losses_of_the_texts_alone(tokenizer):
  text, image = {"vocab": 100, "length": 16, "multimodal_layers": 1, "unimodal_layers": 1}, {"size": 8, "layers": 1}
  changes = {f"model__text__{name}": value for name, value in text.items()}
  settings = tiny(contrastive__weight=0.0, **changes, **{f"model__image__{name}": x for name, x in image.items()})
  forward, params = Forward(settings, sharding.make_mesh(config.Mesh(), jax.devices()[:1])), random_params(settings)
  source = pairs(1, label_names=("all",))
  evaluator = Pairs(settings, Eval(kind="pairs", batch=6), forward, tokenizer, source)
  found = dict(evaluator.run(params))
  assert list(found) == ["likelihood_all", "likelihood", "examples"]
  right = []
  for i in (i for i in range(12) if i != 5):
    image = np.full((1, 8, 8, 3), (i, 0, 7), np.uint8)
    losses = []
    for text in source[i].texts:
      row = {"image": image, "text": tokenizer.encode(text.text, 16)[None], "weight": np.ones(1, np.float32)}
      losses.append(float(forward.caption_loss(params, forward.put(row))[0]))
    right.append(losses[0] < losses[1])
  assert found["likelihood"] == pytest.approx(np.mean(right)) and 0 < np.mean(right) < 1


NOTHING = "contrastive__weight", "captioning__weight", "model__text__unimodal_layers", "model__text__multimodal_layers"


@pytest.mark.parametrize(
  ("settings", "changes", "message"),
  [
    ({"kind": "retrieval"}, {}, r"source\.kind is 'pairs' and kind 'retrieval'"),
    ({}, {name: 0 for name in NOTHING} | {"classification__weight": 1.0, "classification__classes": 3}, "a decoder"),
  ],
)
def test_settings_that_make_no_sense(settings, changes, message):
  draft = config.default()
  draft.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
  source = Source(kind="pairs", path="val2017", texts="data")
  draft.evals.x = config.to_dict(Eval(**{"kind": "pairs", "source": source} | settings))
  with pytest.raises(ValueError, match=message):
    config.parse(draft)
