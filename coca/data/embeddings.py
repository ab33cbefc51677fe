"""States of a frozen image encoder, kept on disk in place of decoding and encoding each image anew.

    DIR/encoder.json       which encoder made them, and of what: `coca.training.embeddings.fingerprint`
    DIR/SOURCE/PART.npy    a row a record, in the order of the records; the file exists when the part is finished

A row has the checksum of its record's image, so that a source that has changed since is noticed.
"""

import bisect
from pathlib import Path

import numpy as np

from coca.data.records import BadRecord, Record, Shard, ShardedRecords, image_checksum, split

PART = 16_384  # records of a file


def row_type(width: int) -> np.dtype:
  """The image's checksum; and its state, NaN where it could not be decoded."""
  return np.dtype([("image", "<u4"), ("state", "<f4", (width,))])


def parts_of(source: ShardedRecords) -> list[Shard]:
  return split(source.shards, PART)


def path_of(folder: str, name: str, part: Shard) -> Path:
  """The file of a part of the source `name`."""
  return Path(folder).expanduser() / name / f"{part.name}.npy"


class Embedded:
  """The states of a source's images.

  Raises:
    FileNotFoundError, ValueError: a part is missing, or no such file.
  """

  def __init__(self, folder: str, name: str, source: ShardedRecords, width: int):
    parts = parts_of(source)
    self._starts = [part.start for part in parts]
    self._paths = [path_of(folder, name, part) for part in parts]
    self._rows = [np.load(path, mmap_mode="r") for path in self._paths]
    for part, path, rows in zip(parts, self._paths, self._rows, strict=True):
      if rows.dtype != row_type(width) or len(rows) != part.stop - part.start:
        raise ValueError(f"{path} is damaged, or of a source that has changed; delete it, and it is made again")

  def state(self, number: int, record: Record) -> np.ndarray:
    """fp32 [D], of the image of record `number`.

    Raises:
      BadRecord: the image could not be decoded.
      ValueError: it was another image.
    """
    part = bisect.bisect_right(self._starts, number) - 1
    row = self._rows[part][number - self._starts[part]]
    if row["image"] != image_checksum(record):
      path = self._paths[part]
      raise ValueError(f"record {number}, '{record.key}', has another image than {path} is of; delete that file")
    if np.isnan(row["state"][0]):
      raise BadRecord("its image could not be decoded when it was embedded")
    return np.array(row["state"])
