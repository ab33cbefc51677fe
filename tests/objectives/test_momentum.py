"""Momentum distillation: the loss against float64 NumPy, the queue, the order of a step, meshes, and resume."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coca.config import Contrastive
from coca.devices.host import put_batch
from coca.devices.sharding import batch_sharding
from coca.devices.trees import flat, nested
from coca.inference.forward import Forward
from coca.objectives.momentum import empty_queue, enqueue, momentum_contrastive_loss, with_momentum
from coca.storage.checkpoint import Checkpoints
from coca.training.state import Setup
from coca.training.step import TrainStep
from support.blip_reference import log_softmax, tiny_blip
from support.common import assert_trees_close, make_mesh, numeric_gradient, pairs

pytestmark = pytest.mark.slow

# --- The loss -------------------------------------------------------------------------------------------------------

N, E, Q, ALPHA, LOG_SCALE = 8, 4, 6, 0.3, 1.2


def reference(image, text, slow_image, slow_text, queue, ids, weight, log_scale, alpha, settings):
  """One query at a time; `ids` are numbers of texts, those of the queue too."""
  total, all_ids = 0.0, np.concatenate([ids, queue["ids"]])
  all_weight = np.concatenate([weight, queue["weight"]])
  for queries, slow, keys in (
    (image, slow_image, np.vstack([slow_text, queue["text"]])),
    (text, slow_text, np.vstack([slow_image, queue["image"]])),
  ):
    for i in range(len(image)):
      own = np.arange(len(keys)) == i
      same = all_ids == ids[i]
      counts = own | (all_weight > 0)
      if settings.equal_texts == "mask":
        counts &= own | ~same
      hard = counts & same if settings.equal_texts == "positives" else own
      hard = (hard | own)[counts] / (hard | own).sum()
      soft = np.exp(log_softmax(np.exp(log_scale) * keys[counts] @ slow[i]))
      log_p = log_softmax(np.exp(log_scale) * keys[counts] @ queries[i])
      total -= weight[i] * (alpha * soft + (1 - alpha) * hard) @ log_p
  return total / (2 if settings.directions == "mean" else 1) / weight.sum()


def units(rng, *shape):
  x = rng.normal(size=shape)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def given():
  """Embeddings and a queue in which some texts are the batch's; two rows of weight 0, one of a half."""
  rng = np.random.default_rng(0)
  ids = np.arange(N)
  ids[5] = ids[2]
  weight = np.ones(N)
  weight[[3, 6]], weight[4] = 0, 0.5
  queue = {
    "image": units(rng, Q, E),
    "text": units(rng, Q, E),
    "ids": np.array([2, 11, 4, 12, 13, 4]),
    "weight": np.array([1.0, 1, 1, 0, 1, 0]),
  }
  return [units(rng, N, E) for _ in range(4)], queue, ids, weight


def loss_of(settings):
  """The loss as a function of float arrays; texts are their numbers."""

  def loss(embeddings, queue, ids, weight, log_scale, alpha):
    queue = {name: jnp.asarray(x) for name, x in queue.items()}
    queue["hashes"], ids = (jnp.stack([x, x], 1).astype(jnp.uint32) for x in (queue.pop("ids"), ids))
    return momentum_contrastive_loss(*embeddings, queue, ids, weight, log_scale, alpha, settings)

  return loss


def as_float32(tree):
  return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, tree)


