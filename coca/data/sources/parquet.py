"""Parquet files with the encoded images inside: img2dataset's (`--output_format=parquet`), Hugging Face datasets', ...

A record costs the reading and decoding of its whole row group, of which the latest are kept in memory
(`CACHE_BYTES`). A global shuffle jumps between row groups all the time, so they should be small: img2dataset writes
100 rows, and 10 are faster still. Tars (`kind="webdataset"`) read no more than the record and have no such cost.
"""

import bisect
import functools
import operator
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coca.config import Source
from coca.data.records import BadRecord, Record, Shard, shards_of
from coca.data.sources import regions
from coca.data.sources.parquet_columns import READ_ERRORS, column_of, examine, footer_of, named, open_input
from coca.data.sources.values import LABEL, as_question, as_texts, label_of, lookup
from coca.files import finding
from coca.files.finding import SETTING
from coca.files.retries import Unavailable, again

MAKE = (
  "img2dataset --url_list=pairs.parquet --input_format=parquet --url_col=url --caption_col=caption "
  "--output_format=parquet --output_folder=shards"
)
REGIONS = "a detector of your own: docs/own-data.md, 'Regions of a detector', has their columns"
CACHE_BYTES = 512 << 20  # of decoded row groups, a source
MAX_GROUP_BYTES = 64 << 20  # compressed; larger row groups give a warning
FOOTERS = 256  # kept in memory


