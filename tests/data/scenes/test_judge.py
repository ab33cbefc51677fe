"""The judge against scenes whose truth is written here, and against a judgement of its own from coordinates."""

import itertools

import pytest

from coca.data.scenes.compose import World
from coca.data.scenes.grammar import Group, Statement, parse, sentences
from coca.data.scenes.judge import Part, judge, judge_statement
from coca.data.scenes.objects import OBJECTS, PLACES, article
from coca.data.scenes.scene import OPPOSITE, Scene, Thing

PLURAL = {o.name: o.plural for o in OBJECTS}
DOGS = Scene(
  "beach",
  (Thing("dog", "noto", 0.2, 0.3, 0.3), Thing("dog", "noto", 0.2, 0.7, 0.3), Thing("cat", "noto", 0.7, 0.5, 0.5)),
)
RING = Scene("snow", (Thing("castle", "noto", 0.4, 0.4, 0.5), Thing("ring", "noto", 0.65, 0.65, 0.4)))
ASLANT = Scene("room", (Thing("dog", "noto", 0.2, 0.3, 0.3), Thing("key", "noto", 0.7, 0.7, 0.3)))


@pytest.mark.parametrize(
  "scene, text, verdict, wrong",
  [
    (DOGS, "two dogs left of a cat on the beach", "true", ""),
    (DOGS, "on the beach a big cat is to the right of two small dogs", "true", ""),
    (DOGS, "there is a cat", "true", ""),
    (DOGS, "no elephants", "true", ""),
    (DOGS, "no dogs and a cat", "partly", "object number"),
    (DOGS, "two dogs right of a cat on the beach", "partly", "relation"),
    (DOGS, "two dogs above a cat", "partly", "relation"),
    (DOGS, "three dogs left of a cat in the snow", "partly", "number place"),
    (DOGS, "two big dogs left of a cat", "partly", "size"),
    (DOGS, "two wolves left of a cat", "partly", "object"),  # the wolves are the dogs
    (DOGS, "a cat right of two wolves", "partly", "object"),
    (DOGS, "two dogs left of two dogs", "partly", "object number"),  # the second ones are the cat
    (DOGS, "a cat and a cat", "partly", "object number"),
    (DOGS, "no dogs left of no dogs", "false", "object number relation"),
    (DOGS, "no keys left of a cat", "partly", "relation"),
    (DOGS, "two cats left of a dog on the beach", "partly", "number relation"),
    (DOGS, "a wolf on the beach", "false", "object"),
    (DOGS, "four wolves on the beach", "false", "object number"),
    (DOGS, "three keys above three rings at night", "false", "object number relation place"),
    (DOGS, "two dog on the beach", "no sentence", ""),
    (RING, "a ring in front of a big castle in the snow", "true", ""),
    (ASLANT, "a key right of a dog in a room", "partly", "relation"),
    (ASLANT, "a key below a dog in a room", "partly", "relation"),
    (RING, "a castle is behind a ring", "true", ""),
    (RING, "a castle in front of a ring", "partly", "relation"),
    (RING, "a castle left of a ring", "partly", "relation"),  # as much above as left
    (RING, "a small ring in front of a castle", "partly", "size"),
    (RING, "a big ring in front of a castle", "partly", "size"),  # in between
  ],
)
def test_judgements(scene, text, verdict, wrong):
  found = judge(text, scene)
  if verdict == "partly" and not any(p.right for p in found.parts if p.kind == "object"):
    raise AssertionError(found)
  assert (found.verdict, found.wrong) == (verdict, set(wrong.split())), found
  assert bool(found) == (verdict == "true")
  if verdict != "no sentence":
    plain = judge_statement(parse(text), scene)
    assert (plain.verdict, plain.wrong, plain.untold) == (found.verdict, found.wrong, found.untold)


def test_which_words_are_right():
  found = judge("On the beach, three dogs are to the left of a small wolf.", DOGS)
  right = {True: [], False: [], None: []}
  for n, word in enumerate(found.words):
    right[found.is_right(n)].append(word)
  assert right == {
    True: ["on", "the", "beach", "dogs", "to", "the", "left", "of", "a"],
    False: ["three", "small", "wolf"],
    None: ["are"],
  }
  assert Part("place", True, range(3)) in found.parts and found.untold == ("cat",)
  assert judge("hello there", DOGS).words == ("hello", "there") and judge("hello there", DOGS).is_right(0) is None


