"""Images with a caption that is true and one that is not: the records of SugarCrepe and Winoground, as they come.

    SugarCrepe  add_att.json, ...: {"0": {"filename": "000000085329.jpg", "caption": ..., "negative_caption": ...}};
                the images are COCO's val2017 (arXiv 2306.14610)
    Winoground  rows of image_0, image_1, caption_0, caption_1 (arXiv 2204.03162): Parquet with the images inside, or
                examples.jsonl beside a folder of images

Each record has two texts, the true one first. Winoground's rows are two records, one an image.
"""

import dataclasses
import json
import operator
from collections.abc import Sequence
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from coca.config import Source
from coca.data.records import BadRecord, Record, Shard, Text
from coca.files import finding, reading
from coca.files.finding import SETTING
from coca.files.retries import Unavailable

MAKE = "git clone https://github.com/RAIVNLab/sugar-crepe"


class _Entry(NamedTuple):
  key: str
  image: str  # the name of its file
  texts: tuple[str, str]  # the true one first
  part: int  # index into `label_names`


class Described:
  """SugarCrepe, or Winoground's examples.jsonl; see `open_pairs`.

  `images_each` images make an example, 2 in Winoground; `parts` says which of `label_names`, the names of the files, a
  record belongs to.
  """

  def __init__(self, settings: Source, where: str):
    self.name = settings.texts
    self._fs, self._root = fsspec.core.url_to_fs(settings.path)
    if not self._fs.isdir(self._root):
      raise FileNotFoundError(f"{where}.path is {settings.path!r}: no such directory; the images are looked for in it")
    self._guarded = isinstance(self._fs, LocalFileSystem) and not settings.follow_links
    try:
      files, self.problems = finding.find(settings.texts, ".json", MAKE, where)
    except FileNotFoundError as e:
      raise FileNotFoundError(str(e).replace(f"{where}.path", f"{where}.texts")) from None
    self.label_names = tuple(file.name.rpartition(".")[0] for file in files)
    self._entries: list[_Entry] = []
    for part, file in enumerate(files):
      try:
        self._entries += _entries(file, part)
      except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
          f"{where}.texts is {settings.texts!r}: {file.name} is not one of SugarCrepe's files, nor Winoground's "
          f"examples.jsonl ({type(e).__name__}: {e})"
        ) from None
    self.images_each = 2 if self._entries[0].key.endswith("/image_0") else 1
    self.parts = [entry.part for entry in self._entries]

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, i: int) -> Record:
    entry = self._entries[operator.index(i)]
    place = f"{self._root}/{entry.image}"
    try:
      if self._guarded and not finding.is_inside(place, self._root):
        raise OSError("it is a link that leads out of the folder")
      image = reading.read_all(self._fs, place)
    except Unavailable:
      raise
    except OSError as e:
      raise BadRecord(f"{self.name}: {entry.key}: the image {place} can't be read: {e}") from None
    return Record(entry.key, image, tuple(Text(text, "human") for text in entry.texts))

  @property
  def shards(self) -> list[Shard]:
    """A single one."""
    return [Shard("pairs", 0, len(self))]


class Winoground:
  """Winoground in Parquet; see `open_pairs` and `Described`."""

  images_each, label_names = 2, ()

  def __init__(self, settings: Source, where: str):
    from coca.data.sources.parquet import open_parquet  # of pyarrow, as in `coca.data.scenes.sprites`

    self.name = settings.path
    self._images = [
      open_parquet(dataclasses.replace(settings, image_key=f"image_{k}", text_key=f"caption_{k}"), where)
      for k in (0, 1)
    ]
    self.problems = self._images[0].problems

  def __len__(self) -> int:
    return 2 * len(self._images[0])

  @property
  def parts(self) -> Sequence[int]:
    return [0] * len(self)

  def __getitem__(self, i: int) -> Record:
    row, k = divmod(operator.index(i), 2)
    own, other = self._images[k][row], self._images[1 - k][row]
    if not (own.texts and other.texts):
      raise BadRecord(f"{own.key}: a caption is empty")
    return Record(f"{own.key}/image_{k}", own.image, (own.texts[0], other.texts[0]))

  @property
  def shards(self) -> list[Shard]:
    """A single one."""
    return [Shard("pairs", 0, len(self))]


def _entries(file: reading.File, part: int) -> list[_Entry]:
  text = file.read(0, file.size).decode("utf-8-sig")
  name = file.name.rpartition(".")[0]
  if file.name.endswith(".jsonl"):
    found = []
    for row in map(json.loads, filter(str.strip, text.splitlines())):
      captions = _text(row["caption_0"]), _text(row["caption_1"])
      for k in (0, 1):
        image = _bare(row[f"image_{k}"])
        image += "" if "." in image else ".png"
        found.append(_Entry(f"{name}/{row['id']}/image_{k}", image, (captions[k], captions[1 - k]), part))
  else:
    found = [
      _Entry(f"{name}/{n}", _bare(row["filename"]), (_text(row["caption"]), _text(row["negative_caption"])), part)
      for n, row in json.loads(text).items()
    ]
  if not found:
    raise ValueError("it is empty")
  return found


def _text(value) -> str:
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"a caption is {value!r:.80}")
  return value.strip()


def _bare(name) -> str:
  """A file's name, which leads nowhere else."""
  if not isinstance(name, str) or not name or set(name) & set("/\\\0") or name.startswith("."):
    raise ValueError(f"an image is called {name!r:.80}, which is no name of a file")
  return name


def open_pairs(settings: Source, where: str = SETTING) -> Described | Winoground:
  """Opens SugarCrepe or Winoground.

  Args:
    settings: `path` is the folder of the images, and `texts` that of SugarCrepe's JSON files, one of them or a glob, or
      Winoground's examples.jsonl; or, without `texts`, `path` is the glob of Winoground's Parquet files.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: it is something else.
  """
  return Described(settings, where) if settings.texts else Winoground(settings, where)