class Parquet:
  """Pairs from Parquet files; see `open_parquet`."""

  def __init__(self, settings: Source, where: str):
    self.name = settings.path
    self._regions = settings.regions
    found, self.problems = finding.find(settings.path, ".parquet", REGIONS if settings.regions else MAKE, where)
    self._tables = []
    for table, problem in finding.for_each(functools.partial(examine, settings=settings), found, "opening Parquet"):
      if problem:
        self.problems.append(problem)
      if table is not None and sum(table.rows):
        self._tables.append(table)
    if not self._tables:
      raise ValueError(
        f"{where}.path is {settings.path!r}: none of the {len(found)} files can be used:\n"
        + "\n".join(f"  {problem}" for problem in self.problems[:5])
      )
    self.label_names = self._label_names(where)
    self._labels = {name: i for i, name in enumerate(self.label_names)}
    self._groups = [(t, g) for t, table in enumerate(self._tables) for g in range(len(table.rows))]
    self._starts = np.cumsum([0, *(n for table in self._tables for n in table.rows)]).tolist()
    self._first = np.cumsum([0, *(sum(table.rows) for table in self._tables)]).tolist()  # records before a file
    self._cache: OrderedDict[int, Future] = OrderedDict()
    self._cached_bytes = 0
    self._lock = threading.Lock()
    self._footer = functools.lru_cache(FOOTERS)(lambda t: footer_of(self._tables[t].file))
    largest = max(self._tables, key=lambda table: table.largest)
    if largest.largest > MAX_GROUP_BYTES:
      warnings.warn(
        f"{largest.file.url} has row groups of {largest.largest >> 20} MB, each of which is read for a "
        f"single record; write it anew with small ones:\n  import pyarrow.parquet as pq; "
        f"pq.write_table(pq.read_table({largest.file.url!r}), 'small.parquet', row_group_size=100)",
        stacklevel=3,
      )

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, i: int) -> Record:
    """Record `i`.

    Raises:
      BadRecord: the image is missing, it, its regions or a text can't be read, or img2dataset's `status` is not
        success.
    """
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name}: record {i} of {len(self)}")
    group = bisect.bisect_right(self._starts, i) - 1
    t = self._groups[group][0]
    table = self._tables[t]
    row = i - self._starts[group]
    place = f"{table.file.name}:{i - self._first[t]}"
    try:
      data = self._row_group(group)
      read = regions.numbers if self._regions else operator.methodcaller("as_py")
      values = {name: read(data.column(name)[row]) for name in table.columns}
    except Unavailable:
      raise
    except READ_ERRORS as e:
      raise BadRecord(f"{place}: {e}") from None
    key = place if values.get("key") is None else str(values["key"])
    where = place if key == place else f"{place} ('{key}')"
    status = values.get("status")
    if status is not None and status != "success":
      raise BadRecord(f"{where}: status '{status}'")
    image, detected = values[table.image] if table.image else b"", None
    if isinstance(image, list) and not self._regions:
      if len(image) > 1:
        raise BadRecord(f"{where}: {len(image)} images in column '{table.image}': a record has one")
      image = image[0] if image else None
    if self._regions:
      image, detected = b"", regions.from_row(values, image, where)
    elif isinstance(image, dict):
      if image.get("bytes") is None and image.get("path"):
        raise BadRecord(
          f"{where}: column '{table.image}' holds no bytes, only the path {image['path']!r}; kind='folder' reads it, "
          "with the folder of the images as path and this file as texts"
        )
      image = image.get("bytes")
    if not image and table.image and detected is None:
      raise BadRecord(f"{where}: no image (column '{table.image}')")
    try:
      texts = ()
      for column in table.texts:
        found = named(lookup(values, column.name), column.names)
        texts += as_texts(found, column.origin, bool(table.question))
      question = as_question(lookup(values, table.question)) if table.question else ""
      label = values[table.label.name] if table.label else -1
      if table.label and not table.label.names:  # else several classes may have one name
        label = label_of(as_texts(label, LABEL), self._labels)
    except ValueError as e:
      raise BadRecord(f"{where}: the text can't be read: {e}") from None
    label = label if label is not None and 0 <= label < len(self.label_names) else -1
    return Record(key, image or b"", texts, label, question, detected)

  def ids(self, name: str) -> Iterator[str]:
    """The value of a column in all records; of 'key', the records' keys."""
    for table in self._tables:
      there = name in footer_of(table.file).schema.to_arrow_schema().names
      if not there and name != "key":
        raise ValueError(f"{table.file.name} has no column {name!r}")
      values = column_of(table.file, name).to_pylist() if there else [None] * sum(table.rows)
      yield from (f"{table.file.name}:{row}" if v is None else str(v) for row, v in enumerate(values))

  @property
  def shards(self) -> list[Shard]:
    """One a file."""
    names = [finding.below(table.file, self.name, ".parquet") for table in self._tables]
    return shards_of(names, [sum(table.rows) for table in self._tables])

  def _label_names(self, where: str) -> tuple[str, ...]:
    """The names of the classes: as the files tell, or those that a column of names holds in all files."""
    named = {table.label.names: table.file.name for table in self._tables if table.label and table.label.names}
    if len(named) > 1:
      raise ValueError(f"{where}: {' and '.join(list(named.values())[:2])} name other classes; read them one by one")
    if named:
      return next(iter(named))
    held = [table for table in self._tables if table.label]
    read = finding.for_each(lambda t: column_of(t.file, t.label.name).unique().to_pylist(), held, "reading labels")
    return tuple(sorted({text.text for values in read for text in as_texts(values, LABEL)}))

  def _row_group(self, group: int) -> pa.Table:
    """The decoded columns of a row group; threads that want the same one wait for a single reading."""
    with self._lock:
      future = self._cache.get(group)
      mine = future is None
      if mine:
        future = self._cache[group] = Future()
      self._cache.move_to_end(group)
    if mine:
      try:
        data = self._read(group)
        size = data.nbytes
      except BaseException as e:
        with self._lock:
          del self._cache[group]  # the next one tries again
        future.set_exception(e)
        raise
      with self._lock:
        self._cached_bytes += size
        future.set_result(data)
        for old in [k for k in self._cache if k != group]:
          if self._cached_bytes <= CACHE_BYTES:
            break
          if self._cache[old].done():
            self._cached_bytes -= self._cache.pop(old).result().nbytes
    return future.result()

  def _read(self, group: int) -> pa.Table:
    t, g = self._groups[group]
    table = self._tables[t]

    def read():
      with pq.ParquetFile(open_input(table.file), metadata=self._footer(t), pre_buffer=True) as file:
        return file.read_row_group(g, columns=list(table.columns), use_threads=False)

    return again(read, table.file.url)


def open_parquet(settings: Source, where: str = SETTING) -> Parquet:
  """Opens Parquet files, reading their footers.

  Args:
    settings: `path` is a glob, a brace range or a directory. `image_key`: a column of bytes, or of structs with the
      field `bytes`, or of lists of one; at its default also jpg, jpeg, png, webp, img, images. `text_key`: a column of
      texts, of lists of texts, of conversations, or of classes with names (the Hugging Face library's ClassLabel), or
      several with commas between them; at its default also txt, text, TEXT, captions, conversations, messages, and
      where there are none the classes in `label` or `labels`; '' reads no texts; a dot leads into structs
      ("answers.answer"). The names of a column of classes are the label names; so are all values of a column of
      texts of the origin 'label'.
      `question_key`: a column of questions, whose answers `text_key` names. A column `key` names the records (else
      file:row), and rows whose column `status` is not "success" (img2dataset's failed downloads) are bad records. With
      `regions`, `image_key` names the features, at its default 'features': bytes of 16 or 32 bits a number beside a
      column `shape` ([regions, width]), or lists of lists; `boxes` has left, top, right and bottom of each, as shares
      of the image, or in pixels beside `width` and `height`; `tags` their names.

  Raises:
    FileNotFoundError: no file matches.
    ValueError: no file can be used: damaged, or without the columns.
  """
  return Parquet(settings, where)
