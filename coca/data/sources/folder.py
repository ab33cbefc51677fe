"""A folder of images with a table of captions (CSV, TSV or JSON), or with NAME.txt beside each NAME.jpg.

The table lies in the folder: captions.* or metadata.*, or the only .csv, .tsv or .jsonl there. It names images by
their path inside the folder; paths that lead out of it are refused, and links that do without `Source.follow_links`.
Rows with the same image are several texts of it; with questions they are records of their own, whose keys are PATH,
PATH#1, PATH#2, ... in the order of the rows.
"""

import csv
import io
import json
import operator
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from coca.config import Source
from coca.data.records import BadRecord, Record, Shard
from coca.data.sources import files
from coca.retries import Unavailable

TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json", "metadata.csv", "metadata.jsonl")
IMAGE_COLUMNS = ("file_name", "image", "filepath", "path", "key")
TEXT_COLUMNS = ("caption", "text", "title", "captions")
MAKE = 'write captions.csv with a first line "file_name,caption" into it, or NAME.txt beside each NAME.jpg'


class _Entry(NamedTuple):
  path: str  # the image's in the folder
  texts: tuple | None  # None: in the file beside it
  wrong: str = ""  # why it is no record
  question: str = ""
  key: str = ""  # empty: the path


class Folder:
  """Pairs from a folder; see `open_folder`."""

  label_names: tuple[str, ...] = ()

  def __init__(self, settings: Source):
    self.name = settings.path
    self._origin = settings.origin or "human"
    self.problems: list[str] = []
    self._fs, self._root = fsspec.core.url_to_fs(settings.path)
    self._fs.invalidate_cache()
    self._root = self._root.rstrip("/")
    self._local = isinstance(self._fs, LocalFileSystem)
    self._follow_links = settings.follow_links
    if not settings.path or not self._fs.isdir(self._root):
      raise FileNotFoundError(f"{files.SETTING}.path is {settings.path!r}: no such directory")
    if settings.text_key and (table := self._find_table()):
      self._entries = self._from_table(table, settings)
    elif settings.question_key:
      raise FileNotFoundError(f"{files.SETTING}.question_key is {settings.question_key!r}: {self.name!r} has no table "
                              f"with questions; one of {', '.join(TABLES)} has to lie in it")
    else:
      self._entries = self._from_files(bool(settings.text_key))

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, i: int) -> Record:
    """Record `i`; its key is the image's path in the folder, with #1, #2, ... behind it for further questions.

    Raises:
      BadRecord: the image is missing, or it or a text can't be read.
      Unavailable: the disk or the store fails.
    """
    path, texts, wrong, question, key = self._entries[operator.index(i)]
    if wrong:
      raise BadRecord(wrong)
    try:
      image = self._read_image(path)
      if texts is None:
        texts = files.as_texts(self._read(f"{path.rpartition('.')[0]}.txt"), self._origin)
    except Unavailable:
      raise
    except FileNotFoundError as e:
      raise BadRecord(f"{self.name}: no such file: {e.filename or e}") from None
    except (OSError, ValueError) as e:
      raise BadRecord(f"{self.name}: record '{path}': {e}") from None
    if not image:
      raise BadRecord(f"{self.name}: record '{path}': the image is empty")
    return Record(key or path, image, texts, question=question)

  @property
  def shards(self) -> list[Shard]:
    """A single one."""
    return [Shard("folder", 0, len(self))]

  def _read_image(self, path: str) -> bytes:
    for suffix in ("", *(f".{e}" for e in files.IMAGE_EXTENSIONS)):  # a table may name images without it
      try:
        return self._read(f"{path}{suffix}")
      except FileNotFoundError:
        if "." in path.rpartition("/")[2]:
          break
    raise FileNotFoundError(f"{path} (named in the table)")

  def _read(self, path: str) -> bytes:
    place = f"{self._root}/{path}"
    if self._local and not self._follow_links and not files.is_inside(place, self._root):
      raise OSError(f"{path} is a link that leads out of the folder; {files.SETTING}.follow_links=True follows it")
    return files.read_all(self._fs, place)

  def _find_table(self) -> str:
    names = {info["name"].rpartition("/")[2] for info in self._fs.ls(self._root, detail=True)
             if info["type"] != "directory"}
    known = [name for name in TABLES if name in names]
    if known:
      return known[0]
    others = sorted(n for n in names if n.lower().endswith((".csv", ".tsv", ".jsonl")))
    if len(others) > 1:
      raise ValueError(f"{files.SETTING}.path is {self.name!r}: which of {', '.join(others)} is the table? "
                       "Name it captions.csv, captions.tsv or captions.jsonl")
    return others[0] if others else ""

  def _from_files(self, with_texts: bool) -> list[_Entry]:
    if self._local:
      found, left_out = files.files_below(self._root, self._follow_links)
      self.problems += left_out
    else:
      found = [path[len(self._root) + 1 :] for path in self._fs.find(self._root)]
    names = {path for path in found if not any(part.startswith(".") for part in path.split("/"))}
    images = sorted(n for n in names if n.lower().endswith(tuple(f".{e}" for e in files.IMAGE_EXTENSIONS)))
    stems = {n.rpartition(".")[0] for n in images}
    alone = [n for n in names if n.endswith(".txt") and n[:-4] not in stems]
    if alone and with_texts:
      self.problems.append(f"{self.name}: {len(alone)} texts without an image, such as {min(alone)}")
    entries = [_Entry(n, None if with_texts and f"{n.rpartition('.')[0]}.txt" in names else ()) for n in images]
    if not images or (with_texts and all(entry.texts == () for entry in entries)):
      raise FileNotFoundError(f"{files.SETTING}.path is {self.name!r}: {len(images)} images and no captions; {MAKE}. "
                              f"For images alone set {files.SETTING}.text_key to ''"
                              + "".join(f"\n  {problem}" for problem in self.problems[:5]))
    return entries

  def _from_table(self, table: str, settings: Source) -> list[_Entry]:
    columns, entries, wrong, rows = None, {}, [], Counter()
    for where, row in _rows(table, self._read(table)):
      try:
        if isinstance(row, str):
          raise ValueError(row)
        if columns is None:
          columns = _columns(table, row, settings)
        key = image = _inside(row.get(columns[0]))
        found = files.as_texts(files.lookup(row, columns[1]), self._origin)
        question = files.as_question(row.get(settings.question_key)) if settings.question_key else ""
        while question and key in entries:  # another file may be called so
          rows[image] += 1
          key = f"{image}#{rows[image]}"
        entries[key] = _Entry(image, (entries[key].texts if key in entries else ()) + found, "", question, key)
      except _ColumnError:
        raise
      except ValueError as e:
        wrong.append(f"{self.name}: {where}: {e}")
    if not entries:
      first = wrong[0] if wrong else f"{self.name}: {table}: no rows"
      raise ValueError(f"{files.SETTING}.path is {self.name!r}: no row of {table} can be used; the first: {first}")
    if wrong:
      self.problems.append(f"{len(wrong)} rows can't be used; the first: {wrong[0]}")
    return [*entries.values(), *(_Entry("", None, reason) for reason in wrong)]


