"""The Pallas kernels for TPUs, interpreted on CPU, and where they and cuDNN's are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from coca import config as settings
from coca.devices.sharding import make_mesh
from coca.models import attention, norm
from coca.models.flash import _rows, fits, flash
from coca.models.linear import stacked
from coca.models.rngs import Rngs
from support.common import assert_trees_close


def operands(t, s, b, h, width, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal((b, n, h, width)) for n in (t, s, s, t)]


def reference(q, k, v, g, mask, factors=1):
  """Attention and the gradients of its product with g, in float64; `factors` of the weights, as by dropout."""
  logits = np.where(mask, np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1]), -np.inf)
  w = np.exp(logits - logits.max(-1, keepdims=True))
  w /= w.sum(-1, keepdims=True)
  dw = np.einsum("bthk,bshk->bhts", g, v) * factors
  dl = w * (dw - (w * dw).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
  return (
    np.einsum("bhts,bshk->bthk", w * factors, v),
    np.einsum("bhts,bshk->bthk", dl, k),
    np.einsum("bhts,bthk->bshk", dl, q),
    np.einsum("bhts,bthk->bshk", w * factors, g),
  )


def by_heads(q, k, v, mask=None, drop=None):
  """As `dot_product_attention`; where they are of the same shape, k and v are stacked, or all three."""
  shape = q.shape
  q, k, v = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
  parts = (jnp.stack([q, k, v]),) if q.shape == k.shape else (q, jnp.stack([k, v]))
  return flash(parts, shape[-1], mask, drop).reshape(shape)


def causal(t):
  return np.tril(np.ones((1, 1, t, t), bool))


def words(b, s):
  """The first word of each text may be attended, and some of the others."""
  return (np.random.default_rng(1).random((b, 1, 1, s)) > 0.5) | (np.arange(s) == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("t", "s", "b", "heads", "width", "mask"),
  [
    (24, 40, 2, 4, 64, None),  # two heads in a tile
    (20, 18, 2, 16, 88, None),  # heads that begin in one tile and end in the next
    (17, 17, 4, 3, 32, None),  # tokens and heads that fill no tile
    (17, 17, 3, 2, 128, causal(17)),
    (16, 30, 4, 2, 64, words(4, 30)),
    (1024, 1024, 1, 1, 128, None),  # some of the queries at a time
  ],
)
def test_outputs_and_gradients(t, s, b, heads, width, mask):
  q, k, v, g = operands(t, s, b, heads, width)
  assert fits(t, s, width, masked=mask is not None)
  with pltpu.force_tpu_interpret_mode():
    allowed = None if mask is None else jnp.asarray(mask)
    y, back = jax.vjp(lambda *x: by_heads(*x, allowed), *(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    found = y, *back(jnp.asarray(g, jnp.float32))
  for ours, theirs in zip(found, reference(q, k, v, g, True if mask is None else mask), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=4e-6)


def kept(seeds, t, s, rate):
  """[B, H, T, S]: which weights are not dropped, for seeds [B, H]."""
  x = np.arange(t * s, dtype=np.uint32) * np.uint32(0x9E3779B9) ^ seeds[..., None]
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ x >> np.uint32(shift)) * np.uint32(factor)
  return ((x >> np.uint32(8)) / 2**24 >= rate).reshape(*seeds.shape, t, s)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("t", "s", "b", "heads", "width", "mask"),
  [(24, 40, 3, 4, 64, None), (30, 30, 2, 3, 32, causal(30)), (1024, 1024, 1, 1, 128, None)],
)
def test_dropped_weights_are_the_same_forward_and_backward(t, s, b, heads, width, mask):
  (q, k, v, g), key, rate = operands(t, s, b, heads, width), jax.random.key(3), 0.25
  with pltpu.force_tpu_interpret_mode():
    allowed = None if mask is None else jnp.asarray(mask)
    args = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    y, back = jax.vjp(lambda *x: by_heads(*x, allowed, (rate, key)), *args)
    found = y, *back(jnp.asarray(g, jnp.float32))
  factors = kept(np.asarray(jax.random.bits(key, (b, heads))), t, s, rate) / (1 - rate)
  for ours, theirs in zip(found, reference(q, k, v, g, True if mask is None else mask, factors), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=6e-6)


def test_each_weight_is_dropped_by_itself():
  for rate in (0.1, 0.5):
    left = kept(np.asarray(jax.random.bits(jax.random.key(0), (64, 12))), 30, 197, rate)
    assert abs(left.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / left.size)
    for axis in range(4):  # and not with its neighbour along any axis
      both = np.diff(left.astype(int), axis=axis) == 0
      assert abs(both.mean() - (1 - 2 * rate * (1 - rate))) < 6 * 0.5 / np.sqrt(both.size)


@pytest.mark.parametrize(
  ("tokens", "rows"), [(65, 65), (256, 256), (324, 324), (576, 288), (1024, 256), (1296, 144), (577, 577)]
)
def test_queries_at_a_time(tokens, rows):
  assert _rows(tokens, tokens) == rows


def test_too_many_tokens_that_no_number_divides_are_left_to_xla():
  assert fits(577, 577, 64, masked=False) and not fits(1601, 1601, 64, masked=False)
  assert fits(1, 12 * 256, 64, masked=False) and not fits(1, 16 * 256, 64, masked=False)  # a pooler over 16 frames
  assert not fits(1024, 1024, 64, masked=True)


@pytest.mark.slow
@pytest.mark.parametrize("wide", [48, 64], ids=["a product each", "stacked"])
@pytest.mark.parametrize("tokens", [None, 20])
def test_a_layer_with_the_kernel_is_as_one_without(monkeypatch, tokens, wide):
  """Over itself, and over a context of 20 tokens."""
  kv = {} if tokens is None else {"kv_width": 48}
  layer = attention.Attention(64, 2, jnp.float32, Rngs(jax.random.key(0)), implementation="auto", **kv)
  layer.key.bias[...] = layer.value.bias[...] = jnp.arange(64) / 64
  x, context = jax.random.normal(jax.random.key(1), (2, 3, 17, 64)), None
  if tokens:
    context = jax.random.normal(jax.random.key(2), (3, tokens, 48))
  graphdef, params = nnx.split(layer)

  def loss(params, x, context):
    return (nnx.merge(graphdef, params).over(x[0], context) * x[1]).sum()

  expected = jax.value_and_grad(loss)(params, x, context)
  monkeypatch.setattr(attention, "platform", lambda: "tpu")
  monkeypatch.setattr(attention, "WIDE", wide)
  calls = []
  monkeypatch.setattr(attention, "stacked", lambda *args: calls.append(args) or stacked(*args))
  with pltpu.force_tpu_interpret_mode():
    found = jax.value_and_grad(loss)(params, x, context)
  assert_trees_close(found, expected, 1e-5)
  assert len(calls) == (wide == 64)


@pytest.mark.slow
def test_one_query_and_what_it_sees():
  q, k, v, g = operands(1, 24, 2, 2, 64)
  with pltpu.force_tpu_interpret_mode():
    y, back = jax.vjp(by_heads, *(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    found = y, *back(jnp.asarray(g, jnp.float32))
  for ours, theirs in zip(found, reference(q, k, v, g, True), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=4e-6)


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize(("b", "t", "d"), [(4, 17, 256), (3, 40, 1408)])
def test_norm_and_its_gradients(b, t, d, around):
  rng = np.random.default_rng(0)
  x, g, of_x = 2 + 3 * rng.standard_normal((3, b, t, d))
  scale, bias = rng.standard_normal((2, d))
  of_x *= around
  by = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  normed, scaled = (x - x.mean(-1, keepdims=True)) * by, g * scale
  along = (scaled * normed).mean(-1, keepdims=True)
  dx = by * (scaled - scaled.mean(-1, keepdims=True) - normed * along) + of_x
  expected = normed * scale + bias, dx, (g * normed).sum((0, 1)), g.sum((0, 1))
  with pltpu.force_tpu_interpret_mode():
    args = (jnp.asarray(a, jnp.float32) for a in (x, scale, bias))
    y, back = jax.vjp(lambda *args: norm.layer_norm(*args, 1e-6, around), *args)
    found = y[0], *back(tuple(jnp.asarray(a, jnp.float32) for a in (g, of_x)[: 1 + around]))
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())


SIZES = pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])


@SIZES
@pytest.mark.parametrize("drops", [False, True])
def test_it_lowers_for_tpus_under_a_mesh(sizes, drops):
  """Each device has its own rows and heads; nothing is gathered for the kernel, cut into heads or turned."""
  mesh = make_mesh(settings.Mesh(**sizes), jax.devices() if sizes else jax.devices()[:1])
  shapes = [jax.ShapeDtypeStruct((4, n, 4, 64), jnp.bfloat16) for n in (324, 256, 256)]
  drop = (0.1, jax.random.key(0)) if drops else None

  def loss(q, k, v):
    return by_heads(q, k, v, drop=drop).astype(jnp.float32).sum()

  with jax.set_mesh(mesh):
    text = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("@tpu_custom_call") == 2 and "dot_general" not in text and "transpose" not in text
  assert ("tensor<1x324x128xbf16>" if sizes else "tensor<4x324x256xbf16>") in text


@SIZES
def test_the_norm_lowers_for_tpus_under_a_mesh(sizes):
  mesh = make_mesh(settings.Mesh(**sizes), jax.devices() if sizes else jax.devices()[:1])
  shapes = jax.ShapeDtypeStruct((4, 324, 256), jnp.bfloat16), *[jax.ShapeDtypeStruct((256,), jnp.float32)] * 2

  def loss(*args):
    normed, around = norm.layer_norm(*args, 1e-6, True)
    return (normed * around).astype(jnp.float32).sum()

  with jax.set_mesh(mesh):
    text = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("@tpu_custom_call") == 2
  assert ("tensor<1x324x256xbf16>" if sizes else "tensor<4x324x256xbf16>") in text


@pytest.mark.parametrize(
  ("name", "where", "dtype", "tokens", "mask", "kernel"),
  [
    ("flash", "tpu", "bfloat16", 128, None, "flash"),
    ("auto", "tpu", "bfloat16", 128, None, "flash"),
    ("flash", "tpu", "bfloat16", 15, None, None),
    ("flash", "tpu", "bfloat16", 15, True, None),
    ("flash", "tpu", "bfloat16", 128, True, "flash"),
    ("flash", "cpu", "bfloat16", 128, None, None),
    ("flash", "gpu", "bfloat16", 128, None, None),
    ("auto", "cpu", "bfloat16", 128, None, None),
    ("auto", "gpu", "bfloat16", 128, None, None),
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
  monkeypatch.setattr("coca.models.flash.flash", lambda parts, *_: used.append("flash") or parts[0])
  monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, **options: used.append("cudnn") or q)
  q, k, v = (jnp.zeros((2, tokens, 2, 8), dtype) for _ in range(3))
  mask = None if mask is None else jnp.ones((1, 1, tokens, tokens), bool)
  y = attention.dot_product_attention(q, k, v, mask, name)
  assert y.shape == q.shape and used == ([kernel] if kernel else [])
