"""Questions with their annotators' answers: every source's format, and the batches they become."""

import io
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from coca import config as settings
from coca.capfilt import settings as capfilt
from coca.data import pipeline, questions
from coca.data.records import BadRecord, Record, Text
from coca.data.sources import open_source
from coca.data.tokenizers import load, sentencepiece
from coca.recipes import blip as blip_recipes
from support.tars import tar

# A picture with two questions, and one whose question is missing.
ASKED = [
  (0, "What color is it?", ["red", "red", "dark red"]),
  (1, "Is it (very) small?", ["no", "yes", "no", "no"]),
  (0, "How many?", ["2"]),
  (1, None, ["lost"]),
]


def picture(n):
  out = io.BytesIO()
  Image.new("RGB", (8 + n, 8), (40 * n, 2, 3)).save(out, "PNG")
  return out.getvalue()


def opened(kind, path="", **changes):
  names = {"question_key": "question", "text_key": "answer"}
  return open_source(settings.Source(kind=kind, path=str(path), **names | changes))


def check(source, keys, origin):
  """All of ASKED, the records without a question being the last."""
  for i, ((n, question, answers), key) in enumerate(zip(ASKED[:3], keys, strict=True)):
    assert source[i] == Record(key, picture(n), tuple(Text(a, origin) for a in answers), question=question)
  with pytest.raises(BadRecord, match="no question"):
    source[3]
  assert len(source) == 4 and len({source[i].key for i in range(3)}) == 3


def nested(answers):
  """As VQA v2's annotations have them."""
  return [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(answers, 1)]


# --- Sources ---


@pytest.mark.parametrize("name", ["captions.json", "captions.jsonl"])
@pytest.mark.parametrize("text_key", ["answer", "answers.answer"])
def test_folder(tmp_path, name, text_key):
  """BLIP's own files: a JSON list of an image's path, a question and a list of answers."""
  rows = [{"image": f"{n}.png", "question_id": i, **({"question": q} if q else {}), "answer": answers,
           "answers": nested(answers)} for i, (n, q, answers) in enumerate(ASKED)]  # fmt: skip
  for n in range(2):
    (tmp_path / f"{n}.png").write_bytes(picture(n))
  (tmp_path / name).write_text(json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows)))
  source = opened("folder", tmp_path, text_key=text_key)
  check(source, ["0.png", "1.png", "0.png#1"], "human")
  assert "1 rows can't be used" in source.problems[0]
  # Without `question_key` all is as it was: rows with the same image are one record.
  captions = opened("folder", tmp_path, text_key=text_key, question_key="")
  assert [r.key for r in map(captions.__getitem__, range(len(captions)))] == ["0.png", "1.png"]
  assert [t.text for t in captions[0].texts] == ["red", "red", "dark red", "2"] and captions[0].question == ""


def test_folder_keys_are_unique_whatever_files_are_called(tmp_path):
  rows = [f"{name},q {i},a\n" for i, name in enumerate(["a", "a#1", "a", "a", "a#1"])]
  (tmp_path / "captions.csv").write_text("file_name,question,answer\n" + "".join(rows))
  for name in ("a.png", "a#1.png"):
    (tmp_path / name).write_bytes(picture(0))
  source = opened("folder", tmp_path)
  found = [source[i] for i in range(len(source))]
  assert [r.question for r in found] == [f"q {i}" for i in range(5)]
  assert [r.key for r in found] == ["a", "a#1", "a#2", "a#3", "a#1#1"]


def test_folder_errors(tmp_path):
  (tmp_path / "a.png").write_bytes(picture(0))
  (tmp_path / "a.txt").write_text("a text")
  with pytest.raises(FileNotFoundError, match=r"question_key is 'question': .* has no table with questions"):
    opened("folder", tmp_path)
  (tmp_path / "captions.csv").write_text("file_name,answer\na.png,red\n")
  missing = r"question_key: captions\.csv .* has no column question; it has: file_name, answer"
  with pytest.raises(ValueError, match=missing):
    opened("folder", tmp_path)
  (tmp_path / "captions.json").write_text(
    json.dumps(
      [{"image": "a.png", "question": "q", "answer": "a"}, {"image": "a.png", "question": ["q", "r"], "answer": "a"}]
    )
  )
  (tmp_path / "captions.csv").unlink()
  with pytest.raises(BadRecord, match="entry 2: 2 questions: each takes a record of its own"):
    opened("folder", tmp_path)[1]


