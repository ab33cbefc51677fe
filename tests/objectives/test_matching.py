"""Image-text matching: the draw of hard negatives, the loss and its gradients, scores."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coca.devices.host import put_batch
from coca.devices.sharding import batch_sharding
from coca.inference.forward import Forward
from coca.models.abstract import abstract_model
from coca.objectives.matching import draw_negatives, matching_loss, take_rows
from coca.training.gradients import Gradients
from coca.training.state import Setup
from coca.training.step import TrainStep
from support.common import BOS, EOS, PAD, assert_trees_close, hashes, make_mesh, pairs, random_params, shapes_in, tiny
from support.reference import attend, encode, linear, norm, pool, tower

pytestmark = pytest.mark.slow

N, E, LOG_SCALE = 16, 5, 0.5

# --- The draw -------------------------------------------------------------------------------------------------------


def unit_rows(seed, n=N):
  x = np.random.default_rng(seed).normal(size=(2, n, E))
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def batch():
  """Embeddings, texts of which several are equal, and weights of which two are 0."""
  text_ids = np.arange(N)[:, None] + np.full((1, 3), 4)
  text_ids[[4, 9]] = text_ids[2]
  weight = np.ones(N, np.float32)
  weight[[3, 10]] = 0
  return *unit_rows(0), text_ids.astype(np.int32), weight


def may_be_drawn(text_ids, weight, group):
  """bool [N, N]: which pairs are negatives for which."""
  rows = np.arange(len(weight))
  same_group = rows[:, None] // group == rows // group
  equal = (text_ids[:, None] == text_ids).all(-1)
  return same_group & ~equal & (weight > 0)


@functools.cache
def drawer(group, mesh, floor=0.0):
  @jax.jit
  def draw(image, text, equality, weight, keys, others=None):
    return jax.lax.map(
      lambda key: draw_negatives(image, text, equality, weight, jnp.float32(LOG_SCALE), key, group, floor, others), keys
    )

  def run(batch, keys, others=None):
    image, text, ids, weight = batch
    batch = image, text, hashes(ids), weight
    with jax.set_mesh(mesh):
      drawn = draw(*jax.device_put(batch, batch_sharding(mesh)), keys, others)
    return jax.tree.map(np.asarray, drawn)

  return run


KEYS = jax.random.split(jax.random.key(0), 4000)


@pytest.mark.parametrize(
  ("group", "floor", "momentum"), [(0, 0.0, False), (4, 0.0, False), (0, 0.3, True), (8, 0.2, False)]
)
def test_negatives_are_drawn_from_the_softmax(group, floor, momentum, batch):
  """Counts of 4,000 draws against the softmax over what may be drawn; chi-square, row by row.

  With a floor, BLIP's: added to the softmax over the whole group, and what may not be drawn is left out of the sum.
  """
  image, text, ids, weight = batch
  slow_image, slow_text = unit_rows(7) if momentum else (image, text)
  drawn = drawer(group, make_mesh(), floor)(batch, KEYS, (slow_image, slow_text) if momentum else None)
  allowed = may_be_drawn(ids, weight, group or N)
  same_group = np.arange(N)[:, None] // (group or N) == np.arange(N) // (group or N)
  assert not drawn.found[:, ~allowed.any(1)].any()
  for found, queries, keys in ((drawn.text, image, slow_text), (drawn.image, text, slow_image)):
    similarity = np.exp(LOG_SCALE) * queries.astype(np.float64) @ keys.astype(np.float64).T
    statistic, freedom = 0.0, 0
    for i in np.flatnonzero(allowed.any(1)):
      p = np.where(same_group[i], np.exp(similarity[i]), 0)
      p = np.where(allowed[i], p / p.sum() + floor, 0)
      p /= p.sum()
      counts = np.bincount(found[:, i], minlength=N)
      assert not counts[~allowed[i]].any()  # nothing excluded is ever drawn
      expected = len(KEYS) * p[allowed[i]]
      assert expected.min() > 5
      statistic += ((counts[allowed[i]] - expected) ** 2 / expected).sum()
      freedom += allowed[i].sum() - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)  # mean and deviation of chi-square
  assert drawn.found[:, allowed.any(1)].all()


@pytest.mark.parametrize("group", [0, 2, 4, 8])
def test_draws_do_not_depend_on_the_mesh(group, batch):
  one, *others = (drawer(group, make_mesh(*m))(batch, KEYS[:50]) for m in ((1,), (1,), (8,), (2, 2, 2)))
  for other in others:
    jax.tree.map(np.testing.assert_array_equal, one, other)
  if group != 2:  # else there is nothing to choose: another key, other negatives; both drawn apart
    assert len(np.unique(one.text, axis=0)) > 1 and (one.text != one.image).any()


def test_a_group_without_another_text_has_no_negative(batch):
  image, text, _, weight = batch
  ids = np.repeat(np.arange(4, 4 + N // 4), 4)[:, None].astype(np.int32)  # each group of four has one text
  ids[5] = 99
  drawn = drawer(4, make_mesh())((image, text, ids, weight), KEYS[:20])
  assert (drawn.found == (np.arange(N) // 4 == 1)).all()
  assert (drawn.text[:, [4, 6, 7]] == 5).all() and (drawn.image[:, [4, 6, 7]] == 5).all()


def test_taking_rows_and_its_gradient():
  rng = np.random.default_rng(0)
  x, weights = rng.normal(size=(2, N, 3, 2)).astype(np.float32)
  for group, mesh in ((0, make_mesh(8)), (4, make_mesh(4)), (4, make_mesh(8)), (0, make_mesh())):
    rows = (np.arange(N) // (group or N) * (group or N) + rng.integers(0, group or N, N)).astype(np.int32)
    expected = np.zeros_like(x)
    np.add.at(expected, rows, weights)
    with jax.set_mesh(mesh):
      taken, gradient = jax.jit(
        lambda x, rows, group=group: (
          take_rows(x, rows, group),
          jax.grad(lambda x: jnp.vdot(take_rows(x, rows, group), weights))(x),
        )
      )(*jax.device_put((x, rows), batch_sharding(mesh)))
    np.testing.assert_array_equal(taken, x[rows])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def collectives(group, batch):
  """The collectives in the compiled program that draws and takes, forward and backward, on 4 devices."""

  @jax.jit
  def program(image, text, equality, weight, key):
    def loss(image):
      drawn = draw_negatives(image, text, equality, weight, jnp.float32(LOG_SCALE), key, group)
      return take_rows(image, drawn.image, group), take_rows(text, drawn.text, group)

    taken, pull = jax.vjp(loss, image)
    return taken, pull(taken)

  mesh = make_mesh(4)
  with jax.set_mesh(mesh):
    image, text, ids, weight = batch
    batch = jax.device_put((image, text, hashes(ids), weight), batch_sharding(mesh))
    compiled = program.lower(*batch, KEYS[0]).compile().as_text()
  return re.findall(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", compiled)


def test_groups_within_a_device_need_no_other(batch):
  assert collectives(4, batch) == collectives(2, batch) == []
  assert collectives(0, batch) and collectives(8, batch)


# --- The loss -------------------------------------------------------------------------------------------------------


def test_loss_is_the_cross_entropy_over_all_that_count():
  rng = np.random.default_rng(1)
  logits, weight, found = rng.normal(0, 2, (6, 3, 2)), np.array([1, 0, 0.5, 1, 1, 1]), np.arange(6) != 4
  logits[5, 1] = 3.0  # a tie
  total = right = count = 0.0
  for i in range(6):
    for k in range(3):
      if k == 0 or found[i]:
        p = np.exp(logits[i, k]) / np.exp(logits[i, k]).sum()
        truth = 1 if k == 0 else 0
        total -= weight[i] * np.log(p[truth])
        right += weight[i] * (logits[i, k, truth] > logits[i, k, 1 - truth])
        count += weight[i]
  assert count == 3 * 4.5 - 2
  loss, accuracy = jax.jit(matching_loss)(logits.astype(np.float32), weight.astype(np.float32), found)
  np.testing.assert_allclose(loss, total / count, rtol=1e-6)
  np.testing.assert_allclose(accuracy, right / count, rtol=1e-6)
  assert matching_loss(jnp.zeros((2, 3, 2)), jnp.zeros(2), jnp.ones(2, bool))[0] == 0  # not NaN


def match_settings(**changes):
  return tiny(matching__weight=0.7, **changes)


KEY = jax.random.key(3)


@functools.cache
def compiled(group, mesh, captioning=2.0):
  """Gradients and metrics as a function of a batch."""
  settings = match_settings(matching__group=group, captioning__weight=captioning)
  with jax.set_mesh(mesh):
    params = jax.device_put(random_params(settings), Forward(settings, mesh).params_shardings)
  gradients = jax.jit(Gradients(settings))

  def run(batch):
    with jax.set_mesh(mesh):
      return jax.tree.map(np.asarray, gradients(params, put_batch(batch, mesh), None, KEY))

  return run


@functools.cache
def gradients_of(group, mesh, captioning=2.0):
  return compiled(group, mesh, captioning)(pairs(match_settings()))


def test_loss_and_gradients_are_those_of_whole_forward_passes():
  """Of each true pair, each picture with its drawn text and each text with its drawn picture, one batch each."""
  settings = match_settings()
  params, batch = random_params(settings), pairs(settings)
  graphdef, _ = abstract_model(settings)
  image, text, weight = batch["image"], batch["text"], batch["weight"]

  with jax.set_mesh(make_mesh()):
    forward = Forward(settings, make_mesh())
    embedded = forward.embed_images(params, image), forward.embed_texts(params, text)
    draw = jax.jit(draw_negatives)
    drawn = draw(*embedded, batch["hashes"], weight, params["temperature"]["log_scale"], KEY)
  drawn = jax.tree.map(np.asarray, drawn)
  assert drawn.found.all()

  def loss(params):
    model = nnx.merge(graphdef, params)
    total = 0.0
    for pictures, texts, label in ((image, text, 1), (image, text[drawn.text], 0), (image[drawn.image], text, 0)):
      pictures, texts = jnp.asarray(pictures), jnp.asarray(texts)
      states = model(pictures, texts, contrast=False).states
      log_p = jax.nn.log_softmax(model.match(states[:, None], texts[:, None])[:, 0])
      total -= jnp.vdot(log_p[:, label], weight) / (3 * weight.sum())
    return total

  value, expected = jax.jit(jax.value_and_grad(loss))(params)
  gradient, metrics = gradients_of(0, make_mesh())
  plain = tiny()
  without = {part: tree for part, tree in params.items() if not part.startswith("matching")}
  with jax.set_mesh(make_mesh()):
    rest, rest_metrics = jax.jit(Gradients(plain))(without, batch, None)
  np.testing.assert_allclose(metrics["matching"], value, rtol=1e-5)
  for name in rest_metrics.keys() - {"loss"}:  # the other terms are what they were
    np.testing.assert_allclose(metrics[name], rest_metrics[name], rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], rest_metrics["loss"] + 0.7 * value, rtol=1e-5)
  rest |= jax.tree.map(np.zeros_like, {p: params[p] for p in params.keys() - rest.keys()})
  assert_trees_close(gradient, jax.tree.map(lambda a, b: np.asarray(a) + 0.7 * np.asarray(b), rest, expected), 1e-5)


@pytest.mark.parametrize(("group", "mesh"), [(0, (2, 2, 2)), (4, (2, 2, 2))])
def test_any_mesh_has_the_gradients_of_one_device(group, mesh):
  (actual, metrics), (expected, expected_metrics) = (gradients_of(group, make_mesh(*m)) for m in (mesh, ()))
  assert_trees_close(actual, expected, 1e-5)
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_without_captioning_there_is_no_vocabulary_head():
  settings = match_settings(captioning__weight=0.0, captioning__chunk=64)
  with jax.set_mesh(make_mesh()):
    jaxpr = jax.make_jaxpr(Gradients(settings))(random_params(settings), pairs(settings), None, KEY).jaxpr
  assert not any(shape[-1:] == (88,) and len(shape) > 1 for shape in shapes_in(jaxpr) - {(48, 88)})  # zero gradient
  gradient, metrics = gradients_of(0, make_mesh(), 0.0)
  assert not gradient["softmax"]["kernel"].any()
  assert "captioning" not in metrics
  np.testing.assert_allclose(metrics["loss"], metrics["contrastive"] + 0.7 * metrics["matching"], rtol=1e-6)


def test_a_pair_of_weight_0_changes_nothing():
  batch = pairs(match_settings())
  row = int(np.flatnonzero(batch["weight"] == 0)[0])
  other = {k: v.copy() for k, v in batch.items()}
  other["image"][row], other["text"][row] = 255 - batch["image"][row], 0  # as a broken record: no text at all
  other["text"][row, :3] = 0
  (a, ma), (b, mb) = gradients_of(0, make_mesh()), compiled(0, make_mesh())(other)
  np.testing.assert_allclose(ma["matching"], mb["matching"], rtol=1e-6)
  assert_trees_close(a, b, 1e-6)


@pytest.fixture(scope="module")
def trained():
  """Settings, the batch on the device, what makes a new state, the step, the last state, metrics of each step."""
  settings = tiny(
    matching__weight=1.0,
    captioning__weight=0.0,
    optim__name="adamw",
    optim__lr=3e-3,
    steps="150",
    optim__clip=1.0,
    model__text__unimodal_layers=1,
    model__text__multimodal_layers=1,
  )
  mesh = make_mesh()
  setup = Setup(settings, mesh)
  first = jax.tree.map(np.asarray, setup.init_state())
  state = jax.tree.map(jnp.asarray, first)
  step, batch, history = TrainStep(setup), put_batch(pairs(settings), mesh), []
  for _ in range(150):
    state, metrics = step(state, batch)
    history.append(jax.tree.map(float, metrics))
  return settings, batch, lambda: jax.tree.map(jnp.asarray, first), step, state, history


def test_training_tells_pairs_from_others(trained):
  settings, batch, _, _, state, history = trained
  first, last = (
    [np.mean([m[name] for m in part]) for name in ("matching", "matching_accuracy")]
    for part in (history[:5], history[-20:])
  )
  assert first[0] > 0.6
  assert last[0] < 0.2  # a head that only knows that two of three don't match: 0.64; ln 2: 0.69
  assert last[1] > 0.95
  forward = Forward(settings, make_mesh())
  encoded = forward.encode(state.params, batch["image"])
  right, wrong = (
    forward.score(state.params, encoded, np.roll(batch["text"], shift, axis=0)[:, None]).matching[:, 0]
    for shift in (0, 2)
  )
  used = np.asarray(batch["weight"]) > 0
  assert np.median(right[used]) > 0.9 and np.median(wrong[used]) < 0.1


def test_each_step_draws_anew(trained):
  """The same parameters and batch: the number of the step decides, and nothing else."""
  _, batch, new, step, _, history = trained
  again, later = (step(dataclasses.replace(new(), step=jnp.int32(n)), batch)[1] for n in (0, 7))
  assert float(again["matching"]) == history[0]["matching"]
  assert float(later["matching"]) != history[0]["matching"]
  assert float(later["contrastive"]) == history[0]["contrastive"]


# --- Scores ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scorer():
  settings = match_settings()
  return settings, random_params(settings, 2), pairs(settings, 8, 2), Forward(settings, make_mesh(4))


def several(text, k):
  """Each row with those after it: [N, k, T]."""
  return np.stack([np.roll(text, -i, axis=0) for i in range(k)], axis=1)


def test_scores_are_the_formula(scorer):
  """A pooler with one query over the decoder's states at the words, LayerNorm, a linear layer, softmax; float64."""
  settings, params, batch, forward = scorer
  texts = several(batch["text"], 2)
  scores = forward.score(params, forward.encode(params, forward.put(batch["image"])), texts)
  model, p = settings.model, jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  for i in range(3):
    tokens = pool(p["generative_pooler"], encode(p["image_encoder"], batch["image"][i], model), model.image.heads)
    for k, ids in enumerate(texts[i]):
      words = p["embedding"]["tokens"][ids] + p["embedding"]["positions"][: len(ids)]
      causal = np.tril(np.ones((len(ids), len(ids)), bool))
      states = tower(p["unimodal"], words, model.text.heads, model.activation, causal)
      multi = p["multimodal"]
      states = norm(multi["norm"], tower(multi, states, model.text.heads, model.activation, causal, tokens))
      head = p["matching_pooler"]
      pooled = norm(
        head["norm"], attend(head["attention"], head["queries"], states, model.image.heads, (ids != PAD)[None])
      )
      logits = linear(p["matching_head"], pooled)[0]
      np.testing.assert_allclose(scores.matching[i, k], 1 / (1 + np.exp(logits[0] - logits[1])), rtol=1e-4)
      np.testing.assert_allclose(scores.match_logit[i, k], logits[1], rtol=1e-4, atol=1e-5)
  cosines = np.einsum(
    "be,bke->bk",
    forward.embed_images(params, batch["image"]),
    np.stack([forward.embed_texts(params, texts[:, k]) for k in range(2)], axis=1),
  )
  np.testing.assert_allclose(scores.contrastive, cosines, atol=1e-6)


