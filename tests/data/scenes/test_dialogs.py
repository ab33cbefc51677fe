"""Dialogs: ten rounds of which every answer is right by the coordinates, and no other candidate is."""

import re
from collections import Counter
from statistics import fmean

import pytest

from coca.data.scenes.compose import World
from coca.data.scenes.dialogs import Dialogs
from coca.data.scenes.objects import PLACES
from support.scenes import A_NAME, A_PLACE, A_SIDE, NAMES, NUMBERS, SIDES, is_place, is_side, is_size, named

COUNT = 120


@pytest.fixture(scope="module")
def dialogs():
  made = Dialogs(World("scenes"))
  return [made[i] for i in range(COUNT)]


def right_answer(question, scene, known):
  """The right answer without its manner; `known` is what the caption tells of."""
  question = re.sub(r"\b(it|they)\b", f"the {known}", question)
  word = {n: word for word, n in NUMBERS.items() if word not in ("a", "an")}
  yes = {True: "yes", False: "no"}
  new = next(form for form in NAMES if named(scene, form) and NAMES[form] != NAMES[known])
  new = next(form for form in forms(new) if (form == NAMES[form]) == (len(named(scene, new)) == 1))
  number = {1: "an" if new[0] in "aeiou" else "a"} | {n: word[n] for n in (2, 3, 4)}

  def size(name):
    (thing,) = named(scene, name)
    return "big" if is_size(thing, "big") else "small" if is_size(thing, "small") else "of middle size"

  def side(a, b):
    return next(s for s in SIDES if is_side(scene, named(scene, a), s, named(scene, b)))

  for pattern, right in (
    (f"(?:is there an?|are there any) {A_NAME}", lambda name: yes[bool(named(scene, name))]),
    (f"(?:is there only|are there) (\\w+) {A_NAME}", lambda n, name: yes[len(named(scene, name)) == NUMBERS[n]]),
    (f"(?:is|are) the {A_NAME} {A_PLACE}", lambda _, phrase: yes[is_place(scene, phrase)]),
    (f"is the {A_NAME} (big|small|of middle size)", lambda name, said: yes[size(name) == said]),
    (f"(?:is|are) the {A_NAME} {A_SIDE} the {A_NAME}", lambda a, said, b: yes[side(a, b) == said]),
    (f"how many {A_NAME} are there", lambda name: word[len(named(scene, name))]),
    ("how many things are there in all", lambda: word[len(scene.things)]),
    ("what is the setting", lambda: PLACES[scene.place]),
    (f"what size is the {A_NAME}", size),
    ("what else is there", lambda: f"{number[len(named(scene, new))]} {new}"),
    (f"where (?:is|are) the {A_NAME}", lambda a: f"{side(a, known)} the {known}"),
  ):
    if found := re.fullmatch(pattern, question):
      return right(*found.groups())
  raise AssertionError(question)


def forms(name):
  return [form for form, base in NAMES.items() if base == NAMES[name]]


def plain(answer):
  """An answer without its manner."""
  answer = re.sub("^(i think|i would say|there is|there are|i can see) ", "", answer)
  return answer.split()[0] if answer.startswith(("yes", "no ")) else answer


def test_answers_are_right_and_no_others(dialogs):
  for dialog in dialogs:
    known = re.fullmatch(f"a drawing of (?:an?|some) {A_NAME}", dialog.caption)[1]
    assert len(dialog.rounds) == 10 and len({r.question for r in dialog.rounds}) == 10
    for r in dialog.rounds:
      answer = right_answer(r.question, dialog.scene, known)
      right = [plain(option) == answer for option in r.options]
      assert right == [relevance == 1 for relevance in r.relevance], r
      assert len(set(r.options)) == 100 and sum(right) == 3 and right[r.gt_index] and r.options[r.gt_index] == r.answer


def is_half(scene, known, side):
  """Whether the other things are on that side of the known ones if one is not strict."""
  ones = [thing for thing in scene.things if thing.name != NAMES[known]]
  if side in ("in front of", "behind"):
    return is_side(scene, ones, side, named(scene, known))
  x, y = (fmean(getattr(t, a) for t in ones) - fmean(getattr(t, a) for t in named(scene, known)) for a in "xy")
  along, across = (x, y) if side in ("left of", "right of") else (y, x)
  return along * (1 if side in ("right of", "below") else -1) > 0.6 * abs(across)


def test_no_other_candidate_could_be_said(dialogs):
  """None of another kind, such as "big" where the question is whether it is big, and no side that is half right."""
  for dialog in dialogs:
    scene, known = dialog.scene, re.fullmatch(f"a drawing of (?:an?|some) {A_NAME}", dialog.caption)[1]
    for r in dialog.rounds:
      wrong = {plain(option) for option, right in zip(r.options, r.relevance, strict=True) if not right}
      if re.search(f"{A_PLACE}|setting|where", r.question):
        assert PLACES[scene.place] not in wrong
      if re.search("size|big|small", r.question) and r.answer.startswith(("yes", "no ")):
        assert not wrong & {"big", "small", "of middle size"}
      if re.search(f"{A_SIDE} the|where", r.question):
        assert not [side for side in SIDES if f"{side} the {known}" in wrong and is_half(scene, known, side)], (
          r.question
        )
      if re.search("how many|only|are there", r.question) and r.answer.startswith(("yes", "no ")):
        assert not wrong & {word for word, n in NUMBERS.items() if n > 0}


def test_what_is_asked_has_been_told_of(dialogs):
  for dialog in dialogs:
    told = dialog.caption
    for r in dialog.rounds:
      names = re.findall(rf"\b{A_NAME}\b", r.question)
      if not r.question.startswith(("is there", "are there")):
        assert all(any(re.search(rf"\b{n}\b", told) for n in forms(name)) for name in names), (told, r)
      told = f"{told}; {r.question if r.answer.startswith('yes') else ''}; {r.answer}"


def test_history_tells_the_manner(dialogs):
  openings = ("yes", "no"), ("i think", "there", "yes i", "no i"), ("i would", "i can", "yes it", "no it")
  manners = Counter()
  for dialog in dialogs:
    kinds = {
      2 if a.startswith(openings[2]) else 1 if a.startswith(openings[1]) else 0
      for a in (r.answer for r in dialog.rounds)
    }
    assert len(kinds) == 1
    manners.update(kinds)
  assert all(manners[n] > COUNT / 5 for n in range(3))


def test_place_and_words_tell_little(dialogs):
  rounds = [r for dialog in dialogs for r in dialog.rounds]
  index = Counter(r.gt_index // 10 for r in rounds)
  assert all(0.7 < index[n] / (len(rounds) / 10) < 1.3 for n in range(10))
  for opening in ("is there", "are there any", "are there", "is it", "is the", "are the "):
    said = Counter(r.answer.split()[0] for r in rounds if r.question.startswith(opening))
    assert set(said) == {"yes", "no"} and 0.38 < said["yes"] / sum(said.values()) < 0.62, opening


@pytest.mark.parametrize("split", ["scenes_val", "scenes_new_counts"])
def test_other_splits(split):
  world = World(split, vocabulary=40)
  dialog = Dialogs(world)[3]
  assert world.holds(dialog.scene) and all(len(set(r.options)) == 100 for r in dialog.rounds)


def test_one_kind_of_thing_is_not_enough():
  with pytest.raises(ValueError, match="'scenes' has no scene with two kinds of things"):
    Dialogs(World("scenes", objects=1))
