"""Scenes by number: each is a pure function of the world's settings and an index."""

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from coca.data.scenes import placing
from coca.data.scenes.draws import Draws
from coca.data.scenes.held_out import SPLITS, news
from coca.data.scenes.objects import OBJECTS, PLACES
from coca.data.scenes.places import VIEWS
from coca.data.scenes.scene import Scene, relation
from coca.data.scenes.sprites import STYLES, UNSEEN_STYLE

MOST = 4  # things in a scene: more would be smaller than 16 of 64 pixels, or hide each other


class _Kind(NamedTuple):
  share: float
  objects: int  # different ones
  things: int  # at least
  news: set[str]  # that it can show


KINDS = {
  "one": _Kind(0.2, 1, 1, set()),
  "several": _Kind(0.25, 1, 2, {"counts"}),  # of one object
  "two": _Kind(0.35, 2, 2, {"pairs", "relations"}),  # one beside another one
  "groups": _Kind(0.2, 2, 3, {"pairs", "relations", "counts"}),  # several beside one or more others
}
_SIDES = ("left of", "above", "in front of")  # the others say the same of the same two, the other way round
_TRIES = 20_000  # of the settings that leave the least, one in a hundred makes a scene


class World:
  """The scenes of a split: `world[i]` is scene `i`, for any `i` from 0 on.

  `new` is what each of them shows that training never does: one of 'pairs', 'counts' and 'relations', or nothing.

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
    self.new = {split.removeprefix("scenes_new_")} & {"pairs", "counts", "relations"}
    self._kinds = {
      name: kind
      for name, kind in KINDS.items()
      if kind.things <= objects and kind.objects <= len(self.names) and self.new <= kind.news
    }
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

  def holds(self, scene: Scene) -> bool:
    """True if a scene, changed by hand, could be one of this split: what it shows is as new, and it is on the split's
    side of the line between training and validation."""
    groups = [(name, len(things)) for name, things in scene.groups().items()]
    side = relation(scene, *(name for name, _ in groups)) if len(groups) == 2 else ""
    return news(groups, side) == self.new and self._is_own(scene)

  def _is_own(self, scene: Scene) -> bool:
    """A scene of validation is told by its content alone, so that no seed brings it into training."""
    if self.split not in ("scenes", "scenes_val"):
      return True
    return (zlib.crc32(repr(scene).encode()) % 8 == 0) == (self.split == "scenes_val")

  def _try(self, draws: Draws, kind: str) -> Scene | None:
    """A scene of a kind, or None: it is none of this split, or the things found no room."""
    names = draws.some(self.names, KINDS[kind].objects)
    counts = _counts(draws, kind, self.objects)
    side = draws.choice(_SIDES[: 3 if kind == "two" else 2]) if len(names) == 2 else ""
    groups = list(zip(names, counts, strict=True))
    if news(groups, side) != self.new:
      return None
    styles = [draws.choice(self.styles) for _ in names]
    if side == "in front of":
      things = placing.in_front(draws, names, styles)
    elif kind == "two":
      things = placing.beside(draws, names, styles, side)
    elif kind == "groups":
      things = placing.parted(draws, groups, styles, side)
    else:
      sizes = placing.ALONE[draws.choice(tuple(placing.ALONE))] if kind == "one" else placing.COUNTED[counts[0]]
      things = placing.scattered(draws, names[0], styles[0], counts[0], sizes, (0, 0, 1, 1))
    scene = Scene(draws.choice(tuple(PLACES)), tuple(things), draws.below(VIEWS))
    return scene if things and (not side or relation(scene, *names) == side) else None

  def _kind(self, draws: Draws) -> str:
    at = draws.random() * math.fsum(kind.share for kind in self._kinds.values())
    for name, kind in self._kinds.items():
      at -= kind.share
      if at < 0:
        return name
    return name  # of numbers that do not quite add up


def _counts(draws: Draws, kind: str, most: int) -> list[int]:
  if kind == "several":
    return [2 + draws.below(most - 1)]
  if kind == "groups":
    return draws.choice([[a, b] for a in (1, 2, 3) for b in (1, 2, 3) if 2 < a + b <= most])
  return [1] if kind == "one" else [1, 1]
