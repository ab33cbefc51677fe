"""Scenes by number: each is a pure function of the world's settings and an index."""

import functools
import math
import zlib
from collections.abc import Sequence

import numpy as np

from coca.data.scenes.draws import Draws
from coca.data.scenes.held_out import SPLITS, news
from coca.data.scenes.objects import OBJECTS, PLACES
from coca.data.scenes.places import VIEWS
from coca.data.scenes.scene import Scene, Thing, overlap, relation
from coca.data.scenes.sprites import STYLES, UNSEEN_STYLE, sprite

MOST = 4  # things in a scene: more would be smaller than 16 of 64 pixels, or hide each other
# Kinds of scenes, their shares and how many things they have at least: one thing, several of a kind, one beside another
# one, several beside one or more of another kind.
KINDS = {"one": (0.2, 1), "several": (0.25, 2), "two": (0.35, 2), "groups": (0.2, 3)}
# Sides of a thing alone or beside another one, in image widths, well inside of what the words mean.
ALONE = {"small": (0.25, 0.28), "": (0.36, 0.40), "big": (0.52, 0.80)}
BESIDE = ALONE | {"big": (0.48, 0.54)}
COUNTED = {2: (0.29, 0.38), 3: (0.26, 0.33), 4: (0.26, 0.30)}  # of several, by their number
PARTED = {1: (0.30, 0.38), 2: (0.26, 0.33), 3: (0.26, 0.30)}  # of those that share the image with others
EDGE = 0.01  # of the image is free at its border
TOUCHING = 0.1  # of a square may be covered by another one, unless that is in front of it
IN_FRONT = (0.25, 0.40)  # of the smaller square is covered where one is in front of the other
SEEN = (0.12, 0.50)  # of the drawing behind is covered then
_SIDES = ("left of", "above", "in front of")  # the others say the same of the same two, the other way round
_TRIES = 20_000  # of the settings that leave the least, one in a hundred makes a scene


class World:
  """The scenes of a split: `world[i]` is scene `i`, for any `i` from 0 on.

  Args:
    split: one of `SPLITS`.
    seed: other scenes of the same kind.
    objects: things in a scene at most, 1 to `MOST`.
    vocabulary: the number of objects that there are, the first ones of `OBJECTS`.
    styles: that things are drawn in; empty: as the split has it.

  Raises:
    ValueError: there is no such split, or these settings leave no scene in it.
  """

  def __init__(
    self,
    split: str = "scenes",
    seed: int = 0,
    objects: int = MOST,
    vocabulary: int = len(OBJECTS),
    styles: Sequence[str] = (),
  ):
    if split not in SPLITS:
      raise ValueError(f"there is no split {split!r} of scenes; there are {', '.join(SPLITS)}")
    self.split, self.seed, self.objects = split, seed, objects
    self.names = tuple(thing.name for thing in OBJECTS[:vocabulary])
    self.styles = tuple(styles) or ((UNSEEN_STYLE,) if split == "scenes_new_style" else STYLES)
    self._new = {split.removeprefix("scenes_new_")} & {"pairs", "counts", "relations"}
    self._kinds = [
      kind
      for kind, (_, least) in KINDS.items()
      if least <= objects
      and (len(self.names) > 1 or kind in ("one", "several"))
      and kind
      in {"pairs": ("two", "groups"), "relations": ("two", "groups"), "counts": ("several", "groups")}.get(
        split.removeprefix("scenes_new_"), KINDS
      )
    ]
    self[0]

  def __getitem__(self, index: int) -> Scene:
    draws = Draws(self.split, self.seed, index)
    for attempt in range(_TRIES if self._kinds else 0):
      if attempt % 200 == 0:  # few objects may leave no scene of a kind
        kind = self._kind(draws)
      scene = self._try(draws, kind)
      if scene and self._is_own(scene):
        return scene
    raise ValueError(
      f"split {self.split!r} ({SPLITS[self.split]}) has no scene with at most {self.objects} of the first "
      f"{len(self.names)} objects; allow more"
    )

  def _is_own(self, scene: Scene) -> bool:
    """A scene of validation is told by its content alone, so that no seed brings it into training."""
    if self.split not in ("scenes", "scenes_val"):
      return True
    return (zlib.crc32(repr(scene).encode()) % 8 == 0) == (self.split == "scenes_val")

  def _try(self, draws: Draws, kind: str) -> Scene | None:
    """A scene of a kind, or None: it is none of this split, or the things found no room."""
    names = draws.some(self.names, 1 if kind in ("one", "several") else 2)
    counts = _counts(draws, kind, self.objects)
    side = draws.choice(_SIDES[: 3 if kind == "two" else 2]) if len(names) == 2 else ""
    groups = list(zip(names, counts, strict=True))
    if news(groups, side) != self._new:
      return None
    styles = [draws.choice(self.styles) for _ in names]
    if side == "in front of":
      things = _in_front(draws, names, styles)
    elif kind == "two":
      things = _beside(draws, names, styles, side)
    elif kind == "groups":
      things = _parted(draws, groups, styles, side)
    else:
      sizes = ALONE[draws.choice(tuple(ALONE))] if kind == "one" else COUNTED[counts[0]]
      things = _scattered(draws, names[0], styles[0], counts[0], sizes, (0, 0, 1, 1))
    scene = Scene(draws.choice(tuple(PLACES)), tuple(things), draws.below(VIEWS))
    return scene if things and (not side or relation(scene, *names) == side) else None

  def _kind(self, draws: Draws) -> str:
    at = draws.random() * math.fsum(KINDS[kind][0] for kind in self._kinds)
    for kind in self._kinds:
      at -= KINDS[kind][0]
      if at < 0:
        return kind
    return self._kinds[-1]


