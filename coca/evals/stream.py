"""The common part of all evaluators: records in batches over the mesh, and embeddings on the host.

Every process takes part in every call: batches are as many on each, the last one is padded with rows of weight 0, and
what is computed comes back whole to all of them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from coca.config import Config, Eval, Source
from coca.config.special import Special, Tokenizer
from coca.data import texts
from coca.data.pipeline import Wants, eval_batches, rows_of
from coca.data.prompts import in_prompt
from coca.data.records import Record, Records, Shard
from coca.decoding.decode import own_prompt
from coca.decoding.settings import beam_search
from coca.devices import sharding
from coca.devices.host import Lagged, round_up, to_host
from coca.inference.forward import Forward
from coca.models.outputs import Encoded


class View:
  """Some records of a source, each with a label of one's own.

  Args:
    source: what is looked at.
    indices: which of its records, in this order.
    label: (index in `source`, record) -> the label that stands in for the record's.
  """

  def __init__(self, source: Records, indices: Sequence[int] | np.ndarray, label: Callable[[int, Record], int]):
    self.source, self.indices, self.label = source, indices, label
    self.name, self.problems, self.label_names = source.name, source.problems, source.label_names
    self.shards = [Shard("records", 0, len(indices))]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, i: int) -> Record:
    index = int(self.indices[i])
    record = self.source[index]
    return dataclasses.replace(record, label=self.label(index, record))


def spread(length: int, limit: int) -> np.ndarray:
  """`limit` indices evenly spread over `length` records (a file's first ones are often alike); all if it is 0."""
  return np.arange(length) if limit <= 0 or limit >= length else np.arange(limit) * length // limit


def own_texts(settings: Source, record: Record) -> list[str]:
  """The texts of a record, or with the source's rule 'labels' one of all its label names, in the first prompt.

  Raises:
    BadRecord: there are none.
  """
  if settings.text != "labels":
    return texts.captions(record)
  names = ", ".join(texts.label_names(record))
  return [in_prompt(settings.prompts[0], names) if settings.prompts else names]


class Batch(NamedTuple):
  local: dict  # this host's rows, NumPy: 'image' (of videos, frames), 'text', 'text_weight', 'label', 'weight'
  device: dict  # the same, all hosts' rows, on the mesh
  rows: dict  # 'text', 'text_weight', 'label', 'weight' of all hosts' rows, NumPy


class Stream:
  """The batches of an evaluator's source, and the calls that its text towers take.

  Args:
    config: the run's settings.
    settings: the evaluator's.
    forward: compiled functions.
    tokenizer: the run's.
    source: its records; `settings.limit` picks that many, evenly spread.
    wants: the texts of a record.
    label: as in `View`; left out, the records' own labels.
    batch: of another stream, for which the functions are compiled; 0: as the settings say.
  """

  def __init__(
    self,
    config: Config,
    settings: Eval,
    forward: Forward,
    tokenizer: Tokenizer,
    source: Records,
    wants: Wants,
    label: Callable[[int, Record], int] | None = None,
    batch: int = 0,
  ):
    self.config, self.settings, self.forward, self.tokenizer = config, settings, forward, tokenizer
    self.wants = wants
    self.decoding = beam_search(settings.beams) if settings.beams > 1 else settings.decoding
    self.source = View(source, spread(len(source), settings.limit), label or (lambda index, record: record.label))
    self.frames = settings.frames if settings.source.videos else 0
    at_once = max(settings.batch // self.frames, 1) if self.frames else settings.batch  # a batch is of images
    self.batch = batch or round_up(min(at_once, len(self.source)), forward.mesh)
    self.host_rows = rows_of(sharding.batch_sharding(forward.mesh), self.batch)
    self.problems: list[str] = []  # of this host's records, in the first pass
    self._reported = False

  def __iter__(self) -> Iterator[Batch]:
    batches = eval_batches(
      self.config, self.source, self.wants, self.tokenizer, self.host_rows, self.batch, self.frames
    )
    found, quiet = [], True if jax.process_index() else None  # None: no bar where there is no terminal
    for local, problems in tqdm(
      batches, self.source.name, -(-len(self.source) // self.batch), leave=False, delay=2, disable=quiet
    ):
      found += problems
      device = self.forward.put(local)
      rows = {k: to_host(device[k]) if jax.process_count() > 1 else local[k] for k in local if k != "image"}
      yield Batch(local, device, rows)
    if found and not self._reported:
      logging.warning("%d records of %s can't be used, such as: %s", len(found), self.source.name, "; ".join(found[:3]))
      self._reported, self.problems = True, found

  def write(self, writer, batch: Batch, encoded: Encoded) -> np.ndarray:
    """A caption for each of a batch's images, all hosts' rows, without the prompt: token ids [B, T].

    Args:
      writer: `forward.writer(params)`.
      batch: one of this stream's.
      encoded: its images.
    """
    forward, decoding = self.forward, self.decoding
    special = Special(self.tokenizer.bos, self.tokenizer.eos)
    given, begins = own_prompt(
      self.config, self.tokenizer, len(self.host_rows), decoding.max_length, self.settings.prompt
    )
    if decoding.strategy == "sample":
      given["ids"] = batch.local["label"].astype(np.uint32)
    found = forward.caption(writer, encoded, decoding, special=special, **forward.put(given))
    return to_host(found.text)[:, 0, begins:]

  def kinds(self, ids: np.ndarray) -> np.ndarray:
    """Token ids [N, L] -> int [N], one number for all equal texts: equal as far as a model can tell, by their tokens.

    A text in which the tokenizer knows nothing (its tokens are unknown, all of them) equals none but itself.
    """
    unique, kind = np.unique(ids, axis=0, return_inverse=True)
    return np.where(texts.all_unknown(self.tokenizer, ids), len(unique) + np.arange(len(ids)), kind.reshape(-1))

  def embed_texts(self, params, ids: np.ndarray) -> np.ndarray:
    """Token ids [N, L], the same on every host -> float32 [N, E], unit length."""
    out, batch = Lagged(), self.batch * max(self.frames, 1)
    rows = rows_of(sharding.batch_sharding(self.forward.mesh), batch)
    for start in range(0, len(ids), batch):
      chunk = ids[start : start + batch]
      padded = np.concatenate([chunk, np.repeat(chunk[:1], batch - len(chunk), axis=0)])
      out.append(self.forward.embed_texts(params, self.forward.put({"text": padded[rows]})["text"]))
    return out.concatenate()[: len(ids)]
