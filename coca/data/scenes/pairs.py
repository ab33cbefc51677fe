"""Statements about two images, true or false, as NLVR2 has them (Suhr et al. 2019, arXiv 1811.00491).

  both images show exactly two dogs             there are more dogs in the left image than in the right image
  the left image shows a dog left of a cat      there are five dogs in the two images together

Each statement is about four pairs of images, as there: true of two of them and false of the other two, which show the
same but for the part that it tells of.
"""

from typing import NamedTuple

from coca.data.scenes.compose import World
from coca.data.scenes.draws import Draws
from coca.data.scenes.grammar import Group, Statement, say
from coca.data.scenes.objects import OBJECTS
from coca.data.scenes.scene import Scene, relation, size_word
from coca.data.scenes.twins import (
  other_number,
  other_object,
  other_place,
  other_side,
  other_size,
  scenes_for,
  varied,
)

PAIRS = 4  # of a statement
PARTS = ("object", "number", "size", "side", "place")
_PLURALS = {thing.name: thing.plural for thing in OBJECTS}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
# Of two scenes, `{what}` is true of A and not of a; B and b are variants of them, X is any scene. The pairs that make
# the sentence true, and those that make it false.
_QUANTIFIERS = {
  "the left image shows {what}": ("Aa BX", "aA bX"),
  "the right image shows {what}": ("aA XB", "Aa Xb"),
  "both images show {what}": ("AB BA", "Ab ab"),
  "neither image shows {what}": ("ab ba", "Ab AB"),
  "only one of the images shows {what}": ("Ab bA", "AB ab"),
}
# Of two scenes with more and with less of a thing.
_COMPARISONS = {
  "there are more {things} in the left image than in the right image": ("Ab Ba", "bA aB"),
  "there are fewer {things} in the left image than in the right image": ("bA aB", "Ab Ba"),
  "there are as many {things} in the left image as in the right image": ("AB ba", "Ab aB"),
  "there are {more_less} {things} in the two images together": ("Ab bA", "AB ab"),
  "there are {more_more} {things} in the two images together": ("AB BA", "Ab ab"),
  "there are {less_less} {things} in the two images together": ("ab ba", "Ab AB"),
}
_SIZES = {
  "the {thing} is bigger in the left image than in the right image": ("Ab Ba", "bA aB"),
  "the {thing} is smaller in the left image than in the right image": ("bA aB", "Ab Ba"),
}


class Pair(NamedTuple):
  """Two images and a sentence about them. `number` is that of the sentence, `pair` counts its pairs from 0 to 3."""

  left: Scene
  right: Scene
  sentence: str
  label: bool
  number: int
  pair: int


class Pairs:
  """The statements about pairs of a world's scenes: `pairs[i]` is one of the four of statement i // 4, from 0 on.

  Raises:
    ValueError: the scenes of this world leave nothing to compare.
  """

  def __init__(self, world: World):
    self._world = world
    self._parts = [part for part in PARTS if self._made(part, Draws(part), 300)]
    if not self._parts:
      raise ValueError(f"split {world.split!r} has no two scenes that differ in one part; allow more objects")

  def __getitem__(self, index: int) -> Pair:
    number, pair = divmod(index, PAIRS)
    draws, made = Draws("pairs", self._world.split, self._world.seed, number), None
    while not made:
      made = self._made(draws.choice(self._parts), draws)
    sentence, (true, false), scenes = made
    drawn = draws.some([(p, True) for p in true.split()] + [(p, False) for p in false.split()], PAIRS)
    sides, label = drawn[pair]
    left, right = (scenes[side] for side in sides)
    return Pair(left, right, sentence, label, number, pair)

  def _made(self, part: str, draws: Draws, tries: int = 5000):
    """A sentence, the pairs of which it is true and false, and the scenes by the letters of `_QUANTIFIERS`."""
    return scenes_for(lambda scene: _make(part, scene, self._world, draws), self._world, draws, tries)


def _make(part: str, scene: Scene, world: World, draws: Draws):
  name = draws.choice(list(scene.groups()))
  twin = _twin(part, scene, name, world, draws)
  if not twin:
    return None
  # Which of them the words are true of is not to be seen, but where one has more or is bigger.
  compared = part in ("number", "size") and draws.below(2)
  one, other = (scene, twin) if compared or draws.below(2) else (twin, scene)
  told = _statement(part, one, name if name in one.groups() else _new(one, other), draws)
  scenes = {"A": one, "a": other, "X": world[draws.below(1 << 40)]}
  for letter, like in (("B", one), ("b", other)):
    scenes[letter] = varied(like, world, draws, keep_place=bool(told.place))
  if None in scenes.values():
    return None
  forms = (_COMPARISONS if part == "number" else _SIZES) if compared else _QUANTIFIERS
  form = draws.choice(list(forms))
  more, less = (len(s.groups().get(name, ())) for s in (one, other))
  what = say(told, "{what} {place}", draws.below(2))
  if part == "number":  # three dogs are a dog, too
    what = f"exactly {_NUMBERS[told.first.count]} {what.partition(' ')[2]}"
  sentence = form.format(
    what=what,
    thing=name,
    things=_PLURALS.get(name),
    **{"more_less": _NUMBERS[more + less], "more_more": _NUMBERS[2 * more], "less_less": _NUMBERS[2 * less]},
  )
  return sentence, forms[form], scenes


def _twin(part: str, scene: Scene, name: str, world: World, draws: Draws) -> Scene | None:
  count = len(scene.groups()[name])
  if part == "object":
    return other_object(scene, name, world, draws)
  if part == "number":
    return other_number(scene, name, 1 + draws.below(count - 1), world, draws) if count > 1 else None
  if part == "size":
    return other_size(scene, name, world, draws)
  return other_side(scene, world) if part == "side" else other_place(scene, world, draws)


def _new(scene: Scene, twin: Scene) -> str:
  return next(name for name in scene.groups() if name not in twin.groups())


def _statement(part: str, scene: Scene, name: str, draws: Draws) -> Statement:
  """True of a scene; it tells the part."""
  things = scene.groups()[name]
  first = Group(len(things), name, size_word(things) if part == "size" else "")
  place = scene.place if part == "place" or not draws.below(3) else ""
  if part != "side":
    return Statement(first, place=place)
  other = next(n for n in scene.groups() if n != name)
  return Statement(first, Group(len(scene.groups()[other]), other), relation(scene, name, other), place)
