"""Retrieval of videos against a float64 formula over the embeddings of their frames."""

import json

import av
import numpy as np
import pytest

from coca import evaluate
from coca.config import Eval, Source
from coca.data.scenes import export
from coca.data.sources import open_source
from coca.data.tokenizers.sentencepiece import train
from coca.devices import sharding
from coca.evals.retrieval import Retrieval
from coca.evals.sheet_cells import retrieval_cells
from coca.inference.captioner import ContrastiveCaptioner
from coca.inference.forward import Forward
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
