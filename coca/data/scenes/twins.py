"""Twins: two scenes that differ in one part, of which the same sentence is true and false.

The tasks ask about both of a pair, as VQA v2 does (Goyal et al. 2017, arXiv 1612.00837, section 3): then the words
alone tell nothing of the answer.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from coca.data.scenes.compose import World
from coca.data.scenes.draws import Draws
from coca.data.scenes.objects import PLACES
from coca.data.scenes.places import VIEWS
from coca.data.scenes.placing import ALONE, SEEN, covered
from coca.data.scenes.scene import HIDDEN, Scene, Thing, overlap, relation, size_word

T = TypeVar("T")
_TRIES = 2000  # of scenes, of which one in fifty has what the rarest twins need


def scenes_for(make: Callable[[Scene], T | None], world: World, draws: Draws, tries: int = _TRIES) -> T | None:
  """Draws scenes until `make` makes something of one, and returns that; None after so many `tries`."""
  for _ in range(tries):
    if made := make(world[draws.below(1 << 40)]):
      return made
  return None


def other_object(scene: Scene, name: str, world: World, draws: Draws) -> Scene | None:
  """The things called `name` are something else, where they are and in their style."""
  free = [other for other in world.names if other not in scene.groups()]
  for new in draws.some(free, 20):
    found = _with(scene, [replace(t, name=new) if t.name == name else t for t in scene.things])
    if _is_seen(found) and (own := in_split(found, world)):
      return own
  return None


def other_number(scene: Scene, name: str, count: int, world: World, draws: Draws) -> Scene | None:
  """Only `count` of the things called `name`, fewer than there are, are left; all that is told of the others stays."""
  kept = draws.some(scene.groups()[name], count)
  found = _with(scene, [t for t in scene.things if t.name != name or t in kept])
  return in_split(found, world) if _sides(found) == _sides(scene) else None


def other_size(scene: Scene, name: str, world: World, draws: Draws) -> Scene | None:
  """The big thing called `name` is small, where it is."""
  if size_word(scene.groups()[name]) != "big" or len(scene.groups()[name]) > 1 or any(_hidden(scene)):
    return None
  found = resized(scene, name, draws.uniform(*ALONE["small"]))
  return in_split(found, world) if _sides(found) == _sides(scene) else None


def other_side(scene: Scene, world: World) -> Scene | None:
  """Two kinds of things change sides: left and right, above and below, in front and behind."""
  side = relation(scene, *scene.groups()) if len(scene.groups()) == 2 else ""
  if not side:
    return None
  if side in ("in front of", "behind"):
    found = _with(scene, scene.things[::-1])
    if not _is_seen(found):
      return None
  else:
    axis = "x" if side in ("left of", "right of") else "y"
    found = _with(scene, [replace(t, **{axis: round(1 - getattr(t, axis), 4)}) for t in scene.things])
  return in_split(found, world)


def other_place(scene: Scene, world: World, draws: Draws) -> Scene | None:
  """The same things in another place."""
  return in_split(replace(scene, place=draws.choice([place for place in PLACES if place != scene.place])), world)


def varied(scene: Scene, world: World, draws: Draws, keep_place: bool = False) -> Scene | None:
  """The same things, on the same sides and of the same sizes, in other styles and another place."""
  styles = {name: draws.choice(world.styles) for name in scene.groups()}
  place = scene.place if keep_place else draws.choice(tuple(PLACES))
  things = tuple(replace(t, style=styles[t.name]) for t in scene.things)
  found = Scene(place, things, draws.below(VIEWS))
  return in_split(found, world) if _is_seen(found) else None


def resized(scene: Scene, name: str, size: float) -> Scene:
  """The things called `name` have another size, where they are."""
  return _with(scene, [replace(t, size=round(size, 4)) if t.name == name else t for t in scene.things])


def in_split(scene: Scene, world: World) -> Scene | None:
  """The scene in the nearest view of its place with which it is one of the split; None if it is none with any.

  In the splits of what is new the twin of a scene may be familiar: only the scene itself is asked about.
  """
  if world.new:
    return scene
  views = (replace(scene, view=(scene.view + n) % VIEWS) for n in range(VIEWS))
  return next((own for own in views if world.holds(own)), None)


def _with(scene: Scene, things) -> Scene:
  return replace(scene, things=tuple(things))


def _sides(scene: Scene) -> list[str]:
  return [relation(scene, *pair) for pair in itertools.combinations(scene.groups(), 2)]


def _is_seen(scene: Scene) -> bool:
  return all(SEEN[0] <= share <= SEEN[1] for share in _hidden(scene))


def _hidden(scene: Scene) -> Iterator[float]:
  """The shares of the drawings that others, in front of them, cover; more than the touch of neighbours."""
  pairs: Iterator[tuple[Thing, Thing]] = itertools.combinations(scene.things, 2)
  return (covered(front, back) for back, front in pairs if overlap(front, back) >= HIDDEN)