def test_several_texts_at_once_score_as_one_by_one(scorer):
  _, params, batch, forward = scorer
  texts = several(batch["text"], 3)
  encoded = forward.encode(params, forward.put(batch["image"]))
  assert encoded.tokens.sharding.is_equivalent_to(batch_sharding(forward.mesh), 3)  # nobody holds all of them
  together = forward.score(params, encoded, forward.put(texts))
  assert together.matching.shape == together.contrastive.shape == (8, 3)
  assert together.matching.dtype == together.contrastive.dtype == jnp.float32
  for k in range(3):
    alone = forward.score(params, encoded, texts[:, k : k + 1])
    np.testing.assert_allclose(together.matching[:, k], alone.matching[:, 0], rtol=1e-5)
    np.testing.assert_allclose(together.contrastive[:, k], alone.contrastive[:, 0], atol=1e-6)
  assert np.ptp(together.matching) > 0.05


def test_pictures_without_embeddings_get_no_cosines(scorer):
  _, params, batch, forward = scorer
  encoded, texts = forward.encode(params, batch["image"]), several(batch["text"], 2)
  full, bare = forward.score(params, encoded, texts), forward.score(params, encoded._replace(embedding=None), texts)
  assert bare.contrastive is None and full.contrastive is not None
  np.testing.assert_allclose(bare.match_logit, full.match_logit, atol=1e-5)
  np.testing.assert_allclose(bare.matching, full.matching, rtol=1e-5)


