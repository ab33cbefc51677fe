"""A judge of sentences: which parts of one are true of a scene, by geometry and not by comparing texts."""

import itertools
from dataclasses import dataclass
from typing import Literal

from coca.data.scenes.grammar import Group, Statement, parse_words
from coca.data.scenes.scene import Scene, relation, size_word

PARTS = ("object", "number", "size", "relation", "place")
Verdict = Literal["true", "partly", "false", "no sentence"]


@dataclass(frozen=True, slots=True)
class Part:
  """A part that a sentence tells: one of `PARTS`, whether it is right, and the words (by their places) that tell it."""

  kind: str
  right: bool
  words: range = range(0)


@dataclass(frozen=True, slots=True)
class Judgement:
  """`verdict` is 'true' where all parts are right, 'false' where nothing is there of which the sentence tells,
  'no sentence' where the text is none of the grammar. `untold` are the objects of the scene of which it tells nothing:
  a true sentence may still say little."""

  verdict: Verdict
  parts: tuple[Part, ...] = ()
  words: tuple[str, ...] = ()  # of the text, in lower case, without punctuation
  untold: tuple[str, ...] = ()

  def __bool__(self) -> bool:
    return self.verdict == "true"

  @property
  def wrong(self) -> set[str]:
    """The kinds of its parts that are wrong."""
    return {part.kind for part in self.parts if not part.right}

  def is_right(self, word: int) -> bool | None:
    """True if the part that a word tells is right; None for a word that tells none ('there', 'and')."""
    return next((part.right for part in self.parts if word in part.words), None)


def judge(text: str, scene: Scene) -> Judgement:
  """Judges a text, of a captioner or a web page, by a scene."""
  parsed = parse_words(text)
  if parsed is None:
    return Judgement("no sentence", words=tuple(text.lower().split()))
  return _judgement(parsed.statement, scene, parsed.parts, tuple(parsed.words))


def judge_statement(statement: Statement, scene: Scene) -> Judgement:
  """As `judge`, of what is not said in words."""
  return _judgement(statement, scene, {}, ())


def _judgement(statement: Statement, scene: Scene, words: dict[str, range], text: tuple[str, ...]) -> Judgement:
  told = statement.groups
  there = scene.groups()
  parts = max(
    (_parts(statement, scene, meant, words) for meant in _meanings(told, list(there))),
    key=lambda parts: sum(part.right for part in parts),
  )
  objects = [part.right for part in parts if part.kind == "object"]
  verdict = "true" if all(part.right for part in parts) else "partly" if any(objects) else "false"
  return Judgement(verdict, tuple(parts), text, tuple(name for name in there if name not in {g.name for g in told}))


def _meanings(told: tuple[Group, ...], there: list[str]):
  """Objects of the scene that the groups may mean: that of its name, or else any of which nothing is told, or none.

  So that of 'two dogs left of a cat' the number and the side are right where there are two wolves left of a cat. Of 'a
  dog and a dog', the second one is another object than the first.
  """
  names = [group.name for group in told]
  free = [name for name in there if name not in names] + [""]
  choices = [
    [""] if not group.count else [group.name] if group.name in there and group.name not in names[:n] else free
    for n, group in enumerate(told)
  ]
  for meant in itertools.product(*choices):
    if len(meant) < 2 or meant[0] != meant[1] or not meant[0]:
      yield meant


def _parts(statement: Statement, scene: Scene, meant: tuple[str, ...], words: dict[str, range]) -> list[Part]:
  there, parts = scene.groups(), []

  def add(kind: str, right: bool, key: str) -> None:
    parts.append(Part(kind, right, words.get(key, range(0))))

  for n, (group, name) in enumerate(zip(statement.groups, meant, strict=True), 1):
    things = there.get(name, ())
    if not group.count:  # "no dogs"
      add("object", group.name not in there, f"object{n}")
      add("number", group.name not in there, f"number{n}")
      continue
    add("object", group.name == name, f"object{n}")
    add("number", group.count == len(things), f"number{n}")
    if group.size:
      add("size", bool(things) and group.size == size_word(things), f"size{n}")
  if statement.relation:
    seen = relation(scene, *meant) if all(name in there for name in meant) else ""
    add("relation", seen == statement.relation, "relation")
  if statement.place:
    add("place", scene.place == statement.place, "place")
  return parts
