"""The data sets that paths name, each with its evaluator: CLIP_benchmark's folders, trees of them, and other data.

CLIP_benchmark's WebDataset layout (its README; datasets/builder.py of 1.6.2, build_wds_dataset):

    NAME/classnames.txt, NAME/zeroshot_classification_templates.txt   a line each; {c} is the class
    NAME/dataset_type.txt                                             "retrieval"; left out: classification
    NAME/test/nshards.txt, NAME/test/0.tar, 1.tar, ...                KEY.jpg (.png, .webp) with KEY.cls or KEY.txt
"""

import os
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import fsspec

from coca.config import Config, Eval, Source
from coca.config.data_checks import check_evaluator
from coca.data.prompts import CLIP_IMAGENET
from coca.data.records import Records
from coca.data.sources import open_source
from coca.data.sources.tables import asks, entails, is_table
from coca.data.sources.webdataset import NAMES, TYPE, hold_videos
from coca.evals import build, datacomp
from coca.evals.class_names import is_imagenets
from coca.files import reading
from coca.files.finding import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from coca.inference.search_index import Images

SHARDS, TEMPLATES = "nshards.txt", "zeroshot_classification_templates.txt"
FITTING = {"classification": ("zero_shot", "classification"), "retrieval": ("retrieval", "captions", "matching")}
SPLITS = ("test", "val", "validation", "valid", "dev")  # the first that is there
_SHARD = re.compile(r"(.+?)-\d+\b.*\.parquet")  # of the hub: a part of a split
DEEP = 3  # folders below a path that are looked into
MANY = 200  # folders in one: more are classes, and no data sets
TEXTS = 32  # of an image, of which COCO has up to 7: all that there are


class DataSet(NamedTuple):
  """Something to evaluate on."""

  settings: Eval
  source: Records
  task: str = ""  # DataComp's key


def data_sets(
  config: Config, paths: Sequence[str], kinds: Sequence = (), templates: Sequence[str] = (), **settings
) -> tuple[dict[str, DataSet], dict[str, str]]:
  """Opens the data sets that paths name.

  Args:
    config: of the model.
    paths: CLIP_benchmark's folders or trees of them; tars, Parquet files, folders of images or videos, tfds'
      folders; 'builtin:SPLIT'.
    kinds: of evaluators. Left out: 'vqa' of a table of questions, 'zero_shot' where there are labels ('classification'
      of a model with a class head and no embeddings, but for CLIP_benchmark's), else 'retrieval', and for what is no
      folder of CLIP_benchmark 'captions' too, if the model writes.
    templates: of 'zero_shot' where the data have none. Left out: CLIP's 80 for ImageNet's classes, else "a photo of a
      {}.".
    **settings: others of each evaluator: batch, limit, frames.

  Returns:
    data sets by name, and reasons by the names of those that can't be measured.

  Raises:
    FileNotFoundError, ValueError: a path that names nothing, or what is missing in a folder, each in a line.
  """
  found: dict[str, DataSet] = {}
  skipped: dict[str, str] = {}
  wrong: list[str] = []
  for path in paths:
    folders = _benchmark_folders(path)
    for folder, splits in folders.items():
      name = folder.rpartition("/")[2]
      try:
        if reason := _unmeasured(folder, name):
          skipped[name] = reason
          continue
        measured = _benchmark(config, folder, splits, kinds, settings)
        for each, data_set in measured.items():
          _add(found, each, data_set)
        if not measured:
          skipped[name] = f"is not measured by {' and '.join(kinds)}"
      except (ValueError, FileNotFoundError) as e:
        wrong.append(str(e))
    if not folders:
      try:
        for name, data_set in _others(config, path, kinds, templates, settings).items():
          _add(found, name, data_set)
      except (ValueError, FileNotFoundError) as e:
        wrong.append(str(e))
  if wrong:
    raise ValueError("\n".join(wrong))
  return found, skipped


def _add(found: dict[str, DataSet], name: str, data_set: DataSet) -> None:
  if name in found:
    raise ValueError(
      f"two data sets are called {name}: {found[name].source.name} and {data_set.source.name}; evaluate them one by "
      "one, each with its own --out"
    )
  found[name] = data_set


def _benchmark_folders(path: str) -> dict[str, list[str]]:
  """CLIP_benchmark's folders at a path or up to `DEEP` folders below, with the splits in each."""
  fs, place = fsspec.core.url_to_fs(path)
  todo, found = [place.rstrip("/")] if not path.startswith("builtin:") and fs.isdir(place) else [], {}
  for _ in range(DEEP + 1):
    below = []
    for folder in todo:
      if fs.exists(f"{folder}/{SHARDS}"):
        parent, _, split = fs.unstrip_protocol(folder).removeprefix("file://").rpartition("/")
        found.setdefault(parent, []).append(split)
      else:
        inner = [info["name"].rstrip("/") for info in fs.ls(folder, detail=True) if info["type"] == "directory"]
        below += inner if len(inner) <= MANY else []
    todo = sorted(below)
  return found


