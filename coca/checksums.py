"""Checksums of arrays on devices that hold for any sharding."""

from functools import lru_cache

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
  sums = {name: _checksum(_replicated(x.sharding))(x) for name, x in arrays.items()}  # all are queued, then fetched
  return {name: "{:08x}{:08x}".format(*np.asarray(s)) for name, s in sums.items()}


def _replicated(sharding):
  return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None


@lru_cache(maxsize=64)
def _checksum(out_sharding):
  return jax.jit(_sums, out_shardings=out_sharding)


def _sums(x):
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
    for axis, n in enumerate(bits.shape):
      index = mix(jnp.arange(n, dtype=jnp.uint32) + jnp.uint32(0x9E3779B9 * (axis + 1) % 2**32), m1, m2)
      place = place * jnp.uint32(m2) + jnp.expand_dims(index, [i for i in range(bits.ndim) if i != axis])
    mixed.append(mix(bits ^ place, m1, m2))
  # One reduction of both: two of them make XLA on CPU hold an array of mixed values for each.
  return jnp.stack(jax.lax.reduce(mixed, [np.uint32(0)] * 2, lambda a, b: [i + j for i, j in zip(a, b, strict=True)],
                                  tuple(range(bits.ndim))))
