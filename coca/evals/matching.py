"""The matching head's skill at telling pairs from non-pairs: accuracy at 0.5 and area under the ROC curve.

Each image is scored with its own text, with the text of another pair of its batch drawn at random, and with the
hardest one of the batch: the other text whose contrastive embedding is nearest to the image's. Texts equal to one's
own (`coca.evals.stream.Stream.kinds`) are left out: to the head they are the pair itself. A larger batch has harder
texts: numbers compare at equal `batch` only.
"""

import functools
from collections.abc import Iterator

import numpy as np
from absl import logging

from coca.config import Config, Eval
from coca.config.special import Tokenizer
from coca.data.pipeline import Wants
from coca.data.records import Records
from coca.devices.host import to_host
from coca.evals.evaluator import Evaluator
from coca.evals.stream import Stream, own_texts
from coca.inference.forward import Forward


class Matching(Evaluator):
  """Scores pairs, and non-pairs of two kinds.

  Args:
    config, forward, tokenizer: see `Evaluator`.
    settings: the evaluator's: source, batch, limit.
    source: images and their texts, of which the first counts.
  """

  def __init__(self, config: Config, settings: Eval, forward: Forward, tokenizer: Tokenizer, source: Records):
    wants = Wants(functools.partial(own_texts, settings.source))
    self.stream = Stream(config, settings, forward, tokenizer, source, wants)

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields 'accuracy_random', 'auc_random', 'accuracy_hard', 'auc_hard' and 'examples', the number of images.

    Accuracy is over the pairs and as many non-pairs, 0.5 being a match.
    """
    forward, found = self.stream.forward, [np.zeros((0, 3), np.float32)]
    for i, batch in enumerate(self.stream):
      encoded = forward.encode(params, batch.device["image"])
      images = to_host(encoded.embedding)
      texts = to_host(forward.embed_texts(params, batch.device["text"][:, 0]))
      own = batch.rows["text"][:, 0]
      weight = batch.rows["weight"] * batch.rows["text_weight"][:, 0]
      picks, usable = pick_others(images @ texts.T, self.stream.kinds(own), weight, np.random.default_rng(i))
      three = np.stack([own, own[picks[:, 0]], own[picks[:, 1]]], axis=1)
      three = forward.put({"text": three[self.stream.host_rows]})["text"]
      scores = forward.score(params, encoded._replace(embedding=None), three)
      found.append(to_host(scores.matching)[usable])
    scores = np.concatenate(found)
    if not len(scores):
      logging.warning("matching: no batch of %s has two images with different texts", self.stream.source.name)
      return
    pairs, *others = scores.T
    for name, negatives in zip(("random", "hard"), others, strict=True):
      yield f"accuracy_{name}", float(np.mean(pairs >= 0.5) + np.mean(negatives < 0.5)) / 2
      yield f"auc_{name}", auc(pairs, negatives)
    yield "examples", float(len(scores))


def pick_others(
  similarity: np.ndarray, kind: np.ndarray, weight: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Another text for each image, at random and the most similar one.

  Args:
    similarity: [B, B], of images with texts.
    kind: int [B], of the texts: those of one kind are no others.
    weight: [B]; pairs of weight 0 take no part.
    rng: draws.

  Returns:
    int [B, 2], rows, and bool [B]: whether a pair takes part and has another text.
  """
  allowed = (kind[:, None] != kind) & (weight > 0)
  random = np.where(allowed, rng.random(allowed.shape), -1).argmax(axis=1)
  hardest = np.where(allowed, similarity, -np.inf).argmax(axis=1)
  return np.stack([random, hardest], axis=1), (weight > 0) & allowed.any(axis=1)


def auc(positives: np.ndarray, negatives: np.ndarray) -> float:
  """Probability that a positive's score is above a negative's, ties counting half; NaN counts against the model."""
  positives = np.where(np.isnan(positives), -np.inf, positives)
  negatives = np.sort(np.where(np.isnan(negatives), np.inf, negatives))
  below, up_to = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
  return float(np.mean(below + up_to) / (2 * len(negatives)))
