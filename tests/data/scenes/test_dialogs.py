"""Dialogs: ten rounds of which every answer is right by the coordinates, and no other candidate is."""

import re
from collections import Counter

import pytest

from coca.data.scenes.compose import World
from coca.data.scenes.dialogs import Dialogs
from support.scenes import A_NAME, A_PLACE, A_SIDE, NAMES, NUMBERS, is_place, is_side, is_size, named

COUNT = 200


@pytest.fixture(scope="module")
def dialogs():
  made = Dialogs(World("scenes"))
  return [made[i] for i in range(COUNT)]


def is_right(question, answer, scene, known):
  """Whether an answer, in any manner, is right; `known` is what the caption tells of."""
  yes = {"yes": True, "no": False}.get(answer.split()[0])
  answer = re.sub("^(i think|i would say|there is|there are|i can see) ", "", answer)
  question = re.sub(r"\b(it|they)\b", f"the {known}", question)
  sizes = {word: (lambda thing, word=word: is_size(thing, word)) for word in ("big", "small")}
  sizes["of middle size"] = lambda thing: not sizes["big"](thing) and not sizes["small"](thing)
  new = next(t.name for t in scene.things if t.name not in {t.name for t in named(scene, known)})
  for pattern, right in (
    (f"(?:is there an?|are there any) {A_NAME}", lambda name: yes is bool(named(scene, name))),
    (
      f"(?:is there only|are there) (one|two|three|four) {A_NAME}",
      lambda n, name: yes is (len(named(scene, name)) == NUMBERS[n]),
    ),
    (f"(?:is|are) the {A_NAME} {A_PLACE}", lambda _, phrase: yes is is_place(scene, phrase)),
    (
      f"is the {A_NAME} (big|small|of middle size)",
      lambda name, word: yes is sizes[word](*named(scene, name)),
    ),
    (
      f"(?:is|are) the {A_NAME} {A_SIDE} the {A_NAME}",
      lambda a, side, b: yes is is_side(scene, named(scene, a), side, named(scene, b)),
    ),
    (f"how many {A_NAME} are there", lambda name: NUMBERS.get(answer) == len(named(scene, name))),
    ("how many things are there in all", lambda: NUMBERS.get(answer) == len(scene.things)),
    ("what is the setting", lambda: is_place(scene, answer)),
    (f"what size is the {A_NAME}", lambda name: answer in sizes and sizes[answer](*named(scene, name))),
    (
      "what else is there",
      lambda: (
        (found := re.fullmatch(f"(a|an|two|three|four) {A_NAME}", answer))
        and named(scene, found[2]) == named(scene, new)
        and NUMBERS[found[1]] == len(named(scene, new))
      ),
    ),
    (
      f"where (?:is|are) the {A_NAME}",
      lambda a: (
        (found := re.fullmatch(f"{A_SIDE} the {A_NAME}", answer))
        and named(scene, found[2])
        and named(scene, found[2]) != named(scene, a)
        and is_side(scene, named(scene, a), found[1], named(scene, found[2]))
      ),
    ),
  ):
    if found := re.fullmatch(pattern, question):
      return bool(right(*found.groups()))
  raise AssertionError(question)


def test_answers_are_right_and_no_others(dialogs):
  for dialog in dialogs:
    known = re.fullmatch(f"a drawing of (?:an?|some) {A_NAME}", dialog.caption)[1]
    assert len(dialog.rounds) == 10 and len({r.question for r in dialog.rounds}) == 10
    for r in dialog.rounds:
      right = [is_right(r.question, option, dialog.scene, known) for option in r.options]
      assert right == [relevance == 1 for relevance in r.relevance], r
      assert len(set(r.options)) == 100 and sum(right) == 3 and right[r.gt_index] and r.options[r.gt_index] == r.answer


def test_what_is_asked_has_been_told_of(dialogs):
  for dialog in dialogs:
    told = dialog.caption
    for r in dialog.rounds:
      names = re.findall(rf"\b{A_NAME}\b", r.question)
      if not r.question.startswith(("is there", "are there")):
        assert all(any(re.search(rf"\b{n}\b", told) for n in forms(name)) for name in names), (told, r)
      told = f"{told}; {r.question if r.answer.startswith('yes') else ''}; {r.answer}"


def forms(name):
  return [form for form, base in NAMES.items() if base == NAMES[name]]


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
