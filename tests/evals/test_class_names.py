"""ImageNet's classes and those of its robustness sets, as people have them on disk."""

import hashlib

import numpy as np
import pytest

from coca.config import Eval
from coca.evals import zero_shot
from coca.evals.class_names import _table, classes_of
from support.evals import CONFIG, FakeForward, Source_, record

IDS, MARKS, NAMES = zip(*_table("imagenet.tsv"), strict=True)


def test_the_lists_are_those_that_were_published():
  assert len(IDS) == 1000 and list(IDS) == sorted(set(IDS))
  assert [NAMES[i] for i in (0, 134, 517, 999)] == ["tench", "crane bird", "construction crane", "toilet paper"]
  for mark, first, last in (
    ("a", "stingray", "acorn"),
    ("r", "goldfish", "acorn"),
    ("o", "goldfish", "hen of the woods mushroom"),
  ):
    marked = [name for name, m in zip(NAMES, MARKS, strict=True) if mark in m]
    assert (len(marked), marked[0], marked[-1]) == (200, first, last)
  assert len(_table("objectnet.tsv")) == 113
  # The checksums are of clip_benchmark 1.6.2's lists: datasets/builder.py, en_classnames.json.
  marked = [[id_ for id_, marks in zip(IDS, MARKS, strict=True) if mark in marks] for mark in "aro"]
  found = [hashlib.sha256("\n".join(each).encode()).hexdigest()[:8] for each in (IDS, NAMES, *marked)]
  assert found == ["385e0240", "571ae1c5", "f6aa4b23", "e19a59d8", "39f8e64e"]


def test_folders_of_wordnet_ids_are_scored_over_their_classes_alone():
  ids = [id_ for id_, marks in zip(IDS, MARKS, strict=True) if "a" in marks]
  names, number = classes_of(ids)
  assert len(names) == 200 and names[0] == "stingray" and list(number) == list(range(200))
  assert classes_of(IDS) == (NAMES, list(range(1000)))


@pytest.mark.parametrize("labels", [IDS, NAMES, tuple(map(str, range(1000))), tuple(sorted(map(str, range(1000))))])
def test_a_part_of_imagenet_by_labels_of_all_of_it(labels):
  names, number = classes_of(labels, "imagenet-a")
  assert len(names) == 200 == np.count_nonzero(np.array(number) >= 0)
  for i, key in enumerate(labels):
    k = int(key) if key.isdigit() else i
    assert (number[i] >= 0) == ("a" in MARKS[k]) and (number[i] < 0 or names[number[i]] == NAMES[k])


def test_imagenet_v2_has_folders_by_number():
  folders = sorted(map(str, range(1000)))  # as a file system has them: 0, 1, 10, 100, ...
  names, number = classes_of(folders)
  assert names[number[folders.index("10")]] == NAMES[10] != NAMES[2]
  digits = tuple("0123456789")
  assert classes_of(digits) == (digits, range(10))


def test_objectnet_leaves_out_what_imagenet_has_not():
  folders = sorted([folder for folder, _ in _table("objectnet.tsv")] + ["air_freshener", "zipper"])
  names, number = classes_of(folders)
  assert len(names) == 113 and number[folders.index("air_freshener")] == -1
  assert names[number[folders.index("butchers_knife")]] == "butcher's knife"


def test_what_is_no_part_of_imagenet_is_told():
  with pytest.raises(ValueError, match="n99999999 is none of ImageNet's 1,000"):
    classes_of(["n01440764", "n99999999"])
  with pytest.raises(ValueError, match="'imagenet-a', a part of ImageNet's 1,000 classes, and the source has 2"):
    classes_of(["cat", "dog"], "imagenet-a")


class Words:
  """A tokenizer that knows the 1,000 names, each by one number."""

  bos, eos, unknown, blank = 1, 2, 3, 4

  def encode(self, text, length):
    return np.pad([1, 10 + NAMES.index(text), 2], (0, length - 3)).astype(np.int32)

  def decode(self, ids):
    return NAMES[ids[1] - 10]


def test_images_of_other_classes_do_not_count_and_labels_without_names_are_told():
  """Two images are of ImageNet-A's classes; the model takes each for a class outside it and then for its own."""
  table = dict(zip(dict.fromkeys(NAMES), np.eye(1000, dtype=np.float32), strict=False))
  labels = [6, 11, 0, 1]
  images = np.stack([table[NAMES[0]] * np.float32(0.8) + table[NAMES[k]] * np.float32(0.6) for k in labels])
  forward, tokenizer = FakeForward(Words(), images, table), Words()

  def run(records, **settings):
    source = Source_(records, IDS)
    return dict(zero_shot.ZeroShot(CONFIG, Eval(**settings), forward, tokenizer, source).run(None))

  records = [record(i, label=k) for i, k in enumerate(labels)]
  assert run(records)["top1"] == 1 / 4
  found = run(records, classes="imagenet-a")
  assert (found["top1"], found["examples"]) == (1, 2)
  with pytest.raises(ValueError, match=r"'memory' has 1000 class names and an image with label 1003, counted from 0"):
    run([*records, record(4, label=1003)])
