"""VisDial v1.0 as it comes (arXiv 1611.08669): dialogs about images, each question with 100 possible answers.

    visdial_1.0_train.json, ..._val.json    {"version": "1.0", "split": "val", "data": {"questions": ["is it day", ...],
        "answers": ["yes", ...], "dialogs": [{"image_id": 9, "caption": ..., "dialog": [{"question": 3, "answer": 0,
        "answer_options": [7, 0, ...], "gt_index": 1}, ... ten rounds]}]}}
    ..._dense_annotations.json, ..._dense_sample.json, beside it    [{"image_id": 9, "round_id": 1, "gt_relevance":
        [0.2, 1.0, ...]}], of one round of each dialog; "relevance" in that of the training data

Each round is a record, with what was said before it. Images are COCO's, COCO_train2014_000000000009.jpg, and
VisualDialog_val2018_000000000009.jpg, found by their number in whatever folders.
"""

import json
import operator
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from coca.config import Source
from coca.data.records import BadRecord, Record, Said, Shard, Text
from coca.files import finding, reading
from coca.files.finding import IMAGE_EXTENSIONS, SETTING
from coca.files.retries import Unavailable

DENSE = ("dense_annotations", "dense_sample")


class DialogFiles:
  """The rounds of one of VisDial's files; see `open_dialogs`."""

  label_names = ()

  def __init__(self, settings: Source, where: str):
    self.name, self.problems = settings.texts, []
    self._fs, self._root = fsspec.core.url_to_fs(settings.path)
    self._root = self._root.rstrip("/")
    if not settings.path or not self._fs.isdir(self._root):
      raise FileNotFoundError(f"{where}.path is {settings.path!r}: no such directory; the images are looked for in it")
    self._guarded = isinstance(self._fs, LocalFileSystem) and not settings.follow_links
    fs, place = fsspec.core.url_to_fs(settings.texts)
    if not settings.texts or not fs.exists(place):
      raise FileNotFoundError(
        f"{where}.texts is {settings.texts!r}: no such file; it takes visdial_1.0_train.json or so"
      )
    try:
      self._read(json.loads(reading.read_all(fs, place)))
      stem = place.removesuffix(".json")
      dense = next((name for kind in DENSE if fs.exists(name := f"{stem}_{kind}.json")), "")
      self._relevance = _relevance(json.loads(reading.read_all(fs, dense))) if dense else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
      raise ValueError(f"{where}.texts is {settings.texts!r}: not VisDial v1.0's ({type(e).__name__}: {e})") from None
    self._images = self._numbered(settings.follow_links)

  def _read(self, file: dict) -> None:
    data: Any = file["data"]
    self._questions, self._answers = ([_text(x) for x in data[name]] for name in ("questions", "answers"))
    self._dialogs, rounds, options = [], [], []  # image, caption, its first round, and behind its last one
    for dialog in data["dialogs"]:
      first = len(rounds)
      for said in dialog["dialog"]:
        asked = said["question"], said.get("answer", -1), said.get("gt_index", -1)
        rounds.append(asked)
        options.append(np.asarray(said.get("answer_options", ()), np.int32))
      self._dialogs.append((int(dialog["image_id"]), _text(dialog["caption"]), first, len(rounds)))
    self._rounds = np.asarray(rounds, np.int32).reshape(-1, 3)
    self._options = options
    self._of = np.repeat(np.arange(len(self._dialogs)), [last - first for *_, first, last in self._dialogs])

  def _numbered(self, follow_links: bool) -> dict[int, str]:
    """The images below the folder by the numbers at the end of their names."""
    if isinstance(self._fs, LocalFileSystem):
      names, left_out = finding.files_below(self._root, follow_links)
      self.problems += left_out
    else:
      names = [path[len(self._root) + 1 :] for path in self._fs.find(self._root)]
    found = {}
    for name in names:
      stem, _, ending = name.rpartition("/")[2].rpartition(".")
      number = stem.rpartition("_")[2]
      if ending.lower() in IMAGE_EXTENSIONS and number.isdecimal():
        found[int(number)] = name
    return found

  def __len__(self) -> int:
    return len(self._rounds)

  def __getitem__(self, i: int) -> Record:
    i = operator.index(i)
    image, caption, first, _ = self._dialogs[self._of[i]]
    key = f"{image}#{i - first + 1}"
    try:
      said = tuple((self._questions[q], self._answers[a]) for q, a, _ in self._rounds[first:i])
      question, options = self._questions[self._rounds[i, 0]], [self._answers[n] for n in self._options[i]]
    except IndexError:
      raise BadRecord(f"{self.name}: dialog {key} names a question or an answer that there is not") from None
    relevance = self._relevance.get((image, i - first + 1), ())
    if len(relevance) not in (0, len(options)):
      raise BadRecord(f"{self.name}: dialog {key} has {len(options)} answers, and the relevance of {len(relevance)}")
    texts = tuple(Text(option, "human") for option in options)
    about = Said(caption, said, relevance)
    return Record(key, self._image(image, key), texts, int(self._rounds[i, 2]), question, said=about)

  def _image(self, number: int, key: str) -> bytes:
    if number not in self._images:
      raise BadRecord(f"{self.name}: dialog {key}: no image below {self._root} has the number {number}")
    place = f"{self._root}/{self._images[number]}"
    try:
      if self._guarded and not finding.is_inside(place, self._root):
        raise OSError("it is a link that leads out of the folder")
      return reading.read_all(self._fs, place)
    except Unavailable:
      raise
    except OSError as e:
      raise BadRecord(f"{self.name}: dialog {key}: the image {place} can't be read: {e}") from None

  @property
  def shards(self) -> list[Shard]:
    """A single one."""
    return [Shard("dialogs", 0, len(self))]


def _text(value) -> str:
  if not isinstance(value, str):
    raise ValueError(f"{value!r:.80} stands where a text is expected")
  return value


def _relevance(rows: list) -> dict[tuple[int, int], tuple[float, ...]]:
  """The relevance of possible answers, by image and round, counted from 1."""
  return {
    (int(row["image_id"]), int(row["round_id"])): tuple(
      float(x) for x in (row["gt_relevance"] if "gt_relevance" in row else row["relevance"])
    )
    for row in rows
  }


def open_dialogs(settings: Source, where: str = SETTING) -> DialogFiles:
  """Opens VisDial.

  Args:
    settings: `path` is the folder of the images, `texts` the JSON file of the dialogs. Dense annotations are read where
      they lie beside it.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: it is something else.
  """
  return DialogFiles(settings, where)