@pytest.mark.parametrize(("equal_texts", "directions"), [("negatives", "mean"), ("mask", "sum"), ("positives", "mean")])
def test_loss_and_gradients(equal_texts, directions):
  settings = Contrastive(equal_texts=equal_texts, directions=directions)
  embeddings, queue, ids, weight = given()
  image, text = embeddings[:2]
  loss = jax.jit(jax.value_and_grad(loss_of(settings), argnums=(0, 4)))
  with jax.set_mesh(make_mesh()):
    for alpha in (0.0, ALPHA, 1.0):
      value, (slopes, d_scale) = loss(*as_float32((embeddings, queue, ids, weight)), jnp.float32(LOG_SCALE), alpha)

      def formula(image, text, log_scale, alpha=alpha):
        return reference(image, text, *embeddings[2:], queue, ids, weight, log_scale, alpha, settings)

      np.testing.assert_allclose(value, formula(image, text, LOG_SCALE), rtol=1e-5)
      expected = numeric_gradient(lambda x, f=formula: f(*x, LOG_SCALE), np.stack([image, text]))
      np.testing.assert_allclose(slopes[:2], expected, atol=2e-6)
      # The targets are given: the temperature's slope is that of the predictions alone.
      eps = 1e-5  # sharper queries, in place of the temperature
      up, down = (formula(f * image, f * text, LOG_SCALE) for f in (np.exp(eps), np.exp(-eps)))
      np.testing.assert_allclose(d_scale, (up - down) / (2 * eps), rtol=1e-4, atol=1e-6)
      for slow in slopes[2:]:
        assert not np.any(slow)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)])
def test_loss_on_several_devices_is_that_of_one(mesh):
  settings = Contrastive(equal_texts="positives", directions="mean")
  arguments = as_float32(given())
  run = jax.jit(jax.value_and_grad(loss_of(settings)))
  with jax.set_mesh(make_mesh()):
    value, slopes = run(*arguments, jnp.float32(LOG_SCALE), ALPHA)
  mesh = make_mesh(*mesh)
  with jax.set_mesh(mesh):
    embeddings, queue, ids, weight = arguments
    embeddings, ids, weight = jax.device_put((embeddings, ids, weight), batch_sharding(mesh))
    several, others = run(embeddings, queue, ids, weight, jnp.float32(LOG_SCALE), ALPHA)
  np.testing.assert_allclose(several, value, rtol=1e-6)
  for a, b in zip(others, slopes, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


# --- The queue ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "batches",
  [(4, 4, 4, 4), (5, 5, 5, 5), (3, 12, 1, 12), (17, 2, 30), (12,)],
  ids=["divides", "does not", "whole", "larger", "once"],
)
def test_the_queue_holds_the_latest(batches):
  """A batch's last rows, where it is larger than the queue; the oldest leave first."""
  size = 12
  queue = empty_queue(Contrastive(queue=size), E, jax.random.key(0))
  np.testing.assert_allclose(np.linalg.norm(queue["text"], axis=1), 1, rtol=1e-5)
  assert len(np.unique(np.concatenate([queue["image"], queue["text"]]), axis=0)) == 2 * size
  assert not queue["hashes"].any() and queue["weight"].all() and queue["next"] == 0
  held = [(queue["image"][i], queue["text"][i], queue["hashes"][i], queue["weight"][i]) for i in range(size)]
  rng, entered = np.random.default_rng(0), 0
  for batch in batches:
    rows = (
      units(rng, batch, E).astype(np.float32),
      units(rng, batch, E).astype(np.float32),
      rng.integers(1, 2**32, (batch, 2), dtype=np.uint32),
      rng.integers(0, 2, batch).astype(np.float32),
    )
    queue = enqueue(queue, *map(jnp.asarray, rows))
    for row in zip(*rows, strict=True):
      held[entered % size] = row  # round and round: the place of the oldest
      entered += 1
    assert queue["next"] == entered % size
    for name, column in zip(("image", "text", "hashes", "weight"), zip(*held, strict=True), strict=True):
      np.testing.assert_array_equal(queue[name], np.stack(column))


def test_no_queue():
  queue = enqueue(
    empty_queue(Contrastive(queue=0), E, jax.random.key(0)),
    *(jnp.ones((3, E)),) * 2,
    jnp.ones((3, 2), jnp.uint32),
    jnp.ones(3),
  )
  assert all(len(queue[name]) == 0 for name in ("image", "text", "hashes", "weight")) and queue["next"] == 0


# --- The step -------------------------------------------------------------------------------------------------------

