"""Some records of a source (`Source.subset`), or its records with texts of a table (`Source.texts`), by their keys.

A text takes about 20 bytes of memory and its own UTF-8, a record 16. Keys are compared by 64 bits of a checksum.
"""

import dataclasses
import hashlib
import io
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coca.config import Source
from coca.config.data import ORIGINS
from coca.data.records import Record, Shard, ShardedRecords, Text
from coca.data.sources import tables
from coca.data.sources.parquet_columns import READ_ERRORS, TEXT_COLUMNS, open_input
from coca.data.sources.values import DEFAULT_TEXT_KEY, Key, as_texts, lookup, text_keys
from coca.files import finding, reading
from coca.files.retries import Unavailable

IDS = ("key", "__key__", "uid", "file_name", "image", "filepath", "path")  # columns that name a record, by preference
UID = re.compile("[0-9a-f]{32}")  # DataComp's


class Keyed(ShardedRecords, Protocol):
  """A source that tells the keys of its records without reading their images."""

  def ids(self, name: str) -> Iterable[str]:
    """'key' or 'uid' of all records. Raises ValueError if there is no such."""
    ...


class Joined:
  """Records of a source with texts of a table; see `open_joined`. Keys and labels are the source's.

  Args:
    source: all records.
    numbers: int64 [N], the records that there are, ascending.
    order: int64 [M], rows of the table, in which those of one record lie side by side.
    places: int64 [N, 2], begin and end of each record's rows in `order`.
    texts, origins: of the rows, strings and places in ORIGINS.
    problems: more than the source's.
  """

  def __init__(self, source: Keyed, numbers, order, places, texts: pa.Array, origins, problems: list[str]):
    self.name, self.label_names, self.problems = source.name, source.label_names, [*problems, *source.problems]
    self._source, self._numbers, self._order, self._places = source, numbers, order, places
    self._texts, self._origins = texts, origins

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, i: int) -> Record:
    """Record `i`: the source's own texts, then the table's. Raises BadRecord as the source."""
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name}: record {i} of {len(self)}")
    record = self._source[int(self._numbers[i])]
    rows = self._order[slice(*self._places[i].tolist())].tolist()
    return dataclasses.replace(
      record, texts=(*record.texts, *(Text(self._texts[row].as_py(), ORIGINS[self._origins[row]]) for row in rows))
    )

  @property
  def shards(self) -> list[Shard]:
    """The source's, in this one's numbers."""
    parts = self._source.shards
    ends = np.searchsorted(self._numbers, [at for part in parts for at in (part.start, part.stop)]).tolist()
    places = zip(parts, ends[::2], ends[1::2], strict=True)
    return [Shard(part.name, start, stop) for part, start, stop in places if start < stop]


def open_joined(open_source: Callable[[Source], Any], settings: Source, where: str) -> Joined:
  """Opens a source and joins it with a table or with a list of keys.

  Records that are not in the table are left out if no texts of their own are read.

  Args:
    open_source: opens the source as it is.
    settings: `texts` is a table, or several by a glob: JSON lines, JSON, CSV or Parquet, with one of the columns `IDS`.
      The keys in `text_key` that are columns there are read there, all others in the source. `subset` is a text with a
      key a line, such a table, or .npy: strings, or pairs of unsigned integers of 64 bits, the halves of DataComp's
      uids (as its resharder.py takes them). Tars have a record's uid in NAME.parquet beside them or, which takes
      longer, in its .json.
    where: the name of the source's settings.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it can't be read, or no record has a key that is in it.
  """
  hashes, origins, texts, left, name = np.zeros(0, np.uint64), [], [], text_keys(settings, ""), ""
  problems: list[str] = []
  if settings.texts:
    name, hashes, texts, origins, left = _table(settings, where, problems)
  key = ",".join(f"{key.name}:{key.origin}" if key.origin else key.name for key in left)
  source: Keyed = open_source(dataclasses.replace(settings, text_key=key, texts="", subset=""))
  numbers = np.arange(len(source))
  if settings.subset:
    numbers = np.flatnonzero(_kept(source, settings.subset, where, problems))
    problems.append(f"{settings.subset}: {len(numbers):,} of {len(source):,} records are kept")
  order = np.argsort(hashes, kind="stable")
  places = np.zeros((len(numbers), 2), np.int64)
  if settings.texts:
    known = _checksums(source.ids(name))[numbers]
    places = np.stack([np.searchsorted(hashes, known, side, sorter=order) for side in ("left", "right")], 1)
    has = places[:, 0] < places[:, 1]
    if not has.any():
      raise ValueError(
        f"{where}.texts is {settings.texts!r}: none of its {len(hashes)} texts has the '{name}' of a record, such as "
        f"{next(iter(source.ids(name)), '')!r}"
      )
    problems.append(f"{settings.texts}: texts for {has.sum():,} of {len(numbers):,} records")
    if not left:
      numbers, places = numbers[has], places[has]
  return Joined(source, numbers, order, places, pa.array(texts, pa.string()), np.array(origins, np.int8), problems)


