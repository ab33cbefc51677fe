"""Hypotheses that follow from an image, contradict it, or stay open, as SNLI-VE has them (Xie et al. 2019, arXiv
1901.06706).

An image leaves open what it does not show enough of: whether a thing is big that is neither big nor small, and whether
something is behind a big thing.

Each hypothesis has three images, one a label: the words alone tell nothing. Where it contradicts, any part of it may be
wrong, in an image that leaves the rest open, too.
"""

from dataclasses import replace
from typing import NamedTuple

from coca.data.scenes.compose import World
from coca.data.scenes.draws import Draws
from coca.data.scenes.grammar import Group, Statement, captions, forms, say
from coca.data.scenes.placing import BESIDE, EDGE, TOUCHING, covered
from coca.data.scenes.scene import Scene, overlap, relation
from coca.data.scenes.twins import (
  in_split,
  other_number,
  other_object,
  other_place,
  other_side,
  resized,
  scenes_for,
)

LABELS = ("entailment", "neutral", "contradiction")
_FAMILIES = ("size", "sizes", "hidden")  # of one thing, of several, and behind another one


class Hypothesis(NamedTuple):
  """A sentence about an image, and its label, one of `LABELS`; `caption` is a true one of the image (SNLI's premise).

  `number` is that of the sentence, which two other images have, too.
  """

  scene: Scene
  sentence: str
  label: str
  caption: str
  number: int


class Entailment:
  """The hypotheses about a world's scenes: `entailment[i]` is the hypothesis i // 3 with one of its three images.

  Raises:
    ValueError: the scenes of this world leave nothing open.
  """

  def __init__(self, world: World):
    self._world = world
    self._families = [family for family in _FAMILIES if self._made(family, Draws(family), 300)]
    if not self._families:
      raise ValueError(f"split {world.split!r} has no scenes that leave something open; allow more objects")

  def __getitem__(self, index: int) -> Hypothesis:
    number, place = divmod(index, len(LABELS))
    draws, made = Draws("entailment", self._world.split, self._world.seed, number), None
    while not made:
      made = self._made(draws.choice(self._families), draws)
    sentence, scenes = made
    label = Draws("label", self._world.seed, number).some(LABELS, len(LABELS))[place]
    caption = captions(scenes[label], Draws("premise", self._world.seed, index), 1)[0].text
    return Hypothesis(scenes[label], sentence, label, caption, number)

  def _made(self, family: str, draws: Draws, tries: int = 5000):
    make = _hidden if family == "hidden" else _sized
    return scenes_for(lambda scene: make(scene, family == "sizes", self._world, draws), self._world, draws, tries)


Made = tuple[str, dict[str, Scene]]  # a sentence, and its images by their labels


def _sized(scene: Scene, several: bool, world: World, draws: Draws) -> Made | None:
  """'a big dog', where there is a big one, a middling one, or another thing."""
  name = draws.choice(list(scene.groups()))
  things = scene.groups()[name]
  if several != (len(things) > 1):
    return None
  word = "small" if several or draws.below(2) else "big"
  follows, open_ = (_fitting(resized(scene, name, draws.uniform(*BESIDE[w])), scene, world) for w in (word, ""))
  if not follows or not open_:
    return None
  told = _told(follows, Group(len(things), name, word), draws)
  wrong = _wrong(told, follows, open_, world, draws)
  sentence = say(told, draws.choice(forms(told)), draws.below(2))
  return wrong and (sentence, {"entailment": follows, "neutral": open_, "contradiction": wrong})


def _told(scene: Scene, first: Group, draws: Draws) -> Statement:
  """A statement that begins with a group, with or without the other one and the place."""
  other = next((name for name in scene.groups() if name != first.name), "")
  side = relation(scene, first.name, other) if other and draws.below(2) else ""
  place = scene.place if draws.below(2) else ""
  return Statement(first, Group(len(scene.groups()[other]), other) if side else None, side, place)


def _wrong(told: Statement, follows: Scene, open_: Scene, world: World, draws: Draws) -> Scene | None:
  """A scene in which a part of the statement is wrong."""
  first, scene = told.first, draws.choice((follows, open_))
  parts = (
    ["size", "object"] + ["number"] * (first.count > 1) + ["side"] * bool(told.second) + ["place"] * bool(told.place)
  )
  part = draws.choice(parts)
  if part == "size":
    size = BESIDE["big" if first.size == "small" else "small"]
    return _fitting(resized(follows, first.name, draws.uniform(*size)), follows, world)
  if part == "object":
    name = draws.choice([group.name for group in (first, told.second) if group])
    return other_object(scene, name, world, draws)
  if part == "number":
    return other_number(scene, first.name, 1 + draws.below(first.count - 1), world, draws)
  return other_side(scene, world) if part == "side" else other_place(scene, world, draws)


def _fitting(scene: Scene, like: Scene, world: World) -> Scene | None:
  """A scene whose things have been resized, if they have room and are where they were to each other."""
  things, names = scene.things, list(scene.groups())
  inside = all(t.size / 2 + EDGE <= at <= 1 - EDGE - t.size / 2 for t in things for at in (t.x, t.y))
  apart = all(overlap(a, b) <= TOUCHING for n, a in enumerate(things) for b in things[:n])
  same = len(names) < 2 or relation(scene, *names) == relation(like, *names) != ""
  return in_split(scene, world) if inside and apart and same else None


def _hidden(scene: Scene, _: bool, world: World, draws: Draws) -> Made | None:
  """'a dog behind a house', where there is one, where a house could hide one, and where one is in front."""
  if (
    len(scene.things) != 2
    or len(scene.groups()) != 2
    or relation(scene, *scene.groups()) not in ("in front of", "behind")
  ):
    return None
  back, front = scene.things
  if covered(front, replace(back, x=front.x, y=front.y, size=BESIDE["small"][1])) < 0.95:  # a small one would show
    return None
  told = Statement(Group(1, back.name), Group(1, front.name), "behind", scene.place if draws.below(2) else "")
  alone = in_split(replace(scene, things=(front,)), world)
  kind = draws.choice(("side", "object") + ("place",) * bool(told.place))
  if kind == "side":
    wrong = other_side(scene, world)
  else:
    like = draws.choice((scene, alone)) if alone else None
    wrong = like and (
      other_object(like, front.name, world, draws) if kind == "object" else other_place(like, world, draws)
    )
  sentence = say(told, draws.choice(forms(told)))
  return wrong and (sentence, {"entailment": scene, "neutral": alone, "contradiction": wrong}) if alone else None
