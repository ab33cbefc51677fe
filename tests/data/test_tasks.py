"""VL-T5's tasks: sentinels, what is made of a record, and batches of several tasks."""

import dataclasses
import re

import numpy as np
import pytest

from coca.config import Scenes, Source
from coca.config.special import PAD
from coca.data import tasks
from coca.data.pipeline import Wants, eval_batches, open_sources, train_batches
from coca.data.questions import clean
from coca.data.records import BadRecord, Detected, Record, Text
from coca.data.sources import open_source
from coca.data.tokenizers.sentencepiece import BOS, EOS, train
from support.common import tiny

VOCAB = 300
TEXTS = ["a dog on the grass", "two cats and a bird", "what is it? true false", "caption region vqa: span"]


@pytest.fixture(scope="module")
def tokenizer():
  return train(TEXTS * 4, VOCAB - 200)


def test_sentinels_are_the_last_words(tokenizer):
  """As in the authors' tokenizer: <extra_id_0> is vocab - 101, <vis_extra_id_0> vocab - 1."""
  ids = tasks.encode(tokenizer, VOCAB, "a <extra_id_0> <vis_extra_id_3> dog <extra_id_12>", 20)
  a, dog = tokenizer.tokens("a"), tokenizer.tokens("dog")
  np.testing.assert_array_equal(
    ids[: np.argmax(ids == EOS) + 1], [BOS, *a, VOCAB - 101, VOCAB - 4, *dog, VOCAB - 113, EOS]
  )
  text = "two cats and a bird"
  np.testing.assert_array_equal(tasks.encode(tokenizer, VOCAB, text, 9), tokenizer.encode(text, 9))


def test_spans_put_back_are_the_text():
  rng = np.random.default_rng(0)
  words = [f"w{i}" for i in range(40)]
  for _ in range(50):
    given, target = tasks.without_some(" ".join(words), "span prediction", rng)
    spans = {part.split()[0]: " ".join(part.split()[1:]) for part in target.split("<") if part}
    assert list(spans) == [f"extra_id_{i}>" for i in range(len(spans))]
    for name, said in spans.items():
      given = given.replace(f"<{name}", said)
    assert given.split() == words and sum(len(said.split()) for said in spans.values()) == 6
  assert tasks.without_some("dog", "span prediction", rng) == ("<extra_id_0>", "<extra_id_0> dog")


def test_a_text_without_noise_is_the_text(tokenizer):
  """VL-BART's: 30 % of the words, those side by side in one <mask>, which is BART's last word but 200."""
  rng = np.random.default_rng(0)
  words = [f"w{i}" for i in range(40)]
  for _ in range(50):
    given, target = tasks.without_some(" ".join(words), "denoise text", rng)
    assert target.split() == words and "<mask> <mask>" not in given
    left = [word for word in given.split() if word != "<mask>"]
    assert len(left) == 28 and re.fullmatch(re.escape(given).replace("<mask>", r"w\d+( w\d+)*"), target)
  ids = tasks.encode(tokenizer, VOCAB, "a <mask> dog", 20)
  assert ids[len(tokenizer.tokens("a")) + 1] == VOCAB - 201


def test_each_task():
  rng = np.random.default_rng(1)
  record = Record("k", b"", (Text("a dog"),), question="What is it?", regions=Detected(
    np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32), ("dog", "grass", "sky")
  ))  # fmt: skip

  def pose(task, n=200, record=record):
    return {tasks.pose(task, "a dog", record, 2, lambda: "a cat", rng) for _ in range(n)}

  assert pose("caption") == {("caption:", "a dog")}
  assert pose("vqa") == {("vqa: what is it?", "a dog")}
  assert pose("image text match") == {("image text match: a dog", "true"), ("image text match: a cat", "false")}
  regions = [("dog", "<vis_extra_id_0>"), ("grass", "<vis_extra_id_1>")]  # two are read
  assert pose("visual grounding") == {(f"visual grounding: {name}", word) for name, word in regions}
  assert pose("caption region") == {(f"caption region: {word}", name) for name, word in regions}
  for task, field in (("vqa", {"question": " "}), ("visual grounding", {"regions": None})):
    with pytest.raises(BadRecord):
      pose(task, 1, dataclasses.replace(record, **field))


def test_batches(tokenizer):
  """Captions, questions and spans of scenes in one batch: what is read stands with the regions."""
  sources = {
    task.replace(" ", "_"): Source(
      kind="builtin", split="scenes", regions=True, task=task, scenes=Scenes(count=50, vocabulary=9)
    )
    for task in ("caption", "vqa", "span prediction")
  }
  sources["vqa"] = dataclasses.replace(sources["vqa"], split="scenes_questions", question_key="question")
  settings = {
    "model__kind": "vl_t5",
    "model__regions__width": 192,
    "model__regions__count": 4,
    "contrastive__weight": 0.0,
  }
  config = tiny(**settings, model__regions__tags=60, model__text__vocab=VOCAB, model__text__length=60)
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources, batch=12, threads=1))
  stream = train_batches(config, open_sources(config), tokenizer, np.arange(12))
  batch, problems = next(stream)
  stream.close()
  assert not problems and (batch["weight"] == 1).all()
  read = [row[row != PAD][:-1].tolist() for row in batch["image"].tags]
  assert all((row == EOS).sum() == 1 for row in batch["image"].tags)
  begins = {task: tokenizer.tokens(f"{task}:") for task in ("caption", "vqa", "span prediction")}
  count = {task: sum(row[: len(ids)] == ids for row in read) for task, ids in begins.items()}
  assert count == dict.fromkeys(begins, 4)
  for row, text in zip(read, batch["text"], strict=True):
    has_span = VOCAB - 101 in row
    assert has_span == (text[1] == VOCAB - 101) == (row[: len(begins["span prediction"])] == begins["span prediction"])

  questions = open_source(dataclasses.replace(sources["vqa"], task=""))
  batch, _ = next(eval_batches(config, questions, Wants(lambda r: [r.question]), tokenizer, np.arange(4), 4))
  expected = tasks.encode(tokenizer, VOCAB, f"vqa: {clean(questions[0].question)}", 61)[1:]
  np.testing.assert_array_equal(batch["image"].tags[0], expected)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"captioning__weight": 0.0, "masked__weight": 1.0}, "masked.weight needs|trained by what it writes"),
    ({"model__text__unimodal_layers": 0}, "unimodal_layers"),
    ({"model__regions__count": 101}, "regions.count 101"),
    ({"model__text__vocab": 200}, "vocab 200"),
    ({"model__kind": "vl_bart", "model__text__vocab": 201}, "vocab 201"),
    ({"model__kind": "vl_bart", "model__med__positions": 20}, "regions.tags 30.* more than config.model.med.positions"),
  ],
)
def test_what_does_not_go_together(changes, said):
  good = {"model__kind": "vl_t5", "contrastive__weight": 0.0, "model__text__vocab": VOCAB}
  tiny(**good)
  with pytest.raises(ValueError, match=said):
    tiny(**good | changes)