TOTAL, RAMP, DECAY, QUEUE = 20, 4, 0.8, 40  # a batch of 16 does not divide the queue
STEPS = 6
CHANGES = {
  "contrastive__momentum": DECAY,
  "contrastive__queue": QUEUE,
  "contrastive__soft_ramp": str(RAMP),
  "contrastive__directions": "mean",
  "contrastive__max_scale": 20.0,
  "contrastive__min_scale": 2.0,
  "contrastive__equal_texts": "positives",
  "optim__name": "adamw",
  "matching__floor": 1e-4,
}


def settings_of(**changes):
  return tiny_blip(**(CHANGES | changes))


@functools.cache
def first_state():
  return jax.tree.map(np.asarray, Setup(settings_of(), make_mesh()).init_state())


def put(state, settings, mesh):
  return jax.device_put(state, Setup(settings, mesh).shardings)


@functools.cache
def stepper(mesh=(1, 1, 1), **changes):
  settings, mesh = settings_of(**changes), make_mesh(*mesh)
  step = TrainStep(Setup(settings, mesh))

  def run(state, batch):
    state, metrics = step(state, put_batch(batch, mesh))
    return state, jax.tree.map(float, metrics)

  return settings, mesh, run


def batch_at(step):
  batch = pairs(settings_of(), seed=step)
  if step == 3:
    batch["weight"] = np.where(np.arange(16) == 7, np.nan, batch["weight"])
  return batch


@pytest.fixture(scope="module")
def history():
  """States (numpy) before and after each step, and the steps' metrics; the fourth is not finite."""
  settings, mesh, run = stepper()
  state = put(first_state(), settings, mesh)
  states, metrics = [first_state()], []
  for i in range(STEPS):
    state, values = run(state, batch_at(i))
    states.append(jax.tree.map(np.array, state))
    metrics.append(values)
  return states, metrics


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_new_state_has_copies_and_a_full_queue():
  state = first_state()
  assert state.queue["text"].shape == (QUEUE, 24)
  momentum = with_momentum(state.params, state.momentum)
  assert equal(momentum, state.params)
  assert 0 < len(jax.tree.leaves(state.momentum)) < len(jax.tree.leaves(state.params))


@functools.cache
def forward():
  return Forward(settings_of(), make_mesh())


def expected_step(before, batch, alpha):
  """The momentum parameters, embeddings of the batch by them, and the contrastive loss."""
  params = flat(before.params)
  average = nested({name: DECAY * m + (1 - DECAY) * params[name] for name, m in flat(before.momentum).items()})

  def embed(params):
    embedded = forward().embed_images(params, batch["image"]), forward().embed_texts(params, batch["text"])
    return [np.asarray(x, np.float64) for x in embedded]

  slow = embed(with_momentum(before.params, average))
  names = [tuple(h) for h in np.concatenate([batch["hashes"], before.queue["hashes"]])]
  ids = np.array([names.index(name) for name in names])
  loss = reference(
    *embed(before.params),
    *slow,
    before.queue | {"ids": ids[16:]},
    ids[:16],
    batch["weight"].astype(np.float64),
    before.params["temperature"]["log_scale"],
    alpha,
    settings_of().contrastive,
  )
  return average, slow, loss


def test_momentum_moves_then_embeds_and_its_embeddings_enter_the_queue_after_the_loss(history):
  states, metrics = history
  for i in (0, 1, 2, 4, 5):
    before, after, batch = states[i], states[i + 1], batch_at(i)
    average, slow, loss = expected_step(before, batch, 0.4 * min(1, i / RAMP))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.momentum, average)
    np.testing.assert_allclose(metrics[i]["contrastive"], loss, rtol=2e-5)

    old, new = before.queue, after.queue
    places = (np.arange(16) + old["next"]) % QUEUE
    kept = np.setdiff1d(np.arange(QUEUE), places)
    entered = {"image": slow[0], "text": slow[1], "hashes": batch["hashes"], "weight": batch["weight"]}
    for name, x in entered.items():
      np.testing.assert_allclose(new[name][places], x, atol=5e-6)
      np.testing.assert_array_equal(new[name][kept], old[name][kept])
    assert new["next"] == (old["next"] + 16) % QUEUE
  assert states[-1].queue["next"] == 0 and QUEUE % 16  # round and round


