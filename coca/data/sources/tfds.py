"""Prepared tfds data sets in ArrayRecord form, and the built-in corpus, which is one. No TensorFlow.

tfds tells what is where (splits, shards, features). A record is parsed here, and only the fields that are used, with
the image left encoded: that takes a quarter of the time of tfds' own decoding with the image skipped.
"""

import bisect
import dataclasses
import functools
import itertools
import json
import os
import re
from collections.abc import Iterator

import numpy as np

from coca import config
from coca.data.records import BadRecord, Record, Shard, Text, shards_of
from coca.data.sources import values
from coca.data.sources.name_questions import NameQuestions
from coca.files.retries import Unavailable, again, exists, of_the_system

CLASSES = "tensorflow_datasets."  # what names of features' classes begin with
VERSION = re.compile(r"\d+\.\d+\.\d+")


def open_tfds(settings: config.Source) -> "TfdsSource":
  """Opens a prepared data set.

  Args:
    settings: `path` is its directory (with dataset_info.json, or the one above with the versions; the newest is
      taken) or its tfds name, as in "coco_captions", "coco_captions:1.1.0", "name/config:1.0.0", looked for in
      TFDS_DATA_DIR or ~/tensorflow_datasets. `split` is in tfds' notation, e.g. "train[:10%]" or "train+val".
      `image_key` and `text_key` name features; a dot leads into a nested one ("captions.text"). A text feature may
      hold one text, several, or class labels; `text_key` may name several with commas between them. If there is none
      called `text_key`, or with the rule 'labels', the class name of the feature 'label' is the text; '' reads no
      texts. `question_key` names a feature that holds one text, a question whose answers `text_key` names.

  Raises:
    FileNotFoundError: not prepared, or a shard is missing; the message has the command that prepares it.
    ValueError: not in ArrayRecord format, damaged, without such a split or feature, or with features of classes that
      are not tfds' own: tfds imports what features.json names.
  """
  root = find(settings.path)
  return TfdsSource(root, settings, name=f"{settings.path}:{settings.split}")


def open_builtin(settings: config.Source) -> "TfdsSource | NameQuestions":
  """Opens a split of the corpus in the package: 'train', 'unseen_concepts', 'twemoji', 'openclipart'.

  What they hold is told in coca/data/builtin/builder.py. The distinct captions of the split, sorted, are its label
  names. With the `question_key` 'name' its records are questions about them (coca/data/sources/name_questions.py).

  Raises:
    FileNotFoundError, ValueError: the package's files are missing or damaged, or there is no such split or feature.
  """
  from coca.data.builtin import CORPUS
  from coca.data.scenes.held_out import SPLITS

  if settings.path:
    raise ValueError(f"source path {settings.path!r}: kind 'builtin' takes none; for a data set of your own say 'tfds'")
  if settings.question_key not in ("", "name"):
    raise ValueError(f"source question_key {settings.question_key!r}: kind 'builtin' has 'name'")
  if not (CORPUS / "dataset_info.json").exists():
    raise FileNotFoundError(f"{CORPUS} does not hold the built-in corpus; install coca again")
  try:
    if settings.question_key:
      plain = dataclasses.replace(settings, question_key="", text_key=config.Source.text_key)
      return NameQuestions(open_builtin(plain))
    return TfdsSource(CORPUS, settings, name=f"builtin:{settings.split}", builtin=True)
  except BadRecord as e:
    raise ValueError(f"the built-in corpus is damaged, install coca again: {e}") from None
  except ValueError as e:
    if not str(e).startswith("source split"):
      raise
    raise ValueError(f"{e}. The world of scenes has the splits {', '.join(SPLITS)}") from None


def find(path: str):
  """The directory with dataset_info.json that a name or path means. Raises as `open_tfds`."""
  from etils import epath

  if "://" in path and not path.startswith("gs://"):
    raise ValueError(
      f"source path {path!r}: ArrayRecord files are read from local folders and gs:// only; copy or mount it"
    )
  given = epath.Path(path).expanduser()
  if path and (found := _newest(given)):
    return found
  data_dir = epath.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
  if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(:[\w.]+)?", path):
    raise FileNotFoundError(
      f"source path {path!r}: no prepared tfds data set (dataset_info.json) is there, and it is no tfds name either"
    )
  name, _, version = path.partition(":")
  if found := _newest(data_dir / name / version if version else data_dir / name):
    return found
  raise FileNotFoundError(
    f"source path {path!r}: no such directory with a dataset_info.json, and no data set of this name in {data_dir} "
    f"(set TFDS_DATA_DIR to look elsewhere). To prepare it, on a machine with network (some data sets, "
    f"coco_captions among them, also need TensorFlow there): {_prepare(path)}"
  )


