"""WebDataset tars as img2dataset writes them: KEY.jpg with KEY.txt and KEY.json, read at random through an index.

The index takes about 70 bytes of memory a pair.

CLIP_benchmark's folders are such tars, too (its README, "Creating a webdataset"): test/0.tar, ... with KEY.cls, the
number of the class, and classnames.txt above; or with KEY.txt, a caption a line, and dataset_type.txt above.
"""

import functools
import io
import json
import operator
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from coca.config import Source
from coca.data.records import BadRecord, Record, Shard, Text, shards_of
from coca.data.sources.tar_frames import Frames, frames_of, numbered
from coca.data.sources.tar_index import SUFFIX, TarIndex, read_index, read_some
from coca.data.sources.values import (
  DEFAULT_IMAGE_KEY,
  DEFAULT_TEXT_KEY,
  LABEL,
  as_question,
  as_texts,
  lookup,
  text_keys,
)
from coca.files import finding, reading
from coca.files.finding import IMAGE_EXTENSIONS, SETTING, VIDEO_EXTENSIONS
from coca.files.retries import Unavailable

MAKE = (
  "img2dataset --url_list=pairs.parquet --input_format=parquet --url_col=url --caption_col=caption "
  "--output_format=webdataset --output_folder=shards"
)
NAMES, TYPE = "classnames.txt", "dataset_type.txt"  # CLIP_benchmark's
PROBES = 32  # records, spread over all, that are looked at at most for the text when the source is opened


