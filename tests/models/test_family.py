"""What makes SigLIP, Cap and CapPa themselves, over CoCa's parts: against float64 NumPy, and who sees whom.

CLIP's outputs are compared with open_clip's in test_open_clip.py.
"""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from coca.decoding.settings import Decoding
from coca.devices.host import put_batch
from coca.inference.forward import Forward
from coca.models.abstract import abstract_model
from coca.training.gradients import Gradients
from coca.training.state import Setup
from coca.training.step import TrainStep
from support.common import BOS, EOS, PAD, SPECIAL, assert_trees_close, make_mesh, new_state, pairs, random_params, tiny
from support.reference import GELU, attend, encode, linear, norm, tower, unit

SIGLIP = {
  "model__poolers__kind": "parallel",
  "model__poolers__n_query": 0,
  "model__poolers__mlp": 56,
  "model__text__mask": "full",
  "model__text__pool": "last",
  "model__text__projection_bias": True,
  "model__text__multimodal_layers": 0,
  "captioning__weight": 0.0,
  "contrastive__loss": "sigmoid",
}
CAP = {"contrastive__weight": 0.0, "model__text__unimodal_layers": 0, "model__poolers__n_query": 0}
CAPPA = CAP | {"captioning__parallel": 0.75}
PARALLEL = np.arange(16) % 3 != 1


def compiled(settings, function):
  graphdef, _ = abstract_model(settings)
  return jax.jit(lambda params, *args: function(nnx.merge(graphdef, params), *args))


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def float64(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


# --- SigLIP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def siglip():
  settings = tiny(**SIGLIP)
  return (
    settings.model,
    random_params(settings),
    pairs(settings, 4),
    compiled(settings, lambda model, text: model.embed_text(text)),
    compiled(settings, lambda model, image: model.embed_image(image)),
  )


def test_siglip_image_embedding_is_that_of_a_map_head(siglip):
  """One learned query attends to all tokens; LayerNorm and a feed-forward are added to what it found."""
  model, params, batch, _, embed = siglip
  head, expected = float64(params)["contrastive_pooler"], []
  for image in batch["image"]:
    pooled = attend(head["attention"], head["queries"], encode(float64(params)["image_encoder"], image, model), 4)
    hidden = GELU["gelu_tanh"](linear(head["mlp"]["up"], norm(head["norm"], pooled)))
    expected.append(unit(pooled + linear(head["mlp"]["down"], hidden))[0])
  assert head["mlp"]["up"]["kernel"].shape == (24, 56)
  close(embed(params, batch["image"]), np.array(expected))


def test_siglip_text_embedding_is_the_last_state_of_an_encoder_without_a_mask(siglip):
  _, params, batch, embed, _ = siglip
  p, expected = float64(params), []
  for ids in batch["text"]:
    words = p["embedding"]["tokens"][ids] + p["embedding"]["positions"]
    states = tower(p["unimodal"], words, 2, "gelu_tanh")
    expected.append(unit(linear(p["unimodal"]["projection"], norm(p["unimodal"]["norm"], states[-1]))))
  assert "bias" in p["unimodal"]["projection"] and "cls" not in p["unimodal"]
  close(embed(params, batch["text"]), np.array(expected))


def test_siglip_words_see_what_stands_behind_them():
  settings = tiny(**SIGLIP)
  states = compiled(settings, lambda model, text: model.unimodal.states(model.embedding(text)))
  text = np.array([[BOS, 7, 8, EOS, PAD, PAD, PAD, PAD], [BOS, 7, 9, EOS, PAD, PAD, PAD, PAD]], np.int32)
  one, other = states(random_params(settings), text)
  assert np.abs(one - other).max(axis=1).min() > 1e-3  # all eight differ, the first two as well


# --- Cap and CapPa --------------------------------------------------------------------------------------------------


def decoder_states(params, settings, image, text, parallel):
  """The captioner in float64, a picture at a time: the decoder alone reads words, or nothing but [MASK]s."""
  p, out, length = float64(params), [], settings.model.text.length
  for pixels, ids, masked in zip(image, text, parallel, strict=True):
    tokens = encode(p["image_encoder"], pixels, settings.model)
    words = np.tile(p["embedding"]["mask"], (length, 1)) if masked else p["embedding"]["tokens"][ids]
    mask = None if masked else np.tril(np.ones((length, length), bool))
    states = tower(p["multimodal"], words + p["embedding"]["positions"], 2, "gelu_tanh", mask, tokens)
    out.append(norm(p["multimodal"]["norm"], states))
  return np.array(out)


def test_cappa_predicts_all_words_of_some_examples_at_once():
  settings = tiny(**CAPPA)
  params, batch, parallel = random_params(settings), pairs(settings, 6), PARALLEL[:6]
  forward = compiled(
    settings, lambda model, image, text, parallel: model(image, text, contrast=False, parallel=parallel).states
  )
  actual = forward(params, batch["image"], batch["text"], parallel)
  close(actual, decoder_states(params, settings, batch["image"], batch["text"], parallel))
  other = forward(params, batch["image"], np.where(batch["text"] == PAD, PAD, 50).astype(np.int32), parallel)
  changed = np.abs(other - actual).max(axis=(1, 2)) > 1e-3
  assert changed.tolist() == (~parallel).tolist()  # the words of the others are nowhere to be seen


def test_cappa_writes_word_by_word_from_the_cache():
  """Without unimodal layers: greedy texts are those of full forward passes, causal, without [MASK]."""
  settings = tiny(**CAPPA)
  mesh = make_mesh()
  forward, image = Forward(settings, mesh), pairs(settings, 4)["image"]
  params = jax.device_put(random_params(settings, 3), forward.params_shardings)
  encoded = forward.encode(params, image)
  assert encoded.embedding is None and encoded.tokens.shape == (4, 16, 32)  # all of the image encoder's tokens
  written = forward.caption(forward.writer(params), encoded, Decoding(min_length=4), special=SPECIAL).text[:, 0]
  text = np.full((4, 8), PAD, np.int32)
  text[:, 0] = BOS
  kernel = float64(params)["softmax"]["kernel"]
  for t in range(7):
    logits = decoder_states(params, settings, image, text, [False] * 4)[:, t] @ kernel
    logits[:, [PAD, BOS] + [EOS] * (t + 1 < 4)] = -np.inf
    text[:, t + 1] = np.where((text == EOS).any(axis=1), PAD, logits.argmax(axis=1))
  np.testing.assert_array_equal(written, text)
  assert len({tuple(row) for row in text.tolist()}) > 1


def first_step(mesh, accumulate=1, step=0, seed=0):
  """The captioning loss of one step, and Adam's first moment after it: a tenth of the gradient."""
  settings = tiny(**CAPPA, optim__accumulate=accumulate, optim__name="adamw", seed=seed)
  state = new_state(settings, mesh, random_params(settings))
  state = dataclasses.replace(state, step=jax.device_put(np.int32(step), state.step.sharding))
  state, metrics = TrainStep(Setup(settings, mesh))(state, put_batch(pairs(settings), mesh))
  return float(metrics["captioning"]), jax.tree.map(np.asarray, optax.tree_utils.tree_get(state.opt, "mu"))


@functools.cache
def gradients():
  return jax.jit(Gradients(tiny(**CAPPA)))


def on_one_device(parallel):
  """The captioning loss and the gradient where these examples are parallel."""
  settings = tiny(**CAPPA)
  with jax.set_mesh(make_mesh()):
    gradient, metrics = gradients()(random_params(settings), pairs(settings) | {"parallel": parallel}, None)
  return float(metrics["captioning"]), gradient


def drawn(step, seed=0):
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), 2)
  return np.asarray(jax.random.uniform(key, (16,)) < 0.75)


