"""Dropout, the same on any mesh: what becomes of a value is up to its place and the key."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

GOLDEN = 0x9E3779B9 - 2**32  # int32; the golden ratio's, which spreads neighbours


def dropout(x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray) -> Float[Array, "*shape"]:
  """Zeroes values of x with probability `rate` and scales the others up.

  The bits are a hash of the value's place and of 64 drawn ones: drawn for each value, they would take eight times the
  work.
  """
  seeds = jax.random.bits(key, (2,)).view(jnp.int32)
  place = sum(
    jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) * int32(math.prod(x.shape[axis + 1 :])) for axis in range(x.ndim)
  )
  kept = is_kept(mixed(mixed(place * GOLDEN ^ seeds[0]) ^ seeds[1]), rate)
  return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def is_kept(bits: jax.Array, rate: float) -> jax.Array:
  """True with probability 1 - `rate`, by the upper 24 of each 32 bits."""
  return jax.lax.shift_right_logical(bits, 8) >= round(rate * 2**24)


def mixed(x: jax.Array) -> jax.Array:
  """int32, by the mixing steps of MurmurHash3 (Appleby, public domain); the upper bits are the best."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ jax.lax.shift_right_logical(x, shift)) * int32(factor)
  return x


def int32(bits: int) -> int:
  """The number that has the 32 lowest of these bits."""
  bits %= 2**32
  return bits - 2**32 if bits >= 2**31 else bits