def test_a_pictures_keys_and_values_are_computed_once(scorer):
  settings, params, batch, _ = scorer
  graphdef, _ = abstract_model(settings)

  def score(params, encoded, text):
    return nnx.merge(graphdef, params).score(encoded, text)

  encoded = jax.eval_shape(lambda params, image: nnx.merge(graphdef, params).encode(image), params, batch["image"])
  shapes = shapes_in(jax.make_jaxpr(score)(params, encoded, several(batch["text"], 3)).jaxpr)
  assert (8 * 5, 48) in shapes  # 5 image tokens of 8 pictures
  assert (8 * 3 * 5, 48) not in shapes and (8 * 3, 5, 48) not in shapes


def test_padding_does_not_change_a_score(scorer):
  _, params, batch, forward = scorer
  words = [BOS, 11, 12, 13, EOS]
  encoded = forward.encode(params, batch["image"])
  short, long = (
    forward.score(params, encoded, np.tile(np.array(words + [PAD] * n, np.int32), (8, 1, 1))) for n in (0, 3)
  )
  np.testing.assert_allclose(short.matching, long.matching, rtol=1e-5)
  np.testing.assert_allclose(short.contrastive, long.contrastive, atol=1e-6)
  empty = forward.score(params, encoded, np.zeros((8, 1, 8), np.int32))
  assert np.isfinite(empty.matching).all()