@pytest.mark.slow
def test_which_examples_are_parallel_is_up_to_seed_and_step():
  """Not to the mesh or to micro-batches, and the gradient is the same too."""
  losses = []
  for step, seed, accumulate, mesh in ((0, 0, 1, make_mesh()), (1, 1, 2, make_mesh(2, 2, 2))):
    expected, gradient = on_one_device(drawn(step, seed))
    actual, moment = first_step(mesh, accumulate, step, seed)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert_trees_close(moment, jax.tree.map(lambda x: 0.1 * x, gradient), 1e-5)
    losses.append(actual)
  assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.slow
def test_micro_batches_of_parallel_examples_are_one_batch():
  changes = {**CAPPA, "captioning__tokens": "per_text"}
  settings = tiny(**changes)
  params, batch = random_params(settings), pairs(settings) | {"parallel": PARALLEL}
  with jax.set_mesh(make_mesh()):
    (expected, _), (actual, _) = (
      jax.jit(Gradients(tiny(**changes, optim__accumulate=k)))(params, batch, None) for k in (1, 4)
    )
  assert_trees_close(actual, expected, 1e-5)
  assert np.abs(actual["embedding"]["mask"]).max() > 1e-4  # [MASK] is learned


def test_cap_and_cappa_differ_in_one_vector():
  (_, cap), (_, cappa) = (abstract_model(tiny(**changes)) for changes in (CAP, CAPPA))
  assert set(cap) == {"image_encoder", "embedding", "multimodal", "softmax"}
  assert cappa["embedding"].pop("mask").shape == (48,)
  assert jax.tree.map(lambda x: x.shape, cap) == jax.tree.map(lambda x: x.shape, cappa)
