"""A class head on the image encoder: what it reads, what trains, and classes of a loaded model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import coca
from coca.devices.trees import flat
from coca.models.abstract import abstract_model
from coca.training.flops import flops_per_pair
from coca.training.gradients import make_gradients
from coca.training.init_from import compare
from support.common import classifier, make_mesh, pairs, random_params, tiny
from support.workdirs import make_workdir


def batch(config, n=8):
  found = {name: jnp.asarray(x[:n]) for name, x in pairs(config).items()}
  return found | {"label": jnp.array([0, 1, 2, -1, 2, 1, 0, 0][:n], jnp.int32)}


def gradients(config, micro=1):
  config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=micro))
  with jax.set_mesh(make_mesh()):
    return jax.jit(make_gradients(config))(random_params(config), batch(config), None)


@pytest.mark.parametrize("pool", ["attention", "class_token", "mean"])
def test_logits_are_those_of_the_pooled_tokens(pool):
  config = classifier(pool=pool, others={"model__image__class_token": True})
  graphdef, shapes = abstract_model(config)
  params = jax.tree.map(jnp.asarray, random_params(config))
  assert set(shapes) == {"image_encoder", "class_head", *(["class_pooler"] if pool == "attention" else [])}
  model, image = nnx.merge(graphdef, params), batch(config)["image"]
  tokens = np.asarray(model.image_encoder(image), np.float64)
  assert tokens.shape[1] == 17
  if pool == "attention":
    pooled = np.asarray(model.class_pooler(jnp.asarray(tokens, jnp.float32)))[:, 0]
  else:
    pooled = tokens[:, 0] if pool == "class_token" else tokens[:, 1:].mean(1)
  head = params["class_head"]
  np.testing.assert_allclose(model.classify(image), pooled @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
  out = model(image, batch(config)["text"], contrast=False, caption=False, classify=True)
  np.testing.assert_allclose(out.classes, model.classify(image), rtol=1e-5)
  assert all(x is None for x in out._replace(classes=None))


@pytest.mark.slow
def test_micro_batches_are_one_batch_and_unlabelled_rows_have_no_gradient():
  config = classifier(label_smoothing=0.1)
  whole, parts = gradients(config), gradients(config, micro=4)
  for name in ("classification", "classification_accuracy", "loss"):
    np.testing.assert_allclose(whole[1][name], parts[1][name], rtol=1e-5)
  for name, x in flat(whole[0]).items():
    np.testing.assert_allclose(x, flat(parts[0])[name], rtol=1e-3, atol=1e-5, err_msg=name)
  assert "embedding" not in whole[0] and np.abs(whole[0]["image_encoder"]["patches"]["kernel"]).max() > 0


@pytest.mark.slow
def test_beside_other_losses():
  """They are as without it, and it as without them."""
  both = tiny(classification__weight=2.0, classification__classes=3)
  grads, metrics = gradients(both)
  assert {"contrastive", "captioning", "classification"} <= set(metrics)
  total = metrics["contrastive"] + 2 * metrics["captioning"] + 2 * metrics["classification"]
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
  assert np.abs(grads["class_pooler"]["queries"]).max() > 0


def test_a_frozen_encoder_costs_its_forward_pass():
  frozen = classifier(others={"optim__lr_scale": {"image_encoder": 0.0}})
  grads, _ = gradients(frozen)
  assert not any(np.abs(x).max() for x in jax.tree.leaves(grads["image_encoder"]))
  whole, part = (flops_per_pair(c) for c in (classifier(), frozen))
  assert part["image_encoder"] == pytest.approx(whole["image_encoder"] / 2.95, rel=0.02)
  # Keys and values of 16 tokens, without their input's gradient; a query's weights, values and projection; the head.
  pooler = 2 * 2 * (2 * 16 * 32 * 32) + 3 * 2 * 32 * 32 + 3 * 2 * 2 * 16 * 32
  assert part["class_head"] == pytest.approx(3 * 2 * 32 * 3 + pooler, rel=0.01)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"classes": 1}, "classes is 1"),
    ({"pool": "class_token"}, "class_token"),
    ({"mixup": 0.2, "others": {"contrastive__weight": 1.0, "model__text__unimodal_layers": 1}}, "mixup 0.2 and cutmix"),
  ],
)
def test_what_does_not_go_together_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    classifier(**changes)


def test_a_loaded_model_names_its_classes(tmp_path):
  config = classifier()
  make_workdir(tmp_path / "run", config)
  path = tmp_path / "run" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["ant", "bee", "cow"]}))
  model = coca.load(tmp_path / "run")
  images = np.asarray(batch(config)["image"])
  found = model.classify(images)
  assert model.labels == ("ant", "bee", "cow") and found.dtype == np.float32
  module = nnx.merge(model.forward.graphdef, jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), model.params))
  np.testing.assert_allclose(found, jax.nn.softmax(module.classify(jnp.asarray(images))), rtol=1e-4, atol=1e-6)
  with pytest.raises(ValueError, match="makes no embeddings"):
    model.classify(images, ["ant", "bee"])


def test_a_model_without_a_head_wants_labels(tmp_path):
  make_workdir(tmp_path / "run", tiny())
  with pytest.raises(ValueError, match=r"no class head .*name the labels .*finetune_classify"):
    coca.load(tmp_path / "run").classify(np.zeros((8, 8, 3), np.uint8))
  common = compare(tmp_path / "run", classifier())  # which leaves the text side out
  assert set(common.new) == {"class_pooler", "class_head"} and "embedding" in common.skipped and not common.resized
