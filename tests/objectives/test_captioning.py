"""The captioning loss and its gradients against float64 NumPy, on one device and on several."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coca.config import Captioning
from coca.devices.sharding import batch_sharding
from coca.objectives.captioning import captioning_loss, log_likelihood, next_tokens
from support.common import BOS, EOS, PAD, make_mesh, shapes_in

N, T, D, V = 16, 6, 8, 24


def reference(states, kernel, text, weight, settings, bias=0.0):
  """Cross-entropy of each next token: the sum, what to divide it by, and the gradients."""
  states, kernel = states.astype(np.float64), kernel.astype(np.float64)
  total, tokens = 0.0, 0.0
  d_states, d_kernel, d_bias = np.zeros_like(states), np.zeros_like(kernel), np.zeros(kernel.shape[1])
  for n in range(len(text)):
    learned = (text[n, settings.prompt_tokens + 1 :] != PAD).sum()
    own = weight[n] / max(learned, 1) if settings.tokens == "per_text" else weight[n]
    for t in range(settings.prompt_tokens, text.shape[1] - 1):
      label = text[n, t + 1]
      if label == PAD:
        continue
      logits = states[n, t] @ kernel + bias
      log_p = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
      target = np.full(len(logits), settings.label_smoothing / len(logits))
      target[label] += 1 - settings.label_smoothing
      total -= own * target @ log_p
      tokens += weight[n]
      pull = own * (np.exp(log_p) - target)
      d_states[n, t] = kernel @ pull
      d_kernel += np.outer(states[n, t], pull)
      d_bias += pull
  return total, tokens if settings.tokens == "mean" else weight.sum(), d_states, d_kernel, d_bias


@pytest.fixture(scope="module")
def batch():
  """States, a kernel and texts of unequal lengths; one row has weight 0, one a half."""
  rng = np.random.default_rng(0)
  text = rng.integers(4, V, (N, T)).astype(np.int32)
  text[:, 0] = BOS
  for row, end in enumerate(rng.permutation(np.arange(N) % (T - 1) + 1)):
    text[row, end] = EOS
    text[row, end + 1 :] = PAD
  weight = np.ones(N, np.float32)
  weight[4], weight[9] = 0, 0.5
  states, kernel = rng.normal(size=(N, T, D)), rng.normal(size=(D, V))
  return states.astype(np.float32), kernel.astype(np.float32), text, weight


def loss_and_gradients(settings, batch, mesh, bias=None):
  """nll, count and the gradients of nll / count."""
  states, kernel, text, weight = batch

  @jax.jit
  def both(states, kernel, text, weight, bias):
    def loss(states, kernel, bias):
      nll, count = captioning_loss(states, kernel, text, weight, settings, bias)
      return nll / count, (nll, count)

    (_, sums), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(states, kernel, bias)
    return *sums, *gradients

  with jax.set_mesh(mesh):
    states, text, weight = jax.device_put((states, text, weight), batch_sharding(mesh))
    return both(states, kernel, text, weight, bias)


def check(settings, batch, mesh, bias=None):
  nll, count, d_states, d_kernel, d_bias = loss_and_gradients(settings, batch, mesh, bias)
  expected, divisor, expected_states, expected_kernel, expected_bias = reference(
    *batch, settings, 0.0 if bias is None else bias.astype(np.float64)
  )
  np.testing.assert_allclose(nll, expected, rtol=1e-5)
  np.testing.assert_allclose(count, divisor, rtol=1e-6)
  np.testing.assert_allclose(d_states, expected_states / divisor, atol=1e-6)
  np.testing.assert_allclose(d_kernel, expected_kernel / divisor, atol=2e-6)
  if bias is not None:
    np.testing.assert_allclose(d_bias, expected_bias / divisor, atol=2e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mesh", [(1, 1, 1), (8, 1, 1), (1, 2, 4)])
def test_loss_and_gradients(mesh, smoothing, batch):
  check(Captioning(label_smoothing=smoothing), batch, make_mesh(*mesh))


@pytest.mark.parametrize("chunk", [1, 7, 16, 95])
def test_chunks_change_nothing(chunk, batch):
  check(Captioning(chunk=chunk), batch, make_mesh())


def test_chunks_that_do_not_divide_on_several_devices(batch):
  check(Captioning(chunk=5, label_smoothing=0.1), batch, make_mesh(2, 2, 2))


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 1, 4)])
def test_a_bias_and_a_prompt_that_is_given(mesh, batch):
  """The vocabulary, and its bias, are split over the tensor axis; texts that end within the prompt count nothing."""
  bias = np.random.default_rng(3).normal(size=V).astype(np.float32)
  settings = Captioning(label_smoothing=0.1, prompt_tokens=2, chunk=7)
  check(settings, batch, make_mesh(*mesh), bias)
  check(settings, batch, make_mesh(*mesh))


@pytest.mark.parametrize("tokens", ["sum", "per_text"])
@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_other_means(tokens, mesh, batch):
  """A text's sum, or its own mean; both divided by the number of texts."""
  check(Captioning(tokens=tokens), batch, make_mesh(*mesh))
  check(Captioning(tokens=tokens, label_smoothing=0.1, prompt_tokens=2, chunk=5), batch, make_mesh(*mesh))


