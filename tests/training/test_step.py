"""The step: the same on any mesh and in micro-batches, and what happens to parameters that a step leaves alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from coca.devices.host import put_batch
from coca.devices.trees import flat, path_name
from coca.inference.forward import Forward
from coca.models.abstract import abstract_model
from coca.objectives.masked import hide_words
from coca.training.gradients import Gradients
from coca.training.optim import decay_mask
from coca.training.state import Setup
from coca.training.step import TrainStep, batch_shapes
from support.blip_reference import ALBEF, ANSWERS, tiny_blip
from support.common import assert_trees_close, make_mesh, new_state, pairs, random_params, shapes_in, tiny

TOTAL = 20
METRICS = {
  "loss",
  "contrastive",
  "captioning",
  "temperature",
  "grad_norm",
  "skipped",
  "skipped_in_a_row",
  "data/skipped",
}


@pytest.fixture(scope="module")
def batches():
  return [pairs(tiny(), seed=i) for i in range(3)]


# --- Meshes and micro-batches ---------------------------------------------------------------------------------------


@functools.cache
def first_params():
  """A new model's parameters, as numpy arrays."""
  return jax.tree.map(np.asarray, Setup(tiny(), make_mesh()).init_state().params)


def first_state(settings, mesh):
  return new_state(settings, mesh, first_params())


@pytest.mark.slow
def test_parameters_do_not_depend_on_the_mesh():
  settings, mesh = tiny(optim__ema=0.9), make_mesh(2, 2, 2)
  setup = Setup(settings, mesh)
  state, planned = setup.init_state(), setup.planned

  def agree(array, plan):
    assert (array.shape, array.dtype, array.sharding) == (plan.shape, plan.dtype, plan.sharding)

  jax.tree.map(agree, state, planned)
  jax.tree.map(np.testing.assert_array_equal, state.params, first_params())
  jax.tree.map(np.testing.assert_array_equal, state, first_state(settings, mesh))


@pytest.mark.slow
def test_parameters_of_a_new_model():
  params = first_params()
  kernel = params["unimodal"]["stack"]["layers"]["mlp"]["up"]["kernel"]
  assert kernel.shape == (2, 48, 80)
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01  # layers differ
  np.testing.assert_allclose(np.abs(kernel).max(), (6 / (48 + 80)) ** 0.5, rtol=0.01)  # Xavier's bound of one layer
  np.testing.assert_allclose(np.exp(-params["temperature"]["log_scale"]), 0.07, rtol=1e-6)


WITH_DROPOUT = {"optim__name": "adamw", "model__image__patch_dropout": 0.4}


def train(mesh, batches, **changes):
  """Three steps of AdamW with dropped patches: the metrics of each, and the gradient of the first."""
  settings = tiny(**WITH_DROPOUT, **changes)
  state = first_state(settings, mesh)
  step, metrics, gradient = TrainStep(Setup(settings, mesh)), [], None
  for batch in batches:
    state, values = step(state, put_batch(batch, mesh))
    metrics.append(jax.tree.map(float, values))
    if gradient is None:  # Adam's first moment after one step is a tenth of it
      moment = optax.tree_utils.tree_get(state.opt, "mu")
      gradient = jax.tree.map(lambda x: np.asarray(x) / (1 - settings.optim.b1), moment)
  assert state.step == 3
  return metrics, gradient


@pytest.fixture(scope="module")
def one_device(batches):
  return train(make_mesh(), batches)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("mesh", "accumulate"),
  [((8, 1, 1), 1), ((1, 8, 1), 1), ((1, 1, 4), 1), ((2, 2, 2), 2)],
  ids=["data", "fsdp", "tensor", "all, micro-batches"],
)
def test_any_mesh_trains_as_one_device(mesh, accumulate, batches, one_device):
  metrics, gradient = train(make_mesh(*mesh), batches, optim__accumulate=accumulate)
  expected_metrics, expected_gradient = one_device
  for actual, expected in zip(metrics, expected_metrics, strict=True):
    assert set(actual) == METRICS
    for name in METRICS:
      np.testing.assert_allclose(actual[name], expected[name], rtol=3e-5, err_msg=name)
  assert_trees_close(gradient, expected_gradient, 1e-5)


