"""From sources to batches, by Grain.

Position n = step * batch + row of the stream is a pure function of the config's seed and n, whatever the number of
hosts, threads and restarts, so the step is all that has to be saved to go on:

    record numbers of a source -> shuffle -> repeat, another order each epoch -> random_map (read, choose, decode)
    -> mix of all sources -> the rows that this host holds -> batch

Grain draws a random_map's numbers from the seed and the position in the source's stream. Nothing in the stream is left
out or moved: a record that cannot be used becomes a blank image without text and weight 0, and its reason travels
with the batch.
"""

import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from jax.sharding import Sharding

from coca.config import Config
from coca.config.special import Tokenizer
from coca.config.stages import spans
from coca.data import images, regions
from coca.data.examples import Examples
from coca.data.inputs import blank, eval_input
from coca.data.parts import Batch, Rows, read
from coca.data.records import BadRecord, Record, Records, Shard, ShardedRecords, image_checksum
from coca.data.sources import open_source


def rows_of(sharding: Sharding, batch: int) -> np.ndarray:
  """Rows of a global batch that this process has to supply for its devices, ascending, each once."""
  held = np.zeros(batch, bool)
  for index in sharding.addressable_devices_indices_map((batch,)).values():
    held[index] = True
  return np.flatnonzero(held)


def open_sources(config: Config) -> dict[str, ShardedRecords]:
  """The training sources by name.

  Raises:
    FileNotFoundError, ValueError: none is named, one is not there, can't be read or is empty; the message names it.
  """
  if not config.data.sources:
    raise ValueError("config.data.sources is empty: there is nothing to train on")
  sources = {}
  for name, settings in config.data.sources.items():
    sources[name] = open_source(settings, f"config.data.sources.{name}")
    if not len(sources[name]):
      problems = "; ".join(sources[name].problems[:5])
      raise ValueError(f"config.data.sources.{name} holds no records. {problems}".rstrip())
  return sources


def train_batches(
  config: Config,
  sources: dict[str, ShardedRecords],
  tokenizer: Tokenizer,
  rows: Rows,
  start_step: int = 0,
  labels: Sequence[str] = (),
) -> Iterator[tuple[Batch, list[str]]]:
  """This host's part of the endless stream of training batches.

  Args:
    config: the run; `config.data.sources` says how each source is mixed in and which texts are used,
      `config.data.prompt` what is put in front of each.
    sources: opened ones, by the same names.
    tokenizer: for the texts.
    rows: row numbers of the global batch (of `config.data.batch` rows), ascending: `rows_of`.
    start_step: the first batch is that of this step.
    labels: names of the classes (`coca.data.labels`); looked at where these are answers.

  Yields:
    {"image": uint8 [b, S, S, 3], "text": int32 [b, L], "last": int32 [b], what the decoder has to write in the last
    place (the text's EOS, but a word where the text was cut), "hashes": uint32 [b, 2], the same for equal texts
    (`coca.data.texts.equality`), "weight": float32 [b]}, b = len(rows), and the reasons of its unusable records (weight
    0, text all PAD). Closing the iterator stops its threads. With `config.answering.weight` the text is a question, and
    "answers" int32 [b, K, A] are the different answers to it with "answer_weight" float32 [b, K], each one's share of
    the annotators times the source's `answer_weight`; 0 and PAD fill up. With `config.contrastive.texts` K above 1,
    "more_texts" int32 [b, K-1, L] are the texts that follow in the draw, with "more_hashes" uint32 [b, K-1, 2]; all
    else is as with 1. With `config.classification.weight`, "label" int32 [b] is the image's class, -1 where it has
    none: of a model that reads no texts, such a record is unusable. Where the classes are answers, the text is a
    question, and with `config.captioning.weight` an answer behind it, one annotator's; "given" int32 [b] is the number
    of its tokens, BOS included, "label" int32 [b, K] has the different answers, with the shares of annotators times the
    source's `answer_weight`, "share" float32 [b, K], and K is `config.answering.answers`.
    With `config.self_critical.weight`, "references" object [b] are all texts of the record, a line each; these stay on
    the host.
    A model that reads regions has a `Regions` of arrays in the place of the image, and with `config.data.embeddings`
    it is what the encoder made of it (`coca.data.embeddings.states_of`): fp32 [b, D], or of a classifier [b, N, D] in
    `config.data.embeddings_type`. S is that of the step's stage (`config.stages`).
  """
  stages = [stage for stage in spans(config) if stage.last > start_step]
  if len(stages) < 2:
    return _train_batches(stages[0].config if stages else config, sources, tokenizer, labels, rows, start_step)
  # Each stage reads its own positions in the stream, all of them: those of a size end where its steps end.
  return _in_turn(
    [
      _train_batches(stage.config, sources, tokenizer, labels, rows, max(start_step, stage.first), stage.last)
      for stage in stages[:-1]
    ]
    + [_train_batches(stages[-1].config, sources, tokenizer, labels, rows, stages[-1].first)]
  )


def _in_turn(streams: Sequence[Iterator]) -> Iterator:
  """`itertools.chain`, which can be closed."""
  for stream in streams:
    yield from stream