@pytest.mark.parametrize("text_key", ["answer", "answers.answer"])
def test_parquet(tmp_path, text_key):
  """Hugging Face's layout of VQA v2: an image struct, and structs of answers."""
  pq.write_table(pa.table({
    "image": [{"bytes": picture(n), "path": f"{n}.png"} for n, _, _ in ASKED], "question": [q for _, q, _ in ASKED],
    "answer": [a for _, _, a in ASKED], "answers": [nested(a) for _, _, a in ASKED],
    "qa": [{"question": q} for _, q, _ in ASKED],
  }), tmp_path / "x.parquet", row_group_size=3)  # fmt: skip
  for key in ("question", "qa.question"):
    check(opened("parquet", tmp_path, text_key=text_key, question_key=key), [f"x.parquet:{i}" for i in range(3)], "web")
  for wrong, message in (
    ({"question_key": "frage"}, "question_key is 'frage', and there is no such column of text"),
    ({"text_key": "answers.text"}, r"text_key is 'answers\.text', and there is no such column"),
  ):
    with pytest.raises(ValueError, match=message):
      opened("parquet", tmp_path, **wrong)


@pytest.mark.parametrize("text_key", ["answer", "answers.answer"])
def test_webdataset(tmp_path, monkeypatch, text_key):
  monkeypatch.setenv("COCA_CACHE", str(tmp_path / "cache"))
  members = {}
  for i, (n, question, answers) in enumerate(ASKED):
    asked = {"question": question, "qa": {"question": question}} if question else {}
    meta = {"answer": answers, "answers": nested(answers)} | asked
    members |= {f"{i:03d}.png": picture(n), f"{i:03d}.json": json.dumps(meta).encode(), f"{i:03d}.txt": b"a caption"}
  (tmp_path / "0.tar").write_bytes(tar(members))
  for key in ("question", "qa.question"):
    check(opened("webdataset", tmp_path, text_key=text_key, question_key=key), ["000", "001", "002"], "web")
  assert opened("webdataset", tmp_path, text_key="caption", question_key="")[3].texts == (Text("a caption"),)
  for wrong, message in (
    ({"question_key": "frage"}, "question_key is 'frage': .* JSON; it has: answer, answers, qa"),
    ({"text_key": "caption"}, "text_key is 'caption': .* JSON; it has: answer, answers, qa"),
  ):
    with pytest.raises(ValueError, match=message):
      opened("webdataset", tmp_path, **wrong)
  (tmp_path / "0.tar").write_bytes(tar({"0.png": picture(0), "0.txt": b"a caption"}))
  with pytest.raises(ValueError, match=r"no record has a member"):
    opened("webdataset", tmp_path)


