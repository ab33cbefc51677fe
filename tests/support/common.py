"""What tests of the model and the step share: a CoCa that compiles in seconds, pairs for it, float64 derivatives."""

import dataclasses
import functools
import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np

from coca import config
from coca.config.special import Special
from coca.devices import sharding
from coca.devices.trees import path_name
from coca.models.abstract import abstract_model
from coca.training.gradients import Gradients
from coca.training.state import Setup

PAD, BOS, EOS = 0, 1, 2
SPECIAL = Special(BOS, EOS)


def tiny(**changes) -> config.Config:
  """A CoCa of a few thousand parameters, all of whose widths differ; `changes` have '__' for dots."""
  c = config.default()
  c.model.image.update({"size": 16, "patch": 4, "layers": 2, "width": 32, "mlp": 64, "heads": 4})
  c.model.poolers.n_query = 5
  c.model.text.update({"vocab": 88, "length": 8, "width": 48, "mlp": 80, "heads": 2})
  c.model.text.update({"unimodal_layers": 2, "multimodal_layers": 2})
  c.model.embed_dim, c.data.batch, c.steps, c.optim.lr = 24, 16, "20", 1e-2
  for name, value in changes.items():
    if name == "optim__lr_scale":
      c.optim.lr_scale = value
    else:
      c.update_from_flattened_dict({name.replace("__", "."): value})
  return config.parse(c)


def classifier(*, others=None, **settings) -> config.Config:
  """`tiny` with a class head and nothing else; `settings` are of `config.classification`, `others` as `tiny`'s."""
  alone = {"contrastive__weight": 0.0, "captioning__weight": 0.0}
  alone |= {"model__text__unimodal_layers": 0, "model__text__multimodal_layers": 0}
  settings = {"weight": 1.0, "classes": 3} | settings
  return tiny(**alone | {f"classification__{name}": x for name, x in settings.items()} | (others or {}))


@functools.cache
def make_mesh(data=1, fsdp=1, tensor=1):
  axes = config.Mesh(data=data, fsdp=fsdp, tensor=tensor)
  return sharding.make_mesh(axes, jax.devices()[: math.prod((data, fsdp, tensor))])


def pairs(settings: config.Config, n=16, seed=0):
  """A batch with texts of all lengths, two equal texts and a row of weight 0."""
  rng = np.random.default_rng(seed)
  length, side = settings.model.text.length, settings.model.image.size
  text = rng.integers(4, settings.model.text.vocab, (n, length)).astype(np.int32)
  text[:, 0] = BOS
  for row, end in enumerate(rng.integers(2, length, n)):
    text[row, end] = EOS
    text[row, end + 1 :] = PAD
  text[n // 2] = text[1]
  weight = np.ones(n, np.float32)
  weight[n // 3] = 0
  image = rng.integers(0, 256, (n, side, side, 3)).astype(np.uint8)
  last = np.where(text[:, -1] == EOS, rng.integers(4, settings.model.text.vocab, n), text[:, -1]).astype(np.int32)
  return {"image": image, "text": text, "last": last, "hashes": hashes(text), "weight": weight}


def hashes(text):
  """A batch's 'hashes' for texts [N, T]: rows of equal words are equal."""
  return np.stack([np.frombuffer(hashlib.sha256(row.tobytes()).digest()[:8], np.uint32) for row in np.asarray(text)])


def random_params(settings: config.Config, seed=0):
  """Parameters as numpy arrays, none of them at a value (0, 1) that would hide it."""
  rng = np.random.default_rng(seed)

  def one(path, x):
    name = path_name(path)
    if name.endswith("kernel"):
      return rng.normal(0, x.shape[-2] ** -0.5, x.shape).astype(np.float32)
    if name.endswith("scale") and x.ndim:
      return rng.normal(1, 0.2, x.shape).astype(np.float32)
    if name == "temperature/log_scale":
      return np.float32(2)
    if name == "temperature/logit_bias":
      return np.float32(-3)
    return rng.normal(0, 0.3, x.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(one, abstract_model(settings)[1])


def new_state(settings: config.Config, mesh, params):
  """A state with these parameters and all else zeros, as `init_state` makes it of its own after a compilation."""
  setup = Setup(settings, mesh)
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), setup.planned)
  state = dataclasses.replace(state, params=params, ema=params if settings.optim.ema else None)
  return jax.device_put(state, setup.shardings)


def numeric_gradient(f, x, eps=1e-5):
  """Central differences of f(x), a float64 scalar, at the float64 array x."""
  gradient = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    ends = []
    for sign in (1, -1):
      moved = x.copy()
      moved[i] += sign * eps
      ends.append(f(moved))
    gradient[i] = (ends[0] - ends[1]) / (2 * eps)
  return gradient


def assert_trees_close(actual, expected, tolerance):
  """Each leaf to `tolerance` times its own largest value plus a hundredth of the tree's: some are almost noise."""
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))

  def compare(path, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    limit = tolerance * (np.abs(b).max() + 0.01 * largest)
    assert np.abs(a - b).max() <= limit, f"{path_name(path)}: {np.abs(a - b).max()} > {limit}"

  jax.tree_util.tree_map_with_path(compare, actual, expected)


def equations(jaxpr):
  """All equations of a jaxpr, those of its inner jaxprs too, each with how often the scans around it run it."""
  for eqn in jaxpr.eqns:
    yield eqn, 1
    times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    for inner in jax.tree.leaves(list(eqn.params.values())):
      inner = getattr(inner, "jaxpr", inner)  # closed ones hold one
      if hasattr(inner, "eqns"):
        for e, n in equations(inner):
          yield e, n * times


def sums_in_bfloat16(settings):
  """What the gradient of a step adds up in bfloat16 of more numbers than one each: shapes before and behind.

  Not what is added up over devices or in matrix products, nor rows of the batch that are taken by number.
  """
  batch = pairs(settings) | ({"parallel": np.arange(16) % 2 == 0} if settings.captioning.parallel else {})
  with jax.set_mesh(make_mesh()):
    step = Gradients(settings)
    jaxpr = jax.make_jaxpr(step)(random_params(settings), batch, None, jax.random.key(0)).jaxpr
  found = []
  for eqn, _ in equations(jaxpr):
    before, behind = eqn.invars[0].aval if eqn.invars else None, eqn.outvars[0].aval if eqn.outvars else None
    if getattr(before, "dtype", None) == jnp.bfloat16 and (
      (eqn.primitive.name == "reduce_sum" and before.size > behind.size)
      or (eqn.primitive.name.startswith("scatter") and len(before.shape) == 2)
    ):
      found.append((eqn.primitive.name, before.shape, behind.shape))
  return found


def shapes_in(jaxpr):
  """The shapes of everything that a jaxpr computes."""
  return {v.aval.shape for eqn, _ in equations(jaxpr) for v in eqn.outvars if hasattr(v.aval, "shape")}


def matmul_flops(jaxpr):
  """Multiplications and additions in all matrix products."""
  total = 0
  for eqn, times in equations(jaxpr):
    if eqn.primitive.name == "dot_general":
      contracted = eqn.params["dimension_numbers"][0][0]
      shape = eqn.invars[0].aval.shape
      total += 2 * times * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
  return total
