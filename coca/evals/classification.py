"""Classification by the class head: top-1 and top-5, as shares between 0 and 1."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from coca.config import Config, Eval
from coca.config.special import Tokenizer
from coca.data.pipeline import Wants
from coca.data.records import Record, Records
from coca.data.texts import captions
from coca.devices.host import Lagged, to_host
from coca.evals.evaluator import Evaluator
from coca.evals.ranking import recall
from coca.evals.stream import Batch, Stream
from coca.evals.zero_shot import labelled
from coca.inference.forward import Forward


def described(record: Record) -> list[str]:
  """The first text of a record with a label. Raises BadRecord if it lacks either."""
  labelled(record)
  return captions(record)[:1]


class Classification(Evaluator):
  """The classes are those of the training data; a source that numbers them otherwise is read by their names.

  What has a class that training lacked is left out. A tie counts against the model.

  Args:
    config, forward, tokenizer: see `Evaluator`.
    settings: the evaluator's: source, batch, limit.
    source: images with labels.
    labels: names of the head's classes.

  Raises:
    ValueError: none of the source's classes is known.
  """

  def __init__(
    self,
    config: Config,
    settings: Eval,
    forward: Forward,
    tokenizer: Tokenizer,
    source: Records,
    labels: Sequence[str] = (),
  ):
    self.names, theirs = tuple(labels), tuple(source.label_names)
    number = {name: i for i, name in enumerate(self.names)}
    self._number = range(len(theirs)) if theirs == self.names else [number.get(name, -1) for name in theirs]
    if max(self._number, default=-1) < 0:
      raise ValueError(f"'{source.name}' has none of the classes that the model is trained on: {', '.join(labels[:5])}")
    self._reads = config.has_text_head
    wants = Wants(described if self._reads else labelled)
    self.stream = Stream(config, settings, forward, tokenizer, source, wants, lambda _, record: self.class_of(record))

  @staticmethod
  def check(settings: Eval, source: Records, neighbours: Records | None) -> None:
    if not source.label_names:
      raise ValueError(f"'{source.name}' has no labels; kinds 'tfds' and 'builtin' can have them")

  def class_of(self, record: Record) -> int:
    """Index into `names`, or -1."""
    return self._number[record.label] if 0 <= record.label < len(self._number) else -1

  def scorer(self, params) -> Callable[[Batch], np.ndarray]:
    """The classes' logits of a batch, all hosts' rows: float32 [B, C]."""
    return lambda batch: to_host(self._classify(params, batch))

  def _classify(self, params, batch: Batch):
    text = batch.device["text"][:, 0] if self._reads else None
    return self.stream.forward.classify(params, batch.device["image"], text)

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields 'top1', 'top5' and 'examples'."""
    logits, labels = Lagged(), []
    for batch in self.stream:
      logits.append(self._classify(params, batch))
      labels.append(np.where(batch.rows["weight"] > 0, batch.rows["label"], -1))
    labels = np.concatenate(labels)
    known = labels >= 0
    logits, labels = logits.concatenate()[known], labels[known]
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    rank = np.sum(~(logits < own), axis=1) - 1  # what is no number is not below it, either
    yield "top1", recall(rank, 1)
    yield "top5", recall(rank, 5)
    yield "examples", float(len(rank))
