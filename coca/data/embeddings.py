"""States of a frozen image encoder, kept on disk in place of decoding and encoding each image anew.

    DIR/encoder.json       what is kept, of which encoder and of what: `coca.inference.embeddings.fingerprint`
    DIR/SOURCE/PART.npy    a row a record, in the order of the records; the file exists when the part is finished

A row has the checksum of its record's image, so that a source that has changed since is noticed.
"""

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from coca.config import Config
from coca.data.records import BadRecord, Record, Shard, ShardedRecords, image_checksum, split
from coca.files.threads import read_ahead

PART = 16_384  # records of a file at most
BYTES = 2**27  # of a file, about
SAMPLE = 64  # records of a source that are compared with the rows when these are opened


class States(NamedTuple):
  """Kept of each image."""

  # 'class_token': the encoder's first state; 'tokens': all of them; 'pooled': what the image embedding is made from.
  kind: Literal["class_token", "tokens", "pooled"]
  shape: tuple[int, ...]
  type: str = "float32"  # or 'float16'
  labelled: bool = False  # with the record's label, for losses and probes that read nothing else of it

  @property
  def row(self) -> np.dtype:
    """The image's checksum; its label; and its state, NaN where it could not be decoded."""
    label = [("label", "<i4")] if self.labelled else []
    return np.dtype([("image", "<u4"), *label, ("state", np.dtype(self.type).newbyteorder("<"), self.shape)])


def states_of(config: Config) -> States:
  """That which `config.data.embeddings` keeps for a run's loss: the class token, or what the class head pools."""
  image, classes = config.model.image, config.classification
  if not classes.weight:
    return States("class_token", (image.width,))
  if classes.pool == "class_token":
    return States("class_token", (image.width,), config.data.embeddings_type, True)
  return States("tokens", (image.tokens + image.class_token, image.width), config.data.embeddings_type, True)


def parts_of(source: ShardedRecords, states: States) -> list[Shard]:
  return split(source.shards, min(PART, max(BYTES // states.row.itemsize, 1)))


def path_of(folder: str, name: str, part: Shard) -> Path:
  """The file of a part of the source `name`."""
  return Path(folder).expanduser() / name / f"{part.name}.npy"


class Embedded:
  """The states of a source's images.

  Raises:
    FileNotFoundError, ValueError: a part is missing, or is no such file; or, where rows have labels, a sample of them
      is of other records than the source's.
  """

  def __init__(self, folder: str, name: str, source: ShardedRecords, states: States):
    parts = parts_of(source, states)
    self._starts = [part.start for part in parts]
    self._paths = [path_of(folder, name, part) for part in parts]
    self.rows = [np.load(path, mmap_mode="r") for path in self._paths]
    for part, path, rows in zip(parts, self._paths, self.rows, strict=True):
      if rows.dtype != states.row or len(rows) != part.stop - part.start:
        raise ValueError(f"{path} is damaged, or of a source that has changed; delete it, and it is made again")
    if states.labelled:
      self._compare(source)

  def state(self, number: int, record: Record) -> np.ndarray:
    """fp32 [D], of the image of record `number`.

    Raises:
      BadRecord: the image could not be decoded.
      ValueError: it was another image.
    """
    row, path = self._row(number)
    if row["image"] != image_checksum(record):
      raise ValueError(f"record {number}, '{record.key}', has another image than {path} is of; delete that file")
    return _readable(row["state"])

  def labelled(self, number: int) -> tuple[np.ndarray, int]:
    """State and label of record `number`, which is not read again. Raises BadRecord as `state`."""
    row, _ = self._row(number)
    return _readable(row["state"]), int(row["label"])

  def _row(self, number: int) -> tuple[np.void, Path]:
    part = bisect.bisect_right(self._starts, number) - 1
    return self.rows[part][number - self._starts[part]], self._paths[part]

  def _compare(self, source: ShardedRecords) -> None:
    def read(number):
      try:
        record = source[number]
        return image_checksum(record), record.label
      except BadRecord:
        return None

    numbers: Sequence[int] = sorted({n * (len(source) - 1) // (SAMPLE - 1) for n in range(SAMPLE)})
    for number, found in zip(numbers, read_ahead(read, numbers, 16), strict=True):
      row, path = self._row(number)
      if found and found != (row["image"], row["label"]):
        raise ValueError(f"record {number} has another image or label than {path} is of; delete {path.parent}")


def _readable(state: np.ndarray) -> np.ndarray:
  if np.isnan(state.flat[0]):
    raise BadRecord("its image could not be decoded when it was embedded")
  return np.array(state)
