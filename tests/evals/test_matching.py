"""The evaluator of the matching head against plain formulas, over a model whose scores are known."""

import numpy as np

from coca.config import Config, Eval, Matching
from coca.data.tokenizers.sentencepiece import train
from coca.evals import build
from coca.evals.matching import auc, pick_others
from coca.models.outputs import Encoded, Scores
from support.evals import CONFIG, NAMES, FakeForward, Source_, record, unit


def test_auc_is_the_share_of_pairs_in_order():
  rng = np.random.default_rng(4)
  positives, negatives = rng.integers(0, 12, 60) / 12 + 0.1, rng.integers(0, 12, 45) / 12
  expected = np.mean([(p > n) + 0.5 * (p == n) for p in positives for n in negatives])
  np.testing.assert_allclose(auc(positives, negatives), expected, rtol=1e-12)
  assert auc(np.ones(3), np.ones(4)) == 0.5
  assert auc(np.array([np.nan, np.nan]), np.array([0.1])) == auc(np.array([0.9]), np.array([np.nan])) == 0


def test_others_are_never_equal_texts_or_unusable_rows():
  rng = np.random.default_rng(0)
  texts, weight = rng.integers(0, 5, 40), (rng.random(40) > 0.2).astype(np.float32)
  similarity = rng.normal(size=(40, 40))
  picks, usable = pick_others(similarity, texts, weight, np.random.default_rng(1))
  drawn = np.zeros((40, 40), int)
  for seed in range(300):
    others, _ = pick_others(similarity, texts, weight, np.random.default_rng(seed))
    drawn[np.arange(40), others[:, 0]] += 1
  for i in range(40):
    allowed = [j for j in range(40) if weight[j] and texts[j] != texts[i]]
    assert usable[i] == bool(weight[i])
    assert picks[i, 1] == max(allowed, key=lambda j, i=i: similarity[i, j])
    assert set(np.flatnonzero(drawn[i])) == set(allowed)
  assert not pick_others(similarity, np.zeros(40), weight, rng)[1].any()


class ScoringForward(FakeForward):
  """A text's number is that of its name; P(match) of a picture and a text lies in a table."""

  def __init__(self, tokenizer, image_table, text_table, matches):
    super().__init__(tokenizer, image_table, text_table)
    self.matches = matches

  def encode(self, params, image):
    return Encoded(self.embed_images(params, image), self._numbers(image))

  def score(self, params, encoded, text):
    names = np.array(
      [[NAMES.index(self.tokenizer.decode(row)) if row.any() else 0 for row in rows] for rows in np.asarray(text)]
    )
    return Scores(None, self.matches[encoded.tokens[:, None] % len(self.matches), names], None)


def test_evaluator_is_the_float64_formula():
  """Pictures of 30 pairs with eight texts, one broken, in batches of 16: numbers one pair at a time."""
  tokens, rng = train([f"a photo of {name}" for name in NAMES] * 4, 100), np.random.default_rng(0)
  kinds, matches = rng.integers(0, 8, 30), rng.random((30, 8)).astype(np.float32)
  matches[np.arange(30), kinds] **= 0.5  # true pairs a little likelier
  records = [record(i, NAMES[k]) for i, k in enumerate(kinds)]
  records[5] = None
  images, texts = unit(rng.normal(size=(30, 6))), unit(rng.normal(size=(8, 6)))
  table = dict(zip(NAMES, texts, strict=True)) | {"": texts[0]}
  config = Config(matching=Matching(weight=1.0), model=CONFIG.model, evals={"m": Eval(kind="matching", batch=16)})
  forward = ScoringForward(tokens, images, table, matches)
  evaluator = build.make_evaluators(config, forward, tokens, {"m": Source_(records)})["m"]
  found = dict(evaluator.run(None))

  own, hard = [], []
  for i in range(30):
    together = [j for j in range(i // 16 * 16, min(i // 16 * 16 + 16, 30)) if j != 5]
    if i in together:
      others = {kinds[j] for j in together} - {kinds[i]}
      own.append(matches[i, kinds[i]])
      hard.append(matches[i, max(others, key=lambda k, i=i: images[i].astype(np.float64) @ texts[k])])
  own, hard = np.array(own, np.float64), np.array(hard, np.float64)
  assert found["examples"] == len(own) == 29
  np.testing.assert_allclose(found["accuracy_hard"], (np.sum(own >= 0.5) + np.sum(hard < 0.5)) / 58, rtol=1e-12)
  np.testing.assert_allclose(found["auc_hard"], np.mean([(p > n) + 0.5 * (p == n) for p in own for n in hard]))
  assert 0.5 < found["auc_random"] < 1 and 0.5 < found["accuracy_random"] < 1
  assert found["auc_random"] != found["auc_hard"]
  assert dict(evaluator.run(None)) == found
