"""Linear layers and norms: how they are initialised, multiplied and gathered."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from coca.devices.sharding import gather_layer
from coca.models.rngs import Rngs

# What the papers leave open: kernels as in the ViT code (Xavier), embeddings as in BERT.
KERNEL_INIT = nnx.initializers.xavier_uniform()
EMBED_INIT = nnx.initializers.normal(0.02)

M = TypeVar("M", bound=nnx.Module)


def flat_dot_general(
  x: Float[Array, "*rows D"],
  kernel: Float[Array, "D E"],
  dimension_numbers: tuple | None,
  keep: str = "matmul",
  **options,
) -> Float[Array, "*rows E"]:
  """x @ kernel as a product of two matrices: twice as fast backward on CPU as over [B, T, D].

  `keep` names the result for `REMAT`.
  """
  del dimension_numbers  # nnx.Linear only ever contracts the last dimension with the first
  flat = x.reshape(-1, x.shape[-1])
  y = checkpoint_name(jax.lax.dot_general(flat, kernel, (((1,), (0,)), ((), ())), **options), keep)
  return y.reshape(*x.shape[:-1], -1)


def few_rows_dot_general(
  x: Float[Array, "*rows D"], kernel: Float[Array, "E D"], dimension_numbers: tuple | None, **options
) -> Float[Array, "*rows E"]:
  """x with a turned kernel: the faster order on CPU for a step of decoding.

  The barrier keeps it: XLA would turn the product around again, and be slower by a quarter at 16 rows.
  """
  del dimension_numbers
  flat = x.reshape(-1, x.shape[-1])
  y = jax.lax.optimization_barrier(jax.lax.dot_general(kernel, flat, (((1,), (1,)), ((), ())), **options)).T
  return y.reshape(*x.shape[:-1], -1)


def spread(x: Float[Array, "..."], shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "..."]:
  """x, a parameter or what comes of some, broadcast to many rows in the compute dtype.

  Its gradient is their sum, in fp32: in bfloat16 a sum of many numbers stops growing where one of them is less than a
  256th of it.
  """
  return jnp.broadcast_to(x.astype(jnp.float32), shape).astype(dtype)


class Linear(nnx.Linear):
  """With the bias as `spread` has it."""

  def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows E"]:
    y = self.dot_general(x.astype(self.dtype), self.kernel[...].astype(self.dtype), None)
    return y if self.bias is None else y + spread(self.bias[...], y.shape, y.dtype)


def linear(n_in: int, n_out: int, dtype: DTypeLike, rngs: Rngs, bias: bool = True, keep: str = "matmul") -> Linear:
  dot_general = functools.partial(flat_dot_general, keep=keep)
  # In a dict, since flax says that it wants its own `Rngs`; all that it asks of it is `params()`.
  options = {"use_bias": bias, "dtype": dtype, "kernel_init": KERNEL_INIT, "dot_general": dot_general, "rngs": rngs}
  return Linear(n_in, n_out, **options)


def gathered(module: M, dtype: DTypeLike, prefix: str = "") -> M:
  """The module with its kernels in the compute dtype, gathered over fsdp; `prefix`: of their paths, as 'patches/'."""
  graphdef, state = nnx.split(module)
  return nnx.merge(graphdef, gather_layer(state, dtype, prefix))


def layer_norm(width: int, eps: float, dtype: DTypeLike, rngs: Rngs) -> nnx.LayerNorm:
  options = {"epsilon": eps, "dtype": dtype, "use_fast_variance": False, "rngs": rngs}
  return nnx.LayerNorm(width, **options)
