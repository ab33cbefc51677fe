"""Videos of scenes: retrieval against a float64 formula over their frames' embeddings; classes, captions, answers."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest

from coca import evaluate
from coca.config import Classification, Eval, Matching, Source
from coca.data.scenes import export
from coca.data.scenes.videos import ACTIONS
from coca.data.sources import open_source
from coca.data.tokenizers.sentencepiece import train
from coca.devices import sharding
from coca.evals import build, caption_metrics
from coca.evals.retrieval import Retrieval
from coca.evals.sheet_cells import retrieval_cells
from coca.inference.captioner import ContrastiveCaptioner
from coca.inference.forward import Forward
from coca.inference.images import prepared_video
from support.evals import recalls64
from support.films import middles
from support.workdirs import random_params, small_config

COUNT = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """MSR-VTT's test, of scenes: 8 captions a video. One video is truncated."""
  folder = tmp_path_factory.mktemp("films") / "MSRVTT"
  export.main(["--task=msrvtt", f"--out={folder}", f"--count={COUNT}", "--split=scenes_val", "--pixels=32"])
  broken = folder / "TestVideo" / "video2.mp4"
  broken.write_bytes(broken.read_bytes()[:-100])
  return folder


@pytest.fixture(scope="module")
def model(folder):
  said = [s["caption"] for s in json.loads((folder / "test_videodatainfo.json").read_text())["sentences"]]
  config = small_config(folder)
  forward = Forward(config, sharding.make_mesh())
  return ContrastiveCaptioner(config, train(said * 4, 200), forward, random_params(forward))


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory):
  """Kinetics' validation, of scenes; one of its videos is gone."""
  folder = tmp_path_factory.mktemp("kinetics")
  export.main(["--task=kinetics", f"--out={folder}", f"--count={COUNT}", "--split=scenes_val", "--pixels=32"])
  next((folder / "val").rglob("scene000003_*.mp4")).unlink()
  return folder


def with_head(folder, names, **settings):
  """A model with a class head and random parameters."""
  settings = Classification(weight=1.0, classes=len(names), **settings)
  config = small_config(folder, classification=settings)
  if settings.pool == "attention":
    text = replace(config.model.text, unimodal_layers=0, multimodal_layers=0)
    off = {name: replace(getattr(config, name), weight=0.0) for name in ("contrastive", "captioning")}
    config = replace(config, model=replace(config.model, text=text), **off)
  forward = Forward(config, sharding.make_mesh())
  return ContrastiveCaptioner(config, train(["what is it that moves"] * 8, 40), forward, random_params(forward), names)


def each_frame(path):
  with av.open(str(path)) as container:
    return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def mean64(model, path, count):
  """The mean of the unit embeddings of the frames in the middle of `count` equal parts, of unit length."""
  frames = each_frame(path)
  embedded = model.embed_images(np.stack([frames[n] for n in middles(len(frames), count)])).astype(np.float64)
  embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
  return embedded.mean(0) / np.linalg.norm(embedded.mean(0))


@pytest.mark.slow
@pytest.mark.parametrize("frames, name", [(16, ""), (5, "MSRVTT_JSFUSION_test.csv")])
def test_recalls_are_the_formula_over_frames(model, folder, tmp_path, monkeypatch, frames, name):
  monkeypatch.setattr(evaluate.inference, "load", lambda *_: model)
  arguments = ["--model=model", f"--data={folder / name}", f"--out={tmp_path}", f"--frames={frames}", "--batch=40"]
  evaluate.main(arguments)
  (result,) = json.loads((tmp_path / "results.json").read_text())["results"].values()
  table = json.loads((folder / "test_videodatainfo.json").read_text())
  kept = [video["video_id"] for video in table["videos"] if video["video_id"] != "video2"]
  images = np.stack([mean64(model, folder / "TestVideo" / f"{v}.mp4", frames) for v in kept])
  said = [(kept.index(s["video_id"]), s["caption"]) for s in table["sentences"] if s["video_id"] in kept]
  if name:  # a sentence a video
    said = [next(pair for pair in said if pair[0] == k) for k in range(len(kept))]
  owners, texts = np.array([own for own, _ in said]), [text for _, text in said]
  _, words = np.unique(
    [model.tokenizer.encode(text, model.config.model.text.length) for text in texts], axis=0, return_inverse=True
  )
  want = recalls64(images, model.embed_texts(texts), words.reshape(-1), owners, equal_texts=False)
  want = {k.replace("i2t", "v2t").replace("t2i", "t2v"): value for k, value in want.items()}
  assert result["numbers"] == pytest.approx(want | {"examples": COUNT - 1}, abs=1e-12)
  assert result["main"] == ["v2t_r1 and t2v_r1", pytest.approx((want["v2t_r1"] + want["t2v_r1"]) / 2)]
  assert 0 < want["t2v_r1"] < 1
  assert any("video2.mp4: truncated: 100 bytes" in problem for problem in result["problems"])


