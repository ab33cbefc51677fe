"""Answers within dialogs: the model's sums, its loss, the ranks, and what a loaded model and the evaluator say.

The references are BLIP's forward pass in float64 NumPy, and the measures as VisDial's own code computes them.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import coca
from coca.config import Eval, Scenes, Source
from coca.data.dialogs import row
from coca.data.records import Said
from coca.data.sources import open_source
from coca.evals import build
from coca.evals.dialogs import ndcg, rank, turned
from coca.evals.sheet_cells import held_out_cells
from coca.inference.images import decoded
from coca.objectives.dialogs import dialog_loss
from support.blip_reference import CLS, ENCODE, Reference, linear, log_softmax, tiny_blip
from support.common import PAD
from support.workdirs import make_workdir

LENGTH = 24
DIALOGS = {
  "contrastive__weight": 0.0,
  "captioning__weight": 0.0,
  "matching__weight": 0.0,
  "dialog__weight": 1.0,
  "dialog__length": LENGTH,
  "model__image__width": 48,
  "model__text__multimodal_layers": 0,
  "model__med__positions": LENGTH,
}


def gain(order, relevance):
  return sum(relevance[answer] / math.log2(place + 1) for place, answer in enumerate(order, 1))


def test_ranks_and_gains_are_those_of_sorted_lists():
  """Written out as visdialch's evaluation of VisDial v1.0 has them: rankings, and gains of the first k of two."""
  rng = np.random.default_rng(0)
  for _ in range(40):
    scores, right = rng.normal(size=20).tolist(), int(rng.integers(20))
    order = sorted(range(20), key=lambda answer: -scores[answer])
    assert rank(np.array(scores), right) == order.index(right) + 1
    relevance = [0.2] + [int(rng.integers(1, 6)) / 5 if rng.random() < 0.4 else 0.0 for _ in range(19)]
    k = sum(x > 0 for x in relevance)
    best = sorted(range(20), key=lambda answer: -relevance[answer])
    expected = gain(order[:k], relevance) / gain(best[:k], relevance)
    assert ndcg(np.array(scores), np.array(relevance)) == pytest.approx(expected)


def test_ties_and_what_is_no_number_count_against_the_model():
  assert [rank(np.array(x), 1) for x in ([0.0, 0.0, 1.0], [np.nan, 5.0, 1.0], [1.0, np.nan, 2.0])] == [3, 2, 3]
  relevance = np.array([0.0, 1.0, 0.0])
  assert ndcg(np.zeros(3), relevance) == 0 and ndcg(np.array([np.nan, 0.0, -1.0]), relevance) == 1


@pytest.mark.parametrize("limit", [0, 100, 999, 2064, 20_640])
def test_a_limit_takes_questions_of_all_rounds(limit):
  """VisDial's 2,064 dialogs have ten questions each, in a row."""
  chosen = turned(20_640, limit)
  assert len(chosen) == (limit or 20_640) and chosen[-1] < 20_640 and (np.diff(chosen) > 0).all()
  assert np.bincount(chosen % 10, minlength=10).max() <= math.ceil(len(chosen) / 10) * 1.5


def test_the_loss_is_the_cross_entropy_of_what_there_is():
  rng = np.random.default_rng(1)
  logits, weight = rng.normal(size=(3, 4, 2)), np.array([1.0, 0.0, 1.0])
  known = np.ones((3, 4), bool)
  known[2, 3] = False
  log_p, truth = log_softmax(logits), np.array([1, 0, 0, 0])
  nll = right = 0.0
  for i in (0, 2):
    for k in range(4):
      if known[i, k]:
        nll -= log_p[i, k, truth[k]]
        right += logits[i, k].argmax() == truth[k]
  found = dialog_loss(jnp.asarray(logits), jnp.asarray(weight), jnp.asarray(known))
  np.testing.assert_allclose(found, (nll, right), rtol=1e-5)


class Authors(Reference):
  """Section 5.5: image tokens and the caption's states are one memory."""

  def judge(self, pixels, caption, ids):
    memory = np.vstack([tokens := self.image(pixels), self.encode(caption, CLS)])
    seen = np.concatenate([np.ones(len(tokens), bool), [True], caption[1:] != PAD])
    first = np.concatenate([[ENCODE], ids[1:]])
    words = np.broadcast_to(ids != PAD, (len(ids), len(ids)))
    return linear(self.p["matching_head"], self.bert(self.encoder, first, words, memory, seen)[0])


@pytest.mark.slow
def test_a_loaded_model_judges_and_is_evaluated(tmp_path):
  config = tiny_blip(**DIALOGS)
  make_workdir(tmp_path / "run", config)
  model = coca.load(tmp_path / "run")
  split = Source(kind="builtin", split="scenes_dialogs_val", scenes=Scenes(count=6, pixels=32))
  source = open_source(split)
  authors = Authors(jax.tree.map(np.asarray, model.params), config)
  encode, words = model.tokenizer.encode, model.tokenizer
  ranks, gains = [], []
  for i in range(6):
    record = source[i]
    rows = [row(record.said, record.question, text.text, words, LENGTH) for text in record.texts]
    pixels, caption = decoded(record.image, config), encode(record.said.caption, config.model.text.length)
    options = [text.text for text in record.texts]
    p = model.judge(pixels, record.said.caption, record.question, options, record.said.rounds)
    if i == 3:  # one is enough: NumPy takes its time
      some = [0, 31, record.label]
      logits = np.array([authors.judge(pixels, caption, rows[k]) for k in some])
      np.testing.assert_allclose(p[0, some], np.exp(log_softmax(logits))[:, 1], rtol=1e-3, atol=1e-5)
    ranks.append(np.count_nonzero(p[0] >= p[0, record.label]))
    gains.append(ndcg(p[0], np.array(record.said.relevance)))
  evals = {"d": Eval(kind="dialogs", source=split, batch=4)}
  (evaluator,) = build.make_evaluators(
    replace(config, evals=evals), model.forward, model.tokenizer, {"d": source}
  ).values()
  (cell,) = held_out_cells(evaluator, model.params, 1)
  assert cell.truth == (f"{source[0].question} {source[0].texts[source[0].label].text}",)
  found = dict(evaluator.run(model.params))
  assert found["examples"] == found["ndcg_examples"] == 6
  np.testing.assert_allclose(found["mean_rank"], np.mean(ranks), atol=0.4)  # near ties
  np.testing.assert_allclose(found["mrr"], np.mean(1 / np.array(ranks)), rtol=0.05)
  np.testing.assert_allclose(found["ndcg"], np.mean(gains), rtol=0.02)
  assert found["recall10"] == np.mean(np.array(ranks) <= 10)
  with pytest.raises(ValueError, match=r"1 images, 2 captions and 1 questions; give one for each"):
    model.judge([pixels], ["a", "b"], "q", ["yes"])
  with pytest.raises(ValueError, match="judge takes a list of possible answers"):
    model.judge(pixels, "a", "q", [])
  assert Said("a").rounds == ()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model__image__width": 32}, "one width of image and text"),
    ({"model__med__positions": 12}, "config.dialog.length 24 no more than config.model.med.positions 12"),
    ({"matching__weight": 1.0, "contrastive__weight": 1.0}, "weights of all other losses to be 0"),
    ({"dialog__negatives": 0}, "negatives 0 1 or more"),
    ({"model__kind": "coca"}, "config.dialog.weight needs config.model.kind 'blip'"),
  ],
)
def test_what_does_not_go_together_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny_blip(**DIALOGS | changes)
