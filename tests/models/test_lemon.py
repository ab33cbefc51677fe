"""LEMON: the forward pass against float64 NumPy, texts from the cache, hidden words, gradients, sizes, FLOPs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coca.config import Config
from coca.config.regions import Regions
from coca.devices import sharding
from coca.inference.forward import Forward
from coca.models.abstract import abstract_model
from coca.objectives.masked import hide_words
from coca.training.gradients import Gradients
from support.blip_reference import Reference
from support.common import EOS, PAD, assert_trees_close, make_mesh, pairs, random_params, tiny
from support.decoding import LENGTH, VOCAB, WAYS, N, assert_cached_equals_uncached
from support.reference import GELU, linear

CLS, MASK = 3, 6
R, F, TAGS = 5, 7, 4
WITHOUT = ("contrastive__weight", "captioning__weight")


@functools.cache
def lemon(**changes) -> Config:
  settings = {"model__kind": "lemon", "model__activation": "gelu", "model__text__unimodal_layers": 0}
  settings |= {f"model__regions__{name}": n for name, n in (("width", F), ("count", R), ("tags", TAGS))}
  settings |= {f"model__med__{name}": n for name, n in (("cls", CLS), ("mask", MASK), ("positions", 20))}
  settings |= {"model__med__dropout": 0.0, "model__med__norm_eps": 0.05, "masked__weight": 1.0, "masked__most": 3}
  return tiny(**(settings | {"masked__draw": "number"} | dict.fromkeys(WITHOUT, 0.0) | changes))


def some_regions(n, seed=0, vocab=88):
  """Regions of all numbers, one image without any and without tags."""
  rng = np.random.default_rng(seed)
  corners = np.sort(rng.random((n, R, 2, 2)), axis=2).reshape(n, R, 4)
  mask, tags = np.arange(R) < rng.integers(1, R + 1, (n, 1)), rng.integers(7, vocab, (n, TAGS))
  mask[1], tags[1] = False, PAD
  tags[2, 2:] = PAD
  return Regions(*(np.asarray(x) for x in (
    rng.normal(size=(n, R, F)).astype(np.float32), corners.astype(np.float32), mask, tags.astype(np.int32)
  )))  # fmt: skip


def one(image, b):
  return Regions(*(np.asarray(x[b], np.float64) for x in image))


class Lemon(Reference):
  """BLIP's reference has BERT's layers, without cross-attention where there is none."""

  def states(self, words, image: Regions):
    """The states [n, D] of words: triples of id, position and the words that it sees, by their numbers."""
    decoder, text = self.p["text_decoder"], self.model.text.length
    tables = decoder["embedding"]
    names = [(int(i), text + t) for t, i in enumerate(image.tags)]
    embedded = [
      self.norm(decoder["norm"], tables["tokens"][i] + tables["positions"][at] + self.p["segments"][segment])
      for segment, group in ((0, [w[:2] for w in words]), (1, names))
      for i, at in group
    ]
    for feature, (left, top, right, bottom) in zip(image.features, image.boxes, strict=True):
      box = [left, top, right, bottom, right - left, bottom - top]
      embedded.append(self.norm(self.p["region_norm"], linear(self.p["region_projection"], np.append(feature, box))))
    there = np.concatenate([image.tags != PAD, image.mask != 0])
    there[0] = True
    seen = np.zeros((len(embedded), len(embedded)), bool)
    seen[:, len(words) :] = there
    for row, (_, _, others) in enumerate(words):
      seen[row, list(others)] = True
    # `bert` embeds ids itself: it is given rows of the table that are already what the layers read.
    table = {"tokens": np.array(embedded), "positions": np.zeros((len(embedded), 1))}
    p = {"embedding": table, "norm": decoder["norm"], "stack": decoder["stack"]}
    plain, self.norm = self.norm, lambda q, x: x if q is decoder["norm"] else plain(q, x)
    try:
      return self.bert(p, np.arange(len(embedded)), seen)[: len(words)]
    finally:
      del self.norm

  def read(self, states):
    head = self.p["caption_head"]
    states = self.norm(head["norm"], GELU["gelu"](linear(head["transform"], states)))
    return states @ self.p["text_decoder"]["embedding"]["tokens"].T + head["bias"]


@pytest.fixture(scope="module")
def case():
  settings = lemon()
  params = random_params(settings, 3)
  graphdef = abstract_model(settings)[0]

  def logits(read):
    """`read(model, *args)` gives states; compiled."""

    def function(params, *args):
      model = nnx.merge(graphdef, params)
      return read(model, *args) @ model.softmax_kernel() + model.softmax_bias

    return functools.partial(jax.jit(function), params)

  return logits, Lemon(params, settings), pairs(settings, 6)["text"], some_regions(6)


def test_hidden_words_against_numpy(case):
  """A word sees itself, those before it, all tags and all regions; these never see it."""
  logits, reference, text, image = case
  masked, places = text.copy(), np.tile([[2, 0, 5]], (6, 1)).astype(np.int32)
  masked[:, 2] = MASK
  actual = logits(lambda model, image, *args: model.fill(model.encode(image), *args))(image, masked, places)
  for b in range(6):
    ids = [CLS, *masked[b, 1:]]
    states = reference.states([(i, t, range(t + 1)) for t, i in enumerate(ids)], one(image, b))
    np.testing.assert_allclose(actual[b], reference.read(states)[places[b]], rtol=2e-4, atol=2e-4)


def test_the_next_word_is_that_of_a_mask_behind_the_text(case):
  logits, reference, text, image = case
  actual = logits(lambda model, image, text: model(image, text).states)(image, text)
  for b, last in ((0, 0), (1, 3), (4, text.shape[1] - 2)):
    ids = [CLS, *text[b, 1 : last + 1], MASK]
    states = reference.states([(i, t, range(t + 1)) for t, i in enumerate(ids)], one(image, b))
    np.testing.assert_allclose(actual[b, last], reference.read(states)[-1], rtol=2e-4, atol=2e-4)


@functools.cache
def captioner():
  settings = lemon(model__text__length=LENGTH, model__text__vocab=VOCAB)
  forward = Forward(settings, make_mesh())
  return forward, jax.device_put(random_params(settings, 51), forward.params_shardings), some_regions(N, vocab=VOCAB)


@functools.cache
def full_pass():
  graphdef = captioner()[0].graphdef

  @jax.jit
  def logits(params, image, text):
    model = nnx.merge(graphdef, params)
    logits = model(image, text).states @ model.softmax_kernel() + model.softmax_bias
    return logits, jax.nn.log_softmax(logits)

  return logits


@pytest.mark.slow
@WAYS
def test_cached_equals_uncached(decoding, prompted):
  assert_cached_equals_uncached(decoding, prompted, captioner(), full_pass())


def test_a_number_of_words_is_hidden():
  """round(15 % of the tokens), 1 at least, at most `most`; never the first token, but EOS; 80 and 10 % of them."""
  settings = lemon(model__text__length=40, model__med__positions=60)
  text = np.full((3000, 40), PAD, np.int32)
  lengths = np.resize([3, 10, 15, 40], 3000)
  for row, n in enumerate(lengths):
    text[row, :n] = np.arange(20, 20 + n)
    text[row, n - 1] = EOS
  found = jax.jit(hide_words, static_argnums=(2, 3))(text, jax.random.key(0), settings.masked, settings.model)
  masked, places, words = (np.asarray(found[name]) for name in ("masked", "masked_at", "masked_words"))
  is_word = words != PAD
  np.testing.assert_array_equal(
    is_word.sum(1), np.select([lengths == 15, lengths == 40], [2, 3], np.where(lengths == 10, 2, 1))
  )
  np.testing.assert_array_equal(np.take_along_axis(text, places, 1)[is_word], words[is_word])
  assert places[is_word].min() == 1
  short = places[lengths == 3][:, 0]
  assert 0.4 < (short == 2).mean() < 0.6  # EOS as often as the only word
  now = np.take_along_axis(masked, places, 1)[is_word]
  assert abs((now == MASK).mean() - 0.8) < 0.03 and abs((now == words[is_word]).mean() - 0.1) < 0.03
  changed = masked != text
  assert changed.sum() <= is_word.sum()


def batch_of(settings):
  batch = pairs(settings, 16) | {"image": some_regions(16)}
  return batch | hide_words(jnp.asarray(batch["text"]), jax.random.key(1), settings.masked, settings.model)


@pytest.mark.slow
def test_micro_batches_and_devices_have_the_same_gradients():
  params = random_params(lemon(), 5)
  found = []
  for accumulate, mesh in ((1, (1, 1, 1)), (4, (2, 2, 1))):
    settings = lemon(optim__accumulate=accumulate)
    with jax.set_mesh(make_mesh(*mesh)):
      batch = jax.device_put(batch_of(settings), sharding.batch_sharding(make_mesh(*mesh)))
      found.append(jax.jit(Gradients(settings))(params, batch, None, jax.random.key(0)))
  for gradients, metrics in found[1:]:
    assert_trees_close(gradients, found[0][0], 1e-4)
    np.testing.assert_allclose(metrics["masked"], found[0][1]["masked"], rtol=1e-5)