def test_a_step_that_is_not_finite_leaves_momentum_and_queue(history):
  states, metrics = history
  assert not np.isfinite(metrics[3]["loss"]) and metrics[5]["skipped"] == 1
  before, skipped, after = states[3:6]
  for name in ("params", "momentum", "queue"):
    assert equal(getattr(before, name), getattr(skipped, name))
    assert not equal(getattr(skipped, name), getattr(after, name))


def test_the_temperature_stays_between_its_limits():
  settings, mesh, run = stepper()
  for start, end in ((np.log(50), 20), (np.log(1.1), 2)):
    state = first_state()
    state = dataclasses.replace(state, params=state.params | {"temperature": {"log_scale": np.float32(start)}})
    state, metrics = run(put(state, settings, mesh), batch_at(0))
    np.testing.assert_allclose(np.exp(state.params["temperature"]["log_scale"]), end, rtol=1e-6)
    np.testing.assert_allclose(metrics["temperature"], np.exp(-start), rtol=1e-5)


# --- Meshes, checkpoints --------------------------------------------------------------------------------------------

CONTRASTIVE = {"matching__weight": 0.0, "captioning__weight": 0.0}  # enough for what the contrastive loss leaves behind


@pytest.mark.parametrize(
  ("mesh", "ramp", "step"), [((1, 8, 1), "0", 0), ((1, 1, 4), str(RAMP), 2)], ids=["fsdp, no ramp", "tensor"]
)
def test_any_mesh_keeps_what_one_device_keeps(mesh, ramp, step, history):
  """Without a ramp the soft targets are there at once."""
  settings, mesh, run = stepper(mesh, **CONTRASTIVE, contrastive__soft_ramp=ramp)
  states, metrics = history
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), Setup(settings, mesh).planned)
  state = dataclasses.replace(
    state,
    params={name: states[step].params[name] for name in state.params},
    **{name: getattr(states[step], name) for name in ("momentum", "queue", "step")},
  )
  state, values = run(put(state, settings, mesh), batch_at(step))
  loss = metrics[2]["contrastive"] if step else expected_step(states[0], batch_at(0), 0.4)[2]
  np.testing.assert_allclose(values["contrastive"], loss, rtol=1e-5)
  for name in ("momentum", "queue"):
    assert_trees_close(getattr(state, name), getattr(states[step + 1], name), 1e-5)


def test_a_resumed_run_is_the_same_and_goes_on_on_other_devices(history, tmp_path):
  settings, mesh, run = stepper()
  states, metrics = history

  def saved(step):
    checkpoints = Checkpoints(tmp_path / str(step))
    assert checkpoints.save(step, put(states[step], settings, mesh), {})
    checkpoints.close()
    return tmp_path / str(step)

  def restored(path, mesh):
    checkpoints = Checkpoints(path)
    state, _, _ = checkpoints.restore(Setup(settings, mesh).planned)
    checkpoints.close()
    return state

  state = restored(saved(4), mesh)
  for i in (4, 5):
    state, values = run(state, batch_at(i))
    assert values == metrics[i]
  assert equal(state, states[6])

  state = restored(saved(2), make_mesh(8))
  assert equal(state, states[2]) and state.queue["text"].sharding.num_devices == 8
  _, others, run = stepper((2, 2, 2))
  state, values = run(put(jax.tree.map(np.asarray, state), settings, others), batch_at(2))
  for name, value in metrics[2].items():
    np.testing.assert_allclose(values[name], value, rtol=3e-5, err_msg=name)
  for name in ("momentum", "queue"):
    assert_trees_close(getattr(state, name), getattr(states[3], name), 1e-5)
