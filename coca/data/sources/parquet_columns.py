"""Columns of Parquet files: which of them hold the images, the texts and the classes."""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coca.config import Source
from coca.data.sources import regions
from coca.data.sources.values import DEFAULT_IMAGE_KEY, DEFAULT_TEXT_KEY, LABEL, text_keys
from coca.files import finding, reading
from coca.files.retries import Unavailable, again

# Tried in turn where the keys are at their defaults, the formats of images as well.
TEXT_COLUMNS = ("caption", "txt", "text", "TEXT", "captions", "conversations", "messages")
IMAGE_COLUMNS = (DEFAULT_IMAGE_KEY, *finding.IMAGE_EXTENSIONS, "img", "images")
LABEL_COLUMNS = (LABEL, "labels")
LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)
# The last two: times after the year 9999 and time zones that nobody knows, where values become Python's.
READ_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, LookupError)


@dataclass(frozen=True)
class Column:
  """A column of texts, or of classes."""

  name: str
  origin: str
  names: tuple[str, ...] = ()  # of the classes, whose ids it holds; empty: it holds texts


@dataclass(frozen=True)
class Table:
  """A file as far as it concerns records: which columns, how many rows in each row group."""

  file: reading.File
  image: str
  texts: tuple[Column, ...]
  label: Column | None  # of one class a record
  question: str  # empty: none
  columns: tuple[str, ...]
  rows: tuple[int, ...]
  largest: int  # bytes of the largest row group in the file, about


def open_input(file: reading.File):
  """A file as pyarrow takes it."""
  return file.path if file.local else pa.PythonFile(reading.RangeFile(file), mode="r")


def footer_of(file: reading.File) -> pq.FileMetaData:
  """The footer of a file; raises `READ_ERRORS` and Unavailable, as all here that reads."""

  def read():
    with pq.ParquetFile(open_input(file)) as opened:
      return opened.metadata

  return again(read, file.url)


def column_of(file: reading.File, name: str) -> pa.ChunkedArray:
  """The whole of a column."""

  def read():
    with pq.ParquetFile(open_input(file)) as opened:
      return opened.read(columns=[name], use_threads=False).column(name)

  return again(read, file.url)


def examine(file: reading.File, settings: Source) -> tuple[Table | None, str]:
  """The columns of a file that `settings` ask for, or why they can't be had."""
  try:
    footer = footer_of(file)
    schema = footer.schema.to_arrow_schema()
  except Unavailable:  # without the file all records would have other numbers
    raise
  except READ_ERRORS as e:
    return None, f"{file.name}: {e}"
  if not footer.num_rows:
    return None, f"{file.name}: holds no rows"
  default = settings.image_key == DEFAULT_IMAGE_KEY
  names = IMAGE_COLUMNS if default else (settings.image_key,)
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
    paths = _choose(schema, names, _holds_text)
    return None, (
      f"{file.name}: image_key is {settings.image_key!r}, and there is no such column with image bytes; "
      + f"column '{paths}' holds paths alone: kind='folder' reads them, with the folder of the images as path and "
      f"this file as texts; "
      * bool(paths)
      + f"{_shown(schema)}. If tars lie beside it, they hold the images: kind='webdataset'"
    )
  fits = _holds_answer if settings.question_key else _holds_text
  classes = _classes(footer, schema)
  keys = text_keys(settings, "", schema.names)
  texts, label = [], None
  for key in keys:
    candidates = TEXT_COLUMNS if key.name == DEFAULT_TEXT_KEY else (key.name,)
    name = key.name if key.name in classes else _choose(schema, candidates, fits)
    if not name and len(keys) == 1 and key.name == DEFAULT_TEXT_KEY:  # without captions, the class is the text
      name = next((n for n in LABEL_COLUMNS if n in classes), "")
    if not name:
      return None, (
        f"{file.name}: text_key is {settings.text_key!r}, and there is no such column of text"
        + f" as {key.name!r}" * (len(keys) > 1)
        + ", nor names of its classes ('ClassLabel' in the file's metadata)" * (key.name in LABEL_COLUMNS)
        + f"; {_shown(schema)}. For images alone set it to ''"
      )
    names = classes.get(name, ())
    column = Column(name, key.origin or (LABEL if names else "web"), names)
    texts.append(column)
    if not label and not settings.label_key and (names or key.is_class) and schema.get_field_index(name) >= 0:
      label = None if _is_list(schema.field(name).type) else column
  if settings.label_key:
    name = settings.label_key if settings.label_key in classes else _choose(schema, (settings.label_key,), _holds_text)
    if not name or schema.get_field_index(name) < 0 or _is_list(schema.field(name).type):
      return None, (
        f"{file.name}: label_key is {settings.label_key!r}, and there is no such column of one name a row, nor of "
        f"numbers with names ('ClassLabel' in the file's metadata); {_shown(schema)}"
      )
    label = Column(name, LABEL, classes.get(name, ()))
  elif not label and settings.text_key:
    name = next((n for n in LABEL_COLUMNS if n in classes and not _is_list(schema.field(n).type)), "")
    label = Column(name, LABEL, classes[name]) if name else None
  question = _choose(schema, (settings.question_key,), _holds_text)
  if not question and settings.question_key:
    return None, (
      f"{file.name}: question_key is {settings.question_key!r}, and there is no such column of text; {_shown(schema)}"
    )
  read = (*(column.name for column in texts), label.name if label else "", question)
  extra = (*read, *(name.partition(".")[0] for name in read), "key", "status")
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
  largest = file.size * max(rows) // sum(rows)
  return Table(file, image, tuple(texts), label, question, columns, rows, largest), ""


