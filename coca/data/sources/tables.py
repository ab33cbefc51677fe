"""Rows of a table of captions: CSV with any usual separator, TSV, JSON, JSON lines, COCO's and Karpathy's annotations.

Quotation marks hold a field together where fields are separated by commas and such. Between tabs they are text, since
most tables of captions are written so: an unclosed one would swallow rows.
"""

import csv
import io
import json
import re
from collections.abc import Iterator

from coca.data.sources import annotations
from coca.files.finding import IMAGE_EXTENSIONS

ENDINGS = (".csv", ".tsv", ".jsonl")
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}
LINES = 10  # of a text in a CSV that are told of

_ROW_INSIDE = re.compile(rf"\n.*\.({'|'.join(IMAGE_EXTENSIONS)})\b", re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


class TableError(ValueError):
  """No row of the table can be used."""


def is_table(name: str) -> bool:
  """True if a file may be the table of its folder, by its name."""
  return name.lower().endswith(ENDINGS) or bool(annotations.NAMES.fullmatch(name))


def read(name: str, data: bytes, split: str, known: set[str], notes: list[str]):
  """Reads a table.

  Args:
    name: of the file; its ending says what it is.
    data: the whole of it.
    split: see `annotations.rows`.
    known: names that columns may have. They tell how a CSV is separated.
    notes: what a person has to be told of the table is appended, as rows are taken.

  Returns:
    what to call it in messages, and an iterator over its rows: where each stands, and its values by column or what is
    wrong with it. It raises TableError where the file is no table at all.
  """
  if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # as spreadsheets export "Unicode text"
    text = data.decode("utf-16", "replace")
  else:
    text = data.decode("utf-8-sig", "surrogateescape")
  if name.lower().endswith((".csv", ".tsv")):
    separated = separator(name, text, known)
    return f"{name} (separated by {SEPARATORS[separated]})", _csv_rows(name, text, separated, notes)
  return name, (_json_lines if name.lower().endswith(".jsonl") else _json_rows)(name, text, split)


def _json_lines(name: str, text: str, _) -> Iterator[tuple[str, dict | str]]:
  for number, line in enumerate(text.split("\n"), 1):  # splitlines() would split inside of strings
    if line.strip():
      yield f"{name}, line {number}", _json_row(line)


def _json_rows(name: str, text: str, split: str) -> Iterator[tuple[str, dict | str]]:
  try:
    values = json.loads(text)
    if isinstance(values, dict) and isinstance(values.get("images"), list):
      yield from annotations.rows(name, values, split)
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


def _csv_rows(name: str, text: str, separated: str, notes: list[str]) -> Iterator[tuple[str, dict | str]]:
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
      yield f"{name}, after line {reader.line_num}", str(e)
      continue
    where = f"{name}, line {reader.line_num}"
    if extra := row.pop(None, None):
      needs = "can't stand in one" if tabs else "in a text need quotes around it"
      yield where, f"more fields than the first line has ({SEPARATORS[separated]} {needs}): {str(extra)[:80]}"
      continue
    row = {column.strip(): _unquoted(value) if tabs else value for column, value in row.items()}
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
