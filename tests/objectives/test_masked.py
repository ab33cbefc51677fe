"""Masked language modelling: which words are hidden and how, and the loss against float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from coca.devices.sharding import BATCH
from coca.objectives.captioning import SoftTargets
from coca.objectives.masked import hide_words, masked_loss
from support.blip_reference import ALBEF, log_softmax, tiny_blip
from support.common import BOS, EOS, PAD, assert_trees_close, make_mesh

SETTINGS = tiny_blip(**ALBEF)
MASK, VOCAB, LENGTH = 5, 88, 8


def hide(text, **changes):
  masked = dataclasses.replace(SETTINGS.masked, **changes)
  return jax.jit(lambda text: hide_words(text, jax.random.key(3), masked, SETTINGS.model))(text)


def texts(n):
  text = np.random.default_rng(0).integers(10, VOCAB, (n, LENGTH)).astype(np.int32)
  ends = np.arange(n) % (LENGTH - 1) + 1
  text[:, 0], text[np.arange(n), ends] = BOS, EOS
  text[np.arange(LENGTH) > ends[:, None]] = PAD
  return text, (np.arange(LENGTH) > 0) & (np.arange(LENGTH) < ends[:, None])


def test_hidden_words_are_drawn_as_bert_draws_them():
  text, is_word = texts(70_000)
  masked, places, words = (np.asarray(x) for x in hide(text, most=LENGTH).values())
  rows, column = np.nonzero(words)
  at = rows, places[rows, column]
  hidden = np.zeros(text.shape, bool)
  hidden[at] = True
  assert hidden.sum() == (words != PAD).sum() and not (hidden & ~is_word).any()
  np.testing.assert_array_equal(text[at], words[words != PAD])
  np.testing.assert_array_equal(masked[~hidden], text[~hidden])
  assert abs(hidden.sum() / is_word.sum() - 0.15) < 0.003
  # By place, too: none is likelier than another.
  np.testing.assert_allclose(hidden.sum(0)[1:7] / np.maximum(is_word.sum(0)[1:7], 1), 0.15, atol=0.01)
  shown, was = masked[hidden], text[hidden]
  assert abs((shown == MASK).mean() - 0.8) < 0.01
  assert abs((shown == was).mean() - 0.1) < 0.01
  assert abs(((shown != MASK) & (shown != was)).mean() - 0.1) < 0.01
  assert len(set(shown[(shown != MASK) & (shown != was)].tolist())) > 80  # any word


def test_of_too_many_hidden_words_some_stay():
  """And they are the same on any mesh."""
  text, is_word = texts(64)
  masked, places, words = (np.asarray(x) for x in hide(text, share=0.9, most=2).values())
  assert places.shape == words.shape == (64, 2)
  assert ((words != PAD).sum(1) <= np.minimum(is_word.sum(1), 2)).all() and (words != PAD).sum() > 80
  assert ((masked != text).sum(1) <= (words != PAD).sum(1)).all()
  split = jax.device_put(text, NamedSharding(make_mesh(4, 2, 1), P(BATCH)))
  for one, other in zip((masked, places, words), hide(split, share=0.9, most=2).values(), strict=True):
    np.testing.assert_array_equal(one, other)


def given():
  rng = np.random.default_rng(1)
  states, slow = rng.normal(size=(2, 8, 3, 16))
  (kernel, slow_kernel), (bias, slow_bias) = rng.normal(size=(2, 16, VOCAB)), rng.normal(size=(2, VOCAB))
  words = rng.integers(10, VOCAB, (8, 3)) * (rng.random((8, 3)) < 0.7)
  weight = np.array([1, 1, 0, 1, 0.5, 1, 1, 1])
  return (states, kernel, bias), (slow, slow_kernel, slow_bias, 0.3), words.astype(np.int32), weight


def formula(own, soft, words, weight):
  """The loss, and its gradient by `own`, one word at a time."""
  (states, kernel, bias), total, slopes = own, 0.0, [np.zeros_like(x) for x in own]
  for i, j in np.argwhere(words != PAD):
    target = np.eye(VOCAB)[words[i, j]]
    if soft:
      slow, slow_kernel, slow_bias, share = soft
      target = (1 - share) * target + share * np.exp(log_softmax(slow[i, j] @ slow_kernel + slow_bias))
    log_p = log_softmax(states[i, j] @ kernel + bias)
    total -= weight[i] * target @ log_p
    d = weight[i] * (np.exp(log_p) - target)
    slopes[0][i, j] = kernel @ d
    slopes[1] += np.outer(states[i, j], d)
    slopes[2] += d
  return total, slopes


@pytest.mark.parametrize(("mesh", "is_soft"), [((1, 1, 1), False), ((1, 1, 1), True), ((2, 2, 2), True)])
def test_loss_and_gradient(mesh, is_soft):
  own, soft, words, weight = given()
  expected, slopes = formula(own, soft if is_soft else None, words, weight)
  own, soft = jax.tree.map(jnp.float32, (own, soft))

  def loss(own, soft):
    return masked_loss(*own, jnp.array(words), jnp.float32(weight), 5, SoftTargets(*soft) if is_soft else None)

  with jax.set_mesh(make_mesh(*mesh)):
    value, (found, of_soft) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(own, soft)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert_trees_close(list(found), slopes, 1e-5)
  assert not any(np.any(x) for x in jax.tree.leaves(of_soft))
