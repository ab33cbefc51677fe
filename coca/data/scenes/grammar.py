"""Sentences about scenes: a statement, the forms in which it is said, and the way back from a text.

A statement tells of one or two groups of things, of the relation between two, and of the place:

  a big dog on the beach                       two cats to the left of a horse in the snow
  at night there are three small keys          a drawing of a ring and two bells on the grass

Everything is in lower case and without punctuation; `parse` minds neither.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from coca.data.scenes.draws import Draws
from coca.data.scenes.objects import OBJECTS, PLACES, article
from coca.data.scenes.scene import OPPOSITE, RELATIONS, Scene, relation, size_word

NUMBERS = ("no", "one", "two", "three", "four")
SIZE_WORDS = ("big", "small")
WORDS = 5, 15  # of a sentence about a scene; the shortest and the longest
# What a relation is said by; the first is its name.
_PHRASES = {r: (r,) for r in RELATIONS} | {
  "left of": ("left of", "to the left of"),
  "right of": ("right of", "to the right of"),
}
_PLURALS = {thing.name: thing.plural for thing in OBJECTS}


@dataclass(frozen=True, slots=True)
class Group:
  """'two big dogs'. `size` is one of `SIZE_WORDS`, or '' where none is told."""

  count: int
  name: str
  size: str = ""

  def __str__(self) -> str:
    words = [self.size, self.name if self.count == 1 else _PLURALS[self.name]]
    said = " ".join(filter(None, words))
    return f"{article(said)} {said}" if self.count == 1 else f"{NUMBERS[self.count]} {said}"


@dataclass(frozen=True, slots=True)
class Statement:
  """There is `first`; with a `second` group, too; `relation`, one of `RELATIONS`, is that of the first to the second.

  `place` is one of `PLACES`. Whatever is '' or None is not told.
  """

  first: Group
  second: Group | None = None
  relation: str = ""
  place: str = ""

  @property
  def groups(self) -> tuple[Group, ...]:
    """The one or two groups that it tells of."""
    return (self.first, self.second) if self.second else (self.first,)

  def inverse(self) -> "Statement":
    """The same, told from the other group: 'a cat right of a dog' for 'a dog left of a cat'."""
    assert self.second, "a statement of two groups"
    return replace(self, first=self.second, second=self.first, relation=OPPOSITE.get(self.relation, ""))


# {what} is all that is told but for the place.
_PLAIN = ("{what} {place}", "there {be} {what} {place}")
_OTHER = ("{place} there {be} {what}", "a drawing of {what} {place}")
_SHORT = ("{place} you can see {what}", "here {be} {what} {place}")
_SIDED = ("{first} {is} {side} {second} {place}", "{place} {first} {is} {side} {second}")


def forms(statement: Statement) -> tuple[str, ...]:
  """The forms in which a statement is said."""
  if statement.relation:
    return _PLAIN + _SIDED
  return _PLAIN + _OTHER + (() if statement.second else _SHORT)


def say(statement: Statement, form: str, phrase: int = 0) -> str:
  """A statement in one of its `forms`; `phrase` chooses among the words of the relation."""
  first, second = str(statement.first), str(statement.second or "")
  side = "and"
  if statement.relation:
    phrases = _PHRASES[statement.relation]
    side = phrases[phrase % len(phrases)]
  several = statement.first.count != 1 or (statement.second and not statement.relation)
  words = form.format(
    what=f"{first} {side} {second}" if second else first,
    first=first,
    second=second,
    side=side,
    be="are" if several else "is",
    place=PLACES.get(statement.place, ""),
    **{"is": "are" if statement.first.count != 1 else "is"},
  )
  return " ".join(words.split())


class Sentence(NamedTuple):
  """A text, the statement that it makes, and how it is said: `say(statement, form, phrase)`."""

  text: str
  statement: Statement
  form: str
  phrase: int = 0


def statements(scene: Scene) -> list[Statement]:
  """All that is said of a scene: with all of its things and its place, with sizes where one thing is of each kind."""
  groups = scene.groups()
  alone = len(groups) == len(scene.things)
  first, *others = (Group(len(things), name, size_word(things) if alone else "") for name, things in groups.items())
  if not others:
    return [Statement(first, place=scene.place)]
  second = others[0]
  side = relation(scene, first.name, second.name)
  found = [Statement(first, second, side, scene.place)] if side else []
  if not side or not alone:
    found.append(Statement(first, second, "", scene.place))
  return [s for one in found for s in (one, one.inverse())]


def sentences(scene: Scene) -> list[Sentence]:
  """The true sentences of a scene that tell all of it: at least five, of `WORDS` words."""
  return list(_said(_ways(scene)))


def captions(scene: Scene, draws: Draws, count: int) -> list[Sentence]:
  """`count` of the `sentences` of a scene, in a random order, or all if there are fewer."""
  ways = _ways(scene)
  return list(itertools.islice(_said(draws.some(ways, len(ways))), count))


def _ways(scene: Scene) -> list[tuple[Statement, str, int]]:
  return [
    (statement, form, phrase)
    for statement in statements(scene)
    for form in forms(statement)
    for phrase in range(len(_PHRASES.get(statement.relation, ("and",))))
  ]


def _said(ways: Iterable[tuple[Statement, str, int]]) -> Iterator[Sentence]:
  for statement, form, phrase in ways:
    text = say(statement, form, phrase)
    if WORDS[0] <= text.count(" ") + 1 <= WORDS[1]:
      yield Sentence(text, statement, form, phrase)


class Parsed(NamedTuple):
  """A text as a statement."""

  statement: Statement
  words: list[str]  # of the text, in lower case
  # The words that tell a part: "number", "size" and "object" of the first and of the second group, with a 1 or a 2,
  # "relation" and "place"; those that the text lacks are not there.
  parts: dict[str, range]


def parse(text: str) -> Statement | None:
  """The statement that a text makes; None for what is no sentence of the grammar, such as 'two dog' and 'a apple'."""
  parsed = parse_words(text)
  return parsed and parsed.statement


def parse_words(text: str) -> Parsed | None:
  """As `parse`, with the words that tell each part."""
  words = re.findall(r"\w+", text.lower())
  found = _sentence().fullmatch(" ".join(words))
  if not found or (found["before"] and found["after"]):
    return None
  first, second = (_group(found, n) for n in "12")
  side = next((name for name, phrases in _PHRASES.items() if found["relation"] in phrases), "")
  if not first or (found["object2"] and not second) or not _agrees(found, first, bool(second) and not side):
    return None
  place = _PLACES.get(found["before"] or found["after"], "")
  parts = {}
  for part, said in found.groupdict().items():
    if said and part not in ("be", "is"):
      start = found.string[: found.start(part)].count(" ")
      parts["place" if part in ("before", "after") else part] = range(start, start + 1 + said.count(" "))
  return Parsed(Statement(first, second, side, place), words, parts)


_PLACES = {phrase: name for name, phrase in PLACES.items()}
_NAMES = {thing.name: thing.name for thing in OBJECTS} | {thing.plural: thing.name for thing in OBJECTS}


@functools.cache
def _sentence() -> re.Pattern:
  """The grammar, but for the agreement of numbers."""

  def any_of(words) -> str:
    return "(?:" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")"

  def group(n: int) -> str:
    return (
      rf"(?P<number{n}>{any_of(['a', 'an', *NUMBERS])}) (?:(?P<size{n}>{any_of(SIZE_WORDS)}) )?"
      rf"(?P<object{n}>{any_of(_NAMES)})"
    )

  place, sides = any_of(_PLACES), any_of(phrase for phrases in _PHRASES.values() for phrase in phrases)
  opening = r"(?:(?:there|here) (?P<be>is|are) |a drawing of |you can see )"
  second = rf"(?: (?:and|(?:(?P<is>is|are) )?(?P<relation>{sides})) {group(2)})"
  return re.compile(rf"(?:(?P<before>{place}) )?{opening}?{group(1)}{second}?(?: (?P<after>{place}))?")


def _group(found: re.Match, n: str) -> Group | None:
  """None where there is none, or number, article and name do not go together."""
  said, size, name = (found[f"{part}{n}"] for part in ("number", "size", "object"))
  if not name:
    return None
  count = 1 if said in ("a", "an") else NUMBERS.index(said)
  group = Group(count, _NAMES[name], size or "")
  article_or_number, rest = str(group).split(" ", 1)
  return group if rest == f"{size or ''} {name}".strip() and said in (article_or_number, NUMBERS[count]) else None


def _agrees(found: re.Match, first: Group, several: bool) -> bool:
  """True where 'is' and 'are' fit the first group; before 'a dog and a cat', `several`, both may stand."""
  verb = "is" if first.count == 1 else "are"
  return found["be"] in (None, verb, *["are"] * several) and found["is"] in (None, verb)
