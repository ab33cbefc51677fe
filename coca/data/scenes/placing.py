"""Places for the things of a scene, such that what is said of them can be seen."""

import functools
import math

import numpy as np

from coca.data.scenes.draws import Draws
from coca.data.scenes.scene import Thing, overlap
from coca.data.scenes.sprites import sprite

# Sides of a thing alone or beside another one, in image widths, well inside of what the words mean.
ALONE = {"small": (0.25, 0.28), "": (0.36, 0.40), "big": (0.52, 0.80)}
BESIDE = ALONE | {"big": (0.48, 0.54)}
COUNTED = {2: (0.29, 0.38), 3: (0.26, 0.33), 4: (0.26, 0.30)}  # of several, by their number
PARTED = {1: (0.30, 0.38), 2: (0.26, 0.33), 3: (0.26, 0.30)}  # of those that share the image with others
EDGE = 0.01  # of the image is free at its border
TOUCHING = 0.1  # of a square may be covered by another one, unless that is in front of it
IN_FRONT = (0.25, 0.40)  # of the smaller square is covered where one is in front of the other
SEEN = (0.12, 0.50)  # of the drawing behind is covered then


def scattered(draws: Draws, name: str, style: str, count: int, sizes, box) -> list[Thing]:
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


def beside(draws: Draws, names, styles, side: str) -> list[Thing]:
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


def parted(draws: Draws, groups, styles, side: str) -> list[Thing]:
  """Several things in one part of the image and one or more others in the rest."""
  (_, a), (_, b) = groups
  cut = 0.5 + 0.07 * ((a > b) - (b > a))
  things = []
  for (name, count), style, (low, high) in zip(groups, styles, ((0, cut), (cut, 1)), strict=True):
    box = (low, 0, high, 1) if side == "left of" else (0, low, 1, high)
    found = scattered(draws, name, style, count, PARTED[count], box)
    if not found:
      return []
    things += found
  return things


def in_front(draws: Draws, names, styles) -> list[Thing]:
  """Two things, the first one in front of the second one's lower corner; drawn last."""
  kinds = draws.choice((("", ""), ("", "big"), ("big", "big"), ("big", "")))
  front, back = (draws.uniform(*BESIDE[kind]) for kind in kinds)
  apart = (front + back) / 2 - math.sqrt(draws.uniform(*IN_FRONT)) * min(front, back)
  way = draws.choice((-1, 1))
  # Both must be inside: the front one is `apart` lower, and as far to one side.
  low, high = EDGE + back / 2, 1 - EDGE - max(front / 2 + apart, back / 2)
  low = max(low, EDGE + front / 2 - apart)
  if low > high:
    return []
  x, y = draws.uniform(low, high), draws.uniform(low, high)
  if way < 0:
    x = 1 - x
  behind = Thing(names[1], styles[1], _short(x), _short(y), _short(back))
  before = Thing(names[0], styles[0], _short(x + way * apart), _short(y + apart), _short(front))
  return [behind, before] if SEEN[0] <= covered(before, behind) <= SEEN[1] else []


def covered(front: Thing, back: Thing) -> float:
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
