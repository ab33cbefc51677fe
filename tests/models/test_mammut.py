"""MaMMUT's one decoder in two passes, against float64 NumPy, and who sees whom."""

import jax
import numpy as np
import pytest
from flax import nnx

from coca.decoding.settings import Decoding
from coca.devices.host import put_batch
from coca.inference.forward import Forward
from coca.models.abstract import abstract_model
from support.common import PAD, SPECIAL, make_mesh, pairs, random_params, tiny
from support.reference import GELU, attend, encode, linear, norm, pool, unit

MAMMUT = {
  "model__poolers__kind": "parallel",
  "model__poolers__n_query": 0,
  "model__text__two_passes": True,
  "model__text__cross_every": 2,
}


@pytest.fixture(scope="module")
def mammut():
  settings = tiny(**MAMMUT)
  return settings, random_params(settings), pairs(settings, 4)


def layer(p, x, heads, mask, image=None):
  y = norm(p["norm_self"], x)
  x = x + attend(p["self_attention"], y, y, heads, mask)
  if image is not None and "cross_attention" in p:
    x = x + attend(p["cross_attention"], norm(p["norm_cross"], x), image, heads)
  return x + linear(p["mlp"]["down"], GELU["gelu_tanh"](linear(p["mlp"]["up"], norm(p["norm_mlp"], x))))


def expected(settings, params, image, ids):
  """Both embeddings and the logits of one pair."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  heads, length = settings.model.text.heads, len(ids)
  group = jax.tree.map(lambda x: x[0], p["multimodal"]["stack"]["layers"])
  layers = group["before"][0], group["last"]
  tokens = encode(p["image_encoder"], image, settings.model)
  words = p["embedding"]["tokens"][ids] + p["embedding"]["positions"][:length]
  first, second = np.vstack([words, p["unimodal"]["cls"]]), words
  seen = np.tile(np.append(ids != PAD, True), (length + 1, 1))
  for weights in layers:
    first = layer(weights, first, heads, seen)
    second = layer(weights, second, heads, np.tril(np.ones((length, length), bool)), tokens)
  text = unit(linear(p["unimodal"]["projection"], norm(p["unimodal"]["norm"], first[-1])))
  pooled = unit(pool(p["contrastive_pooler"], tokens, settings.model.image.heads)[0])
  return pooled, text, norm(p["multimodal"]["norm"], second) @ p["softmax"]["kernel"]


@pytest.mark.slow
def test_one_decoder_reads_twice(mammut):
  settings, params, batch = mammut
  assert "stack" not in params["unimodal"]
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def forward(params, image, text):
    model = nnx.merge(graphdef, params)
    out = model(image, text)
    return out.image, out.text, out.states @ model.softmax_kernel()

  found = forward(params, batch["image"], batch["text"])
  each = [expected(settings, params, *pair) for pair in zip(batch["image"], batch["text"], strict=True)]
  wanted = zip(*each, strict=True)
  for x, y in zip(found, wanted, strict=True):
    np.testing.assert_allclose(x, np.array(y), rtol=1e-5, atol=1e-5 * np.abs(y).max())


def test_it_writes_what_the_second_pass_says(mammut):
  """Greedy words from the cache are the likeliest of the whole forward pass."""
  settings, params, batch = mammut
  mesh = make_mesh()
  forward = Forward(settings, mesh)
  given = put_batch({"image": batch["image"]}, mesh)
  text = np.asarray(
    forward.caption(forward.writer(params), forward.encode(params, given["image"]), Decoding(), special=SPECIAL).text
  )[:, 0]
  for image, ids in zip(batch["image"], text, strict=True):
    end = np.flatnonzero(ids)[-1]
    logits = expected(settings, params, image, ids)[2][:end]
    logits[:, [0, 1]] = -np.inf
    np.testing.assert_array_equal(logits.argmax(1), ids[1 : end + 1])


def test_settings_that_do_not_fit_say_which():
  for changes, said in (
    ({"model__text__unimodal_layers": 1}, r"config\.model\.text\.two_passes needs .* \(1\) as multimodal_layers \(2\)"),
    ({"model__text__cross_every": 3}, r"config\.model\.text\.cross_every 3 .* has to divide"),
  ):
    with pytest.raises(ValueError, match=said):
      tiny(**{**MAMMUT, **changes})