def _classes(footer: pq.FileMetaData, schema: pa.Schema) -> dict[str, tuple[str, ...]]:
  """The names of the classes by the column that has them, as the Hugging Face library writes them into a file."""
  try:
    features = json.loads((footer.metadata or {})[b"huggingface"])["info"]["features"]
    found = {}
    for column, feature in features.items():
      while isinstance(feature, list) or feature.get("_type") in ("Sequence", "List", "LargeList"):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
      kind = _type_of(schema, column)
      while kind is not None and _is_list(kind):
        kind = kind.value_type
      if feature.get("_type") == "ClassLabel" and kind is not None and pa.types.is_integer(kind):
        found[column] = tuple(map(str, feature["names"]))
    return found
  except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError):  # none, or damaged
    return {}


def named(value: Any, names: tuple[str, ...]) -> Any:
  """Ids of classes as their names; without names, the value."""
  if isinstance(value, list):
    return [named(v, names) for v in value]
  if not names or value is None:
    return value
  return names[value] if 0 <= value < len(names) else None  # -1: of a test set, where nobody is to know


def _is_list(kind: pa.DataType) -> bool:
  return isinstance(kind, LISTS)


def _choose(schema: pa.Schema, names: tuple[str, ...], fits) -> str:
  return next((name for name in names if (kind := _type_of(schema, name)) is not None and fits(kind)), "")


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
  """The type of a column, or of what lies inside it where a dot leads into structs and lists of them."""
  first, *rest = [name] if schema.get_field_index(name) >= 0 else name.split(".")
  kind = schema.field(first).type if schema.get_field_index(first) >= 0 else None
  for part in rest:
    while kind is not None and _is_list(kind):
      kind = kind.value_type
    inside = kind is not None and pa.types.is_struct(kind) and kind.get_field_index(part) >= 0
    kind = kind.field(part).type if inside else None
  return kind


def _holds_image(kind: pa.DataType) -> bool:
  if _is_list(kind):
    return _holds_image(kind.value_type)
  if pa.types.is_struct(kind):
    return kind.get_field_index("bytes") >= 0 and _holds_image(kind.field("bytes").type)
  return _is_bytes(kind) or pa.types.is_fixed_size_binary(kind)


def _holds_text(kind: pa.DataType) -> bool:
  if _is_list(kind) or pa.types.is_dictionary(kind):
    return _holds_text(kind.value_type)
  if pa.types.is_struct(kind):  # what somebody says
    names = {kind.field(i).name for i in range(kind.num_fields)}
    return {"from", "value"} <= names or {"role", "content"} <= names
  is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
  return is_text or _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _holds_answer(kind: pa.DataType) -> bool:
  if _is_list(kind):
    return _holds_answer(kind.value_type)
  return _holds_text(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _shown(schema: pa.Schema) -> str:
  return "columns: " + ", ".join(f"{field.name} ({field.type})" for field in schema)
