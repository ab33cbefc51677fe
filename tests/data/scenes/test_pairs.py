"""Statements about two images: right by the coordinates, true as often as false, and about one part."""

import re
from collections import Counter

import pytest

from coca.data.scenes.compose import World
from coca.data.scenes.pairs import Pairs
from support.scenes import A_NAME, A_PLACE, A_SIDE, NUMBERS, is_place, is_side, is_size, named

COUNT = 1000
TOTALS = NUMBERS | {"five": 5, "six": 6, "seven": 7, "eight": 8}


@pytest.fixture(scope="module")
def pairs():
  made = Pairs(World("scenes"))
  return [made[i] for i in range(COUNT)]


def shows(scene, what):
  """Whether it is so in a scene: 'exactly two dogs left of a cat on the beach'."""
  group = f"(?:exactly )?(a|an|one|two|three|four) (?:(big|small) )?{A_NAME}"
  number, size, name, side, _, _, other, place = re.fullmatch(
    f"{group}(?: (?:to the )?{A_SIDE} {group})?(?: {A_PLACE})?", what.replace("to the ", "")
  ).groups()
  there = named(scene, name)
  return (
    len(there) == NUMBERS[number]
    and (not size or all(is_size(thing, size) for thing in there))
    and (not side or is_side(scene, there, side, named(scene, other)))
    and (not place or is_place(scene, place))
  )


def is_true(pair):
  left, right = pair.left, pair.right
  for pattern, true in (
    ("the left image shows (.*)", lambda what: shows(left, what)),
    ("the right image shows (.*)", lambda what: shows(right, what)),
    ("both images show (.*)", lambda what: shows(left, what) and shows(right, what)),
    ("neither image shows (.*)", lambda what: not shows(left, what) and not shows(right, what)),
    ("only one of the images shows (.*)", lambda what: shows(left, what) != shows(right, what)),
    (
      f"there are (more|fewer|as many) {A_NAME} in the left image (?:than|as) in the right image",
      lambda how, name: (
        {"more": 1, "fewer": -1, "as many": 0}[how]
        == (len(named(left, name)) > len(named(right, name))) - (len(named(left, name)) < len(named(right, name)))
      ),
    ),
    (
      f"there are (.*) {A_NAME} in the two images together",
      lambda number, name: TOTALS[number] == len(named(left, name)) + len(named(right, name)),
    ),
    (
      f"the {A_NAME} is (bigger|smaller) in the left image than in the right image",
      lambda name, how: (how == "bigger") == (named(left, name)[0].size > 1.2 * named(right, name)[0].size),
    ),
  ):
    if found := re.fullmatch(pattern, pair.sentence):
      return true(*found.groups())
  raise AssertionError(pair.sentence)


def test_labels_are_right_and_even(pairs):
  kinds = Counter()
  for four in zip(*(pairs[n::4] for n in range(4)), strict=True):
    assert [is_true(pair) for pair in four] == [pair.label for pair in four], four[0].sentence
    assert sum(pair.label for pair in four) == 2
    assert {pair.sentence for pair in four} == {four[0].sentence}
    assert [(pair.number, pair.pair) for pair in four] == [(four[0].number, n) for n in range(4)]
    kinds[re.sub(rf"{A_NAME}|\b(exactly|two|three|four|five|six|seven|eight)\b", "", four[0].sentence)[:26]] += 1
  for n in range(4):  # nor does a pair's place tell
    assert 0.4 < sum(pair.label for pair in pairs[n::4]) / (COUNT / 4) < 0.6
  assert len(kinds) >= 8


def test_images_alone_tell_nothing(pairs):
  """The same two images, or their likes, make a sentence true and false."""
  left = [pair for pair in pairs if pair.sentence.startswith("the left image shows")]
  groups = {}
  for pair in left:
    groups.setdefault(pair.number, []).append(pair)
  for four in groups.values():
    both = {frozenset((pair.left, pair.right)): set() for pair in four}
    for pair in four:
      both[frozenset((pair.left, pair.right))].add(pair.label)
    assert {True, False} in both.values()
  assert len(groups) > 20


@pytest.mark.parametrize("split", ["scenes_val", "scenes_new_pairs", "scenes_new_counts", "scenes_new_relations"])
def test_other_splits(split):
  world = World(split)
  made = Pairs(world)
  for i in range(20):
    assert is_true(made[i]) == made[i].label
    if split == "scenes_val":
      assert world.holds(made[i].left) and world.holds(made[i].right)


def test_few_objects_leave_fewer_statements():
  made = Pairs(World("scenes", objects=1, vocabulary=1))
  assert all(is_true(made[i]) == made[i].label for i in range(20))
