"""VL-T5 and VL-BART: against transformers' T5 and BART, regions against float64 NumPy, texts from the cache."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coca.config import Config
from coca.config.regions import Regions
from coca.config.special import Special
from coca.data import tasks
from coca.data.records import Detected
from coca.data.tokenizers.sentencepiece import train
from coca.decoding.settings import Decoding, answer_decoding
from coca.devices import sharding
from coca.inference.captioner import ContrastiveCaptioner
from coca.inference.forward import Forward
from coca.models.abstract import abstract_model
from coca.models.vl_t5 import kinds_of
from coca.training.gradients import Gradients
from support.common import PAD, assert_trees_close, make_mesh, pairs, random_params, tiny
from support.decoding import LENGTH, WAYS, N, assert_cached_equals_uncached
from support.reference import linear

R, F, READ, VOCAB = 5, 7, 40, 208
# Of `random_params(vl_t5(), 3)` and `texts()`, in float64: transformers 5.24.0 with torch 2.13.0, a T5 of these sizes
# with d_kv 24, which reads the texts alone; and its kinds of the distances -300 to 300, both ways and back.
GOLDEN = np.load(Path(__file__).parent / "golden" / "vl_t5.npz")


@functools.cache
def vl_t5(**changes) -> Config:
  settings = {"model__kind": "vl_t5", "model__activation": "relu", "model__text__vocab": VOCAB}
  settings |= {f"model__regions__{name}": n for name, n in (("width", F), ("count", R), ("tags", READ))}
  settings |= {"model__med__dropout": 0.0, "contrastive__weight": 0.0}
  return tiny(**(settings | {"model__text__length": 40} | changes))


def vl_bart(**changes) -> Config:
  settings = {"model__kind": "vl_bart", "model__activation": "gelu"}
  return vl_t5(**settings, model__med__norm_eps=1e-5, model__med__positions=48, **changes)


def some_regions(n, seed=0):
  """Regions of all numbers, one image without any, and texts of all lengths, from a single token on."""
  rng = np.random.default_rng(seed)
  corners = np.sort(rng.random((n, R, 2, 2)), axis=2).reshape(n, R, 4).astype(np.float32)
  mask, tags = np.arange(R) < rng.integers(1, R + 1, (n, 1)), rng.integers(4, VOCAB, (n, READ)).astype(np.int32)
  mask[1] = False
  for row, end in enumerate(rng.integers(1, READ + 1, n)):
    tags[row, end:] = PAD
  return Regions(rng.normal(size=(n, R, F)).astype(np.float32), corners, mask, tags)


def texts():
  """What is read and what is written, of four images without regions."""
  image = some_regions(4)
  return image._replace(mask=np.zeros_like(image.mask)), pairs(vl_t5(), 4)["text"]


def compiled(settings, function):
  graphdef, _ = abstract_model(settings)
  return jax.jit(lambda params, *args: function(nnx.merge(graphdef, params), *args))


def test_without_regions_it_is_t5():
  settings, (image, text) = vl_t5(), texts()

  def run(model, image, text):
    out = model(image, text)
    return out.tokens.tokens[:, :READ], out.states @ model.softmax_kernel()

  states, logits = compiled(settings, run)(random_params(settings, 3), image, text)
  words = image.tags != PAD
  np.testing.assert_allclose(states[words], GOLDEN["states"][words], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(logits[:, ::4], GOLDEN["logits"], rtol=1e-4, atol=1e-5)


def test_bart_with_regions():
  """Against golden/make_vl_bart.py's."""
  golden = np.load(Path(__file__).parent / "golden" / "vl_bart.npz")
  settings, image, text = vl_bart(), some_regions(4), pairs(vl_bart(), 4)["text"]

  def run(model, image, text):
    out = model(image, text)
    return out.tokens.tokens, out.states @ model.softmax_kernel()

  states, logits = compiled(settings, run)(random_params(settings, 3), image, text)
  seen = np.concatenate([image.tags != PAD, image.mask], axis=1)
  np.testing.assert_allclose(states[seen], golden["states"][seen], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(logits[:, ::4], golden["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("both_ways", [True, False])
def test_kinds_of_distances(both_ways):
  distances = np.arange(-300, 301)
  found = kinds_of(distances, both_ways)
  np.testing.assert_array_equal(found, GOLDEN["both_ways" if both_ways else "back"])
  # The formula: as many exact kinds as others, which reach to 128 by the logarithm.
  n, far = (16, abs(distances)) if both_ways else (32, np.maximum(-distances, 0))
  with np.errstate(divide="ignore"):
    grown = n // 2 + np.floor(np.log(far / (n // 2)) / np.log(128 / (n // 2)) * (n // 2) + 1e-6)
  expected = np.where(far < n // 2, far, np.minimum(grown, n - 1)) + (16 * (distances > 0) if both_ways else 0)
  np.testing.assert_array_equal(found, expected)


def test_regions_against_numpy():
  """Feature and box with its area, each projected and normed; row i from the end of the table; no distances."""
  settings = vl_t5()
  params, image = random_params(settings, 4), some_regions(3)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(p, x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"]

  left, top, right, bottom = np.moveaxis(image.boxes.astype(np.float64), -1, 0)
  boxes = np.stack([left, top, right, bottom, (right - left) * (bottom - top)], axis=-1)
  expected = norm(p["region_norm"], linear(p["region_projection"], image.features))
  expected += norm(p["box_norm"], linear(p["box_projection"], boxes)) + p["image_order"]
  expected += np.array([p["words"][VOCAB - 1 - i] for i in range(R)])
  actual = compiled(settings, lambda model, image: model.embed_regions(image, model.words[...]))(params, image)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)

  # Regions in another order, with the rows of the table in that order too, are the same to the words.
  order = np.array([1, 0, 2, 3, 4])
  rows = VOCAB - 1 - np.arange(R)
  moved = params | {"words": params["words"].copy()}
  moved["words"][rows] = params["words"][rows[order]]
  image = image._replace(mask=np.ones_like(image.mask), tags=np.where(image.tags >= VOCAB - R, 5, image.tags))
  read = compiled(settings, lambda model, image: model.encode(image).tokens)
  swapped = image._replace(features=image.features[:, order], boxes=image.boxes[:, order])
  before, after = read(params, image), read(moved, swapped)
  np.testing.assert_allclose(after[:, :READ], before[:, :READ], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(after[:, READ:], before[:, READ:][:, order], rtol=1e-4, atol=1e-5)


@functools.cache
def captioner(kind=vl_t5):
  settings = kind(model__text__length=LENGTH)
  forward = Forward(settings, make_mesh())
  return forward, jax.device_put(random_params(settings, 51), forward.params_shardings), some_regions(N)


@functools.cache
def full_pass(kind=vl_t5):
  def logits(model, image, text):
    logits = model(image, text).states @ model.softmax_kernel()
    return logits, jax.nn.log_softmax(logits)

  return compiled(captioner(kind)[0].config, logits)


@pytest.mark.slow
@WAYS
def test_cached_equals_uncached(decoding, prompted):
  assert_cached_equals_uncached(decoding, prompted, captioner(), full_pass())


@pytest.mark.slow
def test_barts_cache():
  decoding, prompted = Decoding(beams=2), True
  assert_cached_equals_uncached(decoding, prompted, captioner(vl_bart), full_pass(vl_bart))


@pytest.mark.slow
def test_answers_are_to_what_the_encoder_reads():
  """Questions stand beside the regions, whether images come from a user or from an evaluation."""
  settings = vl_t5(answering__length=6, model__text__vocab=240)
  tokenizer = train(["vqa: what is it? where? caption: a dog"] * 4, settings.model.pieces)
  forward = Forward(settings, make_mesh())
  drawn = random_params(settings, 7)
  silent = [i for i in range(settings.model.text.vocab) if i >= settings.model.pieces or not tokenizer.decode([i])]
  drawn["words"][silent] = 0.0  # an answer is of words, whichever of the ids a tokenizer gives them
  params = jax.device_put(drawn, forward.params_shardings)
  model = ContrastiveCaptioner(settings, tokenizer, forward, params)
  image = some_regions(2)
  given, questions = Detected(image.boxes[0], image.features[0]), ["What is it?", "where?"]
  read = np.stack([tasks.read(tokenizer, settings.model, question) for question in questions])
  same = jax.tree.map(lambda x: x[:1].repeat(2, 0), image)._replace(mask=np.ones((2, R), bool), tags=read)
  encoded = forward.encode(params, forward.put(same))
  special = Special(tokenizer.bos, tokenizer.eos)
  found = forward.answer(forward.writer(params), encoded, None, answer_decoding(6), special=special)
  expected = [tokenizer.decode(row[1:]) for row in np.asarray(found.text)[:, 0]]
  assert model.answer([given] * 2, questions) == expected and any(expected)
  with pytest.raises(ValueError, match="ranks no answers"):
    model.answer(given, "where?", ["here"])


@pytest.mark.slow
def test_micro_batches_and_devices_have_the_same_gradients():
  """With GELU: rounding puts a unit that is almost 0 on either side of ReLU's kink, and with it 1 % of a gradient."""
  params, found = random_params(vl_t5(), 5), []
  for accumulate, mesh in ((1, (1, 1, 1)), (4, (1, 2, 2))):
    settings = vl_t5(optim__accumulate=accumulate, model__activation="gelu")
    with jax.set_mesh(make_mesh(*mesh)):
      batch = pairs(settings, 16) | {"image": some_regions(16)}
      batch = jax.device_put(batch, sharding.batch_sharding(make_mesh(*mesh)))
      found.append(jax.jit(Gradients(settings))(params, batch, None, jax.random.key(0)))
  assert_trees_close(found[1][0], found[0][0], 1e-4)
  np.testing.assert_allclose(found[1][1]["captioning"], found[0][1]["captioning"], rtol=1e-5)


@pytest.mark.slow
def test_dropout_is_drawn_by_the_key():
  settings = vl_t5(model__med__dropout=0.1)
  run = compiled(settings, lambda model, seed, *given: model(*given, key=jax.random.key(seed)).states)
  first, again, other = (np.asarray(run(random_params(settings), jnp.int32(seed), *texts())) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any() and 0.05 < (first == 0).mean() < 0.15
