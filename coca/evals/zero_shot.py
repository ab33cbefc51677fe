"""Zero-shot classification as CLIP (arXiv 2103.00020, section 3.1) and CoCa (section 4.2.2) do it.

A class is embedded through every template, the unit embeddings are averaged and made unit length again; an image's
class is the one with the largest cosine. Numbers are shares between 0 and 1.
"""

import re
from collections.abc import Callable, Iterator, Sequence

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
from coca.evals.evaluator import Evaluator
from coca.evals.pixels import nearest
from coca.evals.ranking import ranks, recall
from coca.evals.stream import Batch, Stream
from coca.files.threads import read_ahead
from coca.inference.forward import Forward

MAX_NEIGHBOURS = 200_000  # records: above this the baseline is a job of its own


class ZeroShot(Evaluator):
  """Top-1 and top-5 accuracy, and beside them what pixels alone would reach.

  The classes are the source's `label_names`, each by itself even where two have one name (in CLIP's names for ImageNet
  there are two cranes and two maillots); if it has none, the different first texts of its records. Ties count against
  the model, but for those between equal names, of which the first in line is taken (`coca.evals.ranking.ranks`).

  Args:
    config, forward, tokenizer: see `Evaluator`.
    settings: the evaluator's: source, batch, limit, templates, pixel_neighbours.
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
    self.names = tuple(source.label_names) or tuple(dict.fromkeys(_first_texts(source)))
    if not self.names:
      raise ValueError(f"'{source.name}' has neither label_names nor texts: there are no classes to choose from")
    check_names(source, self.names)
    self._class_of = None if source.label_names else {name: i for i, name in enumerate(self.names)}
    self.templates, self.length = settings.templates, config.model.text.length
    self.stream = Stream(
      config, settings, forward, tokenizer, source, Wants(labelled), lambda _, record: self.class_of(record)
    )
    self.neighbours = neighbours
    self._pixel_top1 = None
    self._kind = self.stream.kinds(np.stack([tokenizer.encode(name, self.length) for name in self.names]))
    self._ids = None

  @staticmethod
  def check(settings: Eval, source: Records, neighbours: Records | None) -> None:
    if neighbours is not None and len(neighbours) > MAX_NEIGHBOURS:
      raise ValueError(
        f"pixel_neighbours: '{neighbours.name}' has {len(neighbours)} records, the baseline looks at "
        f"no more than {MAX_NEIGHBOURS}; leave it out"
      )
    check_names(source, source.label_names)

  def class_of(self, record: Record) -> int:
    """Index into `names`, or -1."""
    if self._class_of is None:
      return record.label if 0 <= record.label < len(self.names) else -1
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
    """Yields 'top1', 'top5', 'examples' and, on the first process, 'pixel_top1'."""
    classes = self.classes(params)
    embedded, labels = Lagged(), []
    for batch in self.stream:
      embedded.append(self.stream.forward.embed_images(params, batch.device["image"]))
      labels.append(np.where(batch.rows["weight"] > 0, batch.rows["label"], -1))
    labels = np.concatenate(labels)
    known = labels >= 0
    labels = labels[known]
    rank = ranks(
      embedded.concatenate()[known],
      classes,
      lambda start, stop: labels[start:stop, None] == np.arange(len(classes)),
      kind=self._kind,
    )
    yield "top1", recall(rank, 1)
    yield "top5", recall(rank, 5)
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


def check_names(source: Records, names: Sequence[str]) -> None:
  """Raises ValueError if the names of a source's classes say nothing."""
  if names and all(re.fullmatch(r"n\d{8}", name) for name in names):
    raise ValueError(
      f"the label names of '{source.name}' are WordNet ids ({names[0]}, ...), which no text tower "
      "knows; write the classes' names into label.labels.txt of the data set, one a line"
    )


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
