"""Questions about scenes: right by the coordinates, and of no use to who does not look."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

from coca.config import Answering, Config, Data, Eval, ImageEncoder, Model, SceneNoise, Scenes, Source, TextDecoder
from coca.data import images, pipeline
from coca.data.scenes.compose import World
from coca.data.scenes.held_out import SPLITS, is_new_count
from coca.data.scenes.questions import SHARES, Questions
from coca.data.scenes.render import render
from coca.data.sources import open_source
from coca.data.tokenizers.sentencepiece import train
from coca.decoding.common import Decoded
from coca.evals import build
from support.evals import FakeForward
from support.scenes import A_NAME, A_PLACE, A_SIDE, NUMBERS, is_place, is_side, is_size, named

COUNT = 1200


@pytest.fixture(scope="module")
def questions():
  asked = Questions(World("scenes"))
  return [asked[i] for i in range(COUNT)]


def answers(question, scene):
  """The right answer, from a regular expression for each kind of question."""
  yes = {True: "yes", False: "no"}
  for pattern, answer in (
    (f"is there an? {A_NAME}", lambda name: yes[len(named(scene, name)) == 1]),
    (f"are there {A_NAME}", lambda name: yes[len(named(scene, name)) > 1]),
    (f"is there only one {A_NAME}", lambda name: yes[len(named(scene, name)) == 1]),
    (f"are there (two|three|four) {A_NAME}", lambda n, name: yes[len(named(scene, name)) == NUMBERS[n]]),
    (f"(?:is|are) the {A_NAME} (big|small)", lambda name, word: yes[all(is_size(t, word) for t in named(scene, name))]),
    (f"is it {A_PLACE}", lambda phrase: yes[is_place(scene, phrase)]),
    (
      f"(?:is|are) the {A_NAME} {A_SIDE} the {A_NAME}",
      lambda a, side, b: yes[is_side(scene, named(scene, a), side, named(scene, b))],
    ),
    (f"how many {A_NAME} are there", lambda name: str(len(named(scene, name)))),
    ("what is the background", lambda: scene.place),
    (
      f"is the {A_NAME} big or small",
      lambda name: next(w for w in ("big", "small") if is_size(*named(scene, name), w)),
    ),
    (
      f"(?:is|are) the {A_NAME} (left or right of|above or below|in front of or behind) the {A_NAME}",
      lambda a, sides, b: next(
        side.removesuffix(" of")
        for side in sides.replace("left or", "left of or").split(" or ")
        if is_side(scene, named(scene, a), side, named(scene, b))
      ),
    ),
    (
      f"what is {A_SIDE} the {A_NAME}",
      lambda side, b: next(t.name for t in scene.things if is_side(scene, [t], side, named(scene, b))),
    ),
    ("what does the image show", lambda: next(iter({t.name for t in scene.things}))),
  ):
    if found := re.fullmatch(pattern + r"\?", question):
      return answer(*found.groups())
  raise AssertionError(question)


def test_answers_are_right(questions):
  for asked in questions:
    assert answers(asked.question, asked.scene) == asked.answer, asked
  assert {asked.kind for asked in questions} == set(SHARES)


@pytest.mark.parametrize("split", [split for split in SPLITS if split != "scenes"])
def test_other_splits(split):
  world = World(split)
  found = Questions(world)
  for asked in map(found.__getitem__, range(15)):
    assert world.holds(asked.scene) and answers(asked.question, asked.scene) == asked.answer, asked


def test_words_alone_tell_nothing(questions):
  """The same is asked of two scenes that differ, and no answer is more frequent than another."""
  world = World("scenes")
  for one, other in zip(questions[::2], questions[1::2], strict=True):
    assert one.question == other.question and one.answer != other.answer
    assert world.holds(one.scene) and world.holds(other.scene)
    assert (one.scene.place != other.scene.place) + (one.scene.things != other.scene.things) == 1
  given = {kind: Counter(a.answer for a in questions if a.kind == kind) for kind in SHARES}
  first = Counter(a.answer for a in questions[::2] if a.kind.startswith("yes/no"))
  assert 0.42 < first["yes"] / sum(first.values()) < 0.58
  for kind, answer_count in (("number", 5), ("place", 8)):
    total = sum(given[kind].values())
    assert len(given[kind]) == answer_count and all(0.5 < n * answer_count / total < 1.6 for n in given[kind].values())
  assert max(given["object"].values()) < 0.05 * sum(given["object"].values())
  shares = Counter(a.kind for a in questions)
  assert all(abs(shares[kind] / COUNT - share) < 0.045 for kind, share in SHARES.items())


def test_the_twin_of_training_is_no_news(questions):
  for asked in questions:
    for name, things in asked.scene.groups().items():
      assert not is_new_count(name, len(things))


def test_few_objects_leave_fewer_questions():
  alone = Questions(World("scenes", objects=1))
  assert set(alone.kinds) == {"yes/no object", "yes/no size", "yes/no place", "number", "object", "size", "place"}
  one_name = Questions(World("scenes", vocabulary=1))
  assert {"yes/no number", "size", "place"} <= set(one_name.kinds) and "object" not in one_name.kinds
  for asked in [questions[i] for questions in (alone, one_name) for i in range(40)]:
    assert answers(asked.question, asked.scene) == asked.answer


SOURCE = Source(kind="builtin", split="scenes_questions_val", question_key="question", scenes=Scenes(count=40))


def test_records():
  source = open_source(SOURCE)
  assert len(source) == 40 and [(s.start, s.stop) for s in source.shards] == [(0, 40)]
  record, asked = source[7], source.truth(7)
  assert record == source[7] and record.key == "scenes_questions_val/000007" and record.question == asked.question
  assert [t.text for t in record.texts] == [asked.answer] * 10 and {t.origin for t in record.texts} == {"human"}
  assert (images.decode_eval(record.image, 64) == render(asked.scene, 64)).all()
  with pytest.raises(IndexError, match="has 40 questions, no number 40"):
    source[40]


class Knowing(FakeForward):
  """Answers all questions but those for numbers, which it takes for 2."""

  def answer(self, writer, image, question, decoding, special):
    asked = [self.tokenizer.decode(ids) for ids in np.asarray(question)]
    said = [
      "2" if text.startswith("how many") else self.known[text, i.tobytes()]
      for text, i in zip(asked, image.tokens, strict=True)
    ]
    return Decoded(np.stack([self.tokenizer.encode(text, 12) for text in said])[:, None], np.zeros((len(said), 1)))


def test_what_trains_and_evaluates():
  """The batches of training and the evaluator of VQA, as for any source of questions."""
  source = open_source(SOURCE)
  asked = [source.truth(i) for i in range(len(source))]
  words = train([text for a in asked for text in (a.question, a.answer)] * 4, 300)
  config = Config(
    model=Model(image=ImageEncoder(size=64, patch=16), text=TextDecoder(length=24)),
    answering=Answering(weight=1.0, length=12, answers=1),
    data=Data(sources={"a": SOURCE}, batch=8),
    evals={"vqa": Eval(kind="vqa", batch=8, source=SOURCE)},
  )
  batches = pipeline.train_batches(config, {"a": source}, words, np.arange(8))
  batch, problems = next(batches)
  batches.close()
  assert not problems and (batch["weight"] == 1).all() and (batch["answer_weight"] == 1).all()
  pairs = {(a.question, a.answer) for a in asked}
  said = zip(batch["text"], batch["answers"][:, 0], strict=True)
  assert all((words.decode(question), words.decode(answer)) in pairs for question, answer in said)

  forward = Knowing(words, np.eye(2, dtype=np.float32))
  forward.known = {(a.question, render(a.scene, 64).tobytes()): a.answer for a in asked}
  evaluator = build.make_evaluators(config, forward, words, {"vqa": source})["vqa"]
  right = np.mean([not a.question.startswith("how many") or a.answer == "2" for a in asked])
  assert dict(evaluator.run("params")) == {"accuracy": pytest.approx(right), "examples": 40.0} and right < 1


@pytest.mark.parametrize(
  "settings, message",
  [
    (
      {"split": "scenes_questions_x"},
      "no split 'scenes_questions_x' of questions; there are scenes_questions, ",
    ),
    ({"question_key": "name"}, "takes question_key 'question', not 'name'"),
    ({"question_key": ""}, "takes question_key 'question', not ''"),
    ({"scenes": Scenes(noise=SceneNoise(wrong=0.1))}, r"source\.scenes\.noise is for captions"),
    ({"scenes": Scenes(texts=2)}, r"source\.scenes\.texts is for captions"),
    ({"split": "scenes_questions_new_pairs", "scenes": Scenes(objects=1)}, "no scene with at most 1 of the first 100"),
  ],
)
def test_settings_that_make_no_sense(settings, message):
  with pytest.raises(ValueError, match=message):
    open_source(dataclasses.replace(SOURCE, **settings), "config.evals.vqa.source")
