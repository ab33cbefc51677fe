"""Top-1 and top-5 by the class head, over sources that number the classes in their own way."""

import numpy as np
import pytest

from coca.config import Config, Eval
from coca.data.tokenizers.sentencepiece import train
from coca.evals import build
from support.evals import CONFIG, NAMES, FakeForward, Source_, record


class Head(FakeForward):
  """Logits looked up by an image's colour."""

  def classify(self, params, image, text=None):
    return self.image_table[np.asarray(image)[:, 0, 0, 0] % len(self.image_table)]


@pytest.fixture(scope="module")
def tokenizer():
  return train(NAMES * 8, 64)


def run(tokenizer, logits, source, labels=NAMES):
  config = Config(model=CONFIG.model, evals={"top": Eval(kind="classification", batch=8)})
  made = build.make_evaluators(config, Head(tokenizer, logits), tokenizer, {"top": source}, labels=labels)
  return dict(made["top"].run(None)), made["top"]


def test_shares_are_those_of_the_sorted_logits(tokenizer):
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(20, 8)).astype(np.float32), rng.integers(8, size=20)
  records = [*(record(i, label=int(label)) for i, label in enumerate(labels)), None, record(3)]
  found, evaluator = run(tokenizer, logits, Source_(records, NAMES))
  order = np.argsort(-logits, axis=1)
  for k in (1, 5):
    assert found[f"top{k}"] == pytest.approx((labels[:, None] == order[:, :k]).any(1).mean())
  assert found["examples"] == 20 and evaluator.names == NAMES


def test_another_source_s_labels_go_by_their_names(tokenizer):
  logits = np.eye(8, dtype=np.float32)
  theirs = ("old quince", "tin can", "green pear")
  records = [record(7, label=0), record(3, label=1), record(1, label=2), record(0, label=2)]
  found, _ = run(tokenizer, logits, Source_(records, theirs))
  assert found == {"top1": pytest.approx(2 / 3), "top5": pytest.approx(2 / 3), "examples": 3}
  with pytest.raises(ValueError, match=r"config\.evals\.top: 'memory' has none of the classes .* red apple"):
    run(tokenizer, logits, Source_(records, ("tin can",)))


@pytest.mark.parametrize("logit", [0.0, np.nan])
def test_a_head_that_tells_nothing_apart_finds_nothing(tokenizer, logit):
  records = [record(i, label=i) for i in range(8)]
  found, _ = run(tokenizer, np.full((8, 8), logit, np.float32), Source_(records, NAMES))
  assert (found["top1"], found["top5"]) == (0, 0)


def test_a_source_without_labels_is_refused():
  with pytest.raises(ValueError, match="'memory' has no labels"):
    build.KINDS["classification"].check(Eval(), Source_([record(0)]), None)
