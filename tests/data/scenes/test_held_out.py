"""Training lacks what the other splits show; told from the scenes themselves, without the rules that made them."""

import itertools
import zlib

import pytest

from coca.data.scenes.compose import World
from coca.data.scenes.held_out import is_new_count, is_new_pair

TRAINED = 4000


def shown(scenes):
  """Pairs, (name, count) and (name, side) of scenes, by coordinates alone."""
  pairs, counts, sides = set(), set(), set()
  for scene in scenes:
    names = [t.name for t in scene.things]
    counts |= {(name, names.count(name)) for name in names if names.count(name) > 1}
    pairs |= {frozenset(p) for p in itertools.combinations(set(names), 2)}
    for a, b in itertools.permutations(set(names), 2):
      ours, theirs = ([t for t in scene.things if t.name == n] for n in (a, b))
      across, down = spread(scene, "x"), spread(scene, "y")
      if max(t.x for t in ours) + 0.2 <= min(t.x for t in theirs) and 2 * down < across:
        sides |= {(a, "left"), (b, "right")}
      if max(t.y for t in ours) + 0.2 <= min(t.y for t in theirs) and 2 * across < down:
        sides |= {(a, "top"), (b, "bottom")}
      if len(names) == 2 and down < 2 * across < 4 * down:  # aslant: one hides the other, which is drawn first
        sides |= {(names[0], "back"), (names[1], "front")}
  return pairs, counts, sides


def spread(scene, axis):
  """The distance between the two groups' means on an axis."""
  means = [sum(getattr(t, axis) for t in things) / len(things) for things in scene.groups().values()]
  return max(means) - min(means)


@pytest.fixture(scope="module")
def trained():
  world = World("scenes")
  return [world[i] for i in range(TRAINED)]


def test_training_lacks_what_the_others_show(trained):
  pairs, counts, sides = shown(trained)
  assert len(counts) > 240 and len(pairs) > 1500
  new_sides = set()
  for split, known in (("scenes_new_pairs", pairs), ("scenes_new_counts", counts), ("scenes_new_relations", sides)):
    world, what = World(split), ("scenes_new_pairs", "scenes_new_counts", "scenes_new_relations").index(split)
    for i in range(150):
      here = shown([world[i]])[what]
      assert here - known, f"{split} {i}: training shows all of {here}"
      new_sides |= {side for _, side in here - known} if what == 2 else set()
  assert new_sides == {"left", "right", "top", "bottom", "front", "back"}


def test_validation_is_told_from_training_by_its_content(trained):
  """Whatever the seeds, so that the scenes of one can't be among the other's."""

  def bucket(scene):
    return zlib.crc32(repr(scene).encode()) % 8

  assert {bucket(scene) for scene in trained} == set(range(1, 8))
  for seed in (0, 7):
    world = World("scenes_val", seed)
    assert {bucket(world[i]) for i in range(50)} == {0}


@pytest.mark.parametrize("split", ["scenes_new_style", "scenes_val"])
def test_a_split_of_its_own_shows_nothing_new(split, trained):
  """What it measures is the style, or nothing but new scenes: all else is as in training."""
  scenes = [World(split)[i] for i in range(200)]
  for known, here in zip(shown(trained), shown(scenes), strict=True):
    assert len(here - known) < 0.75 * len(here)
    assert not [thing for thing in here if is_new(thing)]


def is_new(thing):
  if isinstance(thing, frozenset):
    return is_new_pair(*thing)
  return isinstance(thing[1], int) and is_new_count(*thing)
