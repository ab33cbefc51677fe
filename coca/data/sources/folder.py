"""A folder of images with a table of captions (CSV, TSV, JSON, ...), or with NAME.txt beside each NAME.jpg.

The table is `Source.texts`, or lies in the folder: captions.* or metadata.*, or the only .csv, .tsv or .jsonl or file
of annotations there (`coca.data.sources.annotations` has their names). It names images by their path inside the folder;
paths that lead out of it are refused, and links that do without `Source.follow_links`. Rows with the same image are
several texts of it; with questions, and in SNLI-VE's and NLVR2's files, they are records of their own, whose keys are
PATH, PATH#1, PATH#2, ... in the order of the rows, or PATH#NUMBER where the file of annotations numbers them.

Without a table, texts lie beside the images, or are the names of the files or of the folders that these lie in.
"""

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from coca.config import Source
from coca.config.differing import listed
from coca.data.records import BadRecord, Record, Shard, Text
from coca.data.sources import annotations, tables, values, video_tables
from coca.data.sources.folder_files import Files
from coca.data.sources.values import LABEL
from coca.files.finding import IMAGE_EXTENSIONS, SETTING, VIDEO_EXTENSIONS
from coca.files.retries import Unavailable

TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json", "metadata.csv", "metadata.jsonl")
IMAGE_COLUMNS = ("file_name", "image", "filepath", "path", "key", "filename", "image_name", "images")
VIDEO_COLUMNS = ("video_id", "video", *IMAGE_COLUMNS)
TEXT_COLUMNS = ("caption", "text", "title", "captions", "comment", "conversations", "messages", "sentence")
ANSWER_COLUMNS = ("answers", "answer")
FILE_NAME = "file_name"  # the `text_key` of the files' names
BESIDE = ("txt", "caption")  # extensions of texts, in the order of preference
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}  # folders that are no classes
KAGGLE = "captions.txt"  # a CSV, as Flickr8k and Flickr30k lie there; beside other texts, it is one of them
MAKE = (
  'write captions.csv with a first line "file_name,caption" into it, or NAME.txt beside each NAME.jpg; or set text_key '
  "to 'file_name' or 'label' where the names of files or folders are the texts"
)


class _Beside(NamedTuple):
  path: str  # of a file with a text
  origin: str


class _Entry(NamedTuple):
  path: str  # the image's in the folder
  texts: tuple[Text | _Beside, ...] = ()
  wrong: str = ""  # why it is no record
  question: str = ""
  key: str = ""  # empty: the path
  label: tuple[Text, ...] = ()  # the name of its class, where that is no text of it
  second: str = ""  # the path of the other image


