"""A folder of images with a table of captions (CSV, TSV or JSON), or with NAME.txt beside each NAME.jpg.

The table lies in the folder: captions.* or metadata.*, or the only .csv, .tsv or .jsonl or file of annotations there
(COCO's captions_*.json, Karpathy's dataset_*.json). It names images by their path inside the folder; paths that lead
out of it are refused, and links that do without `Source.follow_links`. Rows with the same image are several texts of
it; with questions they are records of their own, whose keys are PATH, PATH#1, PATH#2, ... in the order of the rows.
"""

import operator
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from coca.config import Source
from coca.data.records import BadRecord, Record, Shard
from coca.data.sources import tables, values
from coca.files import finding, reading
from coca.files.finding import IMAGE_EXTENSIONS, SETTING
from coca.files.retries import Unavailable

TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json", "metadata.csv", "metadata.jsonl")
IMAGE_COLUMNS = ("file_name", "image", "filepath", "path", "key")
TEXT_COLUMNS = ("caption", "text", "title", "captions")
ARCHIVES = {".zip": "unzip", ".7z": "7z x", ".rar": "unrar x", ".tar": "tar -xf", ".tgz": "tar -xf"} | {
  f".tar.{packed}": "tar -xf" for packed in ("gz", "bz2", "xz", "zst")
}
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

  def __init__(self, settings: Source, where: str):
    self.name, self._where = settings.path, where
    self._origin = settings.origin or "human"
    self.problems: list[str] = []
    self._fs, self._root = fsspec.core.url_to_fs(settings.path)
    self._fs.invalidate_cache()
    self._root = self._root.rstrip("/")
    self._local = isinstance(self._fs, LocalFileSystem)
    self._follow_links = settings.follow_links
    if not settings.path or not self._fs.isdir(self._root):
      raise FileNotFoundError(f"{self._where}.path is {settings.path!r}: no such directory")
    self._names = {
      info["name"].rpartition("/")[2] for info in self._fs.ls(self._root, detail=True) if info["type"] != "directory"
    }
    if settings.text_key and (table := self._find_table()):
      self._entries = self._from_table(table, settings)
    elif settings.question_key:
      raise FileNotFoundError(
        f"{self._where}.question_key is {settings.question_key!r}: {self.name!r} has no table "
        f"with questions; one of {', '.join(TABLES)} has to lie in it"
      )
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
        texts = values.as_texts(self._read(f"{path.rpartition('.')[0]}.txt"), self._origin)
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
    for suffix in ("", *(f".{e}" for e in IMAGE_EXTENSIONS)):  # a table may name images without it
      try:
        return self._read(f"{path}{suffix}")
      except FileNotFoundError:
        if "." in path.rpartition("/")[2]:
          break
    packed = self._packed()
    raise FileNotFoundError(f"{path} (named in the table)" + (packed and f"; {packed}"))

  def _packed(self) -> str:
    """The archives in the folder that may hold the images."""
    name, command = next(
      (
        (name, command)
        for name in sorted(self._names)
        for ending, command in ARCHIVES.items()
        if name.lower().endswith(ending)
      ),
      ("", ""),
    )
    if not name:
      return ""
    shards = f"; shards of WebDataset: gunzip, then {self._where}.kind 'webdataset'" if ".tar." in name else ""
    return f"{name} is not looked into: unpack it there ({command} {shlex.quote(name)}{shards})"

  def _read(self, path: str) -> bytes:
    place = f"{self._root}/{path}"
    if self._local and not self._follow_links and not finding.is_inside(place, self._root):
      raise OSError(f"{path} is a link that leads out of the folder; {self._where}.follow_links=True follows it")
    return reading.read_all(self._fs, place)

  def _find_table(self) -> str:
    known = [name for name in TABLES if name in self._names]
    if known:
      return known[0]
    others = sorted(name for name in self._names if tables.is_table(name))
    if len(others) > 1:
      raise ValueError(
        f"{self._where}.path is {self.name!r}: which of {', '.join(others)} is the table? "
        "Name it captions.csv, captions.tsv or captions.jsonl"
      )
    return others[0] if others else ""

  def _from_files(self, with_texts: bool) -> list[_Entry]:
    if self._local:
      found, left_out = finding.files_below(self._root, self._follow_links)
      self.problems += left_out
    else:
      found = [path[len(self._root) + 1 :] for path in self._fs.find(self._root)]
    names = {path for path in found if not any(part.startswith(".") for part in path.split("/"))}
    images = sorted(n for n in names if n.lower().endswith(tuple(f".{e}" for e in IMAGE_EXTENSIONS)))
    stems = {n.rpartition(".")[0] for n in images}
    alone = [n for n in names if n.endswith(".txt") and n[:-4] not in stems]
    if alone and with_texts:
      self.problems.append(f"{self.name}: {len(alone)} texts without an image, such as {min(alone)}")
    entries = [_Entry(n, None if with_texts and f"{n.rpartition('.')[0]}.txt" in names else ()) for n in images]
    if not images or (with_texts and all(entry.texts == () for entry in entries)):
      advice = "; or ".join(filter(None, (self._elsewhere(names), MAKE)))
      raise FileNotFoundError(
        f"{self._where}.path is {self.name!r}: {len(images)} images and no captions; {advice}. "
        f"For images alone set {self._where}.text_key to ''"
        + "".join(f"\n  {problem}" for problem in self.problems[:5])
      )
    if with_texts and (without := [entry.path for entry in entries if entry.texts == ()]):
      self.problems.append(
        f"{self.name}: {len(without)} of {len(entries)} images have no text beside them, such as {without[0]}"
      )
    return entries

  def _elsewhere(self, names: set[str]) -> str:
    """The files in the folder and the ones below that a person may have meant."""
    below = [n for n in names if "/" in n and (n.rpartition("/")[2] in TABLES or tables.is_table(n.rpartition("/")[2]))]
    below.sort(key=lambda name: ("train" not in name, name))
    if below:
      path = f"{self.name.rstrip('/')}/{below[0].rpartition('/')[0]}"
      return (
        f"a table is looked for in the folder itself, and {' and '.join(below[:3])} "
        f"{'lies' if len(below) == 1 else 'lie'} below it: set {self._where}.path to {path!r}"
      )
    for kind, ending in (("webdataset", ".tar"), ("parquet", ".parquet")):
      if any(name.lower().endswith(ending) for name in self._names):
        return f"*{ending} is what {self._where}.kind {kind!r} reads"
    return self._packed()

  def _from_table(self, table: str, settings: Source) -> list[_Entry]:
    entries, wrong, doubled, notes = {}, [], Counter(), []
    wanted = _wanted(settings)
    known = {name for names in wanted.values() for name in names}
    shown, rows = tables.read(table, self._read(table), settings.split, known, notes)
    (image_key, text_key, question_key), rows = _columns(shown, rows, wanted, self._where)
    for where, row in rows:
      try:
        if isinstance(row, str):
          raise ValueError(row)
        key = image = _inside(row.get(image_key))
        found = values.as_texts(values.lookup(row, text_key), self._origin, bool(question_key))
        question = values.as_question(values.lookup(row, question_key)) if question_key else ""
        while question and key in entries:  # another file may be called so
          doubled[image] += 1
          key = f"{image}#{doubled[image]}"
        entries[key] = _Entry(image, (entries[key].texts if key in entries else ()) + found, "", question, key)
      except ValueError as e:
        wrong.append(f"{self.name}: {where}: {e}")
    if not entries:
      first = wrong[0] if wrong else f"{self.name}: {table}: no rows"
      raise ValueError(f"{self._where}.path is {self.name!r}: no row of {table} can be used; the first: {first}")
    if wrong:
      self.problems.append(f"{len(wrong)} rows can't be used; the first: {wrong[0]}")
    self.problems += [f"{self.name}: {note}" for note in notes]
    return [*entries.values(), *(_Entry("", None, reason) for reason in wrong)]


