"""What the demo's tabs show, of small real models."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
from PIL import Image

import coca
from coca.config import Answering, Captioning, Classification, Config, Contrastive, Model
from coca.evals.folders import open_images
from coca.inference import tabs
from coca.inference.search_index import make_index
from support.workdirs import TEXTS, make_workdir, small_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Images of several sizes and shapes."""
  folder = tmp_path_factory.mktemp("images")
  for i, size in enumerate([(16, 16), (900, 7), (1, 1), (40, 60)]):
    pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(folder / f"{i}.png")
  Image.new("RGB", (20, 20), "white").save(folder / "white.png")
  return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  runs = tmp_path_factory.mktemp("runs")
  make_workdir(runs / "tiny", small_config(runs))
  return coca.load(runs / "tiny")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
  """A class head that reads an image and a question."""
  runs = tmp_path_factory.mktemp("runs")
  head = Classification(weight=1.0, classes=3, pool="text")
  config = small_config(
    runs, contrastive=Contrastive(weight=0.0), captioning=Captioning(weight=0.0), classification=head, evals={}
  )
  make_workdir(runs / "asked", config)
  path = runs / "asked/config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["yes", "no", "two"]}))
  return coca.load(runs / "asked")


def test_a_model_has_the_tabs_that_it_can_do(model, asked):
  assert tabs.tabs(model.config) == ("caption", "classify", "search")
  assert tabs.tabs(asked.config) == ("ask",)
  text = dataclasses.replace(model.config.model.text, multimodal_layers=0)
  clip = dataclasses.replace(model.config.model, text=text)
  without = {"captioning": Captioning(weight=0.0), "evals": {}}
  assert tabs.tabs(dataclasses.replace(model.config, model=clip, **without)) == ("classify", "search")
  none = dataclasses.replace(model.config, contrastive=Contrastive(weight=0.0), evals={})
  assert tabs.tabs(none) == ("caption",) and tabs.poolers(none) == ("generative",)
  head = Classification(weight=1.0, classes=3, pool="mean")
  assert tabs.tabs(dataclasses.replace(none, model=clip, classification=head, captioning=without["captioning"])) == (
    "classify",
  )
  vqa = Config(model=Model(kind="blip"), answering=Answering(weight=1.0), contrastive=Contrastive(weight=0.0))
  assert tabs.tabs(vqa) == ("ask",) and tabs.poolers(vqa) == ()
  with pytest.raises(ValueError, match="regions"):
    tabs.tabs(dataclasses.replace(none, model=dataclasses.replace(none.model, kind="lemon")))


@pytest.mark.slow
def test_captions(model, folder):
  image = str(folder / "1.png")
  assert tabs.caption(model, image, "greedy", 6, 1, " ") == model.caption(image)[0]
  said = tabs.caption(model, image, "beam", 3.0, 2.0, "red")
  assert said.splitlines() == model.caption(image, "red", strategy="beam", beams=3, n=2)[0]


def test_an_image_is_dark_where_a_pooler_does_not_look(model, folder):
  image = str(folder / "white.png")
  assert tabs.poolers(model.config) == ("generative", "contrastive")
  means = np.mean([model.attention_maps(image, query=i)[0] for i in range(4)], axis=0)
  for pooler, weights in ("generative", means), ("contrastive", model.attention_maps(image)[0]):
    seen = tabs.look(model, image, pooler)
    assert seen.shape == (tabs.SIDE, tabs.SIDE, 3) and seen.dtype == np.uint8
    # The corners of 2 x 2 patches are as light as these.
    expected = 255 * (0.15 + 0.85 * weights.astype(np.float64) / weights.max())
    np.testing.assert_allclose(seen[:: tabs.SIDE - 1, :: tabs.SIDE - 1, 0], expected, atol=1)


def test_probabilities_of_classes(model, folder):
  image = str(folder / "0.png")
  found = tabs.classify(model, image, "red apple\n\n  green pear \nred apple\ndark fig\n", "{}\na {}\n")
  labels = ["red apple", "green pear", "dark fig"]
  p = model.classify(image, labels, ("{}", "a {}"))[0]
  assert list(found) == [labels[i] for i in np.argsort(-p)]
  np.testing.assert_allclose([found[label] for label in labels], p, rtol=1e-6)
  assert len(tabs.classify(model, image, "\n".join(f"apple {i}" for i in range(20)))) == tabs.BARS
  with pytest.raises(ValueError, match="name the classes"):
    tabs.classify(model, image, " \n")
  with pytest.raises(ValueError, match=r"\{\}"):
    tabs.classify(model, image, "apple", "a photo")


def test_the_closest_images(model, folder, tmp_path):
  index = make_index(tmp_path / "index", model, "tiny")
  index.add(model, open_images(str(folder)))
  find = functools.partial(tabs.search, model, index, functools.cache(open_images), False)
  paths = sorted(folder.glob("*.png"))
  cosines = model.score(paths, TEXTS[0])[:, 0]
  found = find(TEXTS[0], str(paths[0]), 3)
  np.testing.assert_allclose([float(said) for _, said in found], np.sort(cosines)[::-1][:3], atol=2e-3)
  for (pixels, _), i in zip(found, np.argsort(-cosines), strict=False):
    np.testing.assert_array_equal(pixels, model.prepare(paths[i]))
  pixels, said = find("", str(paths[1]), 1)[0]  # the like of an image, which is itself
  assert said == "1.000" and (pixels == model.prepare(paths[1])).all()
  with pytest.raises(ValueError, match="write what"):
    find(" ", None, 3)

  gone = tmp_path / "gone.png"
  Image.new("RGB", (20, 20), "red").save(gone)
  index.add(model, open_images(str(gone)))
  gone.rename(tmp_path / "elsewhere.png")
  pixels, said = find(" ", str(tmp_path / "elsewhere.png"), 1)[0]
  assert (pixels == 128).all() and re.fullmatch(r"1\.000: can't read .*gone\.png.*", said)


@pytest.mark.slow
def test_answers(asked, folder):
  image = str(folder / "3.png")
  p = asked.classify(image, texts="is it red?")[0]
  assert tabs.ask(asked, image, " is it red? ") == asked.labels[p.argmax()]
  assert tabs.ask(asked, image, "is it red?", "no\ntwo\n") == ("no" if p[1] > p[2] else "two")
  with pytest.raises(ValueError, match="none of the model's 3 classes"):
    tabs.ask(asked, image, "is it red?", "perhaps")
  with pytest.raises(ValueError, match="write a question"):
    tabs.ask(asked, image, " ")


def test_an_image_that_is_missing_or_broken_is_a_line(model, asked, tmp_path):
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"\x89PNG\r\n\x1a\n no image")
  index = make_index(tmp_path / "index", model, "tiny")
  calls = (
    lambda image: tabs.caption(model, image, "greedy", 6, 1, ""),
    lambda image: tabs.look(model, image, "contrastive"),
    lambda image: tabs.classify(model, image, "apple"),
    lambda image: tabs.search(model, index, open_images, False, "", image, 3),
    lambda image: tabs.ask(asked, image, "is it red?"),
  )
  for call in calls:
    with pytest.raises(ValueError, match="choose an image"):
      call(None)
    with pytest.raises(ValueError, match=r"can't read the image .*broken\.png"):
      call(str(broken))
