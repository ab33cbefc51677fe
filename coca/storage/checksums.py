"""Checksums of arrays on devices that hold for any sharding."""

from functools import lru_cache
from itertools import zip_longest

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# Multipliers of two known bijections of 32-bit words: MurmurHash3's finalizer and Wellons' "lowbias32".
_MULTIPLIERS = ((0x85EBCA6B, 0xC2B2AE35), (0x7FEB352D, 0x846CA68B))
_SMALL = 2**20  # elements of an array that NumPy adds up sooner than XLA compiles a program for its shape


def checksums(arrays: dict[str, jax.Array]) -> dict[str, str]:
  """64 bits an array, in hexadecimal, from the bit patterns and their positions.

  Each element's bits are mixed with a hash of its index by a bijection, and all are added up modulo 2^32, twice with
  other constants. Addition of integers has no order, so every sharding gives the same sum; one changed element
  always changes it, and other changes, such as two swapped values, do but for a chance of 2^-64.
  """
  # All are queued, then fetched.
  sums = {name: _sums(np.asarray(x)) if _is_at_hand(x) else _checksum(x.sharding)(x) for name, x in arrays.items()}
  return {name: "{:08x}{:08x}".format(*np.asarray(s)) for name, s in sums.items()}


def _is_at_hand(x: jax.Array) -> bool:
  """True of a small array in this process' own memory."""
  return x.size <= _SMALL and x.is_fully_addressable and {d.platform for d in x.devices()} == {"cpu"}


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


@np.errstate(over="ignore")  # NumPy warns of scalars alone
def _sums(x, starts=()):
  """Both sums over a part of an array, JAX's or NumPy's, that begins at `starts`; without them, at 0."""
  xp = np if isinstance(x, np.ndarray) else jnp
  bits = _bits(x).astype(xp.uint32)

  def mix(v, m1, m2):
    v = (v ^ (v >> 16)) * xp.uint32(m1)
    v = (v ^ (v >> 15)) * xp.uint32(m2)
    return v ^ (v >> 16)

  mixed = []
  for m1, m2 in _MULTIPLIERS:
    place = xp.zeros((), xp.uint32)
    for axis, (n, start) in enumerate(zip_longest(bits.shape, starts, fillvalue=0)):
      places = xp.arange(n, dtype=xp.uint32) + xp.uint32(start)
      index = mix(places + xp.uint32(0x9E3779B9 * (axis + 1) % 2**32), m1, m2)
      place = place * xp.uint32(m2) + xp.expand_dims(index, [i for i in range(bits.ndim) if i != axis])
    mixed.append(mix(bits ^ place, m1, m2))
  if xp is np:
    return np.array([m.sum(dtype=np.uint32) for m in mixed])
  # One reduction of both: two of them make XLA on CPU hold an array of mixed values for each.
  return jnp.stack(
    jax.lax.reduce(
      mixed, [np.uint32(0)] * 2, lambda a, b: [i + j for i, j in zip(a, b, strict=True)], tuple(range(bits.ndim))
    )
  )


def _bits(x):
  """Unsigned integers; of a wide type's elements two of 32 bits, along one axis more."""
  if x.dtype == bool:
    return x
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  if isinstance(x, np.ndarray):
    return np.ascontiguousarray(x).reshape(-1).view(unsigned).reshape((*x.shape, *[-1] * (x.dtype.itemsize > 4)))
  return jax.lax.bitcast_convert_type(x, unsigned)