class _ColumnError(ValueError):
  """The table lacks a column."""


def _columns(table: str, row: dict, settings: Source) -> tuple[str, str]:
  chosen = []
  if settings.question_key and settings.question_key not in row:
    raise _ColumnError(f"{files.SETTING}.question_key: {table} has no column {settings.question_key}; it has: "
                       f"{', '.join(map(str, row))}")
  for key, default, known in (("image_key", files.DEFAULT_IMAGE_KEY, IMAGE_COLUMNS),
                              ("text_key", files.DEFAULT_TEXT_KEY, TEXT_COLUMNS)):
    value = getattr(settings, key)
    names = known if value == default else (value,)
    name = next((name for name in names if name in row or name.partition(".")[0] in row), None)
    if name is None:
      raise _ColumnError(f"{files.SETTING}.{key}: {table} has no column {' or '.join(names)}; "
                         f"it has: {', '.join(map(str, row))}")
    chosen.append(name)
  return chosen[0], chosen[1]


def _inside(path) -> str:
  """An image's path as a table gives it, if it stays inside the folder."""
  if not isinstance(path, str) or not path.strip():
    raise ValueError("no image is named")
  path.encode("utf-8")  # no UTF-8 in the file: surrogates
  shown, path = path, path.strip().replace("\\", "/")
  parts = [part for part in path.split("/") if part not in ("", ".")]
  outside = path.startswith("/") or "://" in path or re.match("[A-Za-z]:", path) or ".." in parts
  if outside or "\0" in path or not parts:
    raise ValueError(f"{shown!r} is refused: a table may only name files inside its folder, by relative paths")
  return "/".join(parts)


def _rows(name: str, data: bytes) -> Iterator[tuple[str, dict | str]]:
  """Where a row stands, and its values by column or what is wrong with it."""
  if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # as spreadsheets export "Unicode text"
    text = data.decode("utf-16", "replace")
  else:
    text = data.decode("utf-8-sig", "surrogateescape")
  if name.lower().endswith((".csv", ".tsv")):
    yield from _csv_rows(name, text)
  elif name.lower().endswith(".jsonl"):
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would split inside of strings
      if line.strip():
        yield f"{name}, line {number}", _json_row(line)
  else:
    try:
      values = json.loads(text)
    except (ValueError, RecursionError) as e:
      raise _ColumnError(f"{name}: {e}") from None
    if isinstance(values, dict):
      values = [{"file_name": k, "caption": v} for k, v in values.items()]
    if not isinstance(values, list):
      raise _ColumnError(f"{name} must be a list of objects, or an object from image names to captions")
    for number, row in enumerate(values, 1):
      yield f"{name}, entry {number}", row if isinstance(row, dict) else "no JSON object"


def _json_row(line: str) -> dict | str:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as e:
    return f"not JSON: {e}"
  return row if isinstance(row, dict) else "no JSON object"


def _csv_rows(name: str, text: str) -> Iterator[tuple[str, dict | str]]:
  reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if name.lower().endswith(".tsv") else ",")
  while True:
    try:
      row = next(reader)
    except StopIteration:
      return
    except csv.Error as e:
      yield f"{name}, after line {reader.line_num}", str(e)
      continue
    extra = row.pop(None, None)
    wrong = extra and f"more fields than the first line has (a text with commas needs quotes): {str(extra)[:80]}"
    yield f"{name}, line {reader.line_num}", wrong or {column.strip(): value for column, value in row.items()}


def open_folder(settings: Source) -> Folder:
  """Opens a folder, reading its table or listing its files.

  Args:
    settings: `path` is the directory. `image_key` and `text_key` name columns of the table; at their defaults, the
      first of file_name, image, filepath, path, key and of caption, text, title, captions. In JSON a text may be a
      list of texts, and a dot leads into objects ("answers.answer"). captions.json is a list of such rows, or an
      object from image names to captions. With the `text_key` '' all images in the folder are read, and no texts.
      `question_key` names the questions' column, where each row is a question with its answers in `text_key`.

  Raises:
    FileNotFoundError: no such directory, or no captions in it.
    ValueError: the table lacks a column, or no row of it can be used.
  """
  return Folder(settings)