def _table(
  settings: Source, where: str, problems: list[str]
) -> tuple[str, np.ndarray, list[str], list[int], tuple[Key, ...]]:
  """The kind of names that records have there, and of each text the checksum of that name, itself, and its origin; and
  the keys in `text_key` that are no columns. JSON lines and files may have columns of their own each."""
  keys, ids, texts, origins = text_keys(settings, "web"), [], [], []
  first, fields, name, columns, kinds, found = "", None, "", {}, set(), set()
  for file in _files(settings.texts, f"{where}.texts"):
    nameless = 0
    for row in _rows(file, (*IDS, *(name for key in keys for name in _names(key))), problems):
      if tuple(row) != fields:
        fields = tuple(row)
        first = first or f"{file.name} needs a column {' or '.join(IDS)}, and one of {where}.text_key " + (
          f"{settings.text_key!r}; it has: {', '.join(map(str, row))}"
        )
        name = next((name for name in IDS if name in row), "")
        columns = {key: c for key in keys if (c := next((c for c in _names(key) if c.partition(".")[0] in row), ""))}
      if not name:
        nameless += 1
        continue
      kinds.add("uid" if name == "uid" else "key")
      found |= columns.keys()
      for key, column in columns.items():
        try:
          new = as_texts(lookup(row, column), key.origin)
        except ValueError as e:
          raise ValueError(f"{where}.texts: {file.name}, {row.get(name)}: {e}") from None
        ids += [str(row[name])] * len(new)
        texts += [text.text for text in new]
        origins += [ORIGINS.index(text.origin) for text in new]
    if nameless:
      problems.append(f"{file.name}: {nameless} rows have no {' or '.join(IDS)}")
  if first and not found:
    raise ValueError(f"{where}.texts: {first}")
  if len(kinds) > 1:
    raise ValueError(f"{where}.texts is {settings.texts!r}: some rows name records by 'uid', others by their keys")
  if not texts:
    raise ValueError(f"{where}.texts is {settings.texts!r}: there are no texts in it")
  left = tuple(own for own, key in zip(text_keys(settings, ""), keys, strict=True) if key not in found)
  return kinds.pop(), _checksums(ids), texts, origins, left


def _names(key: Key) -> tuple[str, ...]:
  return TEXT_COLUMNS if key.name == DEFAULT_TEXT_KEY else (key.name,)


def _kept(source: Keyed, path: str, where: str, problems: list[str]) -> np.ndarray:
  """bool [records of `source`]: whether a list has their key."""
  wanted, kinds = _subset(path, where, problems)
  if not wanted:
    raise ValueError(f"{where}.subset is {path!r}: there is no key in it")
  hashes = _checksums(wanted)
  for kind in kinds:
    mask = np.isin(_checksums(source.ids(kind)), hashes, kind="sort")
    if mask.any():
      return mask
  raise ValueError(
    f"{where}.subset is {path!r}: none of its {len(wanted)} keys, such as {next(iter(wanted), '')!r}, is one of the "
    f"records', such as {next(iter(source.ids('key')), '')!r}"
  )


def _subset(path: str, where: str, problems: list[str]) -> tuple[list[str], tuple[str, ...]]:
  """A list of keys, and what they may be."""
  keys: list[str] = []
  for file in _files(path, f"{where}.subset"):
    if file.name.endswith(".npy"):
      data = io.BytesIO(reading.read_all(file.fs, file.path))
      try:
        values = np.load(data, allow_pickle=False)
      except Exception as e:  # of many types: the header is Python
        raise ValueError(f"{where}.subset: {file.name}: {e}") from None
      if values.dtype.names and all(values.dtype[name].kind == "u" for name in values.dtype.names):
        return [f"{high:016x}{low:016x}" for high, low in values.tolist()], ("uid",)
      if values.dtype.kind not in "US":
        raise ValueError(
          f"{where}.subset: {file.name} holds {values.dtype}; it takes keys as text, or DataComp's pairs of 64 bits"
        )
      keys += values.astype(str).ravel().tolist()
    elif file.name.endswith(".txt"):
      lines = reading.read_all(file.fs, file.path).decode("utf-8-sig", "replace").split("\n")
      keys += filter(None, map(str.strip, lines))  # keys have spaces inside
    else:
      for row in _rows(file, IDS, problems):
        name = next((name for name in IDS if name in row), "")
        if not name:
          raise ValueError(f"{where}.subset: {file.name} needs a column {' or '.join(IDS)}; it has: {', '.join(row)}")
        keys.append(str(row[name]))
  return keys, ("key", "uid") if all(map(UID.fullmatch, keys)) else ("key",)


def _files(path: str, setting: str) -> list[reading.File]:
  try:
    return finding.find(path, "", "", setting)[0]
  except FileNotFoundError:
    raise FileNotFoundError(f"{setting} is {path!r}: no such file") from None


def _rows(file: reading.File, columns: tuple[str, ...], problems: list[str]) -> Iterator[dict]:
  """The rows of a table, of Parquet with these columns alone; those that can't be used are told of in `problems`.
  Raises ValueError."""
  try:
    if file.name.endswith(".parquet"):
      with pq.ParquetFile(open_input(file)) as opened:
        there = [name for name in opened.schema_arrow.names if name in {c.partition(".")[0] for c in columns}]
        for batch in opened.iter_batches(columns=there):
          yield from batch.to_pylist()
    else:
      notes, wrong = [], []
      _, rows = tables.read(file.name, reading.read_all(file.fs, file.path), "", set(columns), notes)
      for at, row in rows:
        if isinstance(row, dict):
          yield row
        else:
          wrong.append(f"{at}: {row}")
      problems += [f"{file.name}: {note}" for note in notes]
      if wrong:
        problems.append(f"{len(wrong)} rows can't be used; the first: {wrong[0]}")
  except Unavailable:
    raise
  except READ_ERRORS as e:
    raise ValueError(f"{file.name}: {e}") from None


def _checksums(keys: Iterable[str]) -> np.ndarray:
  """uint64, one a key."""
  digests = (hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest() for key in keys)
  return np.frombuffer(b"".join(digests), np.uint64)