@pytest.mark.slow
def test_embeddings_are_the_formula_over_frames(model, folder):
  paths = [folder / "TestVideo" / f"video{n}.mp4" for n in range(4)]
  want = np.stack([mean64(model, path, 3) if n != 2 else np.full(16, np.nan) for n, path in enumerate(paths)])
  np.testing.assert_allclose(model.embed_videos(paths, frames=3, skip_broken=True), want, atol=1e-6)
  np.testing.assert_allclose(model.embed_videos(str(paths[0]), frames=3), want[:1], atol=1e-6)
  with pytest.raises(ValueError, match=r"can't read the video .*video2\.mp4: truncated: 100 bytes.*skip_broken=True"):
    model.embed_videos(paths, frames=3)


@pytest.mark.slow
def test_classes_of_videos_are_the_evaluators(kinetics, tmp_path, monkeypatch):
  """By Kinetics' table, and by folders; of arrays as of files."""
  names = tuple(sorted(ACTIONS))
  model = with_head(kinetics, names, images=3, frame_positions=True)
  monkeypatch.setattr(evaluate.inference, "load", lambda *_: model)
  paths = sorted((kinetics / "val").rglob("*.mp4"), key=lambda path: path.name)
  p = model.classify(paths)
  right = [names[row.argmax()] == path.parent.name for row, path in zip(p, paths, strict=True)]
  best = [path.parent.name in [names[k] for k in np.argsort(-row)[:5]] for row, path in zip(p, paths, strict=True)]
  assert 0 < np.mean(best) < 1
  for data in (kinetics / "val.csv", kinetics / "val"):
    out = tmp_path / data.name
    evaluate.main(["--model=model", f"--data={data}", f"--out={out}"])
    (result,) = json.loads((out / "results.json").read_text())["results"].values()
    assert result["numbers"] == {
      "top1": pytest.approx(np.mean(right)),
      "top5": pytest.approx(np.mean(best)),
      "examples": COUNT - 1,
    }
  frames = np.stack(each_frame(paths[0]))
  np.testing.assert_allclose(model.classify(frames), p[:1], atol=1e-6)
  assert np.abs(model.classify([frames[::-1]]) - p[:1]).max() > 1e-3
  with pytest.raises(ValueError, match="tells 3 frames apart"):
    model.classify(paths[0], frames=4)
  with pytest.raises(ValueError, match=r"uint8 \[frames, height, width, 3\], not uint8 \[0, 32, 32, 3\]"):
    model.classify(frames[:0])