def test_scores_of_models_without_a_head():
  for changes, has_embedding, has_tokens in (
    ({}, True, True),
    ({"contrastive__weight": 0.0}, False, True),
    ({"captioning__weight": 0.0, "model__text__multimodal_layers": 0}, True, False),
  ):
    settings = tiny(**changes)
    params, batch, forward = random_params(settings), pairs(settings, 2), Forward(settings, make_mesh())
    encoded = forward.encode(params, batch["image"])
    scores = forward.score(params, encoded, batch["text"][:, None])
    assert ((encoded.embedding is not None), (encoded.tokens is not None)) == (has_embedding, has_tokens)
    assert (scores.contrastive is not None) == has_embedding
    assert scores.matching is scores.match_logit is None


# --- Around it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"matching__weight": 1.0, "captioning__weight": 0.0, "model__text__multimodal_layers": 0}, "multimodal_layers"),
    ({"matching__weight": 1.0, "contrastive__weight": 0.0}, r"config.matching.weight needs config.contrastive.weight"),
    ({"matching__weight": 1.0, "optim__accumulate": 2}, r"config.optim.accumulate 1, not 2"),
    ({"matching__group": 5}, r"config.matching.group 5 has to .* divide config.data.batch 16"),
    ({"matching__group": 1}, r"above 1"),
    ({"matching__group": -4}, r"config.matching.group is -4; it takes 0 or more"),
  ],
)
def test_settings_that_make_no_sense(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny(**changes)
