"""Captions of scenes, judged; and what the text of the nearest training image would reach."""

import dataclasses
import math

import numpy as np
import pytest

from coca.config import Eval, Scenes, Source
from coca.data.records import Record, Text
from coca.data.scenes.judge import judge
from coca.data.scenes.scene import Scene, Thing
from coca.data.sources import open_source
from coca.data.tokenizers.sentencepiece import train
from coca.decoding.common import Decoded
from coca.evals import pixels
from coca.evals.captions import PIXEL, Captions
from coca.evals.judged import judged
from coca.evals.retrieval import Retrieval, token_counts
from support.evals import CONFIG, FakeForward, Source_, recalls64

DOGS = Scene("beach", (Thing("dog", "noto", 0.2, 0.5, 0.25), Thing("cat", "noto", 0.7, 0.5, 0.55)))


def test_shares_by_hand():
  texts = (
    "a small dog is left of a big cat on the beach",
    "a cat on the beach",
    "two dogs right of a small cat on the beach",  # number, relation and size are wrong
    "a wolf in the snow",
    "a dog dog",
  )
  found = dict(judged(judge(text, DOGS) for text in texts))
  shares = {"true": 2, "partly": 1, "false": 1, "no_sentence": 1, "complete": 1}
  assert {name: found.pop(name) for name in shares} == {name: n / 5 for name, n in shares.items()}
  assert found.pop("right_parts") == pytest.approx((1 + 1 + 4 / 7 + 1 / 3 + 0) / 5)
  assert found == pytest.approx(
    {"object_wrong": 1 / 6, "number_wrong": 1 / 6, "size_wrong": 1 / 3, "relation_wrong": 1 / 2, "place_wrong": 1 / 4}
  )
  nothing = dict(judged([]))
  assert set(nothing) == {*shares, "right_parts"} and all(map(math.isnan, nothing.values()))


class Writer(FakeForward):
  """Writes one text after the other, whatever the images."""

  def __init__(self, tokenizer, texts):
    super().__init__(tokenizer, np.ones((1, 2), np.float32))
    self.texts, self.written = texts, 0

  def caption(self, writer, encoded, decoding, special):
    count = len(encoded.tokens)
    taken = (self.texts * 2)[self.written : self.written + count]
    self.written += count
    return Decoded(np.stack([self.tokenizer.encode(t, 32) for t in taken])[:, None], np.zeros((count, 1)))

  def embed_texts(self, params, text):
    return np.ones((len(text), 2), np.float32)


@pytest.fixture(scope="module")
def scenes():
  return open_source(Source(kind="builtin", split="scenes_val", scenes=Scenes(count=24, vocabulary=9)))


@pytest.fixture(scope="module")
def tokenizer(scenes):
  return train([text.text for i in range(24) for text in scenes[i].texts], 120)


@pytest.fixture(scope="module")
def swapped(scenes):
  """The same images in another order and, of every third one, with another's text."""
  records = [scenes[i] for i in range(24)]
  texts = [records[(i + 5) % 24 if i % 3 == 0 else i].texts[0].text for i in range(24)]
  made = [Record(r.key, r.image, (Text(text),)) for r, text in zip(records, texts, strict=True)]
  return Source_(made[::-1]), texts


def test_captions_of_scenes_are_judged(scenes, tokenizer, swapped):
  neighbours, taken_over = swapped
  true = [scenes[i].texts[0].text for i in range(0, 24, 2)]
  texts = [t if i % 4 else "a pig in a room" for i, t in enumerate(true)]
  settings = Eval(kind="captions", batch=4, limit=12)
  found = dict(Captions(CONFIG, settings, Writer(tokenizer, texts), tokenizer, scenes, neighbours).run(None))
  wanted = dict(judged(judge(text, scenes.scene(2 * i)) for i, text in enumerate(texts)))
  assert {name: found[name] for name in wanted} == pytest.approx(wanted)
  assert 0.6 < found["true"] == found["exact_match"] < 1
  pixel = dict(judged(judge(taken_over[i], scenes.scene(i)) for i in range(0, 24, 2)))
  assert {name for name in found if name.startswith("pixel_")} == set(PIXEL)
  for name in ("true", "right_parts"):
    assert found[f"pixel_{name}"] == pytest.approx(pixel[name])
  assert 0.5 < found["pixel_true"] < 1 and found["pixel_exact_match"] > 0.5
  plain = dict(Captions(CONFIG, settings, Writer(tokenizer, texts), tokenizer, scenes).run(None))
  assert plain == pytest.approx({k: v for k, v in found.items() if not k.startswith("pixel_")})


def test_retrieval_by_the_words_of_the_nearest_image(scenes, tokenizer, swapped):
  neighbours, taken_over = swapped
  settings = Eval(kind="retrieval", batch=8, texts_per_image=2, equal_texts=True)
  evaluator = Retrieval(CONFIG, settings, Writer(tokenizer, []), tokenizer, scenes, neighbours)
  found = dict(evaluator.run(None))

  def counts(text):
    ids = tokenizer.encode(text, 32)
    return np.bincount(ids[ids > 0], minlength=tokenizer.vocab) / np.linalg.norm(np.bincount(ids[ids > 0]))

  words = [t.text for i in range(24) for t in scenes[i].texts[:2]]
  images, texts = np.stack(list(map(counts, taken_over))), np.stack(list(map(counts, words)))
  wanted = recalls64(images, texts, words, np.repeat(np.arange(24), 2))
  assert found["pixel_t2i_r1"] == wanted["t2i_r1"] and found["pixel_i2t_r1"] == wanted["i2t_r1"]
  assert 0.2 < wanted["t2i_r1"] < 1
  evaluator.neighbours = Source_([None])  # computed once
  assert dict(evaluator.run(None)) == found
  np.testing.assert_allclose(token_counts(np.array([[1, 5, 5, 0]]), 7), [[0, 5**-0.5, 0, 0, 0, 2 * 5**-0.5, 0]])


def test_some_stand_for_an_endless_source(scenes):
  many = open_source(Source(kind="builtin", split="scenes", scenes=Scenes(count=2**31 - 1)))
  few = dataclasses.replace(Scenes(), count=3)
  found = list(pixels.nearest(open_source(Source(kind="builtin", split="scenes_val", scenes=few)), many, 5))
  assert [n.index for n in found] == [0, 1, 2] and len(pixels._neighbours(many, 5).texts) == 5
