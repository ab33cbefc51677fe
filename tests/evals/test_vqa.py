"""The evaluator of answers, over a model that answers by the picture's number and the question."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from coca.config import Answering, Config, Eval, Source
from coca.config.special import PAD
from coca.data.questions import encode_candidates, read_answers
from coca.data.records import Record, Text
from coca.data.tokenizers.sentencepiece import train
from coca.decoding.common import Decoded
from coca.evals import build, contact_sheet, sheet_cells
from coca.evals.vqa_accuracy import vqa_accuracy
from support.evals import CONFIG, FakeForward, Source_, green, png

ANSWERS = ("red", "green", "two reds", "two", "no")
QUESTIONS = ("What colour is it?", "How many?")
CONFIG = Config(model=CONFIG.model, answering=Answering(weight=1.0, length=16))


@pytest.fixture(scope="module")
def words():
  return train([f"{q} {a}".lower() for q in QUESTIONS for a in ANSWERS] * 4, 200)


class Answering_(FakeForward):
  """Answer (n + question) % 5 to picture n."""

  def _answers(self, image, question):
    asked = [self.tokenizer.decode(q) == QUESTIONS[1].lower() for q in np.asarray(question)]
    return (self._numbers(image) + asked) % 5

  def answer(self, writer, encoded, question, decoding, special):
    assert writer == "writer" and special == (self.tokenizer.bos, self.tokenizer.eos)
    assert (decoding.strategy, decoding.beams, decoding.max_length) == ("beam", 3, 16)
    self.calls.append("answer")
    text = np.stack([self.tokenizer.encode(ANSWERS[a], 16) for a in self._answers(encoded.tokens, question)])
    return Decoded(text[:, None], np.zeros((len(text), 1), np.float32))

  def rank_answers(self, params, encoded, question, candidates, k):
    assert params == "params" and candidates.dtype == np.int32 and candidates.ndim == 2
    self.calls.append(k)
    row = [self.tokenizer.decode(ids) for ids in candidates].index
    return np.array([row(ANSWERS[a]) for a in self._answers(encoded.tokens, question)], np.int32)


def given(i):
  """Ten annotators of record i: (i % 5) say what the model will, two something else, the rest a third thing."""
  says = ANSWERS[(i + i % 2) % 5]
  return [says] * (i % 5) + ["maybe"] * 2 + ["a third thing"] * (8 - i % 5)


def records(n=23):
  out = [Record(f"k#{i}", png((i, 0, 7)), tuple(map(Text, given(i))), question=QUESTIONS[i % 2]) for i in range(n)]
  out[4] = None  # broken
  out[9] = Record("k#9", png((9, 0, 7)), ())  # no question
  out[14] = Record("k#14", png((14, 0, 7)), (Text(" "),), question=QUESTIONS[0])  # no answers
  return out


def make(words, **settings):
  config = Config(
    model=CONFIG.model,
    answering=CONFIG.answering,
    evals={"q": Eval(kind="vqa", batch=8, source=Source(question_key="question"), **settings)},
  )
  forward = Answering_(words, np.eye(2, dtype=np.float32))
  return build.make_evaluators(config, forward, words, {"q": Source_(records())})["q"], forward


def test_generated_answers(words):
  evaluator, forward = make(words)
  usable = [i for i in range(23) if i not in (4, 9, 14)]
  expected = np.mean([vqa_accuracy(ANSWERS[(i + i % 2) % 5], given(i)) for i in usable])
  found = dict(evaluator.run("params"))
  assert found == {"accuracy": pytest.approx(expected, rel=1e-12), "examples": 20.0} and 0.1 < expected < 0.9
  assert forward.calls == ["answer"] * 3
  assert dict(evaluator.run("params")) == found


def test_the_question_is_the_text(words):
  evaluator, _ = make(words)
  text, weight = (np.concatenate([batch.rows[k] for batch in evaluator.stream]) for k in ("text", "weight"))
  assert text.shape[1] == 1 and [words.decode(t[0]) for t in text[:2]] == [q.lower() for q in QUESTIONS]
  # An evaluator finds out itself whether there are answers.
  assert np.flatnonzero(weight[:23] == 0).tolist() == [4, 9]


@pytest.mark.parametrize(("rank", "k"), [(128, 6), (2, 2)])
def test_answers_from_a_list(tmp_path, words, rank, k):
  (tmp_path / "answers.txt").write_text("no\r\n\n two\nred \ngreen\nno\ntwo  reds\nnot it\n", encoding="utf-8-sig")
  evaluator, forward = make(words, answers=str(tmp_path / "answers.txt"), rank=rank)
  assert evaluator.candidates == ["no", "two", "red", "green", "two reds", "not it"]
  assert dict(evaluator.run("params")) == dict(make(words)[0].run("params"))
  assert forward.calls == [k] * 3


def test_candidates_are_as_long_as_the_longest(words):
  ids = encode_candidates(["no", "two reds"], words, 20)
  longest = np.count_nonzero(words.encode("two reds", 20))
  assert ids.shape == (2, longest) and ids.dtype == np.int32
  assert (ids[0, np.count_nonzero(words.encode("no", 20)) :] == PAD).all()
  assert encode_candidates(["two reds"], words, longest).shape == (1, longest)  # fits exactly


def test_wrong_inputs_are_named(tmp_path, words):
  with pytest.raises(ValueError, match=r"config\.evals\.q: answers: .*none\.txt' can't be read"):
    make(words, answers=str(tmp_path / "none.txt"))
  (tmp_path / "blank.txt").write_text("\n \n")
  with pytest.raises(ValueError, match=r"answers: .*blank\.txt holds none"):
    make(words, answers=str(tmp_path / "blank.txt"))
  (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
  with pytest.raises(ValueError, match=r"answers: .*latin\.txt' can't be read"):
    read_answers(str(tmp_path / "latin.txt"))
  (tmp_path / "long.txt").write_text("no\n" + "two reds " * 30 + "\n")
  with pytest.raises(ValueError, match=r"'two reds two .* more than the 32 tokens of config\.model\.text\.length"):
    make(words, answers=str(tmp_path / "long.txt"))
  empty = SimpleNamespace(encode=lambda text, length: np.array([1, 2] + [0] * (length - 2), np.int32))
  with pytest.raises(ValueError, match=r"'!' has no token"):
    encode_candidates(["!"], empty, 8)


def test_contact_sheet(tmp_path, words):
  for settings in ({}, {"answers": str(tmp_path / "answers.txt")}):
    (tmp_path / "answers.txt").write_text("\n".join(ANSWERS))
    evaluator, _ = make(words, **settings)
    cells = sheet_cells.held_out_cells(evaluator, "params", 23)
    usable = [i for i in range(23) if i not in (4, 9, 14)]
    assert [c.question for c in cells] == [QUESTIONS[i % 2].lower() for i in usable]
    assert [c.caption for c in cells] == [ANSWERS[(i + i % 2) % 5] for i in usable]
    assert [list(c.truth) for c in cells] == [given(i) for i in usable]
    contact_sheet.write_contact_sheet({"q": evaluator}, "params", tmp_path / "sheet.png", 6)
    assert green(Image.open(tmp_path / "sheet.png")) > 0.001


def test_the_file_for_the_server(tmp_path, words):
  asked = [{"question_id": 100 * i, "image_id": i, "question": QUESTIONS[i % 2]} for i in range(23)]
  path = tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json"
  path.write_text(json.dumps({"task_type": "Open-Ended", "questions": asked}))
  evaluator, _ = make(words, annotations=str(path))
  evaluator.records.records[:] = [
    r and Record(f"test2015/COCO_test2015_{i:012d}.jpg", r.image, r.texts, question=r.question)
    for i, r in enumerate(evaluator.records.records)
  ]
  dict(evaluator.run("params"))
  told = [i for i in range(23) if i not in (4, 9)]  # broken, and without a question
  assert evaluator.results == [{"question_id": 100 * i, "answer": ANSWERS[(i + i % 2) % 5]} for i in told]
