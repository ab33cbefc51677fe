"""States of a classifier's frozen image encoder: the same logits by them, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from coca.config import Source
from coca.data.embeddings import Embedded, parts_of, path_of, states_of
from coca.data.pipeline import train_batches
from coca.data.sources import open_source
from coca.inference.embeddings import fill
from coca.inference.forward import Forward
from support.common import SPECIAL, classifier, make_mesh, random_params, tiny

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def labelled(tmp_path):
  """Four images a class, one of which is broken."""
  rng = np.random.default_rng(0)
  for name in CLASSES:
    (tmp_path / "data" / name).mkdir(parents=True)
    for i in range(4):
      Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
  broken = tmp_path / "data" / "dog" / "3.png"
  broken.write_bytes(broken.read_bytes()[:60])
  return Source(kind="folder", path=str(tmp_path / "data"), text="labels", label_key="label")


@pytest.mark.slow
def test_logits_are_those_of_images_and_others_are_refused(labelled, tmp_path):
  c = classifier(others={"data__batch": 12, "data__threads": 1})
  data = dataclasses.replace(c.data, sources={"train": labelled}, embeddings=str(tmp_path / "kept"))
  config = dataclasses.replace(c, data=data)
  forward, params = Forward(c, make_mesh()), random_params(c)
  sources = {"train": open_source(labelled)}

  def filled(params, **changes):
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))
    return changed, fill(data.embeddings, "here", states_of(changed), changed, forward, params, sources)

  said = filled(params)[1]
  assert "12 images were embedded" in said[0] and "1 can't be read, such as: " in said[1] and "3.png" in said[1]
  assert filled(params)[1] == []  # all are there

  batch, problems = next(train_batches(config, sources, _Tokenizer(), np.arange(12)))
  assert batch["image"].shape == (12, 16, 32) and len(problems) == 1
  names = {"contrast": False, "caption": False, "classify": True}
  model = jax.jit(lambda p, *x: nnx.merge(forward.graphdef, p)(*x, **names))
  kept = model(params, batch["image"], batch["text"]).classes
  plain = dataclasses.replace(config, data=dataclasses.replace(data, embeddings=""))
  images, _ = next(train_batches(plain, sources, _Tokenizer(), np.arange(12)))
  np.testing.assert_array_equal(batch["label"], images["label"])
  np.testing.assert_array_equal(batch["weight"], images["weight"])
  there = batch["weight"] > 0
  features = forward.features(params, images["image"])  # of a model without embeddings: the mean
  np.testing.assert_allclose(batch["image"][there].mean(axis=1), features[there], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(kept[there], forward.classify(params, images["image"])[there], rtol=1e-4, atol=1e-5)

  with pytest.raises(ValueError, match=r"has other states \(tokens \[16, 32\] float32\) than are asked for .*float16"):
    filled(params, embeddings_type="float16")
  with pytest.raises(ValueError, match=r"here=.* has the embeddings of another image encoder"):
    filled(random_params(c, seed=1))
  with pytest.raises(ValueError, match="or of images that were decoded in another way"):
    filled(params, squash=True)

  (tmp_path / "data" / "cat").rename(tmp_path / "data" / "zebra")
  with pytest.raises(ValueError, match=r"has another image or label than .* is of; delete .*train"):
    Embedded(data.embeddings, "train", open_source(labelled), states_of(config))


@pytest.mark.parametrize("kind", ["class_token", "cascade"])
def test_embeddings_are_made_of_features(kind):
  c = tiny(model__poolers__kind=kind, model__image__class_token=kind == "class_token")
  forward, params = Forward(c, make_mesh()), random_params(c)
  image = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  features = np.asarray(forward.features(params, image), np.float64)
  assert features.shape == (3, forward.feature_width)
  if kind == "class_token":
    features = features @ params["image_projection"]["kernel"]
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  np.testing.assert_allclose(forward.embed_images(params, image), unit, rtol=1e-4, atol=1e-5)


def test_half_of_the_disk(labelled, tmp_path):
  c = classifier(others={"data__batch": 12, "data__embeddings_type": "float16"})
  forward, source, params = Forward(c, make_mesh()), open_source(labelled), random_params(c)
  fill(str(tmp_path), "here", states_of(c), c, forward, params, {"train": source})
  (part,) = parts_of(source, states_of(c))
  assert np.load(path_of(str(tmp_path), "train", part)).dtype["state"].base == np.float16
  params["image_encoder"]["norm"]["bias"] += 1e6
  with pytest.raises(ValueError, match=r"states of .* are beyond float16"):
    fill(str(tmp_path / "more"), "here", states_of(c), c, forward, params, {"train": source})


class _Tokenizer:
  """Of a model that reads no texts."""

  bos, eos, unknown, blank = SPECIAL.bos, SPECIAL.eos, 3, 0

  def encode(self, text, length, ends=True):
    return np.zeros(length, np.int32)