class Asked(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  code_path = None  # see coca/data/builtin/builder.py

  def _info(self):
    text = tfds.features.Text
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(),
          "key": text(),
          "question": text(),
          "answers": tfds.features.Sequence({"answer": text(), "answer_id": tfds.features.Scalar(np.int64)}),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, (n, question, answers) in enumerate(ASKED):
      yield (
        i,
        {
          "image": picture(n),
          "key": f"q{i}",
          "question": question or " ",
          "answers": [{"answer": a, "answer_id": j} for j, a in enumerate(answers)],
        },
      )


def test_tfds(tmp_path):
  Asked(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  source = opened("tfds", tmp_path / "asked", text_key="answers.answer")
  found = {}
  for i in range(4):  # tfds shuffles
    try:
      found[source[i].key] = source[i]
    except BadRecord as e:
      assert "no question" in str(e)
  assert found == {
    f"q{i}": Record(f"q{i}", picture(n), tuple(map(Text, a)), question=q) for i, (n, q, a) in enumerate(ASKED[:3])
  }
  for wrong in ("frage", "answers.answer"):  # a list of questions is none
    with pytest.raises(ValueError, match=f"question_key '{wrong}': .* has no such feature"):
      opened("tfds", tmp_path / "asked", text_key="answers.answer", question_key=wrong)


def test_builtin():
  plain = open_source(settings.Source(kind="builtin", split="unseen_concepts"))
  source = opened("builtin", split="unseen_concepts", question_key="name", text_key="caption")
  assert len(source) == 3 * len(plain) and [s.stop for s in source.shards] == [3 * s.stop for s in plain.shards]
  others, names = Counter(), {questions.clean(name) for name in plain.label_names}
  for i, record in enumerate(map(plain.__getitem__, range(len(plain)))):
    what, right, wrong = (source[3 * i + k] for k in range(3))
    name = questions.clean(record.texts[0].text)
    assert {what.image, right.image, wrong.image} == {record.image}
    assert [r.key for r in (what, right, wrong)] == [record.key, f"{record.key}#1", f"{record.key}#2"]
    assert (what.question, what.texts) == ("what does it show?", (Text(name, "human"),))
    assert (right.question, right.texts[0].text) == (f"does it show {name}?", "yes")
    other = wrong.question.removeprefix("does it show ").removesuffix("?")
    assert other != name and other in names and wrong.texts[0].text == "no"
    assert wrong == source[3 * i + 2]
    others[other] += 1
  assert len(others) > 0.9 * len(names) and max(others.values()) < 15  # spread over the names
  with pytest.raises(IndexError):
    source[len(source)]
  with pytest.raises(ValueError, match="question_key 'tags': kind 'builtin' has 'name'"):
    opened("builtin", question_key="tags")
  with pytest.raises(ValueError, match="has a single name"):
    opened("builtin", split="train[:1]", question_key="name")


def test_settings_that_do_not_fit():
  def parse(source=None, eval=None, **changes):
    config = settings.default()
    blip_recipes.model(config)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    if source:
      config.data.sources.a = settings.to_dict(source)
    if eval:
      config.evals.e = settings.to_dict(eval)
    return settings.parse(config)

  asked = settings.Source(question_key="question", text_key="answer")
  only = {"answering__weight": 1.0, "captioning__weight": 0.0, "contrastive__weight": 0.0}
  parse(**only, source=asked)
  for changes, message in (
    ({"source": asked}, r"config\.data\.sources\.a\.question_key is 'question' and config\.answering\.weight 0"),
    ({**only, "source": settings.Source()}, r"sources\.a\.question_key is '' and .*weight 1"),
    ({"eval": settings.Eval(kind="vqa")}, r"config\.evals\.e\.source\.question_key is ''.*a vqa evaluator needs"),
    ({"eval": settings.Eval(source=asked)}, r"evals\.e\.source\.question_key is 'question' and kind 'zero_shot'"),
    ({**only, "source": settings.Source(question_key="q", answer_weight=0.0)}, r"answer_weight 0\.0"),
    ({"answering__weight": 1.0, "source": asked}, r"answering\.weight needs .* config\.captioning\.weight 0"),
    ({**only, "model__text__multimodal_layers": 0, "source": asked}, r"needs .*multimodal_layers above 0"),
    ({**only, "model__kind": "coca", "source": asked}, r"answering\.weight needs config\.model\.kind 'blip'"),
    ({"answering__length": 2}, r"config\.answering\.length 2 holds BOS, EOS and no answer"),
    ({"answering__answers": 0}, r"config\.answering\.answers is 0; it takes 1 or more"),
    ({"eval": settings.Eval(kind="vqa", rank=0, source=asked)}, r"config\.evals\.e\.rank is 0"),
  ):
    with pytest.raises(ValueError, match=message):
      parse(**changes)
  with pytest.raises(ValueError, match=r"question_key is 'question'; set .*text_key to what holds the answers"):
    opened("folder", text_key="")
  with pytest.raises(ValueError, match=r"question_key and .*sidecars are both set"):
    opened("folder", sidecars="runs/capfilt")
  # Jobs that began before there were questions go on.
  assert not {"question_key", "answer_weight"} & set(capfilt.described(capfilt.CapFilt(captioner="x"))["source"])
  job = settings.to_dict(capfilt.CapFilt(captioner="x", source=asked))
  with pytest.raises(ValueError, match=r"config\.source\.question_key: answers are no captions"):
    capfilt.parse(job)
  job.source.update(question_key="", videos=True, kind="webdataset", path="x")
  with pytest.raises(ValueError, match=r"config\.source\.videos: texts are written for images"):
    capfilt.parse(job)


# --- Questions, answers and their weights ---


def test_clean():
  """Cases whose results the rule of BLIP's `pre_question` gives: taken out, not replaced by spaces."""
  assert questions.clean('Is "THIS" (a) cat: or #1 dog; *really*?!') == "is this a cat or 1 dog really?"
  assert questions.clean("what's on the man's t-shirt/hat.  ") == "what's on the man's t-shirt/hat"
  assert questions.clean("3.5~4") == "354" and questions.clean(" ... ") == ""
  words = [f"w{i}" for i in range(60)]
  assert questions.clean(" ".join(words)) == " ".join(words[:50])
  assert questions.clean(questions.clean("A. b! ")) == questions.clean("A. b! ")
  with pytest.raises(BadRecord, match="no question"):
    questions.question_of(Record("k", b"", (Text("yes"),), question="(!)"))


def test_weighed_answers():
  given = ["no", "yes", "no", "maybe", "no", "yes", "no", "b", "a", "no"]
  assert questions.weighed_answers(given, 10) == [("no", 0.5), ("yes", 0.2), ("maybe", 0.1), ("b", 0.1), ("a", 0.1)]
  assert questions.weighed_answers(given, 4) == [("no", 0.5), ("yes", 0.2), ("maybe", 0.1), ("b", 0.1)]
  assert questions.weighed_answers(["a"], 3) == [("a", 1.0)]


class Questions:
  """In memory; a quarter of them can't be used."""

  name, problems, label_names = "memory", (), ()

  def __len__(self):
    return 20

  def __getitem__(self, i):
    answers = [f"answer {j % (1 + i % 5)}" for j in range(10)]
    question = f"Number {i}: is it?"
    if i % 8 == 3:
      question = " ! " if i == 3 else ""
    if i % 8 == 7:
      answers = [" ", ""]
    return Record(str(i), picture(i % 4), tuple(map(Text, answers)), question=question)


@pytest.fixture(scope="module")
def words():
  return sentencepiece.train([f"number {i} is it? answer {i % 5}" for i in range(100)], 100)


def make_config(threads=2, **answering):
  source = settings.Source(question_key="q", answer_weight=0.2)
  image, text = settings.ImageEncoder(size=8, patch=8), settings.TextDecoder(length=24)
  return settings.Config(
    answering=settings.Answering(weight=1.0, **{"answers": 4, "length": 12, **answering}),
    model=settings.Model(image=image, text=text),
    data=settings.Data(sources={"q": source}, batch=8, threads=threads),
  )


def batches(config, words, rows=range(8), start=0, count=5):
  stream = pipeline.train_batches(config, {"q": Questions()}, words, rows, start)
  try:
    return [next(stream) for _ in range(count)]
  finally:
    stream.close()


def test_batches(words):
  seen, reasons = Counter(), Counter()
  for batch, problems in batches(make_config(), words):
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
      "image": ((8, 8, 8, 3), "uint8"),
      "text": ((8, 24), "int32"),
      "last": ((8,), "int32"),
      "hashes": ((8, 2), "uint32"),
      "weight": ((8,), "float32"),
      "answers": ((8, 4, 12), "int32"),
      "answer_weight": ((8, 4), "float32"),
    }
    reasons.update(problem.rpartition(": ")[2] for problem in problems)
    assert (batch["weight"] == 0).sum() == len(problems)
    for row in range(8):
      text, weights = words.decode(batch["text"][row]), batch["answer_weight"][row]
      answers = [words.decode(ids) for ids in batch["answers"][row]]
      if batch["weight"][row] == 0:
        assert text == "" and not weights.any() and not batch["answers"][row].any()
        continue
      i = int(text.removeprefix("number ").removesuffix(" is it?"))
      counts = Counter(f"answer {j % (1 + i % 5)}" for j in range(10)).most_common(4)
      assert answers == [a for a, _ in counts] + [""] * (4 - len(counts))
      expected = np.array([0.2 * n / 10 for _, n in counts] + [0.0] * (4 - len(counts)))
      np.testing.assert_allclose(weights, expected, rtol=1e-6)
      assert (batch["answers"][row, : len(counts), 0] == sentencepiece.BOS).all()
      seen[i] += 1
  assert set(seen.values()) == {2} and len(seen) == 15 and reasons == {"no question": 6, "no answer": 4}


def test_long_answers_are_cut(words):
  batch, _ = batches(make_config(length=4), words, count=1)[0]
  real = batch["answers"][batch["answer_weight"] > 0]
  assert (real[:, -1] > sentencepiece.UNK).all() and real.shape[1] == 4  # no EOS: they go on


def test_hosts_threads_and_restarts_do_not_matter(words):
  whole = batches(make_config(threads=1), words)
  for rows, start, threads in (([0, 2, 4, 6], 0, 3), ([5], 0, 1), (range(8), 3, 4)):
    part = batches(make_config(threads=threads), words, rows, start, 5 - start)
    for (a, _), (b, _) in zip(whole[start:], part, strict=True):
      assert all(np.array_equal(a[k][list(rows)], b[k]) for k in a)


def test_tokenizers_are_trained_on_questions_too():
  found = list(load.texts_of({"q": Questions()}, {"q": settings.Source(question_key="q", text="first")}, 100, 0))
  assert found[0] == "number 0 is it? answer 0"
