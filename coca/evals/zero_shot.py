"""Zero-shot classification as CLIP (arXiv 2103.00020, section 3.1) and CoCa (section 4.2.2) do it.

A class is embedded through every template, the unit embeddings are averaged and made unit length again; an image's
class is the one with the largest cosine. Numbers are shares between 0 and 1.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from coca.config import Config, Eval
from coca.config.special import Tokenizer
from coca.data import texts
from coca.data.pipeline import Wants
from coca.data.prompts import ensemble, in_templates
from coca.data.records import BadRecord, Record, Records
from coca.devices.host import Lagged, to_host
from coca.evals.class_names import classes_of
from coca.evals.evaluator import Evaluator
from coca.evals.pixels import nearest
from coca.evals.ranking import BLOCK, ranks, recall
from coca.evals.stream import Batch, Stream
from coca.files.threads import read_ahead
from coca.inference.forward import Forward

MAX_NEIGHBOURS = 200_000  # records: above this the baseline is a job of its own
BEST = 5  # classes of an image that are kept


class Answers(NamedTuple):
  """The outcome for each image that counts."""

  index: np.ndarray  # int [N], its place in the stream's source
  label: np.ndarray  # int [N], its class
  rank: np.ndarray  # int [N], of its class
  best: np.ndarray  # int [N, K], the K classes of the highest cosine, best first; of equal ones the first
  cosine: np.ndarray  # float32 [N, K]
  classes: int  # there are


class ZeroShot(Evaluator):
  """Top-1 and top-5 accuracy, and beside them what pixels alone would reach.

  The classes are those that the source's `label_names` mean (`coca.evals.class_names`), each by itself even where two
  have one name (there may be two cranes); if it has none, the different first texts of its records. Ties count against
  the model, but for those between equal names, of which the first in line is taken (`coca.evals.ranking.ranks`).

  Args:
    config, forward, tokenizer: see `Evaluator`.
    settings: the evaluator's: source, batch, limit, templates, classes, pixel_neighbours.
    source: images to classify.
    neighbours: the source that `settings.pixel_neighbours` names, if any.

  Raises:
    ValueError: no classes, or names that say nothing.
  """

  def __init__(
    self,
    config: Config,
    settings: Eval,
    forward: Forward,
    tokenizer: Tokenizer,
    source: Records,
    neighbours: Records | None = None,
  ):
    self.names, self._number = classes_of(source.label_names, settings.classes)
    if not source.label_names:
      self.names = tuple(dict.fromkeys(_first_texts(source)))
    if not self.names:
      raise ValueError(f"'{source.name}' has neither label_names nor texts: there are no classes to choose from")
    self._class_of = None if source.label_names else {name: i for i, name in enumerate(self.names)}
    self.templates, self.length = settings.templates, config.model.text.length
    self.stream = Stream(
      config, settings, forward, tokenizer, source, Wants(labelled), lambda _, record: self.class_of(record)
    )
    self.neighbours = neighbours
    self._pixel_top1 = None
    self._kind = self.stream.kinds(np.stack([tokenizer.encode(name, self.length) for name in self.names]))
    self._ids = None
    self.keeps, self.answers = False, None  # whether `run` keeps them, and those of the last

  @staticmethod
  def check(settings: Eval, source: Records, neighbours: Records | None) -> None:
    if neighbours is not None and len(neighbours) > MAX_NEIGHBOURS:
      raise ValueError(
        f"pixel_neighbours: '{neighbours.name}' has {len(neighbours)} records, the baseline looks at "
        f"no more than {MAX_NEIGHBOURS}; leave it out"
      )
    try:
      classes_of(source.label_names, settings.classes)
    except ValueError as e:
      raise ValueError(f"'{source.name}': {e}") from None

  def class_of(self, record: Record) -> int:
    """Index into `names`; -1 for a class that does not count, and one above `names` for a label without a name."""
    if self._class_of is None:
      if record.label >= len(self._number):
        return len(self.names) + record.label
      return self._number[record.label] if record.label >= 0 else -1
    return self._class_of.get(texts.collapse(record.texts[0].text), -1) if record.texts else -1

  def classes(self, params) -> np.ndarray:
    """Embeddings of `names`: float32 [C, E], unit length."""
    if self._ids is None:
      self._ids = np.stack(
        [self.stream.tokenizer.encode(text, self.length) for text in in_templates(self.names, self.templates)]
      )
    return ensemble(self.stream.embed_texts(params, self._ids), len(self.templates))

  def scorer(self, params) -> Callable[[Batch], np.ndarray]:
    """The cosines of a batch, all hosts' rows, with the classes: float32 [B, C]."""
    classes = self.classes(params)
    return lambda batch: to_host(self.stream.forward.embed_images(params, batch.device["image"])) @ classes.T

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields 'top1', 'top5', 'mean_per_class_recall' (of the classes that have images), 'examples' and, on the first
    process, 'pixel_top1'.

    Raises:
      ValueError: an image has a label beyond the class names.
    """
    classes = self.classes(params)
    embedded, labels = Lagged(), []
    for batch in self.stream:
      embedded.append(self.stream.forward.embed_images(params, batch.device["image"]))
      labels.append(np.where(batch.rows["weight"] > 0, batch.rows["label"], -1))
    labels = np.concatenate(labels)
    if labels.max(initial=-1) >= len(self.names):
      raise ValueError(
        f"'{self.stream.source.name}' has {len(self._number)} class names and an image with label "
        f"{labels.max() - len(self.names)}, counted from 0: write a name for each class, in the order of their numbers"
      )
    known = np.flatnonzero(labels >= 0)
    labels, images = labels[known], embedded.concatenate()[known]
    rank = ranks(
      images,
      classes,
      lambda start, stop: labels[start:stop, None] == np.arange(len(classes)),
      kind=self._kind,
    )
    if self.keeps:
      self.answers = Answers(known, labels, rank, *_best(images, classes), len(classes))
    yield "top1", recall(rank, 1)
    yield "top5", recall(rank, 5)
    yield "mean_per_class_recall", mean_per_class(rank < 1, labels)
    yield "examples", float(len(rank))
    if self.neighbours is not None and jax.process_index() == 0:
      if self._pixel_top1 is None:
        self._pixel_top1 = pixel_top1(self.stream.source, self.neighbours)
      yield "pixel_top1", self._pixel_top1


def labelled(record: Record) -> tuple[str, ...]:
  """No text: the classes' names are all that is read. Raises BadRecord without a label."""
  if record.label < 0:
    raise BadRecord("no label")
  return ()