class Folder:
  """Pairs from a folder; see `open_folder`."""

  def __init__(self, settings: Source, where: str):
    self.name, self._where = settings.path, where
    videos = VIDEO_EXTENSIONS, VIDEO_COLUMNS
    self._endings, self._columns = videos if settings.videos else (IMAGE_EXTENSIONS, IMAGE_COLUMNS)
    self._keys = values.text_keys(settings, "human")
    self.problems: list[str] = []
    self._files = Files(settings, self._endings, where, self.problems)
    self._names = self._files.names
    self._lines, self._label_key = settings.text_lines, settings.label_key
    if self._keys and (table := settings.texts or self._find_table(settings)):
      self._entries = self._from_table(table, settings)
    elif settings.question_key:
      raise FileNotFoundError(
        f"{self._where}.question_key is {settings.question_key!r}: {self.name!r} has no table "
        f"with questions; one of {', '.join(TABLES)} has to lie in it"
      )
    elif settings.label_key not in ("", LABEL):
      raise FileNotFoundError(
        f"{self._where}.label_key is {settings.label_key!r}: {self.name!r} has no table with such a column; 'label' is "
        "the name of the folder that an image lies in"
      )
    else:
      self._entries = self._from_files(settings.text_key == values.DEFAULT_TEXT_KEY)
    # A table is read with its texts, and so are the names of folders: these are all names that there are.
    classes = any(key.is_class for key in self._keys) or any(entry.label for entry in self._entries)
    texts = (text for entry in self._entries for text in entry.label or entry.texts if classes)
    names = {text.text for text in texts if isinstance(text, Text) and text.origin == LABEL}
    self.label_names = tuple(sorted(names))
    self._labels = {name: i for i, name in enumerate(self.label_names)}

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, i: int) -> Record:
    """Record `i`; its key is the image's path in the folder, with #1, #2, ... behind it for further questions.

    Raises:
      BadRecord: the image is missing, or it or a text can't be read.
      Unavailable: the disk or the store fails.
    """
    path, given, wrong, question, key, label, second = self._entries[operator.index(i)]
    if wrong:
      raise BadRecord(wrong)
    try:
      image, other = self._files.read_image(path), self._files.read_image(second) if second else b""
      texts = ()
      for text in given:
        texts += (text,) if isinstance(text, Text) else self._read_text(text)
    except Unavailable:
      raise
    except FileNotFoundError as e:
      raise BadRecord(f"{self.name}: no such file: {e.filename or e}") from None
    except (OSError, ValueError) as e:
      raise BadRecord(f"{self.name}: record '{path}': {e}") from None
    if not image:
      raise BadRecord(f"{self.name}: record '{path}': the image is empty")
    return Record(key or path, image, texts, values.label_of(label or texts, self._labels), question, second=other)

  def ids(self, _: str) -> Iterator[str]:
    """The keys of all records."""
    return (entry.key or entry.path for entry in self._entries)

  @property
  def shards(self) -> list[Shard]:
    """A single one."""
    return [Shard("folder", 0, len(self))]

  def _read_text(self, beside: _Beside) -> tuple[Text, ...]:
    found = self._files.read(beside.path)
    return values.as_texts(found.decode("utf-8-sig").splitlines() if self._lines else found, beside.origin)

  def _find_table(self, settings: Source) -> str:
    known = [name for name in TABLES if name in self._names]
    if [name for name in self._names if name.endswith(".txt")] == [KAGGLE]:
      known.append(KAGGLE)
    if known:
      return known[0]
    others = sorted(name for name in self._names if tables.is_table(name))
    asking = [name for name in others if tables.asks(name)]
    others = asking if settings.question_key and asking else [name for name in others if name not in asking] or asking
    if settings.split:
      others = annotations.of_split(others, settings.split, f"{self._where}.split", self.name)
    if len(others) > 1:
      raise ValueError(
        f"{self._where}.path is {self.name!r}: which of {', '.join(others)} is the table? Name it in "
        f"{self._where}.texts"
      )
    return others[0] if others else ""

  def _from_files(self, default: bool) -> list[_Entry]:
    names = self._files.below()
    images = sorted(n for n in names if n.lower().endswith(tuple(f".{e}" for e in self._endings)))
    texts = {(stem, ending.lower()): name for name in names for stem, _, ending in [name.rpartition(".")]}
    entries = [self._beside(n, texts) for n in images]
    if default and images and not any(entry.texts for entry in entries) and _are_classes(names, images):
      self._keys = (values.Key(LABEL, LABEL),)
      entries = [self._beside(n, texts) for n in images]
      shown = ", ".join(sorted({n.partition("/")[0] for n in images})[:5])
      self.problems.append(f"{self.name}: no captions; its folders are taken for classes: {shown}, ...")
    without = [entry.path for entry in entries if self._keys and not entry.texts]
    if not images or len(without) == len(entries):
      advice = "; or ".join(filter(None, (self._elsewhere(names), MAKE)))
      raise FileNotFoundError(
        f"{self._where}.path is {self.name!r}: {len(images)} images and no captions; {advice}. "
        f"For images alone set {self._where}.text_key to ''"
        + "".join(f"\n  {problem}" for problem in self.problems[:5])
      )
    stems = {n.rpartition(".")[0] for n in images}
    kinds = {kind for key in self._keys for kind in self._kinds(key)}
    if alone := [n for (stem, kind), n in texts.items() if kind in kinds and stem not in stems]:
      self.problems.append(f"{self.name}: {len(alone)} texts without an image, such as {min(alone)}")
    if without:
      self.problems.append(
        f"{self.name}: {len(without)} of {len(entries)} images have no text beside them, such as {without[0]}"
      )
    return entries

  def _beside(self, image: str, files: dict[tuple[str, str], str]) -> _Entry:
    """The entry of an image without a table; `files` are those of the folder, by stem and extension."""
    stem, texts = image.rpartition(".")[0], ()
    for key in self._keys:
      if key.name == FILE_NAME:
        texts += values.as_texts(stem.rpartition("/")[2], key.origin)
      elif key.name == LABEL:
        texts += values.as_texts(image.partition("/")[0] if "/" in image else None, key.origin)
      elif found := next((files[stem, kind] for kind in self._kinds(key) if (stem, kind) in files), None):
        texts += (_Beside(found, key.origin),)
    label = values.as_texts(image.partition("/")[0], LABEL) if self._label_key and "/" in image else ()
    return _Entry(image, texts, label=label)

  def _kinds(self, key: values.Key) -> tuple[str, ...]:
    """Extensions of the texts beside the images, in the order of preference."""
    if key.name in (FILE_NAME, LABEL):
      return ()
    if len(self._keys) == 1:
      return tuple(dict.fromkeys((*BESIDE, key.name.lower()) if key.name in BESIDE else (key.name.lower(), *BESIDE)))
    default = key.name == values.DEFAULT_TEXT_KEY and all(other.name != BESIDE[0] for other in self._keys)
    return BESIDE if default else (key.name.lower(),)

  def _elsewhere(self, names: list[str]) -> str:
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
    others = sorted(n for n in names if n.lower().endswith(tables.MORE) and n.count("/") <= 1)
    said = f"if {others[0]} is the table, name it in {self._where}.texts" if others else ""
    return "; ".join(filter(None, (said, self._files.packed())))

  def _wanted(self, settings: Source) -> dict[Any, tuple[str, ...]]:
    """The names that a column may have, in the order of preference, by setting or `values.Key`."""
    questions = (settings.question_key,) if settings.question_key else ()
    images = self._columns if settings.image_key == values.DEFAULT_IMAGE_KEY else (settings.image_key,)
    default = TEXT_COLUMNS + (ANSWER_COLUMNS if questions else (LABEL,) if len(self._keys) == 1 else ())
    texts = {key: default if key.name == values.DEFAULT_TEXT_KEY else (key.name,) for key in self._keys}
    more = {name: (key,) for name in ("question_key", "label_key") if (key := getattr(settings, name))}
    return {"image_key": images, **texts, **more}

  def _from_table(self, table: str, settings: Source) -> list[_Entry]:
    entries, wrong, doubled, notes, gone, elsewhere = {}, [], Counter(), [], [], set()
    splits = ("train", "restval") if settings.split == "train" else (settings.split,)
    folder, slash, name = table.rpartition("/")
    data = self._files.read_table(table)
    if labelled := tables.labelled(name, data):
      settings = replace(settings, label_key=settings.label_key or LABEL)
    wanted = self._wanted(settings)
    known = {settings.text_key, *(name for names in wanted.values() for name in names)}
    shown, rows = tables.read(
      name, data, settings.split, known, notes, lambda other: self._files.read_table(folder + slash + other)
    )
    first = next(rows, ("", ""))
    if len(self._keys) > 1 and isinstance(first[1], dict) and settings.text_key in first[1]:  # a single column's name
      self._keys = values.text_keys(settings, "human", first[1])
      wanted = self._wanted(settings)
    columns, rows = tables.columns(shown, chain([first] if first[0] else (), rows), wanted, self._where)
    # Without captions, the class is the text.
    self._keys = tuple(values.Key(LABEL, LABEL) if columns[key] == LABEL else key for key in self._keys)
    columns |= {key: LABEL for key in self._keys if key.name == LABEL}
    for where, row in rows:
      try:
        if isinstance(row, str):
          raise ValueError(row)
        split = "" if settings.videos or not settings.split else row.get("split")
        if isinstance(split, str) and split and split not in splits:
          elsewhere.add(split)
          continue
        image = row.get(columns["image_key"])
        if isinstance(image, dict):  # as the Hugging Face library has it
          image = image.get("path")
        image = image[0] if isinstance(image, list) and len(image) == 1 else image
        if settings.videos and isinstance(image, str | tuple):  # named without ending, somewhere below
          names = (image,) if isinstance(image, str) else image
          image = (*names, *(f"{name}.{ending}" for name in names for ending in self._endings))
        if isinstance(image, tuple):
          first, image = image[0], self._files.placed(image)
          if image is None and row.get(video_tables.LACKS):
            gone.append(first)
            continue
          image = image or first
        key = image = self._files.inside(image)
        found = ()
        for name in self._keys:
          found += values.as_texts(values.lookup(row, columns[name]), name.origin, bool(settings.question_key))
        question = values.as_question(values.lookup(row, columns["question_key"])) if settings.question_key else ""
        label = values.as_texts(values.lookup(row, columns.get("label_key", "")), LABEL)
        alone = question or labelled
        second = ""
        if labelled and "second" in row:
          second = self._files.inside(self._files.placed(row["second"]) or row["second"][0])
        if alone and row.get("#") is not None:
          key = f"{image}#{row['#']}"
        while alone and key in entries:  # another file may be called so
          doubled[image] += 1
          key = f"{image}#{doubled[image]}"
        before = entries.get(key, _Entry(image))
        # A class is told once, in however many rows it stands.
        found = tuple(text for text in found if text.origin != LABEL or text not in before.texts)
        entries[key] = _Entry(image, before.texts + found, "", question, key, before.label or label, second)
      except ValueError as e:
        wrong.append(f"{self.name}: {where}: {e}")
    if gone:
      notes.append(f"{len(gone)} videos of {table} are not there, such as {gone[0]}: their rows are left out")
    if not entries and gone:
      raise ValueError(
        f"{self._where}.path is {self.name!r}: none of the {len(gone)} videos of {table}, such as "
        f"{gone[0]}.{self._endings[0]}, is in it or in a folder below"
      )
    if not entries and elsewhere:
      raise ValueError(
        f"{self._where}.split is {settings.split!r}: {table} in {self.name!r} has rows of "
        f"{listed(sorted(elsewhere), joint=', ')}; name one of these, or '' for all"
      )
    if not entries:
      first = wrong[0] if wrong else f"{self.name}: {table}: no rows"
      raise ValueError(f"{self._where}.path is {self.name!r}: no row of {table} can be used; the first: {first}")
    if wrong:
      self.problems.append(f"{len(wrong)} rows can't be used; the first: {wrong[0]}")
    self.problems += [f"{self.name}: {note}" for note in notes]
    return [*entries.values(), *(_Entry("", (), reason) for reason in wrong)]


