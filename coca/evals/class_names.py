"""The classes that labels mean, where people have ImageNet and its robustness sets by numbers or WordNet ids.

classes/imagenet.tsv holds the 1,000 WordNet ids in the order of their numbers, marks of ImageNet-A, -O and -R, which
have 200 of the classes each, and CLIP's names. The ids are those of hendrycks/natural-adv-examples and
hendrycks/imagenet-r on GitHub (eval.py), the names CLIP's (openai/CLIP, Prompt_Engineering_for_ImageNet.ipynb), both as
clip_benchmark 1.6.2 has them. ImageNet-V2 has folders 0 to 999, ImageNet-Sketch those of all ids.

classes/objectnet.tsv holds the 113 of ObjectNet's 313 folders whose objects ImageNet has, and their names
(mlfoundations/wise-ft, src/datasets/objectnet_metadata: objectnet_to_imagenet_1k.json, folder_to_objectnet_label.json);
as in CLIP_benchmark, the names are in lower case, and images of the other folders do not count.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_WORDNET = re.compile(r"n\d{8}")


class Classes(NamedTuple):
  """The classes to choose from, and what labels mean among them."""

  names: tuple[str, ...]
  number: Sequence[int]  # of each of the source's labels: its place among `names`, or -1


def classes_of(label_names: Sequence[str], subset: str = "") -> Classes:
  """The classes that labels mean.

  Args:
    label_names: of a source: names, WordNet ids, numbers of ImageNet's classes, or ObjectNet's folders.
    subset: '' or a part of ImageNet ('imagenet-a', ...), where the labels are those of all its classes.

  Raises:
    ValueError: ids that ImageNet lacks, or a part of ImageNet where the labels are not its.
  """
  table, objects = _table("imagenet.tsv"), {folder: name for folder, name in _table("objectnet.tsv")}
  keys = list(label_names)
  if set(objects) <= set(keys) and not subset:
    order = {folder: i for i, folder in enumerate(objects)}
    return Classes(tuple(objects.values()), [order.get(key, -1) for key in keys])
  if not subset and not is_imagenets(keys):
    return Classes(tuple(keys), range(len(keys)))
  if is_imagenets(keys):
    by_key = {key: row for i, row in enumerate(table) for key in (row[0], str(i))}
    if lacking := [key for key in keys if key not in by_key]:
      raise ValueError(
        f"its label names are WordNet ids, which no text tower knows, and {lacking[0]} is none of ImageNet's 1,000: "
        "write the classes' names in their place (classnames.txt, label.labels.txt)"
      )
    rows = [by_key[key] for key in keys]
  elif len(keys) == len(table):  # names in ImageNet's order, whosever they are
    rows = [(id_, marks, name) for (id_, marks, _), name in zip(table, keys, strict=True)]
  else:
    raise ValueError(
      f"classes is {subset!r}, a part of ImageNet's 1,000 classes, and the source has {len(keys)}: leave it out where "
      "the labels are those of the part alone"
    )
  mark = subset.removeprefix("imagenet-")
  chosen = [i for i, (_, marks, _) in enumerate(rows) if mark in marks]
  order = {i: k for k, i in enumerate(chosen)}
  return Classes(tuple(rows[i][2] for i in chosen), [order.get(i, -1) for i in range(len(keys))])


def is_imagenets(keys: Sequence[str]) -> bool:
  """True for WordNet ids, and for numbers from 0 to 999."""
  numbers = len(keys) == 1000 and set(keys) == set(map(str, range(1000)))
  return numbers or (bool(keys) and all(_WORDNET.fullmatch(key) for key in keys))


@functools.cache
def _table(name: str) -> list[tuple[str, ...]]:
  lines = (Path(__file__).parent / "classes" / name).read_text(encoding="utf-8").splitlines()
  return [tuple(line.split("\t")) for line in lines]
