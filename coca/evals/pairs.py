"""The true caption of an image against one that is not: SugarCrepe (arXiv 2306.14610), Winoground (arXiv 2204.03162).

A caption is preferred by all that the model has: the cosine of the embeddings, the matching head's logit, and the
caption's likelihood, the sum of its tokens' log-probabilities. That sum prefers the shorter of two captions, which is
why it finds nearly all of what SugarCrepe has added to a caption. Ties and what is not a number count against the
model.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from coca.config import Config, Eval
from coca.config.special import Tokenizer
from coca.data.pipeline import Wants
from coca.data.sources.pairs import Described, Winoground
from coca.devices.host import to_host
from coca.evals.evaluator import Evaluator
from coca.evals.stream import Stream, View, spread
from coca.inference.forward import Forward


class Pairs(Evaluator):
  """Scores each image with both of its captions.

  Args:
    config, forward, tokenizer: see `Evaluator`.
    settings: the evaluator's: source, batch, limit (of examples, of which Winoground's have two images).
    source: of kind 'pairs'.
  """

  def __init__(
    self, config: Config, settings: Eval, forward: Forward, tokenizer: Tokenizer, source: Described | Winoground
  ):
    self.pairs, each = source, source.images_each
    chosen = spread(len(source) // each, settings.limit)[:, None] * each + np.arange(each)
    self.records = View(source, chosen.reshape(-1), lambda _, record: record.label)
    wants = Wants(lambda record: [config.data.prompt + text.text for text in record.texts], 2, ends=False)
    settings = dataclasses.replace(settings, limit=0)
    self.stream = Stream(config, settings, forward, tokenizer, self.records, wants, lambda index, _: index)

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields, for METHOD in 'cosine', 'matching', 'likelihood', as far as the model has them, accuracies.

    Of SugarCrepe 'METHOD_add_att' and so on, by the names of its files, and 'METHOD', their mean; of Winoground
    'METHOD_text', 'METHOD_image' and 'METHOD_group'. The last is 'examples'.
    """
    source, scores, usable = self.pairs, {}, np.zeros(len(self.records), bool)
    for batch in self.stream:
      rows = np.flatnonzero(batch.rows["weight"] > 0)
      places = batch.rows["label"][rows]
      usable[places] = True
      for method, values in self._score(params, batch).items():
        scores.setdefault(method, np.full((len(self.records), 2), np.nan))[places] = values[rows]
    if not usable.any():
      logging.warning("pairs: no record of %s can be used", source.name)
      return
    parts = np.asarray(source.parts)[self.records.indices]
    if source.images_each == 2:
      usable = usable.reshape(-1, 2).all(axis=1)
    for method, values in scores.items():
      if source.images_each == 2:
        right = winoground(values.reshape(-1, 2, 2)[usable])
        yield from ((f"{method}_{name}", float(np.mean(found))) for name, found in right.items())
      else:
        right = values[:, 0] > values[:, 1]
        found = {n: right[usable & (parts == n)] for n in range(len(source.label_names))}
        accuracies = {n: float(np.mean(x)) for n, x in found.items() if len(x)}
        yield from ((f"{method}_{source.label_names[n]}", value) for n, value in accuracies.items())
        yield method, float(np.mean(list(accuracies.values())))
    yield "examples", float(usable.sum())

  def _score(self, params, batch) -> dict[str, np.ndarray]:
    """float [B, 2] of all hosts' rows, by method."""
    forward, config = self.stream.forward, self.stream.config
    image, text = batch.device["image"], batch.device["text"]
    found: dict[str, Any] = {}
    if config.contrastive.heads or config.matching.weight:
      scores = forward.score(params, forward.encode(params, image), text)
      found = {"cosine": scores.contrastive, "matching": scores.match_logit}
    if config.model.writes and not config.answering.weight:
      found["likelihood"] = np.stack(
        [to_host(forward.log_likelihood(params, image, text[:, k])) for k in (0, 1)], axis=1
      )
    return {method: to_host(values) for method, values in found.items() if values is not None}

  @staticmethod
  def check(settings: Eval, source, neighbours) -> None:
    if not isinstance(source, (Described, Winoground)):
      raise ValueError(f"a pairs evaluator needs a source of kind 'pairs', not {settings.source.kind!r}")


def winoground(scores: np.ndarray) -> dict[str, np.ndarray]:
  """True for the examples that are right, by name of the score: bool [N] each.

  Args:
    scores: [N, 2, 2], of each image with its own caption and with that of the other image.

  Returns:
    'text': each image prefers its own caption; 'image': each caption prefers its own image; 'group': both.
  """
  own, other = scores[..., 0], scores[..., 1]
  text, image = (own > other).all(axis=1), (own > other[:, ::-1]).all(axis=1)
  return {"text": text, "image": image, "group": text & image}