def is_true(scene, first, second, side, place):
  """Whether groups (count, size, name), a side and a place are true of a scene, from its coordinates alone."""

  def fits(count, size, name):
    found = [t for t in scene.things if t.name == name]
    big, small = all(t.size > 0.44 for t in found), all(t.size < 0.32 for t in found)
    return found if len(found) == count and {"big": big, "small": small, "": True}[size] else []

  ones = fits(*first)
  others = fits(*second) if second else [None]
  if not ones or not others or place != scene.place:
    return False
  if not side:
    return True
  pairs = [(b.x - a.x, b.y - a.y) for a in ones for b in others]
  aslant = len(pairs) == 1 and 0.6 < abs(pairs[0][0]) / max(abs(pairs[0][1]), 1e-9) < 1.7
  if side in ("in front of", "behind"):
    return aslant and (scene.things[-1] in ones) == (side == "in front of")
  axis, sign = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}[side]
  mean = [abs(sum(p[k] for p in pairs) / len(pairs)) for k in (axis, 1 - axis)]
  return not aslant and min(p[axis] * sign for p in pairs) > 0.15 and mean[0] > mean[1]


def group(count, size, name):
  words = f"{size} {name if count == 1 else PLURAL[name]}".strip()
  return f"{article(words)} {words}" if count == 1 else f"{('no', '', 'two', 'three', 'four')[count]} {words}"


def said(first, second, side, place):
  second = f" {side or 'and'} {group(*second)}" if second else ""
  return f"{group(*first)}{second} {PLACES[place]}"


@pytest.mark.parametrize("split", ["scenes", "scenes_new_style", "scenes_new_relations"])
def test_true_sentences_and_those_with_one_part_changed(split):
  """Every change of a part of a true statement, judged as the coordinates have it; most are false."""
  world, wrong, count = World(split), 0, 0
  parts_of = (("object", "number", "size"), ("object", "number", "size"), ("relation",), ("place",))
  for i in range(60):
    scene = world[i]
    for sentence in sentences(scene):
      assert judge(sentence.text, scene), sentence
    for s in {sentence.statement for sentence in sentences(scene)}:
      parts = [(g.count, g.size, g.name) if g else None for g in (s.first, s.second)]
      alone = len(scene.things) == len(scene.groups())  # sizes of others may be in between
      told = [*parts, s.relation, s.place]
      assert is_true(scene, *told)
      changed = [[*told[:3], place] for place in PLACES]
      if s.second:
        changed += [[*told[:2], side, s.place] for side in OPPOSITE]
      for k, g in enumerate(parts):
        others = [(n, *g[1:]) for n in (1, 2, 3, 4)] if g else []
        others += [(g[0], size, g[2]) for size in ("", "big", "small")] if g and alone else []
        others += [(*g[:2], o.name) for o in OBJECTS[i % 10 :: 10]] if g else []
        changed += [[*told[:k], other, *told[k + 1 :]] for other in others]
      for change in changed:
        if change[1] and change[0][2] == change[1][2]:
          continue
        found = judge(said(*change), scene)
        assert found.verdict != "no sentence" and bool(found) == is_true(scene, *change), (scene, said(*change), found)
        differs = [k for k in range(4) if change[k] != told[k]]
        if not found:
          assert len(found.wrong) == 1, (scene, said(*change), found)
          assert next(iter(found.wrong)) in parts_of[differs[0]]
        wrong, count = wrong + (not found), count + 1
  assert wrong > 0.7 * count > 1000


@pytest.mark.parametrize("scene", [DOGS, RING])
def test_every_statement_has_a_judgement(scene):
  """Odd ones, too: 'no dogs left of a dog'."""
  groups = [Group(count, name) for count in range(5) for name in ("dog", "castle", "cat", "key")]
  for first, second in itertools.product(groups, [None, *groups]):
    for side in ("", "left of", "behind") if second else ("",):
      found = judge_statement(Statement(first, second, side), scene)
      assert bool(found) == (not found.wrong) and len(found.parts) == 2 + 2 * bool(second) + bool(side)
      if second and first.count and second.count and first.name == second.name:
        assert not found