def _train_batches(config: Config, sources, tokenizer, labels, rows, start: int, end: int | None = None) -> Iterator:
  """`train_batches` of one stage: from that of step `start` on, before that of step `end`."""
  data = config.data
  streams = [_stream(name, sources[name], config, tokenizer, labels) for name in sorted(data.sources)]
  weights = [data.sources[name].weight for name in sorted(data.sources)]
  if not any(weights):
    weights = [len(sources[name]) for name in sorted(data.sources)]
  mixed = grain.MapDataset.mix(streams, weights) if len(streams) > 1 else streams[0]
  return read(mixed.__getitem__, rows, data.batch, start, end or sys.maxsize // data.batch, config)


def _stream(
  name: str, source: ShardedRecords, config: Config, tokenizer: Tokenizer, labels: Sequence[str]
) -> grain.MapDataset:
  """A source's endless stream of examples, in an order of its own: other sources do not change it."""
  order, draws = np.random.SeedSequence([config.seed, zlib.crc32(name.encode())]).generate_state(2).tolist()
  example = Examples(name, source, config, tokenizer, labels)
  return grain.MapDataset.range(len(source)).shuffle(seed=order).repeat().random_map(example, seed=draws)


class Wants(NamedTuple):
  """The part of each record that an evaluation goes by, besides its image and its label."""

  texts: Callable[[Record], Sequence[str]]  # raises BadRecord where a record is of no use
  most: int = 1  # the number of these texts that count, the first ones
  ends: bool = True  # a text that has to be cut ends with EOS all the same


def eval_batches(
  config: Config, source: Records, wants: Wants, tokenizer: Tokenizer, rows: Rows, batch: int, frames: int = 0
) -> Iterator[tuple[Batch, list[str]]]:
  """This host's part of one pass over a source, in its order.

  Every host gets as many batches; the last ones are filled up with rows of weight 0.

  Args:
    config: the run.
    source: an opened source.
    wants: the texts of a record; K is `wants.most`.
    tokenizer: for the texts.
    rows: row numbers of the global batch, ascending: `rows_of`.
    batch: rows of a global batch.
    frames: of a video, where the records are videos; 0: they are images.

  Yields:
    {"image": uint8 [b, S, S, 3], "text": int32 [b, K, L], "text_weight": float32 [b, K], "label": int32 [b],
    "weight": float32 [b]}, b = len(rows), and the reasons of its unusable records (weight 0). Of videos, "image" is
    uint8 [b, frames, S, S, 3].
  """
  length = config.model.text.length
  count, k = len(source), wants.most
  nothing = blank(config, frames)

  def example(n: int) -> tuple[Batch, str]:
    out = {
      "image": nothing,
      "text": np.zeros((k, length), np.int32),
      "text_weight": np.zeros(k, np.float32),
      "label": np.int32(-1),
      "weight": np.float32(0),
    }
    if n >= count:
      return out, ""
    where = source.name
    try:
      record = source[n]
      where = f"{source.name} {record.key}"
      found = wants.texts(record)[:k]
      if config.model.reads_regions:
        image = regions.padded(record.regions, config.model, tokenizer, record.question)
      else:
        image = eval_input(record, config, frames)
    except BadRecord as e:
      return out, f"{where}: {e}"
    for j, text in enumerate(found):
      out["text"][j] = tokenizer.encode(text, length, wants.ends)
      out["text_weight"][j] = 1
    out |= {"image": image, "label": np.int32(record.label), "weight": np.float32(1)}
    return out, ""

  return read(example, rows, batch, 0, -(-count // batch), config)


def image_batches(
  config: Config, source: Records, part: Shard, rows: Rows, batch: int, as_evaluated: bool
) -> Iterator[tuple[Batch, list[str]]]:
  """This host's part of one pass over the images of some records.

  Args:
    config: the run.
    source: an opened source.
    part: the records.
    rows: row numbers of the global batch, ascending: `rows_of`.
    batch: rows of a global batch.
    as_evaluated: decodes as evaluation does; otherwise as training without augmentation.

  Yields:
    {"image": uint8 [b, S, S, 3], "sum": uint32 [b], of the encoded image, "label": int32 [b], "weight": float32 [b]},
    b = len(rows), and the reasons of unusable records (weight 0).
  """
  size, data, rng = config.model.image.size, config.data, np.random.default_rng(0)
  background, nothing = images.colour(data.background), blank(config)

  def example(n: int) -> tuple[Batch, str]:
    out = {"image": nothing, "sum": np.uint32(0), "label": np.int32(-1), "weight": np.float32(0)}
    if part.start + n >= part.stop:
      return out, ""
    where = source.name
    try:
      record = source[part.start + n]
      where = f"{source.name} {record.key}"
      out["sum"], out["label"] = np.uint32(image_checksum(record)), np.int32(record.label)
      if as_evaluated:
        image = images.decode_eval(
          record.image, size, background, data.max_pixels, data.squash, data.resize, data.filter
        )
      else:
        image = images.decode_train(record.image, size, rng, background=background, max_pixels=data.max_pixels)
    except BadRecord as e:
      return out, f"{where}: {e}"
    return out | {"image": image, "weight": np.float32(1)}, ""

  return read(example, rows, batch, 0, -(-(part.stop - part.start) // batch), config)
