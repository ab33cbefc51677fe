"""Short videos: a scene in which one thing moves, grows, turns or appears, with its action and captions.

Of two opposite actions each is the other one backwards: the frames tell which it is by their order alone.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from coca.data.scenes.compose import World
from coca.data.scenes.draws import Draws
from coca.data.scenes.grammar import Group
from coca.data.scenes.objects import PLACES
from coca.data.scenes.placing import EDGE, TOUCHING
from coca.data.scenes.render import render
from coca.data.scenes.scene import Scene, Thing, overlap
from coca.data.scenes.twins import scenes_for

FRAMES = 16
# The actions, and how captions say them. The second one of a pair is the first one backwards.
VERBS = {
  "moving left": ("moves left", "moves to the left"),
  "moving right": ("moves right", "moves to the right"),
  "moving up": ("moves up", "moves upwards"),
  "moving down": ("moves down", "moves downwards"),
  "growing": ("grows", "gets bigger"),
  "shrinking": ("shrinks", "gets smaller"),
  "turning clockwise": ("turns clockwise", "rotates clockwise"),
  "turning counterclockwise": ("turns counterclockwise", "rotates counterclockwise"),
  "appearing": ("appears", "shows up"),
  "disappearing": ("disappears", "vanishes"),
}
ACTIONS = tuple(VERBS)
_FORMS = (
  "{what} {verb} {place}",
  "{place} {what} {verb}",
  "there is {what} that {verb} {place}",
  "a video of {what} that {verb} {place}",
)
_WAY = 0.3  # that things move at least, in image widths
_ROUND = {"soccer ball", "crystal ball", "cookie", "doughnut", "tangerine"}  # look the same when turned


class Video(NamedTuple):
  """Sixteen scenes; `label` indexes `ACTIONS`. `captions` are all true."""

  scenes: tuple[Scene, ...]
  label: int
  captions: tuple[str, ...]

  def frames(self, pixels: int) -> np.ndarray:
    """Draws them: uint8 [16, pixels, pixels, 3]."""
    return np.stack([render(scene, pixels) for scene in self.scenes])


class Videos:
  """The videos of a world: `videos[i]` is video `i`, for any `i` from 0 on. Its things are those of one of the scenes.

  Raises:
    ValueError: nothing in the scenes of this world can move.
  """

  def __init__(self, world: World):
    self._world = world
    if not self._made(0, Draws("probe"), 300):
      raise ValueError(
        f"split {world.split!r} has no scene of single things, of which one could move; allow more objects"
      )

  def __getitem__(self, index: int) -> Video:
    draws = Draws("videos", self._world.split, self._world.seed, index)
    label, made = draws.below(len(ACTIONS)), None
    while not made:
      made = self._made(label // 2, draws)
    scene, thing, path = made
    acting = path[:: -1 if label % 2 else 1]
    scenes = tuple(
      replace(scene, things=tuple(filter(None, (now if t is thing else t for t in scene.things)))) for now in acting
    )
    said = [
      " ".join(form.format(what=Group(1, thing.name), verb=verb, place=PLACES[scene.place]).split())
      for form in _FORMS
      for verb in VERBS[ACTIONS[label]]
    ]
    return Video(scenes, label, tuple(draws.some(said, len(said))))

  def _made(self, pair: int, draws: Draws, tries: int = 5000):
    """A scene, the thing that acts, and what it is in each frame, for the first action of a pair."""
    return scenes_for(lambda scene: _acts(scene, _PATHS[pair], draws), self._world, draws, tries)


def _acts(scene: Scene, path: Callable, draws: Draws) -> tuple[Scene, Thing, list[Thing | None]] | None:
  if len(scene.groups()) < len(scene.things):
    return None
  thing = draws.choice(scene.things)
  acting = path(thing, draws)
  others = [other for other in scene.things if other is not thing]
  if not acting or not all(_has_room(now, others) for now in acting if now):
    return None
  return scene, thing, acting


def _has_room(thing: Thing, others: list[Thing]) -> bool:
  half = thing.size * (0.6 if thing.turn else 0.5)  # corners, turned, need more
  inside = all(half + EDGE <= at <= 1 - EDGE - half for at in (thing.x, thing.y))
  return inside and all(overlap(thing, other) <= TOUCHING for other in others)


def _moving(axis: str) -> Callable:
  def path(thing: Thing, draws: Draws) -> list[Thing]:
    edge = EDGE + thing.size / 2
    if 1 - 2 * edge < _WAY:
      return []
    low = draws.uniform(edge, 1 - edge - _WAY)
    high = draws.uniform(low + _WAY, 1 - edge)
    return [replace(thing, **{axis: at}) for at in _steps(high, low)]

  return path


def _growing(thing: Thing, draws: Draws) -> list[Thing]:
  return [replace(thing, size=size) for size in _steps(draws.uniform(0.2, 0.26), draws.uniform(0.42, 0.6))]


def _turning(thing: Thing, draws: Draws) -> list[Thing]:
  if thing.name in _ROUND:
    return []
  start = draws.uniform(-90, 0)  # upright in some frame, and not always in the first one
  return [replace(thing, turn=turn % 360) for turn in _steps(start, start + draws.uniform(90, 135))]


def _appearing(thing: Thing, draws: Draws) -> list[Thing | None]:
  gone = 4 + draws.below(FRAMES - 7)
  return [None] * gone + [thing] * (FRAMES - gone)


_PATHS = (_moving("x"), _moving("y"), _growing, _turning, _appearing)


def _steps(first: float, last: float) -> list[float]:
  return [round(first + (last - first) * n / (FRAMES - 1), 4) for n in range(FRAMES)]
