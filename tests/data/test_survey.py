"""What is said of a run's texts before it begins."""

import numpy as np
import pytest

from coca import config as settings
from coca.data import survey
from coca.data.records import Record, Text
from coca.data.tokenizers import sentencepiece
from support.texts import Records, sentences


@pytest.fixture(scope="module")
def small():
  return sentencepiece.train(sentences(500), 200)


def said(sources, tokens, length=64, prompt="", answering=None):
  config = settings.Config(
    model=settings.Model(text=settings.TextDecoder(length=length)),
    data=settings.Data(sources={name: settings.Source(text="first") for name in sources}, prompt=prompt),
    answering=answering or settings.Answering(),
  )
  return survey.survey(config, sources, tokens)


def test_nothing_is_said_of_texts_that_fit(small):
  assert said({"a": Records([[t] for t in sentences(100)]), "b": Records([["a cat"]])}, small) == []


def test_records_that_cannot_be_used(small):
  (line,) = said({"a": Records([["a cat"]]), "b": Records([None, [""], ["a cat"]])}, small)
  assert line.startswith("b: 2 of 3 records that were looked at can't be used, such as ") and len(line) > 65


def test_texts_that_are_cut(small):
  long = ["the cat " * n + word for n, word in ((40, "dog"), (40, "boat"), (90, "car"))]
  captions = ["a cat"] * 97 + long
  lengths = sorted(len(small.tokens(t)) + 2 for t in captions)
  assert lengths[-4] <= 64 < lengths[-3] <= lengths[-2] < lengths[-1]
  (line,) = said({"b": Records([["a cat"]]), "a": Records([[t] for t in captions])}, small)
  assert line == (
    f"a: 3 of 100 texts that were looked at are cut, for they have more than the 64 tokens of "
    f"config.model.text.length; {lengths[-1]} do for 99 % of them, {lengths[-1]} for all. "
    "4 different ones become 2"
  )
  assert said({"a": Records([[t] for t in captions])}, small, lengths[-1]) == []
  (line,) = said({"a": Records([[t] for t in captions])}, small, lengths[-1] - 1)
  assert line.endswith(f"config.model.text.length; {lengths[-1]} do for 99 % of them, {lengths[-1]} for all")
  (line,) = said({"a": Records([["a cat"]] * 299 + [[long[0]]])}, small)
  assert "1 of 300" in line and "99 %" not in line
  assert "3 of 3 texts" in said({"a": Records([["a cat"]] * 3)}, small, 8, "a photo of the red boat in the ")[0]


def test_words_that_are_unknown(small):
  (line,) = said({"a": Records([["a cat"], ["猫"], ["a 猫"], ["犬"]])}, small)
  tokens = sum(i != small.blank for t in ("a cat", "猫", "a 猫", "犬") for i in small.tokens(t))
  assert line.startswith(f"a: {3 / tokens:.1%} of the tokens of texts are unknown to the tokenizer")
  assert "and 2 of 4 texts hold nothing else, such as '猫'. Name one" in line
  assert said({"a": Records([[t] for t in sentences(100)] + [["a 猫"]])}, small) == []  # one in a thousand


class Asked(Records):
  def __getitem__(self, i):
    return Record(str(i), b"", tuple(Text(t) for t in self.captions[i]), question="Is it the red cat in the old house")


def test_answers(small):
  answering = settings.Answering(weight=1.0, length=4)
  lines = said({"a": Asked([["cat", "the old house"]] * 5)}, small, 8, answering=answering)
  assert len(lines) == 2 and "5 of 5 texts" in lines[0] and "5 of 10 answers" in lines[1]
  assert "config.answering.length" in lines[1]


def test_few_places_of_a_large_source_are_looked_at(small):
  class Large:
    def __init__(self):
      self.read = []

    def __len__(self):
      return 10**6

    def __getitem__(self, i):
      self.read.append(i)
      return Record(str(i), b"x", (Text("a cat"),))

  sources = {"a": Large(), "b": Large()}
  assert said(sources, small) == []
  for source in sources.values():
    places = 1 + (np.diff(np.sort(source.read)) > 1).sum()
    assert len(source.read) == len(set(source.read)) == 256 and places == 16
    assert min(source.read) == 0 and max(source.read) == 10**6 - 1
