"""CapFilt's stage: records of a source -> rows of sidecars (BLIP section 3.3).

A text depends on the models, the settings and its record's key; its scores on the text and the image. Batches are cut
within a shard and always filled up to one size, so a shard's rows are the same wherever and whenever it is run.

While the devices work on a batch, threads read and decode the images of the next ones, and the texts of the one before
are tokenized for the filter.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from coca import __version__
from coca.capfilt.models import Models
from coca.capfilt.settings import decoding_text, threshold
from coca.data.records import BadRecord, Record, Records, image_checksum
from coca.data.sidecars import SCHEMA, SCORES, plain
from coca.data.texts import collapse
from coca.devices.hardware import cores
from coca.devices.host import to_host
from coca.files.threads import read_ahead

AHEAD = 3  # batches of images that are read and decoded ahead


class TooManyFailed(RuntimeError):
  """More images failed than `config.max_failed` allows."""


@dataclass
class _Item:
  """A record on its way."""

  index: int
  record: Record | None = None
  image: dict | None = None  # prepared for each model, until it is on the device
  checksum: int | None = None  # of the encoded image, if it could be prepared
  problem: str | None = None
  written: list[str] = field(default_factory=list)

  @property
  def is_usable(self) -> bool:
    """True if its image could be prepared."""
    return self.checksum is not None

  @property
  def human(self) -> bool:
    """True if its texts are by humans: nothing is written beside them."""
    own = self.record.texts if self.record else ()
    return bool(own) and all(text.origin == "human" for text in own)


@dataclass
class _Batch:
  shard: str
  items: list[_Item]
  last: bool  # of its shard
  encoded: dict | None = None
  tokens: object = None  # of the captioner, on the device
  scores: object = None  # of the filter, likewise


class Stage:
  """The models at work on a source.

  Args:
    models: loaded ones.
    source: an opened source.
  """

  def __init__(self, models: Models, source: Records):
    self.models, self.source, self.settings = models, source, models.settings
    self.threshold = threshold(self.settings)
    self._same = {"version": version(), "filter": models.identities["filter"]}
    self._decoding = decoding_text(self.settings)

  def run(self, shards: Iterable[tuple[str, Sequence[int]]]) -> Iterator[tuple[str, dict[str, list]]]:
    """Yields (name, columns of the sidecar) for each (name, record numbers, ascending), in their order."""
    encoded, scored, rows = deque(), deque(), []
    for batch in self._batches(shards):
      if batch:
        encoded.append(self._begin(batch))
      if encoded and (len(encoded) > 1 or not batch):
        scored.append(self._score(encoded.popleft()))
      if scored and (len(scored) > 1 or not batch):
        done = scored.popleft()
        rows += self._rows(done)
        if done.last:
          yield done.shard, {name: [row.get(name) for row in rows] for name in SCHEMA.names}
          rows = []

  def _batches(self, shards) -> Iterator[_Batch | None]:
    """Batches whose images are read, and None twice at the end, which empties the pipeline."""
    size = self.models.batch
    parts, ahead = itertools.tee(
      (name, numbers[start : start + size], start + size >= len(numbers))
      for name, numbers in shards
      for start in range(0, max(len(numbers), 1), size)
    )
    items = read_ahead(
      self._read, (int(n) for _, numbers, _ in ahead for n in numbers), self.settings.threads or cores(), AHEAD * size
    )
    for name, numbers, last in parts:
      yield _Batch(name, list(itertools.islice(items, len(numbers))), last)
    yield None
    yield None

  def _read(self, index: int) -> _Item:
    item = _Item(index)
    try:
      item.record = self.source[index]
      item.image = self.models.prepare(item.record.image)
      item.checksum = image_checksum(item.record)
    except BadRecord as e:
      item.problem = str(e)
    return item

  def _begin(self, batch: _Batch) -> _Batch:
    """Starts the devices on the images and on the captions."""
    if not any(item.image for item in batch.items):
      return batch
    blank = self.models.blank()
    batch.encoded = self.models.encode([item.image or blank for item in batch.items])
    if self.models.captioner and any(item.image and not item.human for item in batch.items):
      keys = [item.record.key if item.record else "" for item in batch.items]
      batch.tokens = self.models.write(batch.encoded, np.array([draw_id(key) for key in keys], np.uint32))
    for item in batch.items:
      item.image = None  # the pixels are on the device
    return batch

  def _score(self, batch: _Batch) -> _Batch:
    """Waits for the captions and starts the devices on the scores."""
    if batch.tokens is not None:
      for item, texts in zip(batch.items, self.models.read(batch.tokens), strict=False):
        if item.is_usable and not item.human:
          item.written = [collapse(text) for text in texts]
      batch.tokens = None
    texts = [_texts(item) if item.is_usable else [] for item in batch.items]
    if self.models.filter and batch.encoded and any(texts):
      batch.scores = self.models.score(batch.encoded, [[text for text, _ in pairs] for pairs in texts])
    batch.encoded = None
    return batch

  def _rows(self, batch: _Batch) -> list[dict]:
    scores = {}
    if batch.scores is not None:
      scores = {
        name: to_host(getattr(batch.scores, name)) for name in SCORES if getattr(batch.scores, name) is not None
      }
    rows = []
    for n, item in enumerate(batch.items):
      # Those of a blank in the place of an image would look like any other.
      rows += self._of_image(item, {name: values[n] for name, values in scores.items()} if item.is_usable else {})
    return rows

  def _of_image(self, item: _Item, scores: dict[str, np.ndarray]) -> list[dict]:
    """The rows of a record: its own texts, then the best of those that were written."""
    row = {"index": item.index, "key": plain(item.record.key) if item.record else "", "image": item.checksum}
    if not item.record or not _texts(item):
      return [row | {"problem": item.problem or "no text", "kept": False}]
    own, written = [], []
    for k, (text, origin) in enumerate(_texts(item)):
      made = self._judged({name: float(values[k]) for name, values in scores.items()}, origin, item.problem)
      made |= row | {"text": text, "origin": origin} | self._same
      if origin == "synthetic":
        made |= {"decoding": self._decoding, "captioner": self.models.identities["captioner"]}
        if not text:
          made |= {
            "text": None,
            "origin": None,
            "kept": False,
            "problem": "the captioner wrote no word",
            **dict.fromkeys(scores),
          }
      (own if k < len(item.record.texts) else written).append(made)
    if self.settings.best < len(written) and not self.settings.decoding.rerank:

      def rank(made):
        score = made.get(self.settings.rank_by)
        return -np.inf if score is None or made["text"] is None else score

      written.sort(key=rank, reverse=True)
    return own + written[: self.settings.best]

  def _judged(self, scores: dict[str, float], origin: str, problem: str | None) -> dict:
    """Scores, whether the text is kept, and why there is no score where one is missing."""
    wrong = [name for name, value in scores.items() if not np.isfinite(value)]
    problem = problem or (f"the filter's {wrong[0]} score is not finite" if wrong else None)
    judged = {name: value for name, value in scores.items() if name not in wrong} | {"problem": problem}
    if origin == "human":
      return judged | {"kept": True}
    if problem:
      return judged | {"kept": False}
    if self.threshold is None:
      return judged | {"kept": None}
    return judged | {
      "kept": all(np.float32(judged[name]) >= np.float32(least) for name, least in self.threshold.items())
    }


def _texts(item: _Item) -> list[tuple[str, str]]:
  """(text, origin) of all texts of a record, its own ones first."""
  own = [(collapse(text.text), text.origin) for text in item.record.texts]
  return own + [(text, "synthetic") for text in item.written]


def draw_id(key: str) -> int:
  """A number below 2^32 from a record's key: with the seed it decides what is drawn for it."""
  return int.from_bytes(hashlib.sha256(plain(key).encode()).digest()[:4], "little")


def failed_images(columns: dict[str, list]) -> tuple[int, int, str]:
  """The number of images with a problem in some row, that of all, and the first of them with its problem."""
  rows = zip(columns["index"], columns["key"], columns["problem"], strict=True)
  bad = {index: f"{key or f'record {index}'}: {problem}" for index, key, problem in rows if problem}
  return len(bad), len(set(columns["index"])), next(iter(bad.values()), "")


def version() -> str:
  """The version of this code, for provenance."""
  return f"coca {__version__}"