def gradients(params, batch, noise, **changes):
  settings = tiny(**changes)
  with jax.set_mesh(make_mesh()):
    return jax.jit(Gradients(settings))(params, batch, noise)


@pytest.mark.slow
def test_micro_batches_are_one_batch(batches, one_device):
  noise = jax.random.uniform(jax.random.fold_in(jax.random.key(0), 0), (16, 16))  # as the first step draws it
  actual, metrics = gradients(first_params(), batches[0], noise, optim__accumulate=4, **WITH_DROPOUT)
  assert_trees_close(actual, one_device[1], 1e-5)
  for name in metrics:
    np.testing.assert_allclose(metrics[name], one_device[0][0][name], rtol=1e-5, err_msg=name)


SINGLE_LOSSES = {
  "sigmoid, frozen temperature": {
    "captioning__weight": 0.0,
    "contrastive__loss": "sigmoid",
    "optim__lr_scale": {"temperature": 0.0},
  },
  "captioning, sum over tokens": {"contrastive__weight": 0.0, "captioning__tokens": "sum"},
  "captioning, each text by itself": {"contrastive__weight": 0.0, "captioning__tokens": "per_text"},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", SINGLE_LOSSES.values(), ids=SINGLE_LOSSES.keys())
def test_micro_batches_of_a_single_loss_are_one_batch(changes, batches):
  params, batch = random_params(tiny(**changes)), dict(batches[0])
  cut = batch["last"] != batch["text"][:, -1]
  assert cut.any()
  whole = dict(batch)
  if "contrastive__weight" in changes:  # of the decoder alone, which does not see what stands in the last place
    whole["text"] = np.concatenate([batch["text"][:, :-1], whole.pop("last")[:, None]], axis=1)
  (expected, expected_metrics), (actual, metrics) = (
    gradients(params, of, None, optim__accumulate=k, **changes) for of, k in ((whole, 1), (batch, 4))
  )
  assert_trees_close(actual, expected, 1e-5)
  for name in expected_metrics:
    np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5, err_msg=name)
  unused = ("multimodal", "softmax", "temperature") if "captioning__weight" in changes else ()
  for part in unused:
    assert not any(np.any(x) for x in jax.tree.leaves((actual[part], expected[part])))


def test_micro_batches_keep_embeddings_only(batches):
  """Nothing of the whole batch's size is held but the embeddings: no activations, whole or stacked."""
  settings = tiny(optim__accumulate=4)
  with jax.set_mesh(make_mesh()):
    shapes = shapes_in(jax.make_jaxpr(Gradients(settings))(random_params(settings), batches[0], None).jaxpr)
  for activations in ((16, 32), (9, 48), (8, 48)):  # patches; words and [CLS]; words
    assert (4, *activations) in shapes
    assert (16, *activations) not in shapes and (4, 4, *activations) not in shapes
  assert (16, 24) in shapes  # embeddings


@pytest.mark.slow
def test_losses_are_weighed(one_device):
  first = one_device[0][0]
  np.testing.assert_allclose(first["loss"], first["contrastive"] + 2 * first["captioning"], rtol=1e-6)
  np.testing.assert_allclose(first["captioning"], np.log(88), rtol=0.15)  # a new model knows nothing
  np.testing.assert_allclose(first["temperature"], 0.07, rtol=1e-6)


@pytest.mark.slow
def test_gradients_are_float32_whatever_the_compute(batches):
  settings = tiny(model__dtype="bfloat16", optim__accumulate=2)
  with jax.set_mesh(make_mesh()):
    gradient, metrics = jax.eval_shape(Gradients(settings), random_params(settings), batches[0], None)
  assert {x.dtype for x in jax.tree.leaves((gradient, metrics))} == {jnp.dtype(jnp.float32)}


