"""The splits of the world, and what training never sees: decided by hashes of names, the same everywhere."""

import functools
from collections.abc import Sequence

from coca.data.scenes.draws import one_in
from coca.data.scenes.scene import OPPOSITE

SPLITS = {
  "scenes": "for training",
  "scenes_val": "as training's, and none of them",
  "scenes_new_style": "drawn in a style that training lacks",
  "scenes_new_pairs": "of two objects that are never together in training",
  "scenes_new_counts": "with an object in a number in which training never shows it",
  "scenes_new_relations": "with an object on a side of others on which it never is in training",
}
"""Their names and content. The first three are without what the others show."""


@functools.cache
def is_new_pair(a: str, b: str) -> bool:
  """Two objects, in either order, that are never together in a scene of training: one in ten."""
  return one_in(10, "pair", *sorted((a, b)))


@functools.cache
def is_new_count(name: str, count: int) -> bool:
  """A number, above 1, of an object that no scene of training holds: one in eight."""
  return count > 1 and one_in(8, "count", name, count)


@functools.cache
def is_new_relation(name: str, side: str) -> bool:
  """A relation in which an object never is to another one in training, such as left of it: one in eight."""
  return one_in(8, "relation", name, side)


def news(groups: Sequence[tuple[str, int]], side: str = "") -> set[str]:
  """The news in a scene, which training never shows: 'pairs', 'counts', 'relations'.

  Args:
    groups: the names of one or two objects, and how many there are of each.
    side: the relation of the first ones to the second ones.
  """
  names = [name for name, _ in groups]
  found = {
    "pairs": len(names) == 2 and is_new_pair(*names),
    "counts": any(is_new_count(name, count) for name, count in groups),
    "relations": bool(side) and (is_new_relation(names[0], side) or is_new_relation(names[1], OPPOSITE[side])),
  }
  return {what for what, is_new in found.items() if is_new}
