"""Training lacks what the other splits show; told from the scenes themselves, without the rules that made them."""

import itertools

import pytest

from coca.data.scenes.compose import World
from coca.data.scenes.held_out import SPLITS

TRAINED = 6000


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
  assert len(counts) > 250 and len(pairs) > 1500
  for split, known in (("scenes_new_pairs", pairs), ("scenes_new_counts", counts), ("scenes_new_relations", sides)):
    world, what = World(split), ("scenes_new_pairs", "scenes_new_counts", "scenes_new_relations").index(split)
    for i in range(150):
      here = shown([world[i]])[what]
      assert here - known, f"{split} {i}: training shows all of {here}"


@pytest.mark.parametrize("split", [s for s in SPLITS if s != "scenes"])
def test_no_scene_of_a_split_is_one_of_training(trained, split):
  def content(scene):  # whatever the style
    return scene.place, tuple((t.name, t.x, t.y, t.size) for t in scene.things)

  world, other = World(split), World(split, seed=7)
  assert not {content(s) for s in trained} & {content(w[i]) for w in (world, other) for i in range(100)}
