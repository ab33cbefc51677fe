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
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coca.config import Source
from coca.data.records import BadRecord, Record, Shard, shards_of
from coca.data.sources import regions
from coca.data.sources.values import DEFAULT_IMAGE_KEY, DEFAULT_TEXT_KEY, as_question, as_texts, lookup
from coca.files import finding, reading
from coca.files.finding import SETTING
from coca.files.retries import Unavailable, again

MAKE = (
  "img2dataset --url_list=pairs.parquet --input_format=parquet --url_col=url --caption_col=caption "
  "--output_format=parquet --output_folder=shards"
)
CACHE_BYTES = 512 << 20  # of decoded row groups, a source
MAX_GROUP_BYTES = 64 << 20  # compressed; larger row groups give a warning
FOOTERS = 256  # kept in memory
TEXT_COLUMNS = ("caption", "txt", "text", "TEXT", "captions")  # tried in turn where text_key is at its default
# The last two: times after the year 9999 and time zones that nobody knows, where values become Python's.
READ_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, LookupError)


@dataclass(frozen=True)
class _Table:
  """A file as far as it concerns records: which columns, how many rows in each row group."""

  file: reading.File
  image: str
  text: str  # empty: none
  question: str  # empty: none
  columns: tuple[str, ...]
  rows: tuple[int, ...]
  largest: int  # bytes of the largest row group in the file, about


class Parquet:
  """Pairs from Parquet files; see `open_parquet`."""

  label_names: tuple[str, ...] = ()

  def __init__(self, settings: Source, where: str):
    self.name = settings.path
    self._origin, self._regions = settings.origin or "web", settings.regions
    found, self.problems = finding.find(settings.path, ".parquet", MAKE, where)
    self._tables = []
    for table, problem in finding.for_each(functools.partial(_examine, settings=settings), found, "opening Parquet"):
      if problem:
        self.problems.append(problem)
      if table is not None and sum(table.rows):
        self._tables.append(table)
    if not self._tables:
      raise ValueError(
        f"{where}.path is {settings.path!r}: none of the {len(found)} files can be used:\n"
        + "\n".join(f"  {problem}" for problem in self.problems[:5])
      )
    self._groups = [(t, g) for t, table in enumerate(self._tables) for g in range(len(table.rows))]
    self._starts = np.cumsum([0, *(n for table in self._tables for n in table.rows)]).tolist()
    self._first = np.cumsum([0, *(sum(table.rows) for table in self._tables)]).tolist()  # records before a file
    self._cache: OrderedDict[int, Future] = OrderedDict()
    self._cached_bytes = 0
    self._lock = threading.Lock()
    self._footer = functools.lru_cache(FOOTERS)(lambda t: _footer(self._tables[t].file))
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
    if self._regions:
      image, detected = b"", regions.from_row(values, image, where)
    elif isinstance(image, dict):
      if image.get("bytes") is None and image.get("path"):
        raise BadRecord(f"{where}: column '{table.image}' holds no bytes, only the path {image['path']!r}")
      image = image.get("bytes")
    if not image and table.image and detected is None:
      raise BadRecord(f"{where}: no image (column '{table.image}')")
    try:
      found = lookup(values, table.text) if table.text else None
      texts = as_texts(found, self._origin, bool(table.question))
      question = as_question(lookup(values, table.question)) if table.question else ""
    except ValueError as e:
      raise BadRecord(f"{where}: the text can't be read: {e}") from None
    return Record(key, image or b"", texts, question=question, regions=detected)

  @property
  def shards(self) -> list[Shard]:
    """One a file."""
    names = [finding.below(table.file, self.name, ".parquet") for table in self._tables]
    return shards_of(names, [sum(table.rows) for table in self._tables])

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
      with pq.ParquetFile(_input(table.file), metadata=self._footer(t), pre_buffer=True) as file:
        return file.read_row_group(g, columns=list(table.columns), use_threads=False)

    return again(read, table.file.url)


def _input(file: reading.File):
  return file.path if file.local else pa.PythonFile(reading.RangeFile(file), mode="r")


def _footer(file: reading.File) -> pq.FileMetaData:
  def read():
    with pq.ParquetFile(_input(file)) as opened:
      return opened.metadata

  return again(read, file.url)


