"""Videos in tars as frames that are images: KEY.000.jpg, KEY.001.jpg, ... are members of one sample of WebDataset's.

They are in the order of their numbers, and each is read when it is asked for.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coca.data.records import BadRecord
from coca.data.sources.tar_index import TarIndex, read_some
from coca.files.finding import IMAGE_EXTENSIONS
from coca.files.reading import File
from coca.files.retries import Unavailable

NUMBERED = re.compile(rf"(\d+)\.(?:{'|'.join(IMAGE_EXTENSIONS)})")  # extensions of such members


@dataclass(frozen=True)
class TarFrames:
  """The frames of all samples of a tar, one sample behind the other."""

  ends: np.ndarray  # int64 [N], of each sample's
  offset: np.ndarray  # int64 [M]
  size: np.ndarray  # int64 [M]
  header: np.ndarray  # uint32 [M]

  def of(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, sizes and checksums of headers of a sample's frames."""
    part = slice(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))
    return self.offset[part], self.size[part], self.header[part]


@dataclass(frozen=True)
class Frames(Sequence):
  """The frames of one sample, encoded. Raises BadRecord where one can't be read."""

  file: File
  key: str
  places: tuple[np.ndarray, np.ndarray, np.ndarray]

  def __len__(self) -> int:
    return len(self.places[0])

  def __getitem__(self, n: int) -> bytes:
    offset, size, header = (int(x[n]) for x in self.places)
    try:
      (data,) = read_some(self.file, [(offset, size)], [header])
    except Unavailable:
      raise
    except OSError as e:
      raise BadRecord(f"{self.file.name}: record '{self.key}': frame {n}: {e}") from None
    return data or b""


def numbered(index: TarIndex) -> dict[int, int]:
  """The numbers of frames by the places of their extensions in `index.extensions`."""
  found = {k: NUMBERED.fullmatch(kind) for k, kind in enumerate(index.extensions.tolist())}
  return {k: int(match[1]) for k, match in found.items() if match}


def frames_of(index: TarIndex) -> TarFrames:
  """The frames in a tar; of a tar without any there are none for each sample."""
  numbers = np.full(len(index.extensions) + 1, -1, np.int64)
  for k, number in numbered(index).items():
    numbers[k] = number
  number = numbers[index.extension]
  kept = np.flatnonzero(number >= 0)
  order = kept[np.lexsort((number[kept], index.sample[kept]))]
  ends = np.cumsum(np.bincount(index.sample[order], minlength=len(index.keys)))
  return TarFrames(ends, index.offset[order], index.size[order], index.header[order])