# --- The state ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(batches):
  """States (numpy) and metrics of six steps, the third and fourth with a NaN; and whether each state was donated."""
  settings = tiny(optim__ema=0.9, optim__clip=0.5, optim__lr_scale={"embedding": 0.0}, optim__max_nonfinite=3)
  mesh = make_mesh()
  state = first_state(settings, mesh)
  step = TrainStep(Setup(settings, mesh))
  states, metrics, donated = [jax.tree.map(np.array, state)], [], []
  for i in range(6):
    batch = dict(batches[0])
    if i in (2, 3):
      batch["weight"] = np.where(np.arange(16) == 7, np.nan, batch["weight"])
    old = state
    state, values = step(state, put_batch(batch, mesh))
    donated.append(all(x.is_deleted() for x in jax.tree.leaves(old)))
    states.append(jax.tree.map(np.array, state))
    metrics.append(jax.tree.map(float, values))
  return states, metrics, donated


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(trained):
  states, metrics, _ = trained
  for i in (2, 3):
    assert not np.isfinite(metrics[i]["loss"])
    for name in ("params", "ema"):
      assert equal(getattr(states[i + 1], name), getattr(states[i], name))
    moments = [[x for x in jax.tree.leaves(s.opt) if x.ndim] for s in states[i : i + 2]]
    assert equal(*moments)  # the schedule's clock goes on with the step
  for i in (0, 1, 4, 5):
    assert np.isfinite(metrics[i]["loss"])
    for name in ("params", "opt", "ema"):
      assert not equal(getattr(states[i + 1], name), getattr(states[i], name))
  assert [m["skipped"] for m in metrics] == [0, 0, 1, 2, 2, 2]
  assert [m["skipped_in_a_row"] for m in metrics] == [0, 0, 1, 2, 0, 0]
  assert [int(s.step) for s in states] == [0, 1, 2, 3, 4, 5, 6]
  assert metrics[5]["loss"] < metrics[0]["loss"]


@pytest.mark.slow
def test_moving_average(trained):
  states, _, _ = trained
  assert equal(states[0].ema, states[0].params)
  for before, after in ((states[0], states[1]), (states[4], states[5])):
    expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, before.ema, after.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), after.ema, expected)


@pytest.mark.slow
def test_a_frozen_part_stays_and_has_no_moments(trained):
  states, _, _ = trained
  assert equal(states[-1].params["embedding"], states[0].params["embedding"])
  paths = [jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(states[0].opt) if x.ndim]
  assert any("unimodal" in path for path in paths)
  assert not any("embedding" in path for path in paths)
  for part in set(states[0].params) - {"embedding"}:
    assert not equal(states[-1].params[part], states[0].params[part]), part


def without_gradient(settings):
  """The paths of the parameters whose gradient is a constant 0 in the step's program."""
  params = random_params(settings)
  batch = pairs(settings)
  if settings.masked.weight:
    batch |= hide_words(jnp.asarray(batch["text"]), jax.random.key(1), settings.masked, settings.model)
  if settings.classification.weight:
    batch["label"] = np.zeros(16, np.int32)
  if settings.answering.weight:
    shape = 16, settings.answering.answers
    batch |= {"answers": np.ones((*shape, settings.answering.length), np.int32), "answer_weight": np.ones(shape)}
  with jax.set_mesh(make_mesh()):
    step = Gradients(settings)
    jaxpr = jax.make_jaxpr(lambda *args: step(*args)[0])(params, batch, None, jax.random.key(0)).jaxpr
  zeros = {e.outvars[0] for e in jaxpr.eqns if e.primitive.name == "broadcast_in_dim" and hasattr(e.invars[0], "val")}
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  return {name for name, x in zip(names, jaxpr.outvars, strict=True) if hasattr(x, "val") or x in zeros}