def _best(images: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  best, cosine = [np.empty((0, min(BEST, len(classes))), int)], [np.empty((0, min(BEST, len(classes))), np.float32)]
  for start in range(0, len(images), BLOCK):
    scores = images[start : start + BLOCK] @ classes.T
    best.append(np.argsort(-scores, axis=1, kind="stable")[:, :BEST])
    cosine.append(np.take_along_axis(scores, best[-1], axis=1))
  return np.concatenate(best), np.concatenate(cosine)


def mean_per_class(right: np.ndarray, labels: np.ndarray) -> float:
  """The mean over classes of the share of right answers; of classes that have any. bool [N], int [N] -> share."""
  images = np.bincount(labels)
  hits = np.bincount(labels, right)
  return float(np.mean(hits[images > 0] / images[images > 0])) if len(labels) else float("nan")


def pixel_top1(images: Records, neighbours: Records) -> float:
  """Accuracy of taking over the first text of the nearest training image (`coca.evals.pixels.nearest`).

  Right: it is the image's own first text, character by character.

  Args:
    images: source to classify.
    neighbours: source of the training images.
  """
  return float(np.mean([found.text == found.taken_over for found in nearest(images, neighbours)]))


def _first_texts(source: Records) -> Iterator[str]:
  def read(i):
    try:
      return source[i].texts[:1]
    except BadRecord:
      return ()  # counted where its image is wanted

  found = read_ahead(read, range(len(source)), 16)
  for first in tqdm(found, "class names", len(source), disable=None, delay=5):
    for text in first:
      yield texts.collapse(text.text)
