"""Rows of a table of captions: CSV with any usual separator, TSV, JSON, JSON lines, Parquet, annotations of data sets.

Quotation marks hold a field together where fields are separated by commas and such. Between tabs they are text, since
most tables of captions are written so: an unclosed one would swallow rows.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from coca.data.sources import annotations, video_tables
from coca.files.finding import IMAGE_EXTENSIONS

ENDINGS = (".csv", ".tsv", ".jsonl")
MORE = (*ENDINGS, ".json", ".token", ".parquet")  # of what may be a table where somebody says so
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}
LINES = 10  # of a text in a CSV that are told of

_ROW_INSIDE = re.compile(rf"\n.*\.({'|'.join(IMAGE_EXTENSIONS)})\b", re.IGNORECASE)
# What may stand above a CSV's names: blank lines, and the line that tells Excel its separator.
_BEFORE = re.compile(r'(?:[^\S\n]*\n)*(?:"?sep=."?[^\S\n]*\n(?:[^\S\n]*\n)*)?', re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


class TableError(ValueError):
  """No row of the table can be used."""


def is_table(name: str) -> bool:
  """True if a file may be the table of its folder, by its name."""
  return name.lower().endswith(ENDINGS) or bool(annotations.NAMES.fullmatch(name) or asks(name))


def asks(name: str) -> bool:
  """True if a file's name says that its rows are questions."""
  return bool(annotations.QUESTIONS.fullmatch(name))


def entails(name: str) -> bool:
  """True if a file's name says that its rows are hypotheses about images, each with a label."""
  return bool(annotations.HYPOTHESES.fullmatch(name))


def labelled(name: str, data: bytes) -> bool:
  """True if each row of a table is a text with a label of its own: SNLI-VE's files, by their name, and NLVR2's."""
  return entails(name) or _states(name, data)


def _states(name: str, data: bytes) -> bool:
  """True of NLVR2's files, train.json and others, which are JSON lines."""
  first = _json_row(data.lstrip().partition(b"\n")[0].decode(errors="replace")) if ".json" in name else ""
  return isinstance(first, dict) and {"identifier", "sentence"} <= set(first)


def read(
  name: str, data: bytes, split: str, known: set[str], notes: list[str], beside: Callable[[str], bytes] | None = None
):
  """Reads a table.

  Args:
    name: of the file; its ending says what it is.
    data: the whole of it.
    split, beside: see `annotations.rows`.
    known: names that columns may have. They tell how a CSV is separated.
    notes: what a person has to be told of the table is appended, as rows are taken.

  Returns:
    what to call it in messages, and an iterator over its rows: where each stands, and its values by column or what is
    wrong with it. It raises TableError where the file is no table at all.
  """
  ending = name.lower().rpartition(".")[2]
  if ending == "parquet":
    return name, _parquet_rows(name, data)
  if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # as spreadsheets export "Unicode text"
    text = data.decode("utf-16", "replace")
  else:
    text = data.decode("utf-8-sig", "surrogateescape")
  if ".token" in name:
    return name, annotations.flickr(name, text)
  if ending in ("csv", "tsv", "txt"):
    if video_tables.is_moments(text):
      return name, video_tables.moments(name, text, beside)
    whole, text = text, _BEFORE.sub("", text, count=1)
    separated = separator(name, text, known | video_tables.KINETICS)
    rows = _csv_rows(name, text, separated, notes, split, whole.count("\n") - text.count("\n"))
    if set(text.partition("\n")[0].strip().replace('"', "").split(separated)) >= video_tables.KINETICS:
      return name, video_tables.kinetics(rows)
    return f"{name} (separated by {SEPARATORS[separated]})", rows
  if _states(name, data):
    return name, annotations.nlvr2(_json_lines(name, text))
  if entails(name):
    return name, annotations.snli_ve(name, _json_lines(name, text), notes)
  return name, _json_lines(name, text) if ending == "jsonl" else _json_rows(name, text, split, beside)


def columns(
  table: str, rows: Iterator, wanted: dict[Any, tuple[str, ...]], setting: str
) -> tuple[dict[Any, str], Iterator]:
  """The column of each of `wanted`, and all rows. The first rows may lack some of their fields.

  Raises:
    ValueError: no row has such a column.
  """
  looked_at, seen, chosen = [], {}, {}
  for where, row in rows:
    looked_at.append((where, row))
    seen |= dict.fromkeys(row if isinstance(row, dict) else ())
    chosen = {
      key: name
      for key, names in wanted.items()
      for name in reversed(names)
      if name in seen or name.partition(".")[0] in seen
    }
    if len(chosen) == len(wanted):
      break
  for key, names in wanted.items():
    if key not in chosen and seen:
      raise ValueError(
        f"{setting}.{key if isinstance(key, str) else 'text_key'}: {table} has no column {' or '.join(names)}; "
        f"it has: {', '.join(map(str, seen))}"
        + ". For questions, name their column in question_key"
        * ("question" in seen and "question_key" not in wanted)
      )
  return {key: chosen.get(key, "") for key in wanted}, chain(looked_at, rows)


