"""Greedy captions from the cache against full forward passes, and a model's functions on one device and on eight."""

import functools

import jax
import numpy as np
import pytest
from common import BOS, EOS, PAD, make_mesh, pairs, random_params, tiny
from flax import nnx

from coca.decoding.greedy import greedy
from coca.forward import Forward, abstract_model

N = 8


@pytest.fixture(scope="module")
def captioner():
  """A model whose captions end at different words, or not at all; pictures; its captions."""
  settings = tiny(model__text__length=12, model__text__vocab=16)
  params, image = random_params(settings, 51), pairs(settings, N)["image"]
  text = np.asarray(decode(settings)(params, image))
  return settings, params, image, text


@functools.cache
def compiled(length, changes):
  graphdef, _ = abstract_model(tiny(**dict(changes)))

  @jax.jit
  def run(params, image):
    model = nnx.merge(graphdef, params)
    return greedy(model, model.image_tokens(image), length, BOS, EOS)

  return run


def decode(settings, length=None):
  changes = (("model__text__length", settings.model.text.length), ("model__text__vocab", settings.model.text.vocab))
  return compiled(length or settings.model.text.length, changes)


def without_cache(settings, params, image, length):
  """Greedy decoding by a full forward pass a token."""
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def logits(params, image, text):
    model = nnx.merge(graphdef, params)
    return model(image, text, contrast=False).states @ model.softmax_kernel()

  text = np.full((len(image), length), PAD, np.int32)
  text[:, 0] = BOS
  ended = np.zeros(len(image), bool)
  for t in range(length - 1):
    scores = np.array(logits(params, image, text)[:, t])
    scores[:, [PAD, BOS]] = -np.inf
    text[:, t + 1] = np.where(ended, PAD, scores.argmax(1))
    ended |= text[:, t + 1] == EOS
  return text


def test_cached_decoding_equals_full_forward_passes(captioner):
  settings, params, image, text = captioner
  np.testing.assert_array_equal(text, without_cache(settings, params, image, settings.model.text.length))
  assert len(np.unique(text, axis=0)) > N / 2  # the captions depend on the pictures


def test_captions_begin_with_bos_and_end_at_eos_with_padding_after(captioner):
  text = captioner[3]
  assert text.dtype == np.int32 and text.shape == (N, 12)
  assert (text[:, 0] == BOS).all() and not (text[:, 1:] == BOS).any()
  lengths = []
  for row in text.tolist():
    end = row.index(EOS) if EOS in row else len(row) - 1
    assert PAD not in row[: end + 1]
    assert set(row[end + 1 :]) <= {PAD}
    lengths.append(end)
  assert len(set(lengths)) > 2 and max(lengths) == 11  # some end early, some are cut


def test_a_caption_does_not_depend_on_the_rest_of_the_batch(captioner):
  settings, params, image, text = captioner
  np.testing.assert_array_equal(decode(settings)(params, image[::-1]), text[::-1])
  for row in (0, N - 1):
    np.testing.assert_array_equal(decode(settings)(params, image[row : row + 1])[0], text[row])


def test_the_length_is_a_limit(captioner):
  settings, params, image, text = captioner
  np.testing.assert_array_equal(decode(settings, 4)(params, image), text[:, :4])


def test_a_models_functions_give_the_same_on_eight_devices_and_give_it_whole(captioner):
  settings, params, _, _ = captioner
  batch, results = pairs(settings, 16), []
  for mesh in (make_mesh(), make_mesh(2, 2, 2)):
    forward = Forward(settings, mesh)
    on_mesh = jax.device_put(params, forward.params_shardings)
    image, text, both = forward.put(batch["image"]), forward.put(batch["text"]), forward.put(batch)
    result = (
      forward.embed_images(on_mesh, image), forward.embed_texts(on_mesh, text), *forward.caption_loss(on_mesh, both),
      forward.caption(on_mesh, image, BOS, EOS),
    )
    assert all(x.is_fully_replicated and len(x.sharding.device_set) == mesh.size for x in result)
    results.append([np.asarray(x) for x in result])
  one, eight = results
  for a, b in zip(one[:4], eight[:4], strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(eight[4], one[4])
  targets = (batch["text"][:, 1:] != PAD) * batch["weight"][:, None]
  assert one[3] == targets.sum()
  np.testing.assert_allclose(np.linalg.norm(np.concatenate(one[:2]), axis=1), 1, atol=1e-6)