def _are_classes(names: list[str], images: list[str]) -> bool:
  """True where folders can be nothing but classes: all images lie in several of them, and no table does."""
  folders = {n.rpartition("/")[0] for n in images}
  named = all(folder and "/" not in folder and not folder.isdigit() for folder in folders)
  tabled = any(n.lower().endswith(tables.MORE) for n in names)
  return len(folders) > 1 and named and not tabled and not any(f.lower() in SPLITS for f in folders)


def open_folder(settings: Source, where: str = SETTING) -> Folder:
  """Opens a folder, reading its table or listing its files.

  Args:
    settings: `path` is the directory, and `texts` its table where that does not lie in it or is not known by its name.
      `image_key` and `text_key` name columns of the table; at their defaults, the first of `IMAGE_COLUMNS` and
      `TEXT_COLUMNS`, or the column 'label', whose values are then classes. In JSON a text may be a list of texts or a
      conversation, of which the answers are taken, and a dot leads into objects ("answers.answer"). captions.json is a
      list of such rows, or an object from image names to captions, or annotations. `split` is read of annotations and
      of a table with a column 'split' ('train' with 'restval', '' all). Of SNLI-VE's files
      snli_ve_{train,dev,test}.jsonl, it is that of `split`. With the `text_key` '' all images in the folder are read,
      and no texts. Without a table, `text_key` is the extension of the texts beside the images (at its default 'txt',
      or else 'caption'), 'file_name' or 'label'; at its default, folders with images and nothing else are classes.
      `question_key` names the questions' column, where each row is a question with its answers in `text_key`.

  Raises:
    FileNotFoundError: no such directory, or no captions in it.
    ValueError: the table lacks a column, or no row of it can be used.
  """
  return Folder(settings, where)