def _newest(folder):
  """`folder`, or the newest version in it, if that is a prepared data set; else None."""
  if exists(folder / "dataset_info.json"):
    return folder
  if not folder.is_dir():
    return None
  versions = [p for p in folder.iterdir() if VERSION.fullmatch(p.name) and exists(p / "dataset_info.json")]
  return max(versions, key=lambda p: tuple(map(int, p.name.split("."))), default=None)


def _prepare(name: str) -> str:
  return (
    f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', file_format='array_record')"
    '.download_and_prepare()"'
  )


@functools.cache
def _names(root, split: str) -> tuple[str, ...]:
  """The things that a split of the built-in corpus shows, in order; a run opens some splits several times."""
  return tuple(sorted(set(TfdsSource(root, config.Source(split=split), "").captions())))


class TfdsSource:
  """Splits of a prepared data set, as a source; made by `open_tfds` and `open_builtin`."""

  def __init__(self, root, settings: config.Source, name: str, builtin: bool = False):
    from tensorflow_datasets.proto import tf_example_pb2

    self.name = name
    self.problems: list[str] = []
    features, self._files, self._open_shards = _open(root, settings.split)
    self._shards = self._open_shards()
    self._ends = list(itertools.accumulate(f.take for f in self._files))
    self._parse = tf_example_pb2.Example.FromString
    self._builtin = builtin
    key = _lookup(features, "key", "text")
    self._has_key = key is not None and key.single
    self._image = _lookup(features, settings.image_key, "image")
    keys = values.text_keys(settings, "")
    found = [(_lookup(features, k.name, "label") or _lookup(features, k.name, "text"), k.origin) for k in keys]
    question = _lookup(features, settings.question_key, "text")
    self._question = question if question and question.single else None
    label = _lookup(features, "label", "label")
    if label and len(keys) == 1 and (not found[0][0] or (settings.text == "labels" and not found[0][0].names)):
      found = [(label, settings.origin)]
    for setting, key, feature in (
      ("image_key", settings.image_key, self._image),
      *(("text_key", key.name, f) for key, (f, _) in zip(keys, found, strict=True)),
      ("question_key", settings.question_key, self._question),
    ):
      if key and not feature:
        raise ValueError(
          f"source {setting} {key!r}: {root} has no such feature of a fitting type; features.json has\n{features}"
        )
    # Where the text is a record's one class label, that is the label meant; else the feature 'label', if it is one.
    self._label = next((f for f in (*(f for f, _ in found), label) if f and f.names and f.single), None)
    self.label_names = self._label.names if self._label else ()
    self._given = settings.origin
    self._texts = [
      (feature, origin or ("label" if settings.text == "labels" or feature.names else "web"))
      for feature, origin in found
      if feature
    ]
    if builtin:
      self.label_names = _names(root, settings.split)
      self._labels = {name: i for i, name in enumerate(self.label_names)}

  def __len__(self) -> int:
    return self._ends[-1]

  @property
  def shards(self) -> list[Shard]:
    """One a file of the split; files of which a slice leaves out the beginning tell where it begins."""
    names = [os.path.basename(f.filename) + (f"-from-{f.skip}" if f.skip else "") for f in self._files]
    return shards_of(names, [f.take for f in self._files])

  def ids(self, name: str) -> Iterator[str]:
    """The keys of all records, which are read for it; or the texts of the feature 'uid'."""
    for i in range(len(self)):
      fields = self._fields(i)
      key = _string(fields, name) if name != "key" or self._has_key else ""
      yield key or (self._where(i) if name == "key" else "")

  def __getitem__(self, i: int) -> Record:
    fields = self._fields(i)
    image = fields[self._image.key].bytes_list.value
    if not image or not image[0]:
      raise BadRecord(f"{self._where(i)}: no image")
    label, texts = -1, []
    if self._builtin:
      label = self._labels[_string(fields, "caption")]
    elif self._label:
      label = next(iter(fields[self._label.key].int64_list.value), -1)
    for feature, origin in self._texts:
      if feature.names:
        ids = fields[feature.key].int64_list.value
        found = [feature.names[v] for v in ids if 0 <= v < len(feature.names)]
      else:
        found = [v.decode("utf-8", "replace") for v in fields[feature.key].bytes_list.value]
      # Clip art's titles are what the web had; the emoji's names were written by people for what is in the image.
      if self._builtin and not self._given and origin != "label" and _string(fields, "source") != "openclipart":
        origin = "human"
      texts += [Text(text, origin) for text in found]
    key = _string(fields, "key") if self._has_key else ""
    question = _string(fields, self._question.key).strip() if self._question else ""
    if self._question and not question:
      raise BadRecord(f"{self._where(i)}: no question")
    return Record(key or self._where(i), image[0], tuple(texts), label, question)

  def captions(self) -> Iterator[str]:
    """Those of all records, which are read for it."""
    return (_string(self._fields(i), "caption") for i in range(len(self)))

  def _fields(self, i: int):
    """The parsed record, a map of names to tf.train.Feature. Raises BadRecord and IndexError."""
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name} has {len(self)} records, no number {i}")
    try:
      data = again(lambda: self._stored(i), self._where(i))
      return self._parse(data).features.feature
    except Unavailable:
      raise
    except Exception as e:  # of many types: array_record's and protobuf's
      raise BadRecord(f"{self._where(i)}: {e}") from None

  def _stored(self, i: int) -> bytes:
    try:
      return self._shards[i]
    except Exception:
      self._shards = self._open_shards()  # a reader that has failed once fails for ever
      raise

  def _where(self, i: int) -> str:
    """The record's file and place in it, in the form of tfds' tfds_id."""
    n = bisect.bisect_right(self._ends, i)
    file = self._files[n]
    return f"{os.path.basename(file.filename)}__{file.skip + i - (self._ends[n] - file.take)}"


