"""The Pallas kernel for TPUs, interpreted on CPU, and where it and cuDNN's are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from coca import config as settings
from coca.devices.sharding import make_mesh
from coca.models import attention
from coca.models.flash import _blocks, flash


def operands(t, s, b=1, h=1, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal((b, n, h, 32)) for n in (t, s, s, t)]


def reference(q, k, v, g):
  """Attention and the gradients of its product with g, in float64."""
  logits = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1])
  w = np.exp(logits - logits.max(-1, keepdims=True))
  w /= w.sum(-1, keepdims=True)
  dw = np.einsum("bthk,bshk->bhts", g, v)
  dl = w * (dw - (w * dw).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
  return (
    np.einsum("bhts,bshk->bthk", w, v),
    np.einsum("bhts,bshk->bthk", dl, k),
    np.einsum("bhts,bthk->bshk", dl, q),
    np.einsum("bhts,bthk->bshk", w, g),
  )


def test_outputs_and_gradients_with_tokens_that_fill_no_block():
  q, k, v, g = operands(130, 140)
  with pltpu.force_tpu_interpret_mode():
    y, back = jax.vjp(flash, *(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    found = y, *back(jnp.asarray(g, jnp.float32))
  for ours, theirs in zip(found, reference(q, k, v, g), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize(("tokens", "blocks"), [(130, (256, 1)), (256, (256, 1)), (324, (384, 1)), (1296, (512, 3))])
def test_blocks(tokens, blocks):
  assert _blocks(tokens) == blocks


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_it_lowers_for_tpus_under_a_mesh(sizes):
  """Each device has its own rows and heads; nothing is gathered for the kernel."""
  mesh = make_mesh(settings.Mesh(**sizes), jax.devices() if sizes else jax.devices()[:1])
  shapes = [jax.ShapeDtypeStruct((4, n, 2, 64), jnp.bfloat16) for n in (324, 256, 256)]

  def loss(q, k, v):
    return flash(q, k, v).astype(jnp.float32).sum()

  with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
  # Forward and backward; how many kernels the way back takes is jax's affair, but no product is left outside them.
  assert text.count("tpu_custom_call") > 1 and "dot_general" not in text
  assert ("tensor<1x1x384x64xbf16>" if sizes else "tensor<4x2x384x64xbf16>") in text


@pytest.mark.parametrize(
  ("name", "where", "dtype", "tokens", "mask", "kernel"),
  [
    ("flash", "tpu", "bfloat16", 128, None, "flash"),
    ("flash", "tpu", "bfloat16", 127, None, None),
    ("flash", "tpu", "bfloat16", 128, True, None),
    ("flash", "cpu", "bfloat16", 128, None, None),
    ("flash", "gpu", "bfloat16", 128, None, None),
    ("cudnn", "gpu", "bfloat16", 16, True, "cudnn"),
    ("cudnn", "gpu", "float32", 16, None, None),
    ("cudnn", "cpu", "bfloat16", 16, None, None),
    ("cudnn", "gpu", "bfloat16", 17, None, "cudnn"),
    ("cudnn", "gpu", "bfloat16", 17, True, None),
    ("xla", "tpu", "bfloat16", 128, None, None),
  ],
)
def test_a_kernel_is_used_where_it_can_be(monkeypatch, name, where, dtype, tokens, mask, kernel):
  """The same model runs on other devices than it was trained on."""
  used = []
  monkeypatch.setattr(attention, "platform", lambda: where)
  monkeypatch.setattr("coca.models.flash.flash", lambda q, k, v: used.append("flash") or q)
  monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, **options: used.append("cudnn") or q)
  q, k, v = (jnp.zeros((2, tokens, 2, 8), dtype) for _ in range(3))
  mask = None if mask is None else jnp.ones((1, 1, tokens, tokens), bool)
  y = attention.dot_product_attention(q, k, v, mask, name)
  assert y.shape == q.shape and used == ([kernel] if kernel else [])
