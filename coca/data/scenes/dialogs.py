"""Dialogs about scenes with two kinds of things, as VisDial has them (Das et al. 2017, arXiv 1611.08669).

  caption: a drawing of a dog
  is it at night? no                       what else is there? two cats
  where is it? on the beach                where are the cats? left of the dog

Ten rounds; who asks knows the caption alone. Who answers speaks in one of three manners, which the history tells:
"two", "there are two", "i can see two". Of the 100 candidates the right answer in the two other manners is relevant,
too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from coca.data.scenes.compose import World
from coca.data.scenes.draws import Draws
from coca.data.scenes.grammar import NUMBERS, Group
from coca.data.scenes.objects import OBJECTS, PLACES
from coca.data.scenes.scene import OPPOSITE, RELATIONS, Scene, relation, size_word
from coca.data.scenes.twins import scenes_for

ROUNDS, OPTIONS = 10, 100
_PLURALS = {thing.name: thing.plural for thing in OBJECTS}
_NAMES = tuple(_PLURALS)
_MANNERS = ("{}", "i think {}", "i would say {}")
_SIZES = {"big": "big", "small": "small", "": "of middle size"}


@dataclass(frozen=True, slots=True)
class Round:
  """A question with its candidate answers, `gt_index` being that of the given one; `relevance` is one for each: 1 where
  it says the same, else 0."""

  question: str
  options: tuple[str, ...]
  gt_index: int
  relevance: tuple[float, ...]

  @property
  def answer(self) -> str:
    """The given one."""
    return self.options[self.gt_index]


class Dialog(NamedTuple):
  """A scene and what is said of it."""

  scene: Scene
  caption: str
  rounds: tuple[Round, ...]


class Dialogs:
  """The dialogs about a world's scenes: `dialogs[i]` is dialog `i`, for any `i` from 0 on.

  Raises:
    ValueError: no scene of this world has things of two kinds.
  """

  def __init__(self, world: World):
    self._world = world
    if not self._scene(Draws("probe")):
      raise ValueError(f"split {world.split!r} has no scene with two kinds of things to talk of; allow more objects")

  def __getitem__(self, index: int) -> Dialog:
    draws = Draws("dialogs", self._world.split, self._world.seed, index)
    scene = self._scene(draws)
    assert scene is not None  # one was found at the start
    known, new = draws.some(list(scene.groups()), 2)
    manner = draws.below(3)
    rounds = tuple(_round(asked, manner, draws) for asked in _asked(scene, known, new, draws))
    several = len(scene.groups()[known]) > 1
    return Dialog(scene, f"a drawing of {f'some {_PLURALS[known]}' if several else Group(1, known)}", rounds)

  def _scene(self, draws: Draws) -> Scene | None:
    return scenes_for(lambda scene: scene if len(scene.groups()) == 2 else None, self._world, draws, 300)


_TOPICS = ("yes/no", "number", "place", "size", "object", "side")
Meaning = tuple[str, str, str]  # an answer in the three manners


class _Asked(NamedTuple):
  question: str
  right: Meaning
  wrong: list[Meaning]
  topics: set[str]  # of which another answer could be right, too


def _yes(yes: bool) -> Meaning:
  if yes:
    return "yes", "yes i think so", "yes it looks like that"
  return "no", "no i do not think so", "no it does not look like that"


def _number(n: int) -> Meaning:
  return NUMBERS[n], f"there {'is' if n == 1 else 'are'} {NUMBERS[n]}", f"i can see {NUMBERS[n]}"


def _group(group: Group) -> Meaning:
  return str(group), f"there {'is' if group.count == 1 else 'are'} {group}", f"i can see {group}"


def _said(words: str) -> Meaning:
  return tuple(manner.format(words) for manner in _MANNERS)


def _answers(topic: str, draws: Draws) -> list[Meaning]:
  """Answers of a topic: those that there are, or some of them."""
  if topic == "yes/no":
    return [_yes(True), _yes(False)]
  if topic == "number":
    return [_number(n) for n in range(1, 5)]
  if topic == "place":
    return [_said(phrase) for phrase in PLACES.values()]
  if topic == "size":
    return [_said(word) for word in _SIZES.values()]
  if topic == "object":
    return [_group(Group(n, name)) for name in draws.some(_NAMES, 25) for n in range(1, 5)]
  return [_said(f"{side} the {name}") for side in RELATIONS for name in draws.some(_NAMES, 15)]


def _asked(scene: Scene, known: str, new: str, draws: Draws) -> list[_Asked]:
  """The ten questions, in their order: of the new things only when they have been told of."""
  first = list(_about(scene, known, draws, pronoun=True)) + list(_about_place(scene, known, draws))
  later = list(_about(scene, new, draws)) + list(_about_side(scene, known, new, draws))
  later.append(_open("how many things are there in all", _number(len(scene.things)), "number", draws))
  told = draws.below(2) == 1
  name = new if told else draws.choice([name for name in _NAMES if name not in scene.groups()])
  several = _things(scene, new).count > 1
  first.append(
    _yes_no(f"are there any {_PLURALS[name]}" if several else f"is there {Group(1, name)}", told, "object", "number")
  )
  middle = []
  if not told:
    asked = _open("what else is there", _group(_things(scene, new)), "object", draws)
    near = [_group(Group(n, new)) for n in range(1, 5) if n != _things(scene, new).count]
    middle = [asked._replace(wrong=near + asked.wrong)]
    (first if draws.below(2) else later).pop(0)
  return draws.some(first, len(first)) + middle + draws.some(later, len(later))


def _about(scene: Scene, name: str, draws: Draws, pronoun: bool = False) -> Iterator[_Asked]:
  """Two questions about the number or, where all things are alone, the size of some of them."""
  things, group = scene.groups()[name], _things(scene, name)
  if len(scene.groups()) < len(scene.things):
    count = group.count if draws.below(2) else draws.choice([n for n in range(1, 5) if n != group.count])
    said = f"is there only one {name}" if count == 1 else f"are there {Group(count, name)}"
    yield _yes_no(said, count == group.count, "number", "object")
    yield _open(f"how many {_PLURALS[name]} are there", _number(group.count), "number", draws)
    return
  size, it = _SIZES[size_word(things)], "it" if pronoun else f"the {name}"
  asked = size if draws.below(2) else draws.choice([word for word in _SIZES.values() if word != size])
  yield _yes_no(f"is {it} {asked}", size == asked, "size")
  yield _open(f"what size is {it}", _said(size), "size", draws)


def _about_place(scene: Scene, known: str, draws: Draws) -> Iterator[_Asked]:
  are = "are they" if _things(scene, known).count > 1 else "is it"
  place = scene.place if draws.below(2) else draws.choice([place for place in PLACES if place != scene.place])
  yield _yes_no(f"{are} {PLACES[place]}", place == scene.place, "place")
  yield _open("what is the setting", _said(PLACES[scene.place]), "place", draws)


def _about_side(scene: Scene, known: str, new: str, draws: Draws) -> Iterator[_Asked]:
  side = relation(scene, new, known)
  is_, said, other = "are" if _things(scene, new).count > 1 else "is", _the(scene, new), _the(scene, known)
  asked = side if draws.below(2) else OPPOSITE[side]
  yield _yes_no(f"{is_} {said} {asked} {other}", asked == side, "side")
  # What is in front is at a corner, too: whether that is more below or more to the left can't be told.
  wrong = [OPPOSITE[side]] if side in ("in front of", "behind") else [name for name in RELATIONS if name != side]
  right, *wrong = (_said(f"{side} {other}") for side in (side, *wrong))
  yield _Asked(f"where {is_} {said}", right, wrong, {"side", "place"})


def _yes_no(question: str, yes: bool, *topics: str) -> _Asked:
  return _Asked(question, _yes(yes), [_yes(not yes)], {"yes/no", *topics})


def _open(question: str, right: Meaning, topic: str, draws: Draws) -> _Asked:
  wrong = [answer for answer in _answers(topic, draws) if answer != right]
  return _Asked(question, right, wrong, {topic} | ({"number", "object"} if topic in ("number", "object") else set()))


def _round(asked: _Asked, manner: int, draws: Draws) -> Round:
  near = [said for meaning in asked.wrong for said in meaning]
  topics = [topic for topic in _TOPICS if topic not in asked.topics]
  far = [draws.choice(meaning) for topic in topics for meaning in _answers(topic, draws)]
  options = list(dict.fromkeys([*asked.right, *near[: OPTIONS - 10], *draws.some(far, len(far))]))
  drawn = tuple(draws.some(options[:OPTIONS], OPTIONS))
  relevance = tuple(float(said in asked.right) for said in drawn)
  return Round(asked.question, drawn, drawn.index(asked.right[manner]), relevance)


def _things(scene: Scene, name: str) -> Group:
  return Group(len(scene.groups()[name]), name)


def _the(scene: Scene, name: str) -> str:
  return f"the {name if _things(scene, name).count == 1 else _PLURALS[name]}"