@dataclasses.dataclass(frozen=True)
class _Feature:
  key: str  # in the serialized example
  names: tuple[str, ...]  # of a class label
  single: bool  # one value a record, not a sequence


def _lookup(features, path: str, kind: str) -> _Feature | None:
  """The feature of a kind ('image', 'text', 'label') that a dotted path means, if there is one."""
  import tensorflow_datasets as tfds

  leaf, depth = features, 0
  for part in [*path.split("."), ""]:
    while isinstance(leaf, tfds.features.Sequence):
      leaf, depth = leaf.feature, depth + 1
    if part:
      if not isinstance(leaf, tfds.features.FeaturesDict) or part not in leaf:
        return None
      leaf = leaf[part]
  if depth > (0 if kind == "image" else 1):  # sequences of sequences are stored in another way
    return None
  is_bytes = isinstance(leaf, tfds.features.Tensor) and np.dtype(leaf.np_dtype).kind in "OSU"
  fits = {
    "label": isinstance(leaf, tfds.features.ClassLabel),
    "text": is_bytes,
    "image": is_bytes or isinstance(leaf, tfds.features.Image),
  }[kind]
  names = tuple(leaf.names) if fits and kind == "label" else ()
  return _Feature(path.replace(".", "/"), names, depth == 0) if fits else None


def _string(fields, key: str) -> str:
  return next(iter(fields[key].bytes_list.value), b"").decode("utf-8", "replace")


def _class_names(value):
  """Yields the names of classes in features.json, in today's form or that of old versions, in any depth."""
  if isinstance(value, str) and value.lstrip().startswith("{"):  # features of further libraries hold JSON in a string
    try:
      value = json.loads(value)
    except ValueError:
      return
  if isinstance(value, dict):
    for key, inner in value.items():
      if key in ("pythonClassName", "python_class_name", "type") and isinstance(inner, str):
        yield inner
      yield from _class_names(inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _class_names(inner)


def _open(root, split: str):
  """(features, file instructions, what opens an ArrayRecordDataSource) of a split. Raises as `open_tfds`."""
  import tensorflow_datasets as tfds

  try:
    names = list(_class_names(json.loads((root / "features.json").read_bytes())))
    if foreign := [name for name in names if not name.startswith(CLASSES)]:
      raise ValueError(
        f"features.json names the class {foreign[0]!r}, whose module tfds would run; only tfds' own "
        f"({CLASSES}...) are read. Write the data set anew with one of those, or as WebDataset"
      )
    builder = tfds.builder_from_directory(root)
    splits = {name: info.num_examples for name, info in builder.info.splits.items()}
  except Exception as e:  # of many types, from JSON, protobuf and tfds
    if of_the_system(e):
      raise Unavailable(f"{root}: {e}") from e
    raise ValueError(f"{root} is no readable tfds data set (dataset_info.json, features.json): {e}") from e
  array_record = tfds.core.FileFormat.ARRAY_RECORD
  if array_record not in builder.info.available_file_formats():
    raise ValueError(
      f"{root} is in {builder.info.file_format.value} format, which has no random access. Prepare it as "
      f"array_record in another data_dir: {_prepare(builder.name)}; or convert it, where TensorFlow is "
      f"installed: python -m tensorflow_datasets.scripts.convert_format --dataset_version_dir={root} "
      "--out_file_format=array_record --out_dir=DIR"
    )

  def data():
    return builder.as_data_source(split=split, file_format=array_record).data_source

  try:
    data()
    files = [f for f in builder.info.splits[split].file_instructions if f.take]
  except Exception as e:  # an unknown name or a slice that cannot be read
    if of_the_system(e):
      raise Unavailable(f"{root}: {e}") from e
    raise ValueError(f"source split {split!r}: {root} has {splits}; {e}") from e
  if not files:
    raise ValueError(f"source split {split!r}: no records in it; {root} has {splits}")
  there = {p.name for p in root.iterdir()}
  if missing := [f.filename for f in files if os.path.basename(f.filename) not in there]:
    raise FileNotFoundError(
      f"{missing[0]} is missing ({len(missing)} of {len(files)} files of {split!r}); copy it "
      "again or prepare the data set again"
    )
  return builder.info.features, files, data