def _counts(draws: Draws, kind: str, most: int) -> list[int]:
  if kind == "several":
    return [2 + draws.below(most - 1)]
  if kind == "groups":
    return draws.choice([[a, b] for a in (1, 2, 3) for b in (1, 2, 3) if 2 < a + b <= most])
  return [1] if kind == "one" else [1, 1]


def _scattered(draws: Draws, name: str, style: str, count: int, sizes, box) -> list[Thing]:
  """`count` things of about one size, anywhere in `box` (left, top, right, bottom) but not on each other.

  Returns none where there was no room for them.
  """
  size = draws.uniform(*sizes)
  left, top, right, bottom = (at + way * (EDGE + size / 2) for at, way in zip(box, (1, 1, -1, -1), strict=True))
  things = []
  for _ in range(20):
    if left > right or top > bottom:
      return []
    thing = Thing(name, style, _short(draws.uniform(left, right)), _short(draws.uniform(top, bottom)), _short(size))
    if all(overlap(thing, other) <= TOUCHING for other in things):
      things.append(thing)
      if len(things) == count:
        return things
  return []


def _beside(draws: Draws, names, styles, side: str) -> list[Thing]:
  """Two things, the first one left of the second one or above it."""
  sizes = [draws.uniform(*BESIDE[draws.choice(tuple(BESIDE))]) for _ in names]
  room = 1 - 2 * EDGE - sizes[0] - sizes[1]
  if room < 0:
    return []
  first, between, last = (draws.random() for _ in range(3))
  scale = room / (first + between + last)
  along = EDGE + first * scale + sizes[0] / 2, 1 - EDGE - last * scale - sizes[1] / 2
  across = draws.uniform(0, 1)
  things = []
  for name, style, size, at in zip(names, styles, sizes, along, strict=True):
    low, high = EDGE + size / 2, 1 - EDGE - size / 2
    other = min(max(low + across * (high - low) + draws.uniform(-0.06, 0.06), low), high)
    x, y = (at, other) if side == "left of" else (other, at)
    things.append(Thing(name, style, _short(x), _short(y), _short(size)))
  return things


def _parted(draws: Draws, groups, styles, side: str) -> list[Thing]:
  """Several things in one part of the image and one or more others in the rest."""
  (_, a), (_, b) = groups
  cut = 0.5 + 0.07 * ((a > b) - (b > a))
  things = []
  for (name, count), style, (low, high) in zip(groups, styles, ((0, cut), (cut, 1)), strict=True):
    box = (low, 0, high, 1) if side == "left of" else (0, low, 1, high)
    found = _scattered(draws, name, style, count, PARTED[count], box)
    if not found:
      return []
    things += found
  return things


def _in_front(draws: Draws, names, styles) -> list[Thing]:
  """Two things, the first one in front of the second one's lower corner; drawn last."""
  kinds = draws.choice((("", ""), ("", "big"), ("big", "big"), ("big", "")))
  front, back = (draws.uniform(*BESIDE[kind]) for kind in kinds)
  apart = (front + back) / 2 - math.sqrt(draws.uniform(*IN_FRONT)) * min(front, back)
  way = draws.choice((-1, 1))
  # Both must be inside: the front one is `apart` lower, and as far to one side.
  low, high = EDGE + back / 2, 1 - EDGE - max(front / 2 + apart, back / 2)
  x, y = max(low, EDGE + front / 2 - apart), max(low, EDGE + front / 2 - apart)
  if x > high:
    return []
  x, y = draws.uniform(x, high), draws.uniform(y, high)
  if way < 0:
    x = 1 - x
  behind = Thing(names[1], styles[1], _short(x), _short(y), _short(back))
  before = Thing(names[0], styles[0], _short(x + way * apart), _short(y + apart), _short(front))
  return [behind, before] if SEEN[0] <= _covered(before, behind) <= SEEN[1] else []


def _covered(front: Thing, back: Thing) -> float:
  """The share of the drawing `back` that `front` covers, for squares overlap where drawings are empty."""
  size = 32
  masks = [np.zeros((size, size), bool) for _ in range(2)]
  for mask, thing in zip(masks, (front, back), strict=True):
    side = int(thing.size * size)
    left, top = int(thing.x * size - side / 2), int(thing.y * size - side / 2)
    mask[top : top + side, left : left + side] = _outline(thing.name, thing.style, side)
  return float((masks[0] & masks[1]).sum() / masks[1].sum())


@functools.lru_cache(maxsize=10_000)  # some 200 bytes each
def _outline(name: str, style: str, side: int) -> np.ndarray:
  """True where there is something of a drawing: bool [side, side]."""
  return sprite(name, style, side)[..., 3] > 127


def _short(value: float) -> float:
  return round(value, 4)