def test_loss_without_gradient(batch):
  settings = Captioning(chunk=10, label_smoothing=0.1)
  with jax.set_mesh(make_mesh()):
    nll, _ = jax.jit(lambda *x: captioning_loss(*x, settings))(*batch)
  np.testing.assert_allclose(nll, reference(*batch, settings)[0], rtol=1e-5)


def test_what_each_position_has_to_predict():
  text = jnp.array([[BOS, 11, 12, EOS, PAD, PAD], [BOS, 11, 12, 13, 14, EOS], [BOS, EOS, PAD, PAD, PAD, PAD]])
  labels, weights = next_tokens(text, jnp.array([1.0, 0.5, 2.0]))
  assert labels.tolist() == [[11, 12, EOS, PAD, PAD, PAD], [11, 12, 13, 14, EOS, PAD], [EOS, PAD, PAD, PAD, PAD, PAD]]
  # A text that was cut goes on: its EOS is for encoders only, and the word behind is predicted.
  cut, same = next_tokens(text, jnp.array([1.0, 0.5, 2.0]), last=jnp.array([PAD, 15, PAD]))
  assert cut.tolist() == [labels[0].tolist(), [11, 12, 13, 14, 15, PAD], labels[2].tolist()]
  assert same.tolist() == weights.tolist()
  # EOS is predicted, by the last word; nothing is predicted from EOS or from padding.
  assert weights.tolist() == [[1, 1, 1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5, 0.5, 0], [2, 0, 0, 0, 0, 0]]
  assert not np.any((labels == BOS) & (weights > 0))
  # Of BOS and a prompt of two words, the next word is the first to be predicted.
  _, weights = next_tokens(text, jnp.ones(3), prompt=2)
  assert weights.tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]


def test_every_token_of_the_global_batch_weighs_the_same(batch):
  """Devices hold texts of very unequal lengths; the loss is no mean of their means."""
  states, kernel, text, weight = batch
  order = np.argsort((text != PAD).sum(1), kind="stable")
  text, weight = text[order], np.ones_like(weight)
  settings = Captioning()
  nll, count, *_ = loss_and_gradients(settings, (states, kernel, text, weight), make_mesh(8))
  expected, tokens, *_ = reference(states, kernel, text, weight, settings)
  np.testing.assert_allclose(nll / count, expected / tokens, rtol=1e-5)
  halves = [reference(states[h], kernel, text[h], weight[h], settings) for h in (slice(0, 8), slice(8, 16))]
  assert abs(sum(h[0] / h[1] for h in halves) / 2 - expected / tokens) > 1e-3


def test_padding_and_what_follows_eos_are_no_targets(batch):
  """States at EOS and on padding may be anything: no loss, no gradient."""
  states, kernel, text, weight = batch
  last = (text != PAD) & (text != EOS)
  nll, _, d_states, *_ = loss_and_gradients(Captioning(), batch, make_mesh())
  moved = np.where(last[..., None], states, 3 * states + 1)
  np.testing.assert_array_equal(loss_and_gradients(Captioning(), (moved, kernel, text, weight), make_mesh())[0], nll)
  assert not np.any(np.asarray(d_states)[~last])
  assert np.all(np.abs(np.asarray(d_states)[last & (weight[:, None] > 0)]).max(-1) > 0)


@pytest.mark.parametrize("differentiate", [False, True])
def test_logits_of_all_tokens_are_never_held(differentiate):
  n, t, d, v = 16, 32, 8, 256
  settings = Captioning(chunk=64)
  shapes = [jax.ShapeDtypeStruct(s, x) for s, x in (((n, t, d), "f4"), ((d, v), "f4"), ((n, t), "i4"), ((n,), "f4"))]

  def loss(states, kernel, text, weight):
    return captioning_loss(states, kernel, text, weight, settings)[0]

  with jax.set_mesh(make_mesh()):
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)) if differentiate else loss)(*shapes).jaxpr
  sizes = {math.prod(s) for s in shapes_in(jaxpr)}
  assert 64 * v in sizes  # the logits of a chunk are found
  assert max(sizes) == 64 * v < n * t * v / 4


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_log_likelihood_is_each_texts_own_sum(mesh, batch):
  states, kernel, text, _ = batch
  bias = np.random.default_rng(1).normal(size=V).astype(np.float32)
  mesh = make_mesh(*mesh)
  with jax.set_mesh(mesh):
    given = jax.device_put(states, batch_sharding(mesh))
    found = np.asarray(jax.jit(log_likelihood)(given, kernel, text, bias))
  one = np.ones(1, np.float32)
  wanted = [-reference(states[n : n + 1], kernel, text[n : n + 1], one, Captioning(), bias)[0] for n in range(N)]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