def _read(path: str) -> str | None:
  """A text file, None where there is none."""
  try:
    fs, place = fsspec.core.url_to_fs(path)
    return reading.read_all(fs, place).decode("utf-8-sig")
  except (FileNotFoundError, NotADirectoryError):
    return None
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: {e}") from None


def _unmeasured(folder: str, name: str) -> str:
  if datacomp.task_of(name) in datacomp.UNMEASURED:
    return "has several labels an image and no main metric in DataComp's list"
  if (_read(f"{folder}/{TYPE}") or "").strip().lower() == "multilabel":
    return f"has several labels an image ({TYPE})"
  return ""


def _benchmark(
  config: Config, folder: str, splits: Sequence[str], kinds: Sequence, settings: dict
) -> dict[str, DataSet]:
  split = next((name for name in SPLITS if name in splits), splits[0])
  source, said = _tars(folder, split)
  kind = (_read(f"{folder}/{TYPE}") or "classification").strip().lower()
  templates = ()
  if kind not in FITTING:
    raise ValueError(f"{folder}/{TYPE} holds {kind!r}; it may be 'classification' or 'retrieval'")
  if kind == "classification":
    if _read(f"{folder}/{NAMES}") is None:
      raise FileNotFoundError(
        f"{folder}/{NAMES}: no such file. Write the names of the classes into it, one a line, in the order of their "
        f"numbers; or, if the tars hold captions, 'retrieval' into {folder}/{TYPE}"
      )
    text = _read(f"{folder}/{TEMPLATES}")
    if text is None:
      raise FileNotFoundError(f"{folder}/{TEMPLATES}: no such file. Write one a line, such as: a photo of a {{c}}.")
    templates = as_templates(text)
  chosen = [k for k in kinds if k in FITTING[kind]] if kinds else FITTING[kind][:1]
  if not chosen:
    return {}
  opened = open_source(source, folder)
  if missing := [problem for problem in opened.problems if "no such file" in problem]:
    raise FileNotFoundError(f"{folder}/{split}/{SHARDS} says {said}, and {len(missing)} are missing: {missing[0]}")
  return _evaluators(config, folder, folder.rpartition("/")[2], source, opened, chosen, templates, settings)


def _tars(folder: str, split: str) -> tuple[Source, str]:
  """A split of a folder of CLIP_benchmark's, and the number of its tars."""
  said = (_read(f"{folder}/{split}/{SHARDS}") or "").strip()
  if not said.isdigit() or not int(said):
    raise ValueError(
      f"{folder}/{split}/{SHARDS} holds {said!r}: write the number of the tars 0.tar, 1.tar, ... into it"
    )
  return Source(kind="webdataset", path=f"{folder}/{split}/{{0..{int(said) - 1}}}.tar"), said


def split_of(path: str, split: Literal["train", "val", "test"]) -> Source:
  """The source of one split of the data that a path names, where their format has splits.

  Raises:
    FileNotFoundError, ValueError: a folder of CLIP_benchmark's without that split, or a tree of several.
  """
  folders = _benchmark_folders(path)
  if not folders:
    return source_of(path, split)
  if len(folders) > 1:
    raise ValueError(f"{path} has {len(folders)} data sets: name one, such as {next(iter(folders))}")
  ((folder, splits),) = folders.items()
  found = [name for name in {"train": ("train",), "val": SPLITS[1:], "test": SPLITS}[split] if name in splits]
  if not found:
    raise FileNotFoundError(f"{folder} has no split '{split}'; it has {', '.join(splits)}")
  return _tars(folder, found[0])[0]


def _evaluators(
  config: Config,
  where: str,
  name: str,
  source: Source,
  opened: Records,
  kinds: Sequence,
  templates: Sequence[str],
  settings: dict,
) -> dict[str, DataSet]:
  """A data set for each kind of evaluator that it is measured by. Raises ValueError where one can't."""
  found = {}
  for kind in kinds:
    more = {"zero_shot": {"templates": tuple(templates)}, "retrieval": {"texts_per_image": TEXTS}}.get(kind, {})
    evaluator = Eval(kind=kind, source=source, **more, **settings)
    try:
      check_evaluator(config, evaluator, where)
      build.check_opened(evaluator, opened, None)
    except ValueError as e:
      raise ValueError(str(e) if where in str(e) else f"{where}: {e}") from None
    found[name if len(kinds) == 1 else f"{name}-{kind}"] = DataSet(evaluator, opened, datacomp.task_of(name))
  return found


