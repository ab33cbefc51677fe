"""VQA accuracy by hand."""

import pytest

from coca.evals.vqa_accuracy import CONTRACTIONS, normalise, vqa_accuracy


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    ("The Cat", "cat"),
    ("a bowl of an apple", "bowl of apple"),
    ("none", "0"),
    ("Ten", "10"),
    ("eleven", "eleven"),
    ("the one", "1"),
    ("isnt", "isn't"),
    ("couldntve", "couldntve"),
    ("couldn'tve", "couldn't've"),
    ("couldnt've", "couldn't've"),
    ("Dont know", "don't know"),
    ("y'alld've", "y'all'd've"),
    ("twas", "'twas"),
    ("oclock", "o'clock"),
    ("its well", "its well"),
    ("black/white", "black white"),  # beside no space: one takes its place
    ("black / white", "black white"),  # beside spaces: dropped
    ("blue-green, red-white", "blue green red white"),  # the comma is dropped, the hyphens are not beside a space
    ("well-known -", "wellknown"),  # one hyphen is, and so all are dropped
    ("yes!", "yes"),
    ("(left)", "left"),
    ("1,000", "1000"),
    ("1,000-2", "10002"),  # a comma between digits: all punctuation is dropped
    ("1, 2", "1 2"),
    ("1,a", "1"),
    ("3.5", "3.5"),
    ("3.", "3"),
    ("u.s.a.", "usa"),
    (".5", ".5"),
    ("a.m.", "am"),
    ("10:30", "10:30"),
    ("men's", "men's"),  # these stay
    ("  two   cats ", "2 cats"),
    ("the", ""),
    ("", ""),
  ],
)
def test_normalised(answer, expected):
  assert normalise(answer) == expected


def test_each_contraction_lacks_one_apostrophe():
  for found, whole in CONTRACTIONS.items():
    assert len(found) == len(whole) - 1 and found.replace("'", "") == whole.replace("'", "")
  assert not set(CONTRACTIONS) & {"its", "well", "ill", "were", "shed", "shell", "wed", "lets", "id", "hell"}


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_ten_annotators(matches, expected):
  """Two matches: a matching annotator left out leaves one (1/3, twice), another leaves two (2/3, eight times)."""
  annotations = ["yes"] * matches + [f"no {i}" for i in range(10 - matches)]
  assert vqa_accuracy("yes", annotations) == pytest.approx(expected, abs=1e-12)
  assert vqa_accuracy("yes", annotations[::-1]) == vqa_accuracy("yes", annotations)


def test_all_is_normalised_only_where_annotators_differ():
  assert vqa_accuracy("two", ["2"] * 10) == 0
  assert vqa_accuracy("two", ["2"] * 9 + ["3"]) == 1
  assert vqa_accuracy("Yes", ["yes"] * 10) == 0
  assert vqa_accuracy("yes\n", ["\tyes", " yes"] * 5) == 1  # equal but for white space: that is no difference
  assert vqa_accuracy("the dog.", ["dog", "A dog", "cat", "Dog!", "dog"] * 2) == 1
  assert vqa_accuracy("dont", ["don't"] * 2 + ["stop"] * 8) == pytest.approx(0.6)


@pytest.mark.parametrize(
  ("annotations", "expected"),
  [
    (["yes"], 1),
    (["no"], 0),
    (["yes", "yes"], 1),
    (["yes", "no"], 0.5),  # the matching one left out leaves none, the other one all there is
    (["yes", "yes", "no"], (0.5 + 0.5 + 1) / 3),
    (["yes", "yes", "yes"], 1),
    (["yes", "yes", "yes", "no"], (2 / 3 * 3 + 1) / 4),
    (["yes"] * 4, 1),
    (["yes"] * 2 + ["no"] * 3, (1 / 3 * 2 + 2 / 3 * 3) / 5),
  ],
)
def test_fewer_annotators(annotations, expected):
  assert vqa_accuracy("yes", annotations) == pytest.approx(expected, abs=1e-12)


def test_without_annotators_there_is_no_accuracy():
  with pytest.raises(ValueError, match="at least one"):
    vqa_accuracy("yes", [])
