"""Scenes by number: the same everywhere, their truth to be seen, and the splits kept apart."""

import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest

from coca.data.scenes.compose import World
from coca.data.scenes.held_out import SPLITS
from coca.data.scenes.objects import OBJECTS
from coca.data.scenes.sprites import STYLES, sprite

COUNT = 200


@pytest.fixture(scope="module")
def scenes():
  return {split: [World(split)[i] for i in range(COUNT)] for split in SPLITS}


def hides(front, back):
  """The share of the smaller square that the other one covers, counted on a fine grid."""
  small, other = sorted((front, back), key=lambda t: t.size)
  points = [small.size * (k + 0.5) / 40 - small.size / 2 for k in range(40)]
  inside = [[abs(getattr(small, axis) + p - getattr(other, axis)) < other.size / 2 for p in points] for axis in "xy"]
  return sum(inside[0]) * sum(inside[1]) / 1600


def test_a_scene_is_a_function_of_split_seed_and_number(scenes):
  backwards = [World("scenes")[i] for i in reversed(range(COUNT))]
  assert backwards[::-1] == scenes["scenes"]
  assert World("scenes", seed=1)[0] != scenes["scenes"][0] and len(set(scenes["scenes"])) == COUNT
  # Written down so that no version of Python or NumPy, and no machine, gives other scenes unnoticed.
  told = repr(scenes["scenes"][:50]).encode()
  assert hashlib.sha256(told).hexdigest()[:16] == "b3c1af739e83ad51"


def covered(front, back):
  """The share of the drawing `back` that `front` covers, at 100 pixels."""
  canvas = np.zeros((2, 100, 100), bool)
  for mask, thing in zip(canvas, (front, back), strict=True):
    side = round(100 * thing.size)
    left, top = (round(100 * (at - thing.size / 2)) for at in (thing.x, thing.y))
    mask[top : top + side, left : left + side] = sprite(thing.name, thing.style, side)[..., 3] > 127
  return (canvas[0] & canvas[1]).sum() / canvas[1].sum()


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_true_can_be_seen(scenes, split):
  for scene in scenes[split]:
    assert 1 <= len(scene.things) <= 4 and len(scene.groups()) <= 2
    if len(scene.things) == 2 and hides(*scene.things) > 0.2:
      assert 0.08 < covered(*scene.things[::-1]) < 0.55, "one sees that one is in front of the other"
    for thing in scene.things:
      half = thing.size / 2
      assert half <= min(thing.x, thing.y) and max(thing.x, thing.y) <= 1 - half, "all of it is in the image"
      assert thing.size >= 0.25, "16 of 64 pixels"
    for a, b in itertools.combinations(scene.things, 2):
      hidden = hides(a, b)
      assert hidden < 0.14 or (0.22 < hidden < 0.45 and len(scene.things) == 2)
      if a.name != b.name and hidden < 0.14:  # one axis tells them apart, by far
        assert max(abs(a.x - b.x), abs(a.y - b.y)) >= 0.2
    if len(scene.things) == len(scene.groups()):
      assert not [t for t in scene.things if 0.29 < t.size < 0.35 or 0.41 < t.size < 0.47], "sizes have their words"


def test_scenes_are_of_all_kinds(scenes):
  kinds = Counter(tuple(sorted(map(len, s.groups().values()))) for s in scenes["scenes"])
  assert set(kinds) == {(1,), (2,), (3,), (4,), (1, 1), (1, 2), (1, 3), (2, 2)}
  assert all(n > 0.02 * COUNT for n in kinds.values())
  names = Counter(t.name for split in SPLITS for s in scenes[split] for t in s.things)
  assert len(names) == len(OBJECTS)
  assert {t.style for s in scenes["scenes"] for t in s.things} == set(STYLES)
  assert {t.style for s in scenes["scenes_new_style"] for t in s.things} == {"twemoji"}
  assert len({s.place for s in scenes["scenes"]}) == 8


def test_settings():
  small = World("scenes_val", objects=2, vocabulary=5, styles=("noto",))
  things = [t for i in range(50) for t in small[i].things]
  assert {t.name for t in things} == {o.name for o in OBJECTS[:5]} and {t.style for t in things} == {"noto"}
  assert max(len(small[i].things) for i in range(50)) == 2
  assert {len(World(objects=1)[i].things) for i in range(20)} == {1}
  assert {len(World(vocabulary=1)[i].groups()) for i in range(20)} == {1}


def test_settings_that_leave_nothing():
  with pytest.raises(ValueError, match="no split 'scenes_vla' of scenes; there are scenes, scenes_val, "):
    World("scenes_vla")
  with pytest.raises(
    ValueError, match=r"never together in training\) has no scene with at most 1 of the first 100 obj"
  ):
    World("scenes_new_pairs", objects=1)
  with pytest.raises(ValueError, match="at most 4 of the first 1 objects; allow more"):
    World("scenes_new_relations", vocabulary=1)