CAPTIONS, CONTRASTS = {"contrastive__weight": 0.0, "contrastive__keep": True}, {"captioning__weight": 0.0}
BLIP = {"captioning__weight": 0.0, "matching__weight": 0.0}
MAMMUT = {"model__text__two_passes": True, "model__text__cross_every": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("make", "changes"),
  [
    (tiny, {}),
    (tiny, CAPTIONS),
    (tiny, CONTRASTS),
    (tiny, CONTRASTS | {"matching__weight": 1.0}),
    (tiny, CONTRASTS | {"model__poolers__kind": "parallel"}),
    (tiny, CAPTIONS | {"model__poolers__kind": "openclip", "model__text__cls_position": True}),
    (tiny, CONTRASTS | {"model__poolers__kind": "class_token", "model__image__class_token": True}),
    (tiny, CONTRASTS | MAMMUT),
    (tiny, CONTRASTS | MAMMUT | {"model__text__cross_every": 1}),
    (tiny, CONTRASTS | {"contrastive__weight": 0.0, "classification__weight": 1.0, "classification__classes": 3}),
    (tiny_blip, ALBEF | BLIP | {"contrastive__weight": 0.0}),
    (tiny_blip, ALBEF | BLIP | {"masked__weight": 0.0}),
    *(
      pytest.param(tiny_blip, changes, marks=pytest.mark.slow)
      for changes in (
        {},
        BLIP,
        BLIP | {"model__med__sharing": "none"},
        {"captioning__weight": 0.0},
        {"matching__weight": 0.0},
        CAPTIONS | {"matching__weight": 0.0},
        CAPTIONS | {"matching__weight": 0.0, "model__med__sharing": "all"},
        ANSWERS,
      )
    ),
  ],
)
def test_weight_decay_is_for_what_a_loss_reaches(make, changes):
  settings = make(optim__decay_mask="all", **changes)
  params = abstract_model(settings)[1]
  spared = {name for name, decays in flat(decay_mask(settings, params)).items() if not decays}
  assert spared == without_gradient(settings) | {name for name in flat(params) if name.startswith("temperature/")}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_heads_that_are_kept_without_a_loss_stay_as_they_are(optimizer, batches):
  settings = tiny(
    contrastive__weight=0.0,
    contrastive__keep=True,
    optim__decay_mask="all",
    optim__name=optimizer,
    optim__weight_decay=0.1,
    optim__clip=1.0,
  )
  mesh = make_mesh()
  state = first_state(settings, mesh)
  before = jax.tree.map(np.array, state.params)
  step, forward = TrainStep(Setup(settings, mesh)), Forward(settings, mesh)
  for i in range(5):
    state, metrics = step(state, put_batch(batches[i % 3], mesh))
  assert "contrastive" not in metrics
  before, after = (flat(jax.tree.map(np.asarray, x)) for x in (before, state.params))
  heads = {
    name
    for name in before
    if name.startswith(("contrastive_pooler", "temperature", "unimodal/cls", "unimodal/norm", "unimodal/projection"))
  }
  assert {name for name in before if np.array_equal(before[name], after[name])} == heads
  for embedding in (
    forward.embed_images(state.params, batches[0]["image"]),
    forward.embed_texts(state.params, batches[0]["text"]),
  ):
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)


@pytest.mark.slow
def test_the_state_is_donated(trained):
  assert all(trained[2])


@pytest.mark.slow
def test_unusable_pairs_are_counted(trained):
  assert [m["data/skipped"] for m in trained[1]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_the_temperature_stops_at_the_cap_and_can_come_back(batches):
  """A cap in the loss alone would leave log_scale beyond it without a gradient for ever."""
  settings = tiny(contrastive__max_scale=20.0, optim__lr=0.05, optim__warmup="0")
  mesh = make_mesh()
  state = first_state(settings, mesh)
  state = dataclasses.replace(state, params=state.params | {"temperature": {"log_scale": jnp.float32(np.log(50))}})
  step = TrainStep(Setup(settings, mesh))
  temperatures = []
  for _ in range(3):
    state, _ = step(state, put_batch(batches[0], mesh))
    temperatures.append(float(np.exp(-state.params["temperature"]["log_scale"])))
  assert temperatures[0] == pytest.approx(1 / 20, rel=1e-6)
  assert temperatures[-1] > 1 / 20 * 1.01  # noise is learned best with a higher temperature


@pytest.mark.slow
def test_on_tpus_no_heads_are_turned(monkeypatch):
  """Over 8 devices; turning heads took a sixth of the step's time there."""
  settings = tiny(
    data__batch=32,
    mesh__data=2,
    mesh__fsdp=4,
    model__dtype="bfloat16",
    model__remat="full",
    model__image__size=64,
    model__image__patch=16,
    model__image__width=128,
    model__poolers__n_query=16,
    model__text__width=128,
    model__text__length=17,
  )
  setup = Setup(settings, make_mesh(2, 4))
  turned = {}
  for where in ("cpu", "tpu"):
    monkeypatch.setattr("coca.models.attention.platform", lambda where=where: where)
    traced = TrainStep(setup).trace(setup.planned, batch_shapes(settings, setup.mesh))
    turned[where] = traced.lower(lowering_platforms=("tpu",)).as_text().count("dims = [0, 2, 1, 3]")
  assert turned["tpu"] == 0 < turned["cpu"]