def _parquet_rows(name: str, data: bytes) -> Iterator[tuple[str, dict | str]]:
  import pyarrow.parquet as pq

  number = 0
  try:
    for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches():
      for row in batch.to_pylist():
        yield f"{name}, row {number}", row
        number += 1
  except (OSError, ValueError, OverflowError, LookupError) as e:  # pyarrow's are among these
    raise TableError(f"{name}: {e}") from None


def _json_lines(name: str, text: str) -> Iterator[tuple[str, dict | str]]:
  for number, line in enumerate(text.split("\n"), 1):  # splitlines() would split inside of strings
    if line.strip():
      yield f"{name}, line {number}", _json_row(line)


def _json_rows(name: str, text: str, split: str, beside) -> Iterator[tuple[str, dict | str]]:
  try:
    values = json.loads(text)
    if (found := annotations.rows(name, values, split, beside)) is not None:
      yield from found
      return
  except (ValueError, RecursionError) as e:
    raise TableError(f"{name}: {e}") from None
  if isinstance(values, dict):
    values = [{"file_name": k, "caption": v} for k, v in values.items()]
  if not isinstance(values, list):
    raise TableError(f"{name} must be a list of objects, or an object from image names to captions")
  for number, row in enumerate(values, 1):
    yield f"{name}, entry {number}", row if isinstance(row, dict) else "no JSON object"


def _json_row(line: str) -> dict | str:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as e:
    return f"not JSON: {e}"
  return row if isinstance(row, dict) else "no JSON object"


def separator(name: str, text: str, known: set[str]) -> str:
  """The separator of a CSV's fields: it splits the first line into the most known names, or else the most fields."""
  first = next((line for line in text.splitlines() if line.strip()), "")
  usual = "\t" if name.lower().endswith(".tsv") else ","

  def fits(candidate):
    fields = [field.strip().strip('"') for field in first.split(candidate)]
    return sum(field in known for field in fields), len(fields), candidate == usual

  return max(SEPARATORS, key=fits)


def _csv_rows(
  name: str, text: str, separated: str, notes: list[str], split: str, before: int
) -> Iterator[tuple[str, dict | str]]:
  """`before` are the lines above those in `text`."""
  tabs = separated == "\t" and not text.lstrip().startswith('"')  # else a program quoted all that is text
  reader = csv.DictReader(
    io.StringIO(text, newline=""), delimiter=separated, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
  )
  long = []
  while True:
    try:
      row = next(reader)
    except StopIteration:
      break
    except csv.Error as e:
      yield f"{name}, after line {before + reader.line_num}", str(e)
      continue
    where = f"{name}, line {before + reader.line_num}"
    if extra := row.pop(None, None):
      needs = "can't stand in one" if tabs else "in a text need quotes around it"
      yield where, f"more fields than the first line has ({SEPARATORS[separated]} {needs}): {str(extra)[:80]}"
      continue
    row = {column.strip(): _unquoted(value) if tabs else value for column, value in row.items()}
    if "sentids" in row:  # Flickr30k's on the Hugging Face hub: Karpathy's, whose lists are JSON in a field
      if split and row.get("split") not in (split, ""):
        continue
      row |= {"caption": _json_list(row.get("raw")), "file_name": (row.get("filename"),)}
    lines = max(str(value).count("\n") for value in row.values()) + 1
    if any(_ROW_INSIDE.search(str(value)) for value in row.values()):
      yield (
        where,
        (
          f'a quotation mark makes one field of {lines} lines with other rows in them; write "" for each '
          '" of a text and put the text in quotation marks, or separate by tabs, between which " is text'
        ),
      )
      continue
    if lines > LINES:
      long.append((where, lines))
    yield where, row
  if long:
    notes.append(
      f"{len(long)} texts have more than {LINES} lines, as the one of {long[0][1]} lines that ends in "
      f'{long[0][0]}: see whether an unclosed " has swallowed rows there'
    )


def _unquoted(value):
  """A field between tabs; only with marks that are doubled inside of it is it certain that quoting was meant."""
  quoted = _QUOTED.fullmatch(value) if isinstance(value, str) and '""' in value[1:-1] else None
  return quoted[1].replace('""', '"') if quoted else value


def _json_list(value):
  try:
    return json.loads(value)
  except (ValueError, TypeError, RecursionError):
    return value
