"""Questions about scenes, with their answers as VQA v2 has them: one word or two, numbers as digits.

  is there a dog? yes                     how many dogs are there? 3
  is the dog left of the cat? no          is the dog left or right of the cat? left
  what is behind the dog? cat             what is the background? beach

Each question is asked of two scenes that differ in the one part it asks for: questions 2n and 2n + 1. Who does not look
can't do better than to guess among the answers that a question may have.
"""

import math
from typing import NamedTuple

from coca.data.scenes.compose import World
from coca.data.scenes.draws import Draws
from coca.data.scenes.grammar import SIZE_WORDS, Group
from coca.data.scenes.objects import OBJECTS, PLACES
from coca.data.scenes.scene import OPPOSITE, Scene, relation, size_word
from coca.data.scenes.twins import (
  other_number,
  other_object,
  other_place,
  other_side,
  other_size,
  scenes_for,
)

# What a question asks for, and how often. 38 % of VQA v2's answers are yes or no, 12 % numbers.
SHARES = {
  "yes/no object": 0.12,
  "yes/no number": 0.1,
  "yes/no size": 0.04,
  "yes/no side": 0.08,
  "yes/no place": 0.06,
  "number": 0.15,
  "object": 0.15,
  "side": 0.15,
  "size": 0.05,
  "place": 0.1,
}
_PLURALS = {thing.name: thing.plural for thing in OBJECTS}
_CHOICES = {"left of": "left or right of", "above": "above or below", "in front of": "in front of or behind"}
_PROBE = 300  # scenes that are looked through for a kind of question before it counts as none of this world's


class Question(NamedTuple):
  """A question about a scene. `kind` is one of `SHARES`."""

  scene: Scene
  question: str
  answer: str
  kind: str


Asked = tuple[str, list[tuple[Scene, str]]]  # a question; two scenes, each with its answer


class Questions:
  """The questions about the scenes of a world: `questions[i]` is question `i`, for any `i` from 0 on.

  Where a split is of what is new, the second scene of a pair may be familiar; there a question has a pair of its own,
  and is asked of the second one only where that is new, too.

  Raises:
    ValueError: the scenes of this world leave nothing to ask.
  """

  def __init__(self, world: World):
    self._world = world
    self._numbers = sorted({len(things) for i in range(_PROBE) for things in world[i].groups().values()})
    self.kinds = tuple(kind for kind in SHARES if self._asked(kind, Draws(kind), _PROBE))
    if not self.kinds:
      raise ValueError(f"split {world.split!r} has no scene of which a question could be asked; allow more objects")

  def __getitem__(self, index: int) -> Question:
    pair, second = (index, 0) if self._world.new else divmod(index, 2)
    draws = Draws("questions", self._world.split, self._world.seed, pair)
    asked = None
    while not asked:
      kind = self._kind(draws)
      asked = self._asked(kind, draws)
    question, answers = asked
    if self._world.new and self._world.holds(answers[1][0]):
      second = draws.below(2)
    scene, answer = answers[second]
    return Question(scene, question, answer, kind)

  def _asked(self, kind: str, draws: Draws, tries: int = 5000) -> Asked | None:
    # How many there are, and how many of them in the twin: each number is as likely as the others.
    numbers = self._numbers if kind == "yes/no number" or len(self._world.names) == 1 else [0, *self._numbers]
    counts = [(more, less) for more in self._numbers for less in numbers if less < more]
    if not counts:
      return None
    counts = draws.choice(counts)
    return scenes_for(lambda scene: _ask(kind, scene, counts, self._world, draws), self._world, draws, tries)

  def _kind(self, draws: Draws) -> str:
    at = draws.random() * math.fsum(SHARES[kind] for kind in self.kinds)
    for kind in self.kinds:
      at -= SHARES[kind]
      if at < 0:
        return kind
    return self.kinds[-1]


def _ask(kind: str, scene: Scene, counts: tuple[int, int], world: World, draws: Draws) -> Asked | None:
  """Asks for `kind` of a scene and its twin; None where it has no such part, or no twin in the split."""
  yes_no, part = kind.startswith("yes/no "), kind.removeprefix("yes/no ")
  names = draws.some(list(scene.groups()), 2)
  if part == "number":
    names = [name for name in names if len(scene.groups()[name]) == counts[0]]
  if not names or not (twin := _twin(part, scene, names[0], counts[1], world, draws)):
    return None
  pair = scene, twin
  if not yes_no:
    question = _what(part, scene, names[0])
    return (question, [(s, _answer(part, scene, s, names[0])) for s in pair]) if question else None
  true = draws.below(2)
  question = f"{_is(part, pair[true], *_named(pair[true], pair[1 - true], names[0]))}?"
  return question, [(s, "yes" if n == true else "no") for n, s in enumerate(pair)]


def _twin(part: str, scene: Scene, name: str, count: int, world: World, draws: Draws) -> Scene | None:
  if part == "object" or (part == "number" and not count):
    return other_object(scene, name, world, draws)
  if part == "number":
    return other_number(scene, name, count, world, draws)
  if part == "size":
    return other_size(scene, name, world, draws)
  return other_side(scene, world) if part == "side" else other_place(scene, world, draws)


def _named(scene: Scene, twin: Scene, name: str) -> tuple[str, str]:
  """The group that is asked about, and the other one or ''; `name` is what it is called in one of both scenes."""
  there = scene.groups()
  own = name if name in there else next(n for n in there if n not in twin.groups())
  return own, next((n for n in there if n != own), "")


def _is(part: str, scene: Scene, name: str, other: str) -> str:
  """A question, true of the scene."""
  things = scene.groups()[name]
  several, said = len(things) > 1, _the(scene, name)
  if part == "object":
    return f"are there {_PLURALS[name]}" if several else f"is there {Group(1, name)}"
  if part == "number":
    return f"are there {Group(len(things), name)}" if several else f"is there only one {name}"
  if part == "size":
    return f"is {said} {size_word(things)}"
  if part == "place":
    return f"is it {PLACES[scene.place]}"
  return f"{'are' if several else 'is'} {said} {relation(scene, name, other)} {_the(scene, other)}"


def _what(part: str, scene: Scene, name: str) -> str:
  """A question that has as many answers as there are of that part; '' where there is none."""
  there = scene.groups()
  other = next((n for n in there if n != name), "")
  is_, said = "are" if len(there[name]) > 1 else "is", _the(scene, name)
  side = relation(scene, name, other) if other else ""
  if part == "number":
    return f"how many {_PLURALS[name]} are there?"
  if part == "place":
    return "what is the background?"
  if part == "size":
    return f"is {said} {SIZE_WORDS[0]} or {SIZE_WORDS[1]}?"
  if part == "side":
    return f"{is_} {said} {_CHOICES.get(side) or _CHOICES[OPPOSITE[side]]} {_the(scene, other)}?"
  if len(there[name]) > 1:
    return ""
  return f"what is {side} {_the(scene, other)}?" if side else "what does the image show?"


def _answer(part: str, scene: Scene, twin: Scene, name: str) -> str:
  """The answer to `_what`, which was asked about `scene`, for itself or its twin."""
  there = twin.groups()
  if part == "number":
    return str(len(there.get(name, ())))
  if part == "place":
    return twin.place
  if part == "size":
    return size_word(there[name])
  if part == "side":
    return relation(twin, name, next(n for n in there if n != name)).removesuffix(" of")
  return name if name in there else next(n for n in there if n not in scene.groups())


def _the(scene: Scene, name: str) -> str:
  return f"the {name if len(scene.groups()[name]) == 1 else _PLURALS[name]}"
