"""Sentences and statements: one from the other and back."""

import itertools

import pytest

from coca.data.scenes.compose import World
from coca.data.scenes.draws import Draws
from coca.data.scenes.grammar import Group, Statement, captions, forms, parse, parse_words, say, sentences
from coca.data.scenes.objects import OBJECTS, PLACES
from coca.data.scenes.scene import RELATIONS


@pytest.mark.parametrize(
  "statement, texts",
  [
    (
      Statement(Group(1, "elephant"), place="beach"),
      [
        "an elephant on the beach",
        "there is an elephant on the beach",
        "on the beach there is an elephant",
        "a drawing of an elephant on the beach",
        "on the beach you can see an elephant",
        "here is an elephant on the beach",
      ],
    ),
    (
      Statement(Group(3, "mouse"), Group(1, "apple", "big"), place="night"),
      [
        "three mice and a big apple at night",
        "there are three mice and a big apple at night",
        "at night there are three mice and a big apple",
        "a drawing of three mice and a big apple at night",
      ],
    ),
    (
      Statement(Group(1, "ice cream"), Group(2, "strawberry"), "in front of", "snow"),
      [
        "an ice cream in front of two strawberries in the snow",
        "there is an ice cream in front of two strawberries in the snow",
        "an ice cream is in front of two strawberries in the snow",
        "in the snow an ice cream is in front of two strawberries",
      ],
    ),
    (Statement(Group(0, "dog")), ["no dogs", "there are no dogs", "there are no dogs", "a drawing of no dogs"]),
  ],
)
def test_what_is_said(statement, texts):
  said = [say(statement, form) for form in forms(statement)]
  assert said[: len(texts)] == texts and len(said) in (len(texts), len(texts) + 2)
  assert {parse(text) for text in said} == {statement}


def test_all_statements_come_back_from_their_words():
  names = itertools.cycle([o.name for o in OBJECTS])
  groups = [
    Group(count, next(names), size) for count in range(5) for size in ("", "big", "small") for _ in range(len(OBJECTS))
  ]
  for n, (first, second) in enumerate(zip(groups, groups[7:] + groups[:7], strict=True)):
    relation = ("", *RELATIONS)[n % 7]
    statement = Statement(first, None if n % 5 == 0 else second, relation if n % 5 else "", ("", *PLACES)[n % 9])
    for form in forms(statement):
      for phrase in (0, 1):
        assert parse(say(statement, form, phrase)) == statement


def test_case_and_punctuation_do_not_matter():
  dog = Statement(Group(1, "dog"), Group(1, "cat"), "left of", "beach")
  assert parse("On the beach, a DOG is to the left of one cat!") == dog
  assert parse("  a dog\nleft of a cat on the beach. ") == dog
  parsed = parse_words("There is a small dog, and two cats (in the snow).")
  told = {part: " ".join(parsed.words[k] for k in places) for part, places in parsed.parts.items()}
  assert told == {
    "number1": "a",
    "size1": "small",
    "object1": "dog",
    "number2": "two",
    "object2": "cats",
    "place": "in the snow",
  }
  assert parse_words("a police car to the right of two fire engines").parts["relation"] == range(3, 7)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "a dog a cat",
    "two dog on the beach",
    "a dogs",
    "a apple",
    "an dog",
    "an big apple",
    "a an apple",
    "there is two dogs",
    "there are a dog",
    "two dogs is left of a cat",
    "a dog and a cat is left of a pig",
    "a dog left of on the beach",
    "on the beach a dog at night",
    "a dog on the moon",
    "a unicorn on the beach",
    "a dog left of a cat left of a pig",
    "photo of a dog",
    "a dog is and a cat",
    "IMG_0012.jpg",
    "five dogs",
  ],
)
def test_no_sentences_of_the_grammar(text):
  assert parse(text) is None


def test_sentences_of_scenes():
  world = World("scenes_val")
  words = set()
  for i in range(200):
    scene = world[i]
    found = sentences(scene)
    texts = [s.text for s in found]
    assert len(set(texts)) == len(texts) >= 5
    for sentence in found:
      assert 5 <= len(sentence.text.split()) <= 15
      assert parse(sentence.text) == sentence.statement
      assert say(*sentence[1:]) == sentence.text
      words |= set(sentence.text.split())
    some = captions(scene, Draws(i), 5)
    assert len(some) == len({s.text for s in some}) == 5 and set(some) <= set(found)
    assert some == captions(scene, Draws(i), 5)
  names = {word for o in OBJECTS for word in (o.name + " " + o.plural).split()}
  assert len(words - names) < 55, "a small vocabulary"
