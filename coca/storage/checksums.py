"""Checksums of arrays on devices that hold for any sharding."""

from functools import lru_cache
from itertools import zip_longest

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# Multipliers of two known bijections of 32-bit words: MurmurHash3's finalizer and Wellons' "lowbias32".
_MULTIPLIERS = ((0x85EBCA6B, 0xC2B2AE35), (0x7FEB352D, 0x846CA68B))


def checksums(arrays: dict[str, jax.Array]) -> dict[str, str]:
  """64 bits an array, in hexadecimal, from the bit patterns and their positions.

  Each element's bits are mixed with a hash of its index by a bijection, and all are added up modulo 2^32, twice with
  other constants. Addition of integers has no order, so every sharding gives the same sum; one changed element
  always changes it, and other changes, such as two swapped values, do but for a chance of 2^-64.
  """
  sums = {name: _checksum(x.sharding)(x) for name, x in arrays.items()}  # all are queued, then fetched
  return {name: "{:08x}{:08x}".format(*np.asarray(s)) for name, s in sums.items()}


@lru_cache(maxsize=64)
def _checksum(sharding):
  if not isinstance(sharding, NamedSharding):
    return jax.jit(_sums)

  def sharded(x):  # each device its own part: left to the partitioner, it would gather all of x on every device
    axes = [*sharding.spec, *[None] * (x.ndim - len(sharding.spec))]
    starts = [n * jax.lax.axis_index(a) if a else 0 for n, a in zip(x.shape, axes, strict=True)]
    used = [name for a in axes if a for name in (a if isinstance(a, tuple) else (a,))]
    return jax.lax.psum(_sums(x, starts), used) if used else _sums(x)

  return jax.jit(jax.shard_map(sharded, mesh=sharding.mesh, in_specs=sharding.spec, out_specs=PartitionSpec()))


def _sums(x, starts=()):
  """Both sums over a part of an array that begins at `starts`; without them, at 0."""
  if x.dtype == bool:
    bits = x.astype(jnp.uint32)
  elif x.dtype.itemsize > 4:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)  # one axis more
  else:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)

  def mix(v, m1, m2):
    v = (v ^ (v >> 16)) * jnp.uint32(m1)
    v = (v ^ (v >> 15)) * jnp.uint32(m2)
    return v ^ (v >> 16)

  mixed = []
  for m1, m2 in _MULTIPLIERS:
    place = jnp.zeros((), jnp.uint32)
    for axis, (n, start) in enumerate(zip_longest(bits.shape, starts, fillvalue=0)):
      places = jnp.arange(n, dtype=jnp.uint32) + jnp.uint32(start)
      index = mix(places + jnp.uint32(0x9E3779B9 * (axis + 1) % 2**32), m1, m2)
      place = place * jnp.uint32(m2) + jnp.expand_dims(index, [i for i in range(bits.ndim) if i != axis])
    mixed.append(mix(bits ^ place, m1, m2))
  # One reduction of both: two of them make XLA on CPU hold an array of mixed values for each.
  return jnp.stack(
    jax.lax.reduce(
      mixed, [np.uint32(0)] * 2, lambda a, b: [i + j for i, j in zip(a, b, strict=True)], tuple(range(bits.ndim))
    )
  )
