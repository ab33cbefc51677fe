"""Low-rank adaptation, against products of narrow matrices that are trained by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coca.config import Lora, Optim
from coca.devices.host import put_batch
from coca.devices.trees import flat, nested
from coca.models.abstract import abstract_model
from coca.training.init_from import compare
from coca.training.optim import make_optimizer
from coca.training.state import Setup
from coca.training.step import TrainStep
from support.common import make_mesh, new_state, pairs, random_params, tiny
from support.workdirs import make_workdir

QUERY, OUT = "image_encoder/layers/query/kernel", "image_encoder/layers/out/kernel"
LR, DECAY, B1, B2, EPS = 0.05, 0.1, 0.9, 0.95, 1e-8


def adapting(lora: Lora, **optim):
  return dataclasses.replace(tiny(), init_from="there", optim=Optim(lora=lora, **optim))


def tree(query, out, head):
  leaves = {QUERY: query, OUT: out, "class_head/kernel": head}
  return nested({path: np.float32(x) for path, x in leaves.items()})


def adam(x, gradient, moments, step):
  """AdamW's new value of x, with decay."""
  mean, square = moments
  mean[...] = B1 * mean + (1 - B1) * gradient
  square[...] = B2 * square + (1 - B2) * gradient**2
  update = mean / (1 - B1**step) / (np.sqrt(square / (1 - B2**step)) + EPS)
  return x - LR * (update + DECAY * x)


def test_steps_are_those_of_two_narrow_matrices():
  """W = W0 + alpha / rank * A B, where A and B have AdamW's steps: in float64, by the chain rule written out."""
  config = adapting(
    Lora(rank=2, alpha=6.0, whole=("class_head",)),
    **{"name": "adamw", "lr": LR, "weight_decay": DECAY, "b1": B1, "b2": B2, "schedule": "constant", "warmup": "0"},
  )
  rng = np.random.default_rng(0)
  first = {
    "image_encoder": {
      "layers": {"query": {"kernel": rng.normal(size=(3, 7, 5))}, "out": {"kernel": np.ones((3, 5, 5))}}
    },
    "class_head": {"kernel": rng.normal(size=(5, 4))},
  }
  first = jax.tree.map(lambda x: x.astype(np.float32), first)
  inputs, wanted = rng.normal(size=(3, 11, 7)), rng.normal(size=(3, 11, 5))
  optimizer = make_optimizer(config, 100, first)
  state = optimizer.init(first)
  a = np.asarray(state.matrices["image_encoder"]["layers"]["query"]["lora_a"]["kernel"], np.float64)
  assert a.shape == (3, 7, 2) and 0.9 < np.abs(a).max() * 7**0.5 <= 1  # loralib's, within 1 / sqrt(in)
  b, start = np.zeros((3, 2, 5)), np.asarray(flat(first)[QUERY], np.float64)
  head = np.asarray(first["class_head"]["kernel"], np.float64)
  moments = [[np.zeros(x.shape) for _ in range(2)] for x in (a, b, head)]
  params, update = first, jax.jit(optimizer.update)
  for step in range(1, 6):

    def gradient(w):
      return inputs.swapaxes(1, 2) @ (inputs @ w - wanted)

    whole = gradient(np.asarray(flat(params)[QUERY], np.float64))
    gradients = tree(whole, np.ones((3, 5, 5)), head)
    if step == 3:  # a step that is not finite leaves the matrices and their moments
      _, skipped = update(jax.tree.map(lambda x: x * np.nan, gradients), state, params, finite=jnp.bool_(False))
      jax.tree.map(np.testing.assert_array_equal, skipped.matrices, state.matrices)
    updates, state = update(gradients, state, params, finite=jnp.bool_(True))
    params = jax.tree.map(lambda x, u: np.asarray(x + u), params, updates)
    pulled = gradient(start + 3 * a @ b)
    of_a, of_b = 3 * pulled @ b.swapaxes(1, 2), 3 * a.swapaxes(1, 2) @ pulled
    a, b, head = (adam(x, g, m, step) for x, g, m in zip((a, b, head), (of_a, of_b, head), moments, strict=True))
    np.testing.assert_allclose(flat(params)[QUERY], start + 3 * a @ b, atol=2e-4)
    np.testing.assert_allclose(params["class_head"]["kernel"], head, atol=1e-5)
  assert np.abs(3 * a @ b).max() > 0.3
  np.testing.assert_array_equal(flat(params)[OUT], 1)


@pytest.mark.slow
def test_a_model_moves_by_matrices_of_that_rank_and_in_no_other_place():
  settings = adapting(Lora(rank=3, whole=("temperature", "softmax")), name="adamw", lr=1e-2, weight_decay=0.0)
  mesh = make_mesh(2, 2, 2)
  setup = Setup(settings, mesh)
  narrow, first = sum(3 * sum(shape) for shape in SHAPES), random_params(settings)
  moments = [x.size for x in jax.tree.leaves(setup.planned.opt.optimizer) if x.ndim]
  assert sum(moments) == 2 * (narrow + 48 * 88)
  matrices = setup.optimizer.init(first).matrices
  state = new_state(settings, mesh, first)
  opt = state.opt._replace(matrices=jax.device_put(matrices, setup.shardings.opt.matrices))
  state, step = dataclasses.replace(state, opt=opt), TrainStep(setup)
  for i in range(2):
    state, _ = step(state, put_batch(pairs(settings, seed=i), mesh))
  for path, x in flat(first).items():
    moved = np.asarray(flat(state.params)[path], np.float64) - x
    if path.endswith(("query/kernel", "value/kernel")):
      of_layers = np.linalg.svd(moved.reshape(-1, *moved.shape[-2:]), compute_uv=False)
      assert (of_layers[:, 0] > 1e-3).all() and of_layers[:, 3:].max() < 1e-6, path
    else:
      assert np.any(moved) == (path in ("softmax/kernel", "temperature/log_scale")), path


# Of the queries and values of a `tiny`: (in, out) of each layer.
IMAGE, TEXT, CROSS = ((32, 32),) * 2, ((48, 48),) * 2, ((48, 48),) * 2
POOLERS = ((48, 48), (32, 48), (48, 48), (48, 48))
SHAPES = (*IMAGE * 2, *TEXT * 2, *TEXT * 2, *CROSS * 2, *POOLERS)


@pytest.mark.parametrize(
  ("lora", "said"),
  [
    (Lora(rank=2, whole=("class_hed",)), r"config.optim.lora.whole names class_hed; the model's parts are .*softmax"),
    (Lora(rank=32), r"config.optim.lora.rank 32 is no less than that of generative_pooler/attention/value/kernel"),
    (Lora(rank=2, layers=()), "config.optim.lora.layers: no part"),
  ],
)
def test_what_a_model_lacks_is_refused(lora, said):
  config = adapting(lora)
  with pytest.raises(ValueError, match=said):
    make_optimizer(config, 10, abstract_model(config)[1])


def test_what_is_new_has_to_be_trained_whole(tmp_path):
  make_workdir(workdir := tmp_path / "run", tiny())
  changes = {"matching__weight": 1.0, "init_from": str(workdir), "optim__lora__rank": 2}
  with pytest.raises(ValueError, match=r"name matching_head, matching_pooler in config.optim.lora.whole"):
    compare(workdir, tiny(**changes))
  compare(workdir, tiny(**changes, optim__lora__whole=("matching_head", "matching_pooler")))
  with pytest.raises(ValueError, match=r"say where by config.init_from"):
    tiny(optim__lora__rank=2)
