"""Losses as objects: what they say of themselves, and that a new one is a class and a line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coca.devices.host import put_batch
from coca.inference.forward import Forward
from coca.objectives import terms
from coca.objectives.term import Term
from coca.planning.arithmetic import describe
from coca.training.gradients import Gradients
from coca.training.step import batch_shapes
from support.blip_reference import ANSWERS, tiny_blip
from support.common import assert_trees_close, make_mesh, pairs, random_params, tiny


class Spread(Term):
  """Half the squared distance between an image's and its text's embedding, a mean over pairs."""

  name, metrics = "spread", ("spread",)
  asks = frozenset({"contrast"})
  cut, weight = "by_embeddings", 0.25

  def __init__(self, config):
    del config

  def value(self, passed, batch):
    distance = jnp.sum((passed.image - passed.text) ** 2, axis=1) / 2
    return {"spread": jnp.sum(batch["weight"] * distance) / batch["weight"].sum()}

  def arrays(self):
    return {"margin": ((), jnp.float32)}

  def at_start(self):
    return 1.0, "unit vectors at right angles"


class Sum(Spread):
  """The same loss as a sum over pairs."""

  cut = "adds_up"

  def value(self, passed, batch):
    return {"spread": jnp.sum(batch["weight"] * jnp.sum((passed.image - passed.text) ** 2, axis=1) / 2)}

  def divisor(self, batch):
    return batch["weight"].sum()


class Whole(Spread):
  cut = "no"


def with_loss(monkeypatch, loss):
  monkeypatch.setattr(terms, "LOSSES", (*terms.LOSSES, loss))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("loss", "others"), [(Spread, {}), (Sum, {}), (Sum, {"contrastive__weight": 0.0, "captioning__weight": 1.0})]
)
def test_a_new_loss_is_a_class_and_a_line(loss, others, monkeypatch):
  """In one batch and in micro-batches it is trained with the others, logged and planned."""
  with_loss(monkeypatch, loss)
  kept = {"contrastive__keep": True, "captioning__weight": 0.0} | others
  settings, mesh = tiny(**kept), make_mesh()
  params, batch = random_params(settings), pairs(settings)
  with jax.set_mesh(mesh):
    images, texts = (
      np.asarray(x, np.float64)
      for x in (
        Forward(settings, mesh).embed_images(params, batch["image"]),
        Forward(settings, mesh).embed_texts(params, batch["text"]),
      )
    )
    distance = ((images - texts) ** 2).sum(1) / 2
    expected = (batch["weight"] * distance).sum() / batch["weight"].sum()
    whole, cut = (
      jax.jit(Gradients(tiny(optim__accumulate=k, **kept)))(params, put_batch(batch, mesh), None) for k in (1, 4)
    )
  for gradients, metrics in (whole, cut):
    np.testing.assert_allclose(metrics["spread"], expected, rtol=1e-5)
    loss = sum(term.weight * metrics[term.name] for term in terms.terms(settings))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    assert np.any(gradients["image_encoder"]["patches"]["kernel"])
  assert_trees_close(cut[0], whole[0], 1e-5)
  assert batch_shapes(settings, mesh)["margin"].shape == (16,)
  assert "spread 0.25 x 1.00 (unit vectors at right angles)" in describe(settings, 1)


def test_a_loss_that_cannot_be_cut_is_refused_with_micro_batches(monkeypatch):
  with_loss(monkeypatch, Whole)
  with pytest.raises(ValueError, match=r"spread loss needs config.optim.accumulate 1: it can't be cut"):
    Gradients(tiny(optim__accumulate=2))
  Gradients(tiny())


@pytest.mark.parametrize(
  "settings",
  [
    tiny(matching__weight=1.0),
    tiny(optim__accumulate=2, contrastive__texts=3),
    tiny(optim__accumulate=2, contrastive__weight=0.0, self_critical__weight=1.0, self_critical__samples=2),
    tiny_blip(),
    pytest.param(tiny_blip(**ANSWERS), marks=pytest.mark.slow),
    pytest.param(tiny_blip(contrastive__momentum=0.9, contrastive__queue=8), marks=pytest.mark.slow),
  ],
  ids=["coca", "micro, texts", "self-critical", "blip", "answers", "momentum"],
)
def test_terms_say_what_they_return(settings):
  """`metrics` are the keys of `value`, and the loss is their weighted sum."""
  losses = terms.terms(settings)
  batch = batch_shapes(settings, make_mesh())
  memory = None
  if settings.contrastive.momentum:
    side = jax.ShapeDtypeStruct((16, 24), jnp.float32)
    queue = {
      "image": side,
      "text": side,
      "hashes": jax.ShapeDtypeStruct((16, 2), jnp.uint32),
      "weight": jax.ShapeDtypeStruct((16,), jnp.float32),
    }
    memory = {"image": side, "text": side, "queue": queue, "alpha": jax.ShapeDtypeStruct((), jnp.float32)}
  with jax.set_mesh(make_mesh()):
    _, metrics = jax.eval_shape(Gradients(settings), random_params(settings), batch, None, jax.random.key(0), memory)
  assert set(metrics) == {"loss", *(name for term in losses for name in term.metrics)}
  assert [term.metrics[0] for term in losses] == [term.name for term in losses]
  assert all(x.shape == () and x.dtype == jnp.float32 for x in metrics.values())
