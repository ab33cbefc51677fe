"""What is true of a scene, found out anew: from the coordinates of its things alone, by none of coca's own rules."""

import statistics

from coca.data.scenes.objects import OBJECTS, PLACES

NUMBERS = {"no": 0, "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
NAMES = {name: thing.name for thing in OBJECTS for name in (thing.name, thing.plural)}
A_NAME = "(" + "|".join(sorted(NAMES, key=len, reverse=True)) + ")"
A_PLACE = "(" + "|".join(PLACES.values()) + ")"
SIDES = ("left of", "right of", "above", "below", "in front of", "behind")
A_SIDE = f"({'|'.join(SIDES)})"


def named(scene, name):
  return [thing for thing in scene.things if thing.name == NAMES[name]]


def is_place(scene, phrase):
  return PLACES[scene.place] == phrase


def is_size(thing, word):
  """Far from what lies between, or it should not have been said."""
  assert thing.size < 0.29 or thing.size > 0.47 or 0.35 < thing.size < 0.41
  return {"small": thing.size < 0.29, "big": thing.size > 0.47}[word]


def covers(a, b):
  """Whether the squares of two things meet by more than neighbours may."""
  wide, high = ((a.size + b.size) / 2 - abs(p - q) for p, q in ((a.x, b.x), (a.y, b.y)))
  return wide > 0 and high > 0 and wide * high > 0.2 * min(a.size, b.size) ** 2


def is_side(scene, ones, side, others):
  """Every one is on that side of every other by a margin, and more so than it is above, say, when it is left."""
  if side in ("in front of", "behind"):
    if len(ones) != 1 or len(others) != 1:
      return False
    (a,), (b,) = ones, others
    later = scene.things.index(a) > scene.things.index(b)
    return covers(a, b) and later == (side == "in front of")
  axis, sign = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[side]
  away = {
    a: statistics.fmean(getattr(t, a) for t in others) - statistics.fmean(getattr(t, a) for t in ones) for a in "xy"
  }
  return all(sign * (getattr(b, axis) - getattr(a, axis)) > 0.19 for a in ones for b in others) and (
    abs(away[axis]) > 1.5 * min(map(abs, away.values()))
  )
