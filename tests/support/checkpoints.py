"""A state of arrays of all kinds, checkpoints of it, and their damage."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from coca.storage.checkpoint import Checkpoints

SPECS = {"kernel": P("a", "b"), "embedding": P("b"), "step": P(), "mask": P(), "key": P(), "count": P("a")}


class Moments(NamedTuple):
  count: jax.Array
  mu: dict


def arrays(seed: int) -> dict:
  rng = np.random.default_rng(seed)
  return {
    "params": {
      "kernel": rng.normal(size=(16, 24)).astype(np.float32),
      "embedding": rng.normal(size=(64, 5)).astype(jnp.bfloat16),
    },
    "moments": Moments(
      rng.integers(-9, 9, 8).astype(np.int32), {"kernel": rng.normal(size=(16, 24)).astype(np.float32)}
    ),
    "mask": rng.integers(0, 2, 7).astype(bool),
    "step": np.uint32(seed),
  }


def mesh_of(a: int, b: int):
  return jax.make_mesh((a, b), ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: a * b])


def place(tree, mesh=None):
  """Arrays on `mesh` by SPECS, or on one device."""

  def put(path, x):
    name = path[-1].key if hasattr(path[-1], "key") else path[-1].name
    return jax.device_put(x, NamedSharding(mesh, SPECS[name]) if mesh else SingleDeviceSharding(jax.devices()[0]))

  return jax.tree_util.tree_map_with_path(put, tree)


def with_key(tree, mesh=None):
  return {**place(tree, mesh), **place({"key": jax.random.key(int(tree["step"]))}, mesh)}


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(restored, expected):
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
    assert x.dtype == y.dtype
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def saved(directory, steps, mesh=None, **settings):
  checkpoints = Checkpoints(directory, **settings)
  for step in steps:
    assert checkpoints.save(step, with_key(arrays(step), mesh), {"step": step})
  checkpoints.close()


def restored(directory, mesh=None):
  checkpoints = Checkpoints(directory)
  try:
    return checkpoints.restore(abstract(with_key(arrays(0), mesh)))
  finally:
    checkpoints.close()


def largest(step: Path) -> Path:
  """The file with the arrays' bytes."""
  return max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def damage(path: Path, places=None, bit: int = 0) -> None:
  """Flips one bit in each of the bytes `places`; None: everywhere in the file, every 50 bytes."""
  data = bytearray(path.read_bytes())
  for place in range(25, len(data), 50) if places is None else places:
    data[place] ^= 1 << bit
  path.write_bytes(data)
