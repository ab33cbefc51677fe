"""Schedules against a table, optimizers against float64 NumPy, and which parameters they leave alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from coca.config import Config, Data, Optim
from coca.config.settings import frozen_parts
from coca.devices.trees import flat
from coca.training import optim
from coca.training.optim import decay_mask, make_optimizer, make_schedule


def settings(**changes):
  return Config(optim=Optim(**changes), data=Data(batch=100))


def rates(total, steps, **changes):
  schedule = make_schedule(settings(lr=0.5, **changes), total)
  return [float(schedule(jnp.int32(step))) for step in steps]


def test_linear_schedule():
  """2 % of 500 steps are 10; the first step moves, the last but one stands a step before 0."""
  np.testing.assert_allclose(
    rates(500, [0, 1, 4, 9, 10, 255, 499, 500]),
    [0.05, 0.1, 0.25, 0.5, 0.5, 0.25, 0.5 / 490, 0],
    rtol=1e-5,
    atol=1e-9,
  )


def test_other_schedules():
  steps = [0, 9, 10, 255, 500, 700]
  cosine = [0.05, 0.5, 0.5, 0.275, 0.05, 0.05]
  np.testing.assert_allclose(rates(500, steps, schedule="cosine", final_lr=0.1), cosine, rtol=1e-5)
  np.testing.assert_allclose(rates(500, steps, schedule="constant"), [0.05, *[0.5] * 5], rtol=1e-6)
  np.testing.assert_allclose(rates(500, steps, final_lr=0.1)[-3:], [0.275, 0.05, 0.05], rtol=1e-5)


@pytest.mark.parametrize(("epoch", "steps"), [("3333", 3333), ("333300 examples", 3333), ("5%", 2500), ("41", 41)])
@pytest.mark.parametrize("lr_decay", [0.85, 0.9])
def test_a_step_down_each_epoch(epoch, steps, lr_decay):
  """BLIP's formula in float64, around each boundary: 20 epochs or to the end of 50,000 steps, floored at lr / 300."""
  total, warmup = 50_000, 40
  around = sorted({min(max(e * steps + k, 0), total) for e in range(21) for k in (-2, -1, 0, 1)} | {38, 39, 40, total})
  expected = [0.5 * max(lr_decay ** (step // steps), 1 / 300) for step in around]
  expected = [0.5 * (step + 1) / warmup if step < warmup else rate for step, rate in zip(around, expected, strict=True)]
  found = rates(total, around, schedule="epochs", epoch=epoch, lr_decay=lr_decay, final_lr=1 / 300, warmup="40")
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  if steps == 41:
    assert found[-1] == pytest.approx(0.5 / 300)


@pytest.mark.parametrize("warmup", ["20 steps", "2000 examples", "4%"])
def test_warmup_in_any_unit(warmup):
  np.testing.assert_allclose(rates(500, [0, 19, 20], warmup=warmup), [0.025, 0.5, 0.5], rtol=1e-6)


def test_schedules_of_very_short_runs():
  np.testing.assert_allclose(rates(3, [0, 1, 2, 3], warmup="0"), [0.5, 1 / 3, 1 / 6, 0], rtol=1e-6, atol=1e-9)
  np.testing.assert_allclose(rates(1, [0]), [0.5])
  np.testing.assert_allclose(rates(2, [0, 1], warmup="50 steps"), [0.25, 0.5])


@pytest.fixture(scope="module")
def tree():
  """Two parts with every kind of parameter: stacked and single matrices, a small one, embeddings, vectors, scalars."""
  rng = np.random.default_rng(0)
  shapes = {
    "tower": {
      "layers": {"up": {"kernel": (2, 128, 160), "bias": (2, 160)}, "norm": {"scale": (2, 160), "bias": (2, 160)}},
      "small": {"kernel": (127, 130)},
      "positions": (130, 140),
    },
    "head": {"kernel": (140, 128), "log_scale": ()},
  }

  def make(scale):
    return jax.tree.map(
      lambda shape: (scale * rng.normal(size=shape)).astype(np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )

  return make(1.0), [make(10.0**-k) for k in (1, 2, 1)]


def updates_of(config, tree, total=100):
  """Runs the optimizer over the gradients: each step's update of the parameters, and the state at the end."""
  params, gradients = tree
  optimizer = make_optimizer(config, total, params)
  state, updates = optimizer.init(params), []
  update = jax.jit(optimizer.update)
  for gradient in gradients:
    one, state = update(gradient, state, params)
    params = optax.apply_updates(params, one)
    updates.append(one)
  return updates, state


def adafactor(params, gradients, lr, weight_decay, b1=0.9, b2=0.999):
  """Adafactor (arXiv 1804.04235) of one matrix or vector, with momentum of the updates and decoupled decay."""
  params, momentum, updates = params.astype(np.float64), np.zeros(params.shape), []
  row, column, full = 0.0, 0.0, 0.0
  for t, gradient in enumerate(gradients, 1):
    square, beta = gradient.astype(np.float64) ** 2, min(b2, 1 - t**-0.8)
    if params.ndim == 2 and min(params.shape) >= 128:
      row = beta * row + (1 - beta) * square.mean(1)
      column = beta * column + (1 - beta) * square.mean(0)
      second = np.outer(row, column) / row.mean()
    else:
      full = beta * full + (1 - beta) * square
      second = full
    momentum = b1 * momentum + (1 - b1) * gradient / np.sqrt(second)
    updates.append(-lr * (momentum + weight_decay * params))
    params = params + updates[-1]
  return updates


def adamw(params, gradients, lr, weight_decay, b1=0.9, b2=0.999, eps=1e-8):
  params, m, v, updates = params.astype(np.float64), 0.0, 0.0, []
  for t, gradient in enumerate(gradients, 1):
    m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient.astype(np.float64) ** 2
    step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    updates.append(-lr * (step + weight_decay * params))
    params = params + updates[-1]
  return updates


def muon(params, gradients, lr, weight_decay, beta=0.95):
  """Jordan et al., 2024, with the scale of arXiv 2502.16982, and the corrections of NAdam, as optax has it."""
  if params.ndim < 2 or not weight_decay:  # of this tree's matrices, the embedding alone has no decay
    return adamw(params, gradients, lr, weight_decay)
  params, momentum, updates = params.astype(np.float64), 0.0, []
  for t, gradient in enumerate(gradients, 1):
    momentum = beta * momentum + (1 - beta) * gradient
    x = beta * momentum / (1 - beta ** (t + 1)) + (1 - beta) * gradient / (1 - beta**t)
    x = x / np.linalg.norm(x)
    for _ in range(5):
      square = x @ x.T
      x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    updates.append(-lr * (0.2 * np.sqrt(max(x.shape)) * x + weight_decay * params))
    params = params + updates[-1]
  return updates


@pytest.mark.parametrize("on", ["cpu", "tpu"])
def test_muons_steps_are_newton_schulz(on, monkeypatch):
  """Of matrices much wider than high, too, where CPUs multiply the steps' polynomials with each other."""
  monkeypatch.setattr(optim, "platform", lambda: on)
  for shape in ((2, 12, 48), (48, 12), (12, 12), (12, 20), (3, 4, 100)):
    given = np.random.default_rng(0).normal(size=shape)
    given /= np.linalg.norm(given, axis=(-2, -1), keepdims=True)
    x = given if shape[-2] <= shape[-1] else given.swapaxes(-2, -1)
    for _ in range(5):
      square = x @ x.swapaxes(-2, -1)
      x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    expected = x if shape[-2] <= shape[-1] else x.swapaxes(-2, -1)
    np.testing.assert_allclose(jax.jit(optim.orthogonalized)(given.astype(np.float32)), expected, atol=2e-6)


def lamb(params, gradients, lr, weight_decay, b1=0.9, b2=0.999, eps=1e-8):
  """LAMB (arXiv 1904.00962, algorithm 2), with phi the identity; of vectors and scalars, AdamW."""
  if params.ndim < 2:
    return adamw(params, gradients, lr, weight_decay)
  params, m, v, updates = params.astype(np.float64), 0.0, 0.0, []
  for t, gradient in enumerate(gradients, 1):
    m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient.astype(np.float64) ** 2
    step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * params
    updates.append(-lr * np.linalg.norm(params) / np.linalg.norm(step) * step)
    params = params + updates[-1]
  return updates


FORMULAS = [("adafactor", adafactor, 0.01), ("adamw", adamw, 5e-5), ("muon", muon, 5e-4), ("lamb", lamb, 5e-5)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "formula", "tolerance"), FORMULAS)
def test_updates_equal_the_formula(name, formula, tolerance, tree):
  """Adafactor keeps its momentum in bfloat16, hence the tolerance; stacked layers are as if each were alone. What Muon
  leaves to AdamW has a rate of its own."""
  own = {"adamw_scale": 0.25} if name == "muon" else {}
  updates, _ = updates_of(settings(name=name, lr=0.1, warmup="0", schedule="constant", weight_decay=0.05, **own), tree)

  def check(path, param, *leaves):
    gradients, actual = leaves[:3], leaves[3:]
    decay = 0.05 if "kernel" in jax.tree_util.keystr(path) else 0.0
    layers = [(param, gradients, actual)]
    if "layers" in jax.tree_util.keystr(path):
      layers = [(param[i], [g[i] for g in gradients], [a[i] for a in actual]) for i in range(len(param))]
    for p, g, a in layers:
      expected = formula(p, g, 0.1 if decay else 0.1 * own.get("adamw_scale", 1.0), decay)
      if name != "muon":  # a product of many matrices
        np.testing.assert_allclose(a[0], expected[0], atol=2e-6, rtol=5e-5)  # before anything was rounded
      for one, other in zip(a, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())

  jax.tree_util.tree_map_with_path(check, tree[0], *tree[1], *updates)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "formula", "tolerance"), FORMULAS)
def test_layers_have_rates_of_their_own(name, formula, tolerance, tree):
  """As if each layer of the tower were a parameter group of torch's, with its rate: 1/16 and 1/4 of the head's 0.4."""
  changes = {"weight_decay": 0.05, "layer_decay": 0.25, "lr_scale": {"head": 0.5}}
  updates, _ = updates_of(settings(name=name, lr=0.8, warmup="0", schedule="constant", **changes), tree)
  named = [flat(x) for x in (tree[0], *tree[1], *updates)]
  for path, rates, decay in (
    ("tower/layers/up/kernel", (0.05, 0.2), 0.05),
    ("tower/layers/norm/scale", (0.05, 0.2), 0.0),
    ("tower/small/kernel", 0.8, 0.05),
    ("head/kernel", 0.4, 0.05),
  ):
    param, *leaves = (x[path] for x in named)
    for i, rate in [(i, rate) for i, rate in enumerate(rates)] if isinstance(rates, tuple) else [(..., rates)]:
      expected = formula(param[i], [g[i] for g in leaves[:3]], rate, decay)
      for actual, other in zip(leaves[3:], expected, strict=True):
        np.testing.assert_allclose(actual[i], other, atol=tolerance * np.abs(other).max())


def test_epsilon_is_what_adamw_adds_to_the_root(tree):
  adam = settings(name="adamw", lr=0.1, warmup="0", schedule="constant", weight_decay=0.0, eps=0.5)
  updates, _ = updates_of(adam, tree)
  gradient = tree[1][0]["head"]["kernel"]
  np.testing.assert_allclose(updates[0]["head"]["kernel"], -0.1 * gradient / (np.abs(gradient) + 0.5), rtol=1e-4)


@pytest.mark.slow
def test_muon_leaves_a_matrix_without_a_gradient_and_a_skipped_step_alone(tree):
  params, gradients = tree
  optimizer = make_optimizer(settings(name="muon", lr=0.1, warmup="0", weight_decay=0.0), 100, params)
  nothing = jax.tree.map(np.zeros_like, gradients[0])
  updates, state = optimizer.update(nothing, optimizer.init(params), params)
  assert not any(x.any() for x in jax.tree.leaves(updates))
  broken = jax.tree.map(lambda x: x * np.nan, nothing)
  _, after = optimizer.update(broken, state, params, finite=np.array(False))
  for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
    if old.ndim:  # the schedule counts skipped steps, too
      np.testing.assert_array_equal(new, old)


def test_adafactor_state_is_factored_and_its_momentum_bfloat16(tree):
  _, state = updates_of(settings(), tree)
  sizes = {
    name: optax.tree_utils.tree_get(state, name)["tower"]["layers"]["up"]["kernel"].shape
    for name in ("v_row", "v_col", "v", "ema")
  }
  assert sorted(sizes[n] for n in ("v_row", "v_col")) == [(2, 128), (2, 160)]
  assert sizes["v"] == (1,)
  assert sizes["ema"] == (2, 128, 160)
  assert {x.dtype for x in jax.tree.leaves(optax.tree_utils.tree_get(state, "ema"))} == {jnp.dtype(jnp.bfloat16)}
  assert optax.tree_utils.tree_get(state, "v")["tower"]["small"]["kernel"].shape == (127, 130)


def test_adamw_on_all_parameters_with_an_eps(tree):
  """As torch.optim.AdamW(model.parameters(), eps=...): vectors, embeddings and scalars decay too."""
  same = {"name": "adamw", "lr": 0.1, "warmup": "0", "schedule": "constant", "weight_decay": 0.05}
  updates, _ = updates_of(settings(**same, decay_mask="all", eps=0.03), tree)

  def check(param, *leaves):
    for actual, expected in zip(leaves[3:], adamw(param, leaves[:3], 0.1, 0.05, eps=0.03), strict=True):
      np.testing.assert_allclose(actual, expected, atol=5e-5 * np.abs(expected).max())

  jax.tree.map(check, tree[0], *tree[1], *updates)


def test_weight_decay_spares_what_is_no_matrix(tree):
  params, _ = tree
  mask = decay_mask(settings(), params)
  assert mask == {
    "tower": {
      "layers": {"up": {"kernel": True, "bias": False}, "norm": {"scale": False, "bias": False}},
      "small": {"kernel": True},
      "positions": False,
    },
    "head": {"kernel": True, "log_scale": False},
  }
  assert all(jax.tree.leaves(decay_mask(settings(decay_mask="all"), params)))


def test_a_part_has_its_own_rate_and_0_freezes_it(tree):
  plain, _ = updates_of(settings(name="adamw"), tree)
  halved, _ = updates_of(settings(name="adamw", lr_scale={"head": 0.5}), tree)
  frozen_config = settings(name="adamw", lr_scale={"head": 0.0})
  frozen, state = updates_of(frozen_config, tree)
  np.testing.assert_allclose(halved[0]["head"]["kernel"], plain[0]["head"]["kernel"] / 2, rtol=1e-6)
  for a, b in zip(jax.tree.leaves(frozen[2]["tower"]), jax.tree.leaves(plain[2]["tower"]), strict=True):
    np.testing.assert_array_equal(a, b)
  assert not any(np.any(x) for update in frozen for x in jax.tree.leaves(update["head"]))
  assert frozen_parts(frozen_config) == {"head"}
  moments = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
  assert moments == 2 * sum(x.size for x in jax.tree.leaves(tree[0]["tower"]))


def test_clipping_is_by_the_norm_of_all_trained_parameters(tree):
  params, gradients = tree
  norms = {k: np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(g))) for k, g in gradients[0].items()}
  for lr_scale, norm in (({}, np.hypot(*norms.values())), ({"head": 0.0}, norms["tower"])):
    _, state = updates_of(settings(name="adamw", clip=1.0, lr_scale=lr_scale), (params, gradients[:1]))
    moment = optax.tree_utils.tree_get(state, "mu")["tower"]["positions"]
    np.testing.assert_allclose(moment, 0.1 * gradients[0]["tower"]["positions"] / norm, rtol=1e-4, atol=1e-9)
  _, state = updates_of(settings(name="adamw", clip=1e6), (params, gradients[:1]))
  np.testing.assert_allclose(
    optax.tree_utils.tree_get(state, "mu")["tower"]["positions"], 0.1 * gradients[0]["tower"]["positions"], rtol=1e-5
  )


def test_a_part_that_the_model_lacks_is_named(tree):
  with pytest.raises(ValueError, match="lr_scale names pooler; the model's parts are head, tower"):
    make_optimizer(dataclasses.replace(settings(lr_scale={"pooler": 0.1})), 10, tree[0])
