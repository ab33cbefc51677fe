"""Between this host's NumPy rows and the global arrays on the mesh."""

import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from coca.devices import sharding
from coca.devices.sharding import batch_sharding


class Lagged(list):
  """Device arrays fetched one call late, so that the device has work while the host waits for a result."""

  def append(self, array) -> None:
    super().append(array)
    if len(self) > 1:
      self[-2] = to_host(self[-2])

  def concatenate(self) -> np.ndarray:
    return np.concatenate([to_host(a) for a in self])


def round_up(batch: int, mesh: Mesh) -> int:
  """The next batch that the devices share evenly."""
  shares = math.prod(mesh.shape[axis] for axis in sharding.BATCH)
  return -(-batch // shares) * shares


def from_first(tree):
  """NumPy arrays as the first process has them, on every process: what decides how often all of them call a device.

  Collective. Shapes are the same everywhere; 64 bits are cut to 32.
  """
  return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def to_host(array) -> np.ndarray:
  """The whole of a global array, on every host. Collective if its parts lie on several; nothing if it is NumPy's."""
  if not isinstance(array, jax.Array):
    return np.asarray(array)
  if array.is_fully_replicated:
    return np.asarray(array.addressable_data(0))
  return multihost_utils.process_allgather(array, tiled=True)


def put_batch(batch, mesh):
  """This process' rows (a tree of numpy arrays) as global arrays split over the batch axes."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
