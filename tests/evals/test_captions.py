"""How captions are asked for, and what a server is given, over a model whose embeddings are known."""

import json

import numpy as np
import pytest

from coca import config as settings_
from coca.config import Config, Contrastive, Data, Decoding, Eval, Source
from coca.data.records import Record, Text
from coca.data.tokenizers.sentencepiece import train
from coca.decoding.decode import own_prompt
from coca.decoding.settings import beam_search
from coca.evals import build, caption_metrics
from coca.evals.server import image_of, questions_of, read_images, read_questions, write_results
from support.evals import CONFIG, NAMES, FakeForward, Source_, embeddings, png, record

BLIP = Decoding(strategy="beam", beams=3, min_length=5, max_length=20, length_normalisation="whole")


@pytest.fixture(scope="module")
def tokenizer():
  return train([f"a photo of {name}" for name in NAMES] * 4, 100)


def make(tokenizer, settings, records, forward=None, **config):
  config = Config(model=CONFIG.model, evals={"x": settings}, **config)
  forward = forward or FakeForward(tokenizer, None)
  return build.make_evaluators(config, forward, tokenizer, {"x": Source_(records)})["x"], forward


def test_captions_are_written_as_the_evaluators_settings_say(tokenizer):
  records = [record(i, NAMES[i]) for i in range(8)]
  beams = run(tokenizer, records, beams=3)
  found, forward = run(tokenizer, records, decoding=BLIP, prompt="a photo of ")
  assert forward.decoding == BLIP and beams[1].decoding == beam_search(3) and "prompt" not in beams[1].given
  prompt, begins = own_prompt(CONFIG, tokenizer, 8, 20, "a photo of ")
  assert (forward.given["prompt"] == prompt["prompt"]).all() and begins == 9
  # Judged is what comes after the prompt, which the true texts have in front of them too.
  assert found["nll"] > 0 and found["exact_match"] == 0 < beams[0]["exact_match"] == 1
  drawn = Decoding(strategy="sample", top_p=0.9)
  assert run(tokenizer, records, decoding=drawn)[1].given["ids"].tolist() == list(range(8))


def run(tokenizer, records, **settings):
  evaluator, forward = make(tokenizer, Eval(kind="captions", **settings), records)
  return dict(evaluator.run(None)), forward


def test_clip_scores_are_of_the_models_own_embeddings(tokenizer):
  records = [record(i, *texts) for i, texts in enumerate([NAMES[:2], NAMES[3:4], NAMES[2:5], NAMES[:1]])]
  records[1] = None
  table = dict(zip(NAMES, embeddings(1, 8, 6), strict=True))
  forward = FakeForward(tokenizer, embeddings(2, 4, 6), table)
  evaluator, _ = make(tokenizer, Eval(kind="captions", batch=8), records, forward)
  found = dict(evaluator.run(None))
  kept = [0, 2, 3]
  cosines = np.array([forward.image_table[i].astype(np.float64) @ table[NAMES[i]] for i in kept]).clip(0)
  best = [max(0, *(table[NAMES[i]] @ table[t.text].astype(np.float64) for t in records[i].texts)) for i in kept]
  assert found["clip_score"] == pytest.approx(2.5 * cosines.mean(), rel=1e-6) and cosines.max() > 0
  both = [2 * a * b / (a + b) if a + b else 0 for a, b in zip(2.5 * cosines, best, strict=True)]
  assert found["ref_clip_score"] == pytest.approx(np.mean(both), rel=1e-6)
  alone, _ = make(tokenizer, Eval(kind="captions"), records, contrastive=Contrastive(weight=0.0))
  assert "clip_score" not in dict(alone.run(None))


NOCAPS = {
  "licenses": [],
  "images": [
    {"id": 7 * i, "file_name": f"{i:016x}.jpg", "domain": domain, "width": 8, "height": 8}
    for i, domain in enumerate(["in-domain", "near-domain", "near-domain", "out-domain"])
  ],
  "annotations": [{"image_id": 0, "id": 0, "caption": "a cat"}],
}