def _wanted(settings: Source) -> dict[str, tuple[str, ...]]:
  """By setting, the names that the column may have, in the order of preference."""
  wanted = {"image_key": (settings.image_key,), "text_key": (settings.text_key,)}
  if settings.image_key == values.DEFAULT_IMAGE_KEY:
    wanted["image_key"] = IMAGE_COLUMNS
  if settings.text_key == values.DEFAULT_TEXT_KEY:
    wanted["text_key"] = TEXT_COLUMNS
  return wanted | ({"question_key": (settings.question_key,)} if settings.question_key else {})


def _columns(table: str, rows: Iterator, wanted: dict, where: str) -> tuple[tuple[str, str, str], Iterator]:
  """The columns of images, texts and questions ('': none), and all rows. The first rows may lack some of their fields.

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
        f"{where}.{key}: {table} has no column {' or '.join(names)}; it has: {', '.join(map(str, seen))}"
      )
  return tuple(chosen.get(key, "") for key in ("image_key", "text_key", "question_key")), chain(looked_at, rows)


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


def open_folder(settings: Source, where: str = SETTING) -> Folder:
  """Opens a folder, reading its table or listing its files.

  Args:
    settings: `path` is the directory. `image_key` and `text_key` name columns of the table; at their defaults, the
      first of file_name, image, filepath, path, key and of caption, text, title, captions. In JSON a text may be a
      list of texts, and a dot leads into objects ("answers.answer"). captions.json is a list of such rows, or an
      object from image names to captions, or COCO's or Karpathy's annotations, of which `split` is
      read ('train' with 'restval', '' all). With the `text_key` '' all images in the folder are read, and no texts.
      `question_key` names the questions' column, where each row is a question with its answers in `text_key`.

  Raises:
    FileNotFoundError: no such directory, or no captions in it.
    ValueError: the table lacks a column, or no row of it can be used.
  """
  return Folder(settings, where)
