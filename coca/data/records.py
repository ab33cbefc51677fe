"""The records that every source of image-text pairs hands over."""

import hashlib
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

_LONGEST = 120  # characters of a shard's name; file systems take 255, and something comes before and behind


@dataclass(frozen=True, slots=True)
class Text:
  """One text of an image and where it comes from."""

  text: str
  origin: str = "web"  # one of coca.config.data.ORIGINS


@dataclass(frozen=True, slots=True, eq=False)
class Detected:
  """The n regions that a detector found in an image, the surest first."""

  boxes: np.ndarray  # fp32 [n, 4]: left, top, right, bottom, as shares of the image's width and height
  features: np.ndarray  # fp32 [n, F]
  tags: tuple[str, ...] = ()  # names of what is in them
  place: str = ""  # file and row, for errors


@dataclass(frozen=True, slots=True)
class Said:
  """All that was said of an image before its record's question; the record's texts are then possible answers."""

  caption: str
  rounds: tuple[tuple[str, str], ...] = ()  # questions with the answers that were given
  relevance: tuple[float, ...] = ()  # of each possible answer to this question; empty: nobody was asked


@dataclass(frozen=True, slots=True)
class Record:
  """One image with its texts, not decoded yet."""

  key: str  # unique in its source
  image: bytes  # encoded: JPEG, PNG, WebP, ..., or a video; empty where there are regions alone
  texts: tuple[Text, ...]
  label: int = -1  # index into the source's label_names; of a dialog, of the given answer; -1: no label
  question: str = ""  # its texts are then the answers, as the annotators gave them, equal ones as often as given
  regions: Detected | None = None
  second: bytes = b""  # the other image, encoded, where the texts are about two
  frames: Sequence[bytes] = ()  # of a video that comes as images, encoded, in their order; `image` is then empty
  said: Said | None = None  # of a question within a dialog


def image_checksum(record: Record) -> int:
  """By which it is noticed that a record's image has changed: of its bytes, encoded."""
  return zlib.crc32(record.image)


class BadRecord(Exception):
  """A record that cannot be read; the message is the reason, with the file's name or the record's key."""


@dataclass(frozen=True, slots=True)
class Shard:
  """Records `start` to `stop` - 1 of a source, which lie together: those of one file, or a part of them."""

  name: str  # unique in its source; letters, digits, '.', '_' and '-', so that files can be called so
  start: int
  stop: int


class Records(Protocol):
  """A source of image-text pairs, or some of its records, with random access."""

  @property
  def name(self) -> str: ...

  @property
  def problems(self) -> Sequence[str]:
    """Problems that were found when it was opened, a text each."""
    ...

  @property
  def label_names(self) -> Sequence[str]:
    """The classes that `Record.label` indexes; empty: there are none."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Record:
    """Record `i`; one without a text has none in `Record.texts`. Safe to call from several threads.

    Raises:
      BadRecord: it can't be read.
    """
    ...


class ShardedRecords(Records, Protocol):
  """A whole source, as `coca.data.sources.open_source` opens it."""

  @property
  def shards(self) -> Sequence[Shard]:
    """One for each input file that holds records, in their order, or one of the whole.

    A shard is read in order at little cost.
    """
    ...


def shards_of(names: Sequence[str], counts: Sequence[int]) -> list[Shard]:
  """Shards one after the other.

  Args:
    names: of their files, best as paths below a folder that does not depend on which files there are. What may not
      stand in a file's name becomes '_', and names that are then alike get a part of their checksum.
    counts: of their records. Files without records are left out.
  """
  seen, full = Counter(), []
  for name in names:  # a file that is there twice
    seen[name] += 1
    full.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
  short = [re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-_LONGEST:].lstrip(".") for name in full]
  alike = Counter(name.lower() for name in short)  # some file systems know no case
  ends = list(itertools.accumulate(counts))
  return [
    Shard(s if s and alike[s.lower()] == 1 else f"{s}-{hashlib.sha256(f.encode()).hexdigest()[:8]}", end - n, end)
    for s, f, n, end in zip(short, full, counts, ends, strict=True)
    if n
  ]


def split(shards: Sequence[Shard], most: int) -> list[Shard]:
  """Shards of at most `most` records: longer ones are cut into even parts, NAME-00000, NAME-00001, ...

  Raises:
    ValueError: `most` is not above 0.
  """
  if most < 1:
    raise ValueError(f"shards of at most {most} records: it has to be above 0")
  taken, out = {shard.name.lower() for shard in shards}, []
  for shard in shards:
    count, dash = -(-(shard.stop - shard.start) // most), "-"
    if count == 1:
      out.append(shard)
      continue
    while any(f"{shard.name}{dash}{n:05d}".lower() in taken for n in range(count)):
      dash += "-"
    ends = [shard.start + (shard.stop - shard.start) * n // count for n in range(count + 1)]
    names = [f"{shard.name}{dash}{n:05d}" for n in range(count)]
    out += [Shard(*part) for part in zip(names, ends[:-1], ends[1:], strict=True)]
    taken |= {name.lower() for name in names}
  return out