@pytest.mark.slow
def test_zero_shot_classes_are_those_of_the_mean_embedding(model, folder):
  paths, labels = [folder / "TestVideo" / f"video{n}.mp4" for n in (0, 1)], ["a cat moves", "a dog grows"]
  logits = np.exp(np.asarray(model.params["temperature"]["log_scale"], np.float64)) * (
    np.stack([mean64(model, path, 3) for path in paths]) @ model.embed_texts(labels).T.astype(np.float64)
  )
  want = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(model.classify(paths, labels, frames=3), want, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_captions_of_videos_are_the_evaluators(model, folder):
  """MSR-VTT's sentences are the references."""
  source = Source(kind="folder", path=str(folder), split="test", videos=True)
  settings = Eval(kind="captions", source=source, frames=3, batch=6)
  config = replace(model.config, evals={"told": settings})
  records = open_source(source)
  made = build.make_evaluators(config, model.forward, model.tokenizer, {"told": records})["told"]
  found = dict(made.run(model.params))
  kept = [n for n in range(COUNT) if n != 2]
  told = model.caption([folder / "TestVideo" / f"video{n}.mp4" for n in kept], frames=3)
  references = [[text.text for text in records[n].texts] for n in kept]
  want = dict(caption_metrics.scores(told, references))
  assert {name: found[name] for name in want} == pytest.approx(want) and found["examples"] == COUNT - 1
  stills = model.caption([each_frame(folder / "TestVideo" / f"video{n}.mp4")[8] for n in kept])
  assert told != stills and len(set(told)) > 1
  assert model.caption([folder / "TestVideo" / "video2.mp4"], frames=3, skip_broken=True) == [None]


@pytest.mark.slow
def test_answers_about_videos_are_the_evaluators(folder, tmp_path, monkeypatch):
  """MSRVTT-QA's file, where some of the answers are the model's: the share of these is the accuracy."""
  names = ("cat", "dog", "a ball", "two")
  model = with_head(folder, names, pool="text")
  kept = [n for n in range(COUNT) if n != 2]
  paths = [folder / "TestVideo" / f"video{n}.mp4" for n in kept]
  said = model.answer(paths, "what is it that moves", frames=4)
  wrong = [names[(names.index(answer) + 1) % 4] for answer in said]
  rows = [
    {"video_id": n, "question": "what is it that moves", "answer": (said if k % 3 else wrong)[k], "id": 10 + k}
    for k, n in enumerate(kept)
  ]
  (folder / "test_qa.json").write_text(json.dumps(rows))
  monkeypatch.setattr(evaluate.inference, "load", lambda *_: model)
  evaluate.main(["--model=model", f"--data={folder}/test_qa.json", f"--out={tmp_path}", "--frames=4"])
  (result,) = json.loads((tmp_path / "results.json").read_text())["results"].values()
  assert result["numbers"] == {"accuracy": pytest.approx(4 / 6), "examples": 6}
  (folder / "test_qa.json").unlink()


def test_an_evaluator_of_a_config_and_its_sheet(model, folder):
  source = Source(kind="folder", path=str(folder), split="test", videos=True)
  settings = Eval(kind="retrieval", source=source, frames=3, batch=1)
  evaluator = Retrieval(model.config, settings, model.forward, model.tokenizer, open_source(source))
  assert evaluator.stream.batch == 8  # a video a device
  assert dict(evaluator.run(model.params))["examples"] == COUNT - 1
  found, _, searched = retrieval_cells(evaluator, model.params, 3, texts=1)
  assert searched == COUNT - 1 and found[0].truth
  middle = [each_frame(path)[8] for path in (folder / "TestVideo").glob("video[!2].mp4")]
  assert any((found[1].image == model.prepare(frame)).all() for frame in middle)


@pytest.mark.slow
def test_the_matching_head_looks_at_all_frames(folder):
  """With as many candidates as there are, the order is that of cosine and logit together."""
  said = [s["caption"] for s in json.loads((folder / "test_videodatainfo.json").read_text())["sentences"]]
  config = small_config(folder, matching=Matching(weight=1.0))
  forward = Forward(config, sharding.make_mesh())
  model = ContrastiveCaptioner(config, train(said * 4, 200), forward, random_params(forward))
  source = Source(kind="folder", path=str(folder), split="test", videos=True)
  settings = Eval(kind="retrieval", source=source, frames=3, rerank=6, texts_per_image=1, batch=48)
  found = dict(Retrieval(config, settings, forward, model.tokenizer, open_source(source)).run(model.params))
  kept = [n for n in range(COUNT) if n != 2]
  films = np.stack([prepared_video(folder / "TestVideo" / f"video{n}.mp4", config, 3) for n in kept])
  texts = [said_of(folder, n)[0] for n in kept]
  ids = np.stack([model.tokenizer.encode(text, config.model.text.length) for text in texts])
  batch = forward.put(
    {"image": np.concatenate([films, films[:2]]), "text": np.broadcast_to(ids, (len(kept) + 2, *ids.shape))}
  )
  logits = np.asarray(
    forward.score(model.params, forward.encode(model.params, batch["image"]), batch["text"]).match_logit
  )
  embedded = np.stack([mean64(model, folder / "TestVideo" / f"video{n}.mp4", 3) for n in kept])
  scores = embedded @ model.embed_texts(texts).T.astype(np.float64) + logits[: len(kept)]
  _, words = np.unique(ids, axis=0, return_inverse=True)
  want = recalls64(scores, np.eye(len(kept)), words.reshape(-1), np.arange(len(kept)), equal_texts=False)
  for name, value in want.items():
    assert found[f"{name.replace('i2t', 'v2t').replace('t2i', 't2v')}_reranked"] == pytest.approx(value)
  assert want["t2i_r1"] < 1


def said_of(folder, n):
  """The sentences about a video of MSR-VTT's."""
  table = json.loads((folder / "test_videodatainfo.json").read_text())
  return [s["caption"] for s in table["sentences"] if s["video_id"] == f"video{n}"]
