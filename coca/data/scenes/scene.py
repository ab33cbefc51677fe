"""A scene: what is where, and what of it can be told by looking.

Whatever is said of a scene is decided here, by its geometry alone. Between what is clearly so and what is clearly not
lies what a viewer could not tell: sizes and sides in between count as none, and `coca.data.scenes.compose` keeps away
from them.
"""

import math
from dataclasses import dataclass

SMALL, BIG = 0.30, 0.46  # sides up to and from which on an object is called so, in image widths
GAP = 0.2  # between the centres of what is left of, right of, above or below each other
HIDDEN = 0.2  # share of the smaller one's square that is hidden, from which on one is in front of the other
OPPOSITE = {
  "left of": "right of",
  "right of": "left of",
  "above": "below",
  "below": "above",
  "in front of": "behind",
  "behind": "in front of",
}
RELATIONS = tuple(OPPOSITE)


@dataclass(frozen=True, slots=True)
class Thing:
  """An object in a scene. `x` and `y`, its centre from the left and from the top, and `size`, the side of its square,
  are in image widths; `turn` is in degrees, clockwise."""

  name: str
  style: str
  x: float
  y: float
  size: float
  turn: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
  """`things` are in the order of drawing: a later one hides an earlier one. `view` chooses one of the variations of the
  place."""

  place: str
  things: tuple[Thing, ...]
  view: int = 0

  def groups(self) -> dict[str, tuple[Thing, ...]]:
    """The things by their names, in the order of drawing."""
    found = {}
    for thing in self.things:
      found[thing.name] = (*found.get(thing.name, ()), thing)
    return found


def size_word(things: tuple[Thing, ...]) -> str:
  """'big' or 'small' where all of them are; else ''."""
  if all(thing.size >= BIG for thing in things):
    return "big"
  return "small" if all(thing.size <= SMALL for thing in things) else ""


def relation(scene: Scene, a: str, b: str) -> str:
  """The relation of the things called `a` to those called `b` that can be seen; '' where none is clear.

  Left and right, above and below need `GAP` between all centres, and less than half of the distance on the other axis.
  In front and behind are told of two things, of which one hides a part of the other. At most one of `RELATIONS` holds.
  """
  groups = scene.groups()
  ones, others = groups[a], groups[b]
  if len(ones) == len(others) == 1 and overlap(ones[0], others[0]) >= HIDDEN:
    return "in front of" if scene.things.index(ones[0]) > scene.things.index(others[0]) else "behind"
  across = _between([t.x for t in ones], [t.x for t in others])
  down = _between([t.y for t in ones], [t.y for t in others])
  if abs(across[0]) >= GAP and 2 * abs(down[1]) <= abs(across[1]):
    return "left of" if across[0] > 0 else "right of"
  if abs(down[0]) >= GAP and 2 * abs(across[1]) <= abs(down[1]):
    return "above" if down[0] > 0 else "below"
  return ""


def _between(ones: list[float], others: list[float]) -> tuple[float, float]:
  """The gap between two groups on an axis, 0 where they overlap, and the distance of their means."""
  gap = max(min(others) - max(ones), 0) + min(max(others) - min(ones), 0)
  return gap, math.fsum(others) / len(others) - math.fsum(ones) / len(ones)  # sum() differs by Python's version


def overlap(a: Thing, b: Thing) -> float:
  """The share of the smaller one's square that lies in the other's."""
  reach, smaller = (a.size + b.size) / 2, min(a.size, b.size)
  width, height = (min(max(reach - abs(d), 0), smaller) for d in (a.x - b.x, a.y - b.y))
  return width * height / smaller**2