def test_nocaps_by_domain_and_the_file_for_its_server(tokenizer, tmp_path):
  """Each domain's document frequencies are its own, as if it were evaluated alone."""
  path = tmp_path / "nocaps_val_4500_captions.json"
  path.write_text(json.dumps(NOCAPS))
  texts = ([NAMES[0], "a dog"], ["a blue pear and a big cow"], ["the blue plum of a man"], [NAMES[3]])
  records = [Record(f"val/{i:016x}.jpg", png((i, 0, 7)), tuple(map(Text, t))) for i, t in enumerate(texts)]
  settings = Eval(kind="captions", batch=8, annotations=str(path), source=Source(path="there"))
  assert build.places(Config(evals={"x": settings}))["config.evals.x.annotations"] == str(path)
  evaluator, _ = make(tokenizer, settings, records)
  found = dict(evaluator.run(None))
  assert evaluator.results == [{"image_id": 7 * i, "caption": NAMES[i]} for i in range(4)]
  for domain, of in (("in", [0]), ("near", [1, 2]), ("out", [3])):
    alone = dict(caption_metrics.scores([NAMES[i] for i in of], [texts[i] for i in of]))
    assert {name: found[f"{name}_{domain}"] for name in alone} == alone and found[f"examples_{domain}"] == len(of)
  assert found["exact_match_near"] == 0 < found["exact_match_out"] == 1 and found["examples"] == 4
  evaluator.records.records[0] = Record("val/other.jpg", png((0, 0, 7)), (Text("a"),))
  evaluator._known.clear()
  with pytest.raises(ValueError, match=r"no image called 'val/other\.jpg'"):
    dict(evaluator.run(None))


def test_a_test_set_without_texts_is_captioned_for_the_server(tokenizer, tmp_path):
  images = [{"id": i, "file_name": f"COCO_test2014_{i:012d}.jpg"} for i in range(3)]
  (tmp_path / "image_info_test2014.json").write_text(json.dumps({"images": images}))
  settings = {"kind": "captions", "annotations": str(tmp_path / "image_info_test2014.json")}
  records = [Record(f"000{i}.png", png((i, 0, 7)), ()) for i in range(3)]  # found by their numbers
  evaluator, _ = make(tokenizer, Eval(**settings, source=Source(text_key="")), records)
  found = dict(evaluator.run(None))
  assert evaluator.results == [{"image_id": i, "caption": NAMES[i]} for i in range(3)] and found["examples"] == 0
  write_results(evaluator, tmp_path / "results.json")
  assert json.loads((tmp_path / "results.json").read_text()) == evaluator.results
  evaluator, _ = make(tokenizer, Eval(**settings), records)  # texts are wanted: records without them are no use
  assert not dict(evaluator.run(None))["examples"] and not evaluator.results
  write_results(evaluator, tmp_path / "none.json")
  assert not (tmp_path / "none.json").exists()


def test_annotations_of_servers(tmp_path):
  path = tmp_path / "a.json"
  for text, message in (
    ("[]", "holds a list"),
    ('{"questions": []}', "images is missing"),
    ('{"images": [3]}', "3 stands"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json.*{message}|{message}"):
      read_images(str(path))
  with pytest.raises(ValueError, match=r"annotations: .*b\.json' can't be used"):
    read_questions(str(tmp_path / "b.json"))
  path.write_text(json.dumps(NOCAPS))
  assert image_of(read_images(str(path)), f"x/y/{3:016x}") == (21, "out")
  asked = [
    {"question_id": n, "image_id": 42, "question": q} for n, q in ((420, "Is it?"), (421, "Why?"), (422, "Is it?"))
  ]
  path.write_text(json.dumps({"questions": asked}))
  found = read_questions(str(path))
  assert questions_of(found, "COCO_val2014_000000000042.jpg#1", "is it?") == [420, 422]
  with pytest.raises(ValueError, match="no question 'Who'"):
    questions_of(found, "42", "Who")


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (Eval(kind="retrieval", prompt="a"), r"x\.prompt a is for kind 'captions', not 'retrieval'"),
    (Eval(kind="captions", beams=3, decoding=BLIP), r"x\.beams 3 stands in place of"),
    (Eval(kind="captions", decoding=Decoding(strategy="sample", n=2)), r"x\.decoding\.n 2: one caption"),
    (Eval(kind="retrieval", annotations="a.json"), r"annotations 'a\.json' is for kinds 'captions' and 'vqa'"),
  ],
)
def test_settings_that_make_no_sense(settings, message):
  draft = settings_.default()
  draft.evals.x = settings_.to_dict(settings)
  with pytest.raises(ValueError, match=message):
    settings_.parse(draft)


def test_decoding_is_a_setting_like_any_other_and_old_configs_have_none(tokenizer):
  draft = settings_.default()
  draft.evals.x = settings_.to_dict(Eval(kind="captions"))
  draft.evals.x.decoding.update(strategy="beam", beams=3, min_length=5, max_length=20, length_normalisation="whole")
  assert settings_.parse(draft).evals["x"].decoding == BLIP
  old = settings_.to_dict(Eval(kind="captions", beams=3)).to_dict()
  for name in ("decoding", "prompt", "java_metrics", "annotations"):
    del old[name]
  draft.evals.x = old
  assert settings_.parse(draft).evals["x"] == Eval(kind="captions", beams=3)
  with pytest.raises(ValueError, match=r"config\.evals\.x: decoding: max_length 40 is more than the 32 tokens"):
    make(tokenizer, Eval(kind="captions", decoding=Decoding(max_length=40)), [record(0, "a")], data=Data())