def _examine(file: reading.File, settings: Source) -> tuple[_Table | None, str]:
  try:
    footer = _footer(file)
    schema = footer.schema.to_arrow_schema()
  except Unavailable:  # without the file all records would have other numbers
    raise
  except READ_ERRORS as e:
    return None, f"{file.name}: {e}"
  if not footer.num_rows:
    return None, f"{file.name}: holds no rows"
  default = settings.image_key == DEFAULT_IMAGE_KEY
  names = (settings.image_key, *finding.IMAGE_EXTENSIONS) if default else (settings.image_key,)
  if settings.regions:
    names = (regions.FEATURES,) if default else names
  fits = regions.holds_features if settings.regions else _holds_image
  image = "" if settings.text_only else _choose(schema, names, fits)
  if settings.regions and not (image and schema.get_field_index("boxes") >= 0):
    return None, (
      f"{file.name}: config.data.sources.*.regions wants columns '{names[0]}' (image_key: bytes, or lists of lists of "
      f"numbers) and 'boxes'; {_shown(schema)}"
    )
  if not image and not settings.text_only:
    return None, (
      f"{file.name}: image_key is {settings.image_key!r}, and there is no such column with image bytes; "
      f"{_shown(schema)}. If tars lie beside it, they hold the images: kind='webdataset'"
    )
  default = settings.text_key == DEFAULT_TEXT_KEY
  fits = _holds_answer if settings.question_key else _holds_text
  text = _choose(schema, TEXT_COLUMNS if default else (settings.text_key,), fits)
  if not text and settings.text_key:
    return None, (
      f"{file.name}: text_key is {settings.text_key!r}, and there is no such column of text; "
      f"{_shown(schema)}. For images alone set it to ''"
    )
  question = _choose(schema, (settings.question_key,), _holds_text)
  if not question and settings.question_key:
    return None, (
      f"{file.name}: question_key is {settings.question_key!r}, and there is no such column of text; {_shown(schema)}"
    )
  extra = (text, text.partition(".")[0], question, question.partition(".")[0], "key", "status")
  extra += regions.COLUMNS * settings.regions
  # The index of a name that several columns have is -1: which of them is meant nobody knows.
  images = (image,) if image else ()
  columns = tuple(dict.fromkeys((*images, *(c for c in extra if schema.get_field_index(c) >= 0))))
  # Nothing here asks for the metadata of a column: where that is damaged, pyarrow ends the process.
  rows = tuple(footer.row_group(g).num_rows for g in range(footer.num_row_groups))
  if min(rows, default=0) < 0 or sum(rows) != footer.num_rows:
    return None, f"{file.name}: the footer is damaged: {footer.num_rows} rows, and {sum(rows)} in its row groups"
  if max(rows) > file.size:  # pyarrow takes memory for as many before it reads any
    return None, (
      f"{file.name}: the footer is damaged: {max(rows):,} rows in row group {rows.index(max(rows))}, and "
      f"{file.size:,} bytes in the file"
    )
  return _Table(file, image, text, question, columns, rows, file.size * max(rows) // sum(rows)), ""


def _choose(schema: pa.Schema, names: tuple[str, ...], fits) -> str:
  return next((name for name in names if (kind := _type_of(schema, name)) is not None and fits(kind)), "")


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
  """The type of a column, or of what lies inside it where a dot leads into structs and lists of them."""
  first, *rest = [name] if schema.get_field_index(name) >= 0 else name.split(".")
  kind = schema.field(first).type if schema.get_field_index(first) >= 0 else None
  for part in rest:
    while kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
      kind = kind.value_type
    inside = kind is not None and pa.types.is_struct(kind) and kind.get_field_index(part) >= 0
    kind = kind.field(part).type if inside else None
  return kind


def _holds_image(kind: pa.DataType) -> bool:
  if pa.types.is_struct(kind):
    return kind.get_field_index("bytes") >= 0 and _holds_image(kind.field("bytes").type)
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _holds_text(kind: pa.DataType) -> bool:
  if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
    return _holds_text(kind.value_type)
  return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def _holds_answer(kind: pa.DataType) -> bool:
  if pa.types.is_list(kind) or pa.types.is_large_list(kind):
    return _holds_answer(kind.value_type)
  return _holds_text(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _shown(schema: pa.Schema) -> str:
  return "columns: " + ", ".join(f"{field.name} ({field.type})" for field in schema)


def open_parquet(settings: Source, where: str = SETTING) -> Parquet:
  """Opens Parquet files, reading their footers.

  Args:
    settings: `path` is a glob, a brace range or a directory. `image_key`: a column of bytes, or of structs with the
      field `bytes`; at its default also jpg, jpeg, png, webp. `text_key`: a column of texts or of lists of texts; at
      its default also txt, text, TEXT, captions; '' reads no texts; a dot leads into structs ("answers.answer").
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