class WebDataset:
  """Pairs from tars; see `open_webdataset`."""

  def __init__(self, settings: Source, where: str):
    self.name = settings.path
    self._keys = text_keys(settings, "web")
    tars, self.problems = finding.find(settings.path, ".tar", MAKE, where)
    tars = [f for f in tars if not f.name.endswith(SUFFIX)]
    kind = " ".join(beside(tars, TYPE)).lower()
    if kind == "multilabel":
      raise ValueError(
        f"{where}.path is {settings.path!r}: its {TYPE} says 'multilabel'; one label an image can be read"
      )
    self._lines = settings.text_lines or kind == "retrieval"
    self.label_names = tuple(beside(tars, NAMES))
    self._label = settings.label_key.lower() or "cls"
    if settings.label_key and not self.label_names:
      raise ValueError(
        f"{where}.label_key is {settings.label_key!r}, and there is no {NAMES} beside the tars or a folder above: "
        "write the names of the classes into it, one a line, in the order of their numbers"
      )
    self._question = settings.question_key
    # Of each key the member that it may be; else it is a field of the .json.
    self._texts = tuple(key.name.lower() for key in self._keys)
    if "txt" not in self._texts:
      self._texts = tuple("txt" if name == DEFAULT_TEXT_KEY else name for name in self._texts)
    default = settings.image_key == DEFAULT_IMAGE_KEY
    usual = VIDEO_EXTENSIONS if settings.videos else IMAGE_EXTENSIONS
    self._image = usual if default else (settings.image_key.lower(),)
    self._shards, counts, extensions = [], [], set()
    self._frames = []  # of the records of each tar, where these are videos; else empty
    not_stored, lost, empty = "", [], Counter()
    for file, index, note in finding.for_each(_indexed, tars, "indexing tars"):
      if index is None or index.problem:
        self.problems.append(note if index is None else index.problem)
      elif note:
        not_stored = note
      if index is not None and len(index.keys):
        places, headers = [index.members(self._image)], [index.headers(self._image)]
        parsed = np.zeros((len(index.keys), len(self._keys)), bool)
        for k, name in enumerate(self._texts):
          text = index.members((name,))
          parsed[:, k] = (text[:, 0] < 0) | bool(self._question)
          places.append(np.where(parsed[:, k, None], index.members(("json",)), text))
          headers.append(np.where(parsed[:, k], index.headers(("json",)), index.headers((name,))))
        label = (self._label,) if self.label_names else ()
        # The image, the keys in their order, and the label: [N, keys + 2, 2] and [N, keys + 2].
        places = np.stack([*places, index.members(label)], 1)
        headers = np.stack([*headers, index.headers(label)], 1)
        lacking = (places[:, 1:, 0] < 0).all(1)  # neither text nor label
        unseen = places[:, 0, 0] < 0
        if settings.videos and default:
          self._frames.append(frames_of(index))
          unseen &= np.diff(self._frames[-1].ends, prepend=0) == 0
        self._shards.append((file, index.keys, places, headers, parsed))
        counts.append(len(index.keys))
        if not settings.videos:
          lost += [f"{file.name}, {name}" for name in _behind_dots(index, self._image, self._texts)]
        empty.update(image=int(unseen.sum()), text=int(lacking.sum()) if self._keys else 0)
        extensions |= set(index.extensions.tolist())
    if not_stored:
      self.problems.append(not_stored)
    if not self._shards:
      raise ValueError(
        f"{where}.path is {settings.path!r}: none of the {len(tars)} files is a usable tar:\n"
        + "\n".join(f"  {problem}" for problem in self.problems[:5])
      )
    if lost:
      self.problems.insert(
        0,
        f"{len(lost)} images are not seen, such as {lost[0]}: the first dot of a file's name "
        "ends the key (WebDataset's rule); write the tar anew with names that have one dot",
      )
    for what, names in (("image", self._image), ("text", (*self._texts, "json"))):
      if count := empty[what]:
        self.problems.append(f"{count} of {sum(counts)} records have no {what}: no member .{' or .'.join(names)}")
    self._starts = np.cumsum([0, *counts])
    self._check(settings, extensions, where)

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, i: int) -> Record:
    """Record `i`.

    Raises:
      BadRecord: the image is missing, or it or a text can't be read.
    """
    key, where, (image, *found, label), parsed, frames = self._read(i)
    number = -1 if label is None else _number(label, self._label, where)
    class_name = self.label_names[number] if 0 <= number < len(self.label_names) else None
    try:
      values, texts = {}, ()
      for name, text, is_json in zip(self._keys, found, parsed, strict=True):
        if is_json:
          values = values or (_object(text) if text is not None else {})
          text = lookup(values, name.name)
        if self._lines and isinstance(text, (bytes, str)):
          text = (text.decode("utf-8-sig") if isinstance(text, bytes) else text).splitlines()
        if name.name == LABEL and self.label_names:
          text = class_name
        texts += as_texts(text, name.origin, bool(self._question))
      question = as_question(lookup(values, self._question)) if self._question else ""
    except (ValueError, RecursionError) as e:
      raise BadRecord(f"{where}: the text can't be read: {e}") from None
    if self._keys and class_name and not any(text is not None for text in found):
      texts = (Text(class_name, LABEL),)
    if not image and not frames:
      problem = "no image" if image is None else "the image is empty"
      raise BadRecord(f"{where}: {problem} (member .{', .'.join(self._image)})")
    return Record(key, image or b"", texts, number, question, frames=() if image else frames)

  @property
  def stamps(self) -> list[str]:
    """By what each tar is known to have changed."""
    return [f"{file.path} {file.stamp}" for file, *_ in self._shards]

  def members(self, extension: str) -> Iterator[bytes | None]:
    """Another member of each record, in their order; None where there is none. Raises OSError."""
    for file, *_ in self._shards:
      index, _ = read_index(file)
      for place, header in zip(index.members((extension,)).tolist(), index.headers((extension,)), strict=True):
        yield read_some(file, [place], [header])[0]

  @property
  def shards(self) -> list[Shard]:
    """One a tar."""
    names = [finding.below(file, self.name, ".tar") for file, *_ in self._shards]
    return shards_of(names, np.diff(self._starts).tolist())

  def ids(self, name: str) -> Iterator[str]:
    """The keys of all records; or with another name than 'key', the values of that field of their .json."""
    for file, keys, *_ in self._shards:
      found = [keys[row].decode("utf-8", "replace") for row in range(len(keys))]
      yield from found if name == "key" else _fields(file, found, name)

  def _read(self, i: int) -> tuple[str, str, list[bytes | None], list[bool], Sequence[bytes]]:
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name}: record {i} of {len(self)}")
    shard = int(np.searchsorted(self._starts, i, "right")) - 1
    file, keys, places, headers, parsed = self._shards[shard]
    row = i - int(self._starts[shard])
    key = keys[row].decode("utf-8", "replace")
    where = f"{file.name}: record '{key}'"
    try:
      members = read_some(file, places[row].tolist(), headers[row].tolist())
    except Unavailable:
      raise
    except OSError as e:
      raise BadRecord(f"{where}: {e}") from None
    frames = Frames(file, key, self._frames[shard].of(row)) if self._frames else ()
    return key, where, members, parsed[row].tolist(), frames

  def _check(self, settings: Source, extensions: set[str], where: str) -> None:
    """Raises a ValueError where the settings name an image or text that the tars do not have."""
    holds = f"the tars hold members .{', .'.join(sorted(extensions))}"
    there = np.any([(places[:, :, 0] >= 0).any(0) for _, _, places, *_ in self._shards], 0)
    image, text, label = there[0] or any(len(frames.offset) for frames in self._frames), there[1:-1].any(), there[-1]
    if not image:
      raise ValueError(
        f"{where}.image_key is {settings.image_key!r}: no record has a member .{' or .'.join(self._image)}; {holds}"
      )
    if settings.label_key and not label:
      raise ValueError(f"{where}.label_key is {settings.label_key!r}: no record has a member .{self._label}; {holds}")
    if not label:
      self.label_names = ()
    if label and settings.text_key in (DEFAULT_TEXT_KEY, LABEL) and not text:
      return
    if self._keys and not text:
      more = f" (for .cls, labels, write {NAMES} beside the tars)" if "cls" in extensions else ""
      raise ValueError(
        f"{where}.text_key is {settings.text_key!r}: no record has a member "
        f".{' or .'.join(self._texts)} or .json; {holds}{more}. For images alone set it to ''"
      )
    fields, wanted = set(), {key.name: "text_key" for key in self._keys} | {self._question: "question_key"}
    wanted.pop("", None)
    if label:
      wanted.pop(LABEL, None)
    probes = min(PROBES, len(self))
    for i in range(probes):
      try:
        _, _, (_, *texts, _), parsed, _ = self._read(i * len(self) // probes)
        objects = [_object(text) for text, is_json in zip(texts, parsed, strict=True) if is_json and text is not None]
      except (BadRecord, ValueError, RecursionError):
        continue
      for key, text, is_json in zip(self._keys, texts, parsed, strict=True):
        if text is not None and not is_json:
          wanted.pop(key.name, None)
      fields |= {name for values in objects for name in values}
      if all(key.partition(".")[0] in fields for key in wanted):
        return
    for key, name in wanted.items() if fields else ():
      if key.partition(".")[0] not in fields:
        member = "" if self._question else f"have no member .{' or .'.join(self._texts)}, and "
        raise ValueError(
          f"{where}.{name} is {key!r}: {probes} records, spread over all, {member}have no such "
          f"field in their JSON; it has: {', '.join(sorted(fields))}"
        )


def _behind_dots(index: TarIndex, images: tuple[str, ...], texts: tuple[str, ...]) -> list[str]:
  """Images whose names have further dots, so that several are one record, and no more than one of them is seen.

  One that belongs to a record with another image, as KEY.mask.png does, is meant so, unless it has a text of its own.
  """
  kinds = index.extensions.tolist()
  odd = [k for k, kind in enumerate(kinds) if kind.rpartition(".")[2] in IMAGE_EXTENSIONS and kind not in images]
  odd = [k for k in odd if "." in kinds[k]]
  if not odd:
    return []
  seen = index.members(images)[:, 0] >= 0
  there = set(zip(index.sample.tolist(), index.extension.tolist(), strict=True))
  beside = {
    k: [n for n, kind in enumerate(kinds) for end in (*texts, "json") if kind == f"{kinds[k].rpartition('.')[0]}.{end}"]
    for k in odd
  }
  return [
    f"{index.keys[sample].decode('utf-8', 'replace')}.{kinds[k]}"
    for sample, k in sorted(there)
    if k in beside and (not seen[sample] or any((sample, n) in there for n in beside[k]))
  ]


def _indexed(file: reading.File) -> tuple[reading.File, TarIndex | None, str]:
  try:
    return file, *read_index(file)
  except Unavailable:  # without the tar all records would have other numbers
    raise
  except OSError as e:
    return file, None, f"{file.name}: {e}"


def _number(data: bytes, extension: str, where: str) -> int:
  """The class in a member, as text or as a NumPy file of one integer. Raises BadRecord."""
  try:
    if extension != "npy":
      return int(data)
    return operator.index(np.load(io.BytesIO(data), allow_pickle=False).item())
  except (ValueError, TypeError, OSError, EOFError) as e:
    raise BadRecord(f"{where}: its .{extension} is no number of a class: {e}") from None


def beside(tars: Sequence[reading.File], name: str) -> list[str]:
  """The lines of a text file that lies beside tars or a folder above; none if there is no such file.

  Raises:
    ValueError: several that differ, or one that can't be read as text.
  """
  found = {}
  for folder, fs in {tar.path.rpartition("/")[0]: tar.fs for tar in tars}.items():
    for place in (folder, folder.rpartition("/")[0]):
      if place and not place.endswith((":", "/")):  # that is above the host of a URL
        path = f"{place}/{name}"
        data = reading.ask_store(functools.partial(_read_if_there, fs, path), path)
        if data is not None:
          found[path] = data
          break
  if len(set(found.values())) > 1:
    raise ValueError(f"{' and '.join(sorted(found)[:2])} differ, so that one number means two classes: read one by one")
  try:
    text = "".join(data.decode("utf-8-sig") for data in list(found.values())[:1])
  except UnicodeDecodeError as e:
    raise ValueError(f"{next(iter(found))}: {e}") from None
  return [line.strip() for line in text.rstrip().splitlines()]


def _read_if_there(fs, path: str) -> bytes | None:
  try:
    return reading.read_all(fs, path) if isinstance(fs, LocalFileSystem) else fs.cat_file(path)
  except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
    return None  # a store that may not be listed forbids what is not there


def _fields(file: reading.File, keys: list[str], name: str) -> Iterator[str]:
  """A field of all records of a tar: from img2dataset's table beside it or, where that lacks it, the .json of each."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    table = pq.read_table(io.BytesIO(reading.read_all(file.fs, f"{file.path.removesuffix('.tar')}.parquet")))
    found = dict(zip(table["key"].to_pylist(), table[name].to_pylist(), strict=True))
    yield from (str(found.get(key, "")) for key in keys)
  except (FileNotFoundError, KeyError, pa.ArrowException):
    index, _ = read_index(file)
    for place, header in zip(index.members(("json",)).tolist(), index.headers(("json",)).tolist(), strict=True):
      (text,) = read_some(file, [place], [header])
      try:
        yield str(_object(text or b"{}").get(name, ""))
      except (ValueError, RecursionError):  # the record is a bad one
        yield ""


def _object(data: bytes) -> dict:
  values = json.loads(data)
  if not isinstance(values, dict):
    raise ValueError("the JSON is no object")
  return values


def hold_videos(path: str, where: str) -> bool:
  """True if the first tar of those that a path names has videos, or frames of some, and no images.

  Errors as those of `open_webdataset`.
  """
  tars, _ = finding.find(path, ".tar", MAKE, where)
  _, index, _ = _indexed(next(tar for tar in tars if not tar.name.endswith(SUFFIX)))
  there = set(index.extensions.tolist()) if index else set()
  films = not there.isdisjoint(VIDEO_EXTENSIONS) or (index is not None and len(numbered(index)) > 1)
  return films and there.isdisjoint(IMAGE_EXTENSIONS)


def open_webdataset(settings: Source, where: str = SETTING) -> WebDataset:
  """Opens tars, building the missing indexes.

  Args:
    settings: `path` is a glob, a brace range ({00000..00099}.tar) or a directory. `image_key`: the image's extension;
      at its default any of jpg, jpeg, png, webp, and of videos of mp4, webm, avi, or frames that are images and have
      numbers, KEY.000.jpg, KEY.001.jpg, ... `text_key`: an extension or a field
      of the .json, or several with commas between them; at its default the .txt, or where there is none, the .json's
      "caption". A field may hold a list of texts or a conversation, and a dot leads into objects ("answers.answer"); ''
      reads no texts. With a `question_key` both are fields of the .json. `label_key`: the extension of the class'
      number, as text or .npy; a record without a text has its class' name for one, as the `text_key` 'label' does.

  Raises:
    FileNotFoundError: no file matches.
    ValueError: no file is a usable tar, or no text is where the settings say.
  """
  return WebDataset(settings, where)
