"""Rounds of dialogs: VisDial's files beside the built-in ones, and the rows of ids that are made of them."""

import json

import numpy as np
import pytest

from coca.config import Dialog, Scenes, Source
from coca.data import dialogs
from coca.data.records import BadRecord, Record, Said, Text
from coca.data.scenes import export
from coca.data.sources import open_source

BOS, EOS = 1, 2


class Words:
  """A token a word, by its first letter."""

  bos, eos = BOS, EOS

  def tokens(self, text):
    return [ord(word[0]) for word in text.split()]


def ids(text, length):
  """Written out: a token a word, | for EOS."""
  found = [BOS, *(EOS if word == "|" else ord(word[0]) for word in text.split()), EOS]
  return found + [0] * (length - len(found))


def test_a_row_is_the_dialog_up_to_the_answer_and_loses_its_oldest_rounds():
  said = Said("a cat", (("one two", "three"), ("four", "five six")))
  for length, expected in (
    (16, "one two three | four five six | q r a"),
    (13, "one two three | four five six | q r a"),
    (12, "four five six | q r a"),
    (8, "q r a"),
    (4, "r a"),
  ):
    row = dialogs.row(said, "q r", "a", Words(), length)
    assert row.tolist() == ids(expected, length) and row.dtype == np.int32


def test_wrong_answers_are_others_than_the_right_one_and_drawn_once():
  texts = tuple(Text(word) for word in ["a", "b", "c", "a", "b", "d"])
  record = Record("k", b"", texts, 3, "q", said=Said("x"))
  seen = set()
  for seed in range(40):
    rows = dialogs.drawn(record, Dialog(length=6, negatives=2), Words(), np.random.default_rng(seed))
    assert rows[0].tolist() == ids("q a", 6)
    seen.add(tuple(chr(row[2]) for row in rows[1:]))
  assert seen == {(x, y) for x in "bcd" for y in "bcd" if x != y}
  rows = dialogs.drawn(record, Dialog(length=6, negatives=5), Words(), np.random.default_rng(0))
  assert (rows[:4] != 0).any(axis=1).all() and not rows[4:].any()
  for bad in (Record("k", b"", texts, -1, "q", said=Said("x")), Record("k", b"", texts, 0, "q")):
    with pytest.raises(BadRecord, match=r"no answer|no dialog"):
      dialogs.drawn(bad, Dialog(), Words(), np.random.default_rng(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("visdial")
  for split, count in (("scenes_val", 3), ("scenes", 2)):
    export.main([f"--out={out}", "--task=visdial", f"--split={split}", f"--count={count}", "--pixels=32"])
  return out


@pytest.mark.parametrize(("split", "part", "count"), [("_val", "val", 30), ("", "train", 20)])
def test_visdials_files_are_the_dialogs_that_they_were_written_from(folder, split, part, count):
  made = open_source(Source(kind="builtin", split=f"scenes_dialogs{split}", scenes=Scenes(count=count, pixels=32)))
  read = open_source(Source(kind="dialogs", path=str(folder), texts=str(folder / f"visdial_1.0_{part}.json")))
  assert len(read) == len(made) == count and not read.problems
  annotated = 0
  for i in range(count):
    a, b = made[i], read[i]
    assert (a.question, a.texts, a.label) == (b.question, b.texts, b.label) and len(b.texts) == 100
    assert (a.said.caption, a.said.rounds) == (b.said.caption, b.said.rounds) and len(b.said.rounds) == i % 10
    assert not b.said.relevance or b.said.relevance == a.said.relevance
    annotated += bool(b.said.relevance)
    assert b.key == f"{i // 10}#{i % 10 + 1}" and b.image[:2] == b"\xff\xd8"
  assert annotated == count // 10  # a round of each dialog


def test_what_can_not_be_read_is_said(folder, tmp_path):
  text = json.loads((folder / "visdial_1.0_val.json").read_text())
  said = text["data"]["dialogs"][0]["dialog"]
  for asked in said:
    asked.pop("gt_index"), asked.pop("answer")  # as the last round of the test split
  said[1]["question"] = 10**6
  text["data"]["dialogs"][1]["image_id"] = 77
  (tmp_path / "test.json").write_text(json.dumps(text))
  source = open_source(Source(kind="dialogs", path=str(folder), texts=str(tmp_path / "test.json")))
  assert source[0].label == -1 and not source[0].said.relevance
  with pytest.raises(BadRecord, match="dialog 0#2 names a question"):
    source[1]
  with pytest.raises(BadRecord, match=r"dialog 77#1: no image below .* has the number 77"):
    source[10]
  (tmp_path / "other.json").write_text("[]")
  for path, texts, message in (
    (folder, tmp_path / "other.json", "not VisDial v1.0's"),
    (folder, tmp_path / "none.json", r"texts is '.*none\.json': no such file"),
    (folder / "none", tmp_path / "test.json", "no such directory"),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      open_source(Source(kind="dialogs", path=str(path), texts=str(texts)), "config.data.sources.d")
