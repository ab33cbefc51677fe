"""`coca.load` and `coca.evaluate` over working directories of small real models."""

import dataclasses
import json
import subprocess
import sys

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import coca
from coca import config as settings
from coca import evaluate, inference
from coca.config import Contrastive, Optim
from coca.config.special import Special
from coca.data import images as pictures
from coca.data.tokenizers.sentencepiece import train
from coca.decoding.settings import Decoding
from coca.devices import sharding
from coca.inference.forward import Forward
from coca.inference.images import images_in
from support.workdirs import TEXTS, make_workdir, random_params, small_config

COLOURS = ("red", "green", "blue", "black")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A folder of four pictures of a colour with noise, and their captions."""
  folder = tmp_path_factory.mktemp("pictures")
  rng = np.random.default_rng(0)
  lines = []
  for text, colour in zip(TEXTS, COLOURS, strict=True):
    pixels = np.asarray(Image.new("RGB", (24, 20), colour)) // 2 + rng.integers(0, 128, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{colour}.png")
    lines.append(json.dumps({"file_name": f"{colour}.png", "caption": text}))
  (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
  return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data):
  path = tmp_path_factory.mktemp("runs") / "tiny"
  make_workdir(path, small_config(data))
  return path


@pytest.fixture(scope="module")
def model(workdir):
  return coca.load(workdir)


def test_import_is_light():
  code = (
    "import sys, coca; assert callable(coca.load); "
    "assert not {'jax', 'numpy', 'flax', 'PIL'} & set(sys.modules), sorted(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_every_kind_of_picture_gives_the_same_embedding(model, data):
  path = data / "red.png"
  image = Image.open(path)
  one = model.embed_images(path)
  assert one.shape == (1, 16) and one.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-6)
  for other in (str(path), image, np.asarray(image), [path], np.asarray(image)[None], image.convert("RGBA")):
    np.testing.assert_array_equal(model.embed_images(other), one)


@pytest.mark.slow
def test_embeddings_are_those_of_the_model_whatever_the_batch(model, data):
  paths = images_in(data)
  assert [p.stem for p in paths] == sorted(COLOURS)
  module = nnx.merge(model.forward.graphdef, jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), model.params))
  pixels = np.stack([pictures.decode_eval(p.read_bytes(), 16) for p in paths])
  ids = np.stack([model.tokenizer.encode(t, 12) for t in TEXTS])
  want_images, want_texts = jax.jit(lambda a, b: (module.embed_image(a), module.embed_text(b)))(pixels, ids)
  assert np.abs(want_images[0] - want_images[1]).max() > 0.01
  np.testing.assert_allclose(model.embed_images(data), want_images, atol=1e-5)
  np.testing.assert_allclose(model.embed_texts(TEXTS), want_texts, atol=1e-5)
  np.testing.assert_allclose(model.embed_texts(TEXTS[1]), want_texts[1:2], atol=1e-5)
  many = model.embed_images([paths[i % 4] for i in range(150)])  # three batches, the last one padded
  np.testing.assert_allclose(many, np.asarray(want_images)[np.arange(150) % 4], atol=1e-5)


@pytest.mark.slow
def test_match_gives_the_probability_of_each_pair(tmp_path, data, model):
  make_workdir(tmp_path / "filter", small_config(data, matching=settings.Matching(weight=1.0)))
  judge, paths = coca.load(tmp_path / "filter"), images_in(data)
  found = judge.match(data, TEXTS)
  assert found.shape == (4,) and found.dtype == np.float32
  assert ((found > 0) & (found < 1)).all() and np.ptp(found) > 1e-3
  pixels = jnp.stack([pictures.decode_eval(p.read_bytes(), 16) for p in paths])
  ids = jnp.stack([judge.tokenizer.encode(t, 12) for t in TEXTS])
  module = nnx.merge(judge.forward.graphdef, jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), judge.params))
  states = module(pixels, ids, contrast=False).states
  want = jax.nn.softmax(module.match(states[:, None], ids[:, None]))[:, 0, 1]
  np.testing.assert_allclose(found, want, rtol=1e-4)
  many = judge.match([paths[i % 4] for i in range(70)], [TEXTS[i % 4] for i in range(70)])
  np.testing.assert_allclose(many, np.resize(found, 70), rtol=1e-4)
  np.testing.assert_allclose(judge.match(paths[2], TEXTS[2]), found[2:3], rtol=1e-4)
  assert judge.match([], []).shape == (0,)
  with pytest.raises(ValueError, match="4 images and 1 texts"):
    judge.match(data, "red apple")
  with pytest.raises(ValueError, match=r"config.matching.weight is 0.*capfilt_filter"):
    model.match(data, TEXTS)


def test_attention_maps(model, data):
  maps = model.attention_maps(data)
  assert maps.shape == (4, 2, 2) and maps.dtype == np.float32
  np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
  each = np.stack([model.attention_maps(data, query=i) for i in range(4)])  # what the contrastive query looks through
  assert np.all(maps >= each.min(0) - 1e-6) and np.all(maps <= each.max(0) + 1e-6) and np.ptp(each, axis=0).max() > 0.01
  with pytest.raises(ValueError, match="query 4: this model has 4"):
    model.attention_maps(data, query=4)


def test_nothing_in_nothing_out(model):
  assert model.embed_images([]).shape == model.embed_texts([]).shape == (0, 16)
  assert model.caption([]) == []


def test_scores_and_probabilities_are_of_the_embeddings(model, data):
  images, texts = model.embed_images(data), model.embed_texts(TEXTS)
  np.testing.assert_allclose(model.score(data, TEXTS), images @ texts.T, atol=1e-6)
  assert model.score(data / "red.png", TEXTS[0]).shape == (1, 1)

  prompts = np.stack([model.embed_texts([form % t for t in COLOURS]) for form in ("%s fig", "dark %s")])
  mean = prompts.astype(np.float64).mean(0)
  mean /= np.linalg.norm(mean, axis=1, keepdims=True)
  logits = np.exp(float(model.params["temperature"]["log_scale"])) * (images @ mean.T)
  want = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  p = model.classify(data, COLOURS, ("{} fig", "dark {}"))
  assert p.dtype == np.float32
  np.testing.assert_allclose(p, want, rtol=1e-4)
  np.testing.assert_array_equal(model.classify(data, COLOURS, "{}"), model.classify(data, COLOURS))
  with pytest.raises(ValueError, match="list of labels"):
    model.classify(data, "red")
  np.testing.assert_array_equal(model.classify(data, iter(COLOURS), "{}"), model.classify(data, COLOURS))
  with pytest.raises(ValueError, match="takes labels, zero-shot, or texts"):
    model.classify(data, COLOURS, texts="a fig")
  with pytest.raises(ValueError, match=r"has to hold \{\} once"):
    model.classify(data, COLOURS, ("a photo",))


@pytest.mark.slow
def test_captions_are_the_decoded_ids(model, data):
  paths = images_in(data)
  captions = model.caption(data)
  assert len(captions) == 4 and all(isinstance(c, str) for c in captions) and len(set(captions)) > 1
  pixels = model.forward.put({"image": np.stack([model.prepare(p) for p in paths] * 2)})["image"]
  for chosen in ({"max_length": 4}, {"strategy": "beam", "beams": 3}):
    encoded = model.forward.encode(model.params, pixels)
    writer = model.forward.writer(model.params)
    ids = np.asarray(model.forward.caption(writer, encoded, Decoding(**chosen), special=Special(1, 2)).text)[:4, 0]
    assert model.caption(data, **chosen) == [model.tokenizer.decode(row[1:]) for row in ids]
  assert model.caption(data / "red.png") == model.caption([data / "red.png"]) == captions[3:]


@pytest.mark.slow
def test_samples_prompts_and_ids(model, data):
  sampled = model.caption(data, strategy="sample", n=3, seed=1)
  assert [len(texts) for texts in sampled] == [3] * 4 and len({t for texts in sampled for t in texts}) > 4
  one = model.caption(data / "red.png", ids=[3], strategy="sample", n=3, seed=1)
  assert one == sampled[3:]
  assert one != model.caption(data / "red.png", ids=[4], strategy="sample", n=3, seed=1)
  assert all(c.startswith("dark fig") for c in model.caption(data, "dark fig"))
  begun = model.caption(data, ["red", "", "green", ""])
  assert begun[0].startswith("red") and begun[2].startswith("green") and begun[1::2] == model.caption(data)[1::2]
  ranked = model.caption(data, strategy="sample", n=3, seed=1, rerank=True)
  assert [sorted(texts) for texts in ranked] == [sorted(texts) for texts in sampled] and ranked != sampled


def test_settings_of_captions_that_make_no_sense(model, data):
  with pytest.raises(ValueError, match="max_length is 1"):
    model.caption(data, max_length=1)
  with pytest.raises(ValueError, match="strategy is 'best'"):
    model.caption(data, strategy="best")
  with pytest.raises(ValueError, match="4 images, 2 prompts and 4 ids"):
    model.caption(data, ["a", "b"])
  with pytest.raises(ValueError, match="shorten it"):
    model.caption(data, "red apple green pear blue plum dark fig")
  with pytest.raises(TypeError, match="best_of"):
    model.caption(data, best_of=3)
  with pytest.raises(TypeError, match="num_beams is called beams"):
    model.caption(data, num_beams=3)


def test_pictures_that_cannot_be_used_are_named(model, data, tmp_path):
  (tmp_path / "broken.jpg").write_bytes((data / "red.png").read_bytes()[:60])
  with pytest.raises(ValueError, match=r"can't read the image .*broken\.jpg"):
    model.embed_images([data / "red.png", tmp_path / "broken.jpg"])
  with pytest.raises(ValueError, match=r"gone\.png"):
    model.caption(tmp_path / "gone.png")
  with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\].*not float64 \[8, 8, 3\]"):
    model.embed_images(np.zeros((8, 8, 3)))
  with pytest.raises(ValueError, match=r"not uint8 \[8, 8\]"):
    model.embed_images([np.zeros((8, 8), np.uint8)])
  with pytest.raises(TypeError, match="not int"):
    model.embed_images([1])
  with pytest.raises(TypeError, match="not bytes"):
    model.embed_texts([b"cat"])
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match=r"no images in .*empty"):
    model.embed_images(tmp_path / "empty")


@pytest.mark.slow
def test_broken_pictures_are_skipped_on_request_and_all_others_keep_their_places(model, data, tmp_path, caplog):
  for path in data.glob("*.png"):
    (tmp_path / path.name).write_bytes(path.read_bytes())
  (tmp_path / "cut.png").write_bytes((data / "red.png").read_bytes()[:60])
  broken = [p.stem == "cut" for p in images_in(tmp_path)]
  whole = np.flatnonzero(~np.array(broken))

  def check(found, expected):
    found = np.array(found)
    assert np.isnan(found[broken]).all() and not np.isnan(found[whole]).any()
    np.testing.assert_allclose(found[whole], expected, atol=1e-6)

  check(model.embed_images(tmp_path, skip_broken=True), model.embed_images(data))
  check(model.score(tmp_path, TEXTS, skip_broken=True), model.score(data, TEXTS))
  check(model.classify(tmp_path, TEXTS, skip_broken=True), model.classify(data, TEXTS))
  check(model.attention_maps(tmp_path, skip_broken=True), model.attention_maps(data))
  for settings_ in ({}, {"strategy": "beam", "beams": 2, "n": 2}):
    found = model.caption(tmp_path, skip_broken=True, **settings_)
    assert [text is None for text in found] == broken
    assert [found[i] for i in whole] == model.caption(data, **settings_)
  assert "cut.png" in caplog.text
  with pytest.raises(ValueError, match=r"can't read the image .*cut\.png.*; skip_broken=True goes on without it"):
    model.embed_images(tmp_path)


def test_urls_stay_what_they_are(model, data):
  store = fsspec.filesystem("memory")
  for path in (data / "red.png", data / "blue.png"):
    store.pipe(f"/bucket/{path.name}", path.read_bytes())
  store.pipe("/bucket/notes.txt", b"no picture")
  one = model.embed_images("memory://bucket/red.png")
  np.testing.assert_array_equal(one, model.embed_images(data / "red.png"))
  assert images_in("memory://bucket") == ["memory:///bucket/blue.png", "memory:///bucket/red.png"]
  np.testing.assert_allclose(model.embed_images("memory://bucket")[1:], one, atol=1e-6)
  with pytest.raises(ValueError, match=r"can't read the image memory://bucket/gone\.png"):
    model.embed_images(["memory://bucket/gone.png"])
  with pytest.raises(ValueError, match=r"nothing://a/b\.png: Protocol not known"):
    model.embed_images("nothing://a/b.png")


def test_a_url_whose_package_is_missing_says_which(model, monkeypatch):
  def missing(url):
    raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

  monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
  with pytest.raises(ImportError, match=r"https://example\.org/a\.png: .*pip install aiohttp"):
    model.embed_images("https://example.org/a.png")  # never taken for a folder


def test_the_moving_average_is_taken_where_there_is_one(tmp_path, data):
  config = small_config(data, optim=Optim(ema=0.99))
  params = make_workdir(tmp_path / "run", config, ema_shift=1.0)
  for ema, shift in ((None, 1), (True, 1), (False, 0)):
    loaded = coca.load(tmp_path / "run", ema=ema).params
    jax.tree.map(
      lambda x, y, shift=shift: np.testing.assert_array_equal(np.asarray(x), np.asarray(y) + shift), loaded, params
    )


def test_a_run_without_an_average_says_so(workdir):
  with pytest.raises(ValueError, match="kept no moving average"):
    coca.load(workdir, ema=True)


@pytest.mark.slow
def test_one_device_and_eight_agree(workdir, model, data):
  one = inference.load(workdir, devices=jax.devices()[:1])
  assert one.forward.mesh.size == 1 and model.forward.mesh.size == 8  # the config's mesh is one of 64
  np.testing.assert_allclose(one.embed_images(data), model.embed_images(data), atol=1e-5)
  assert one.caption(data) == model.caption(data)


def test_folders_that_are_no_workdir_say_what_is_missing(tmp_path, data, workdir):
  with pytest.raises(FileNotFoundError, match=r"no working directory.*config\.json.*coca\.train"):
    coca.load(tmp_path)
  run = tmp_path / "run"
  make_workdir(run, small_config(data), steps=())
  with pytest.raises(FileNotFoundError, match="no checkpoint"):
    coca.load(run)
  other = train(["something else"] * 9, 40)
  other.save(run / "tokenizer.model")
  with pytest.raises(ValueError, match=r"tokenizer\.model is not the one this run was started with"):
    coca.load(run)
  (run / "config.json").write_text('{"config": {"modle": {}}, "tokenizer_sha256": ""}')
  with pytest.raises(ValueError, match=r"config\.json can't be used.*did you mean 'model'"):
    coca.load(run)


@pytest.mark.slow
def test_models_with_one_loss_say_what_they_cannot_do(model, data):
  def make(**kwargs):
    forward = Forward(small_config(data, **kwargs), sharding.make_mesh())
    return inference.ContrastiveCaptioner(forward.config, model.tokenizer, forward, random_params(forward))

  text = dataclasses.replace(model.config.model.text, multimodal_layers=0)
  mute = make(model=dataclasses.replace(model.config.model, text=text), captioning=settings.Captioning(weight=0.0))
  assert mute.embed_texts("red apple").shape == (1, 16)
  with pytest.raises(ValueError, match="no multimodal decoder"):
    mute.caption(data)
  text = dataclasses.replace(model.config.model.text, unimodal_layers=0)
  blind = make(model=dataclasses.replace(model.config.model, text=text), contrastive=Contrastive(weight=0.0))
  assert len(blind.caption(data)) == 4
  for call in (blind.embed_images, blind.embed_texts):
    with pytest.raises(ValueError, match="without a contrastive loss"):
      call([])


@pytest.mark.slow
def test_evaluate_writes_numbers_and_a_contact_sheet(workdir, model, capsys, monkeypatch):
  # The loaded model, whose functions are compiled.
  monkeypatch.setattr(inference, "load", lambda path, ema, devices: {(str(workdir), None): model}[path, ema])
  evaluate.main([f"--workdir={workdir}"])
  numbers = json.loads((workdir / "eval.json").read_text())
  assert numbers["eval/shot/examples"] == numbers["eval/write/examples"] == 4
  assert numbers["eval/shot/top5"] == 1 and numbers["eval/write/nll"] > 1
  assert "eval/shot/top1" in capsys.readouterr().out
  assert Image.open(workdir / "contact_sheet.png").width == 1320
  evaluate.main([f"--workdir={workdir}", "--eval=write"])
  again = json.loads((workdir / "eval.json").read_text())
  assert again.pop("step") == numbers["step"] > 0 and {name.split("/")[1] for name in again} == {"write"}


def test_evaluate_reports_mistakes_in_a_line(workdir, tmp_path):
  with pytest.raises(SystemExit, match=r"error: .*no evaluator 'x'; it has: shot, write"):
    evaluate.main([f"--workdir={workdir}", "--eval=x"])
  with pytest.raises(SystemExit, match=r"error: .*no working directory"):
    evaluate.main([f"--workdir={tmp_path}"])