def as_templates(text: str) -> tuple[str, ...]:
  """The templates in a file, one a line, with {c} or {} where the class' name goes."""
  return tuple(line.strip().replace("{c}", "{}") for line in text.splitlines() if line.strip())


def _others(config: Config, path: str, kinds: Sequence, templates: Sequence[str], settings: dict) -> dict[str, DataSet]:
  source = source_of(path, videos=True)
  opened = open_source(source, "--data")
  labels = opened.label_names
  if not kinds and source.question_key:
    kinds = ("vqa",)
  if not kinds and labels and config.classification.weight and not config.contrastive.heads:
    kinds = ("classification",)
  if not kinds:
    kinds = ("zero_shot",) if labels else ("retrieval",) if config.contrastive.heads else ()
    if not labels and not source.videos and config.model.writes and not config.answering.weight:
      kinds = (*kinds, "captions")
  if not templates:
    templates = CLIP_IMAGENET if is_imagenets(labels) else ("a photo of a {}.",)
  whole = path if "://" in path or path.startswith("builtin:") else os.path.abspath(path)
  name = re.sub(r"[^\w.:-]+", "_", whole.rstrip("/").rpartition("/")[2])
  if not kinds:
    raise ValueError(f"{path} has no labels, and the model neither makes embeddings nor writes captions")
  return _evaluators(config, path, name, source, opened, kinds, templates, settings)


def source_of(path: str, split: Literal["train", "val", "test"] = "test", videos: bool = False) -> Source:
  """The source that a path names, by the files there; `split` where those of the hub or of tfds have several.

  With `videos`, these are looked for, too, and their `split`; a table of them may be named in place of its folder.
  """
  named = "validation" if split == "val" else split
  if path.startswith("builtin:"):
    part = path.removeprefix("builtin:")
    return Source(kind="builtin", split=part, videos=videos and part.startswith("scenes_videos"))
  fs, place = fsspec.core.url_to_fs(path)
  names = [name.rstrip("/").rpartition("/")[2] for name in fs.ls(place, detail=False)] if fs.isdir(place) else [path]
  if "data" in names and (shards := fs.glob(f"{place.rstrip('/')}/data/*.parquet")):  # as the Hugging Face hub has them
    splits = {match[1] for name in shards if (match := _SHARD.fullmatch(name.rpartition("/")[2]))}
    asked = {"train": ("train",), "val": SPLITS[1:], "test": SPLITS}[split]
    part = next((name for name in asked if name in splits), "")
    if len(splits) > 1 and not part:
      raise FileNotFoundError(f"{path} has no split '{split}'; it has {', '.join(sorted(splits))}")
    return Source(kind="parquet", path=f"{path.rstrip('/')}/data/{f'{part}-' * bool(part)}*.parquet")
  if any(name.endswith(".tar") for name in names):
    return Source(kind="webdataset", path=path, videos=videos and hold_videos(path, "--data"))
  if any(name.endswith(".parquet") for name in names):
    return Source(kind="parquet", path=path)
  if "dataset_info.json" in names:
    return Source(kind="tfds", path=path, split=named)
  if any(map(entails, names)):  # SNLI-VE's files
    kept = {"train": "train", "val": "dev"}.get(split, "test" if "snli_ve_test.jsonl" in names else "dev")
    return Source(kind="folder", path=path, split=kept)
  folder, _, table = path.rpartition("/")
  if videos and is_table(table or path) and fs.isfile(place) and _holds_videos(fs, place.rpartition("/")[0]):
    key = "question" if asks(table or path) else ""
    return Source(kind="folder", path=folder or ".", texts=table or path, split=named, videos=True, question_key=key)
  if videos and _holds_videos(fs, place):
    return Source(kind="folder", path=path, split=named, videos=True)
  return Source(kind="folder", path=path, split=split)  # of Karpathy's annotations, where it has some


def _holds_videos(fs, place: str) -> bool:
  """True if the first folder below a path that has images or videos has videos alone."""
  for _, _, files in fs.walk(place):
    endings = {name.rpartition(".")[2].lower() for name in files}
    if not endings.isdisjoint((*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS)):
      return endings.isdisjoint(IMAGE_EXTENSIONS)
  return False


def open_images(path: str) -> Images:
  """The images that a path names, for a search index. Errors as those of `open_source`."""
  source = source_of(path)
  return Images(path, None if source.kind == "folder" else open_source(source, "--data"))
