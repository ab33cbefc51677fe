"""Linear layers and norms: how they are initialised, multiplied and gathered."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from coca.devices.hardware import platform
from coca.devices.sharding import batch_devices, gather_layer
from coca.models.rngs import Rngs

# What the papers leave open: kernels as in the ViT code (Xavier), embeddings as in BERT.
KERNEL_INIT = nnx.initializers.xavier_uniform()
EMBED_INIT = nnx.initializers.normal(0.02)

M = TypeVar("M", bound=nnx.Module)


def flat_dot_general(
  x: Float[Array, "*rows D"], kernel: Float[Array, "D E"], dimension_numbers: tuple | None, **options
) -> Float[Array, "*rows E"]:
  """x @ kernel as a product of two matrices: twice as fast backward on CPU as over [B, T, D]."""
  del dimension_numbers  # nnx.Linear only ever contracts the last dimension with the first
  flat = x.reshape(-1, x.shape[-1])
  return jax.lax.dot_general(flat, kernel, (((1,), (0,)), ((), ())), **options).reshape(*x.shape[:-1], -1)


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
  summed = platform() == "cpu" or (platform() == "tpu" and dtype != jnp.float32)
  if summed and x.ndim == 1 and len(shape) > 1:
    return _spread(x, shape, dtype)
  return jnp.broadcast_to(x.astype(jnp.float32), shape).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _spread(x, shape, dtype):
  """`spread` of a vector, with a sum of its own.

  On TPUs it is a product with ones: the matrix units sum faster than the others. On CPU it is over a matrix's rows,
  behind a barrier: XLA would sum those of queries, keys and values as [B, T, H, K], 0.5 ms in place of 0.04.
  """
  return jnp.broadcast_to(x.astype(dtype), shape)


def _spread_fwd(x, shape, dtype):
  return _spread(x, shape, dtype), jnp.zeros((), x.dtype)


def _spread_bwd(shape, dtype, like, g):
  if platform() == "cpu":
    rows = jax.lax.optimization_barrier(g.reshape(-1, shape[-1]))
    return (rows.astype(jnp.float32).sum(0).astype(like.dtype),)
  ones = jnp.ones((8, *shape[:-1]), g.dtype)
  axes = range(len(shape) - 1)
  contracted = tuple(i + 1 for i in axes), tuple(axes)
  total = jax.lax.dot_general(ones, g, (contracted, ((), ())), preferred_element_type=jnp.float32)
  return (total[0].astype(like.dtype),)


_spread.defvjp(_spread_fwd, _spread_bwd)


class Linear(nnx.Linear):
  """With the bias as `spread` has it; `keep` names the result for `REMAT`."""

  keep = "matmul"

  def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows E"]:
    y = self.dot_general(x.astype(self.dtype), self.kernel[...].astype(self.dtype), None)
    y = y if self.bias is None else y + spread(self.bias[...], y.shape, y.dtype)
    return checkpoint_name(y, self.keep)


def stacked(layers: list[Linear], x: Float[Array, "B T D"]) -> Float[Array, "n B T E"]:
  """The results of layers of one size on the same rows, of one product."""
  dtype, kept = layers[0].dtype, layers[0].keep
  kernels = jnp.stack([layer.kernel[...].astype(dtype) for layer in layers])
  y = jnp.einsum("btd,nde->nbte", x.astype(dtype), kernels)
  biases = jnp.stack([layer.bias[...] for layer in layers])  # pyright: ignore[reportOptionalSubscript]
  y += jax.vmap(lambda bias: spread(bias, y.shape[1:], y.dtype))(biases)
  return checkpoint_name(y, kept)


def linear(
  n_in: int,
  n_out: int,
  dtype: DTypeLike,
  rngs: Rngs,
  bias: bool = True,
  keep: str = "matmul",
  init: Callable = KERNEL_INIT,
) -> Linear:
  # In a dict, since flax says that it wants its own `Rngs`; all that it asks of it is `params()`.
  options = {"use_bias": bias, "dtype": dtype, "kernel_init": init, "rngs": rngs}
  layer = Linear(n_in, n_out, dot_general=flat_dot_general, **options)
  layer.keep = keep
  return layer


def gathered(module: M, dtype: DTypeLike, prefix: str = "") -> M:
  """The module with its kernels in the compute dtype, gathered over fsdp; `prefix`: of their paths, as 'patches/'."""
  graphdef, state = nnx.split(module)
  return nnx.merge(graphdef, gather_layer(state, dtype, prefix))


class LayerNorm(nnx.LayerNorm):
  """On TPUs by a kernel of our own."""

  def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    return self._kernel(x, fork=False)[0] if self._fits(x) else super().__call__(x)

  def fork(self, x: Float[Array, "*rows D"]) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
    """x normed, and x, for what goes around."""
    return self._kernel(x, fork=True) if self._fits(x) else (super().__call__(x), x)

  def _fits(self, x):
    if platform() != "tpu" or x.ndim != 3 or x.dtype != self.dtype:
      return False
    return x.shape[0] % batch_devices() == 0 and x.shape[1] >= 16 and x.shape[2] % 128 == 0  # whole tiles

  def _kernel(self, x, fork) -> Any:
    from coca.models import norm  # Pallas is slow to import

    scale, bias = (p[...] for p in (self.scale, self.bias))  # pyright: ignore[reportOptionalSubscript]
    return norm.layer_norm(x, scale, bias, self.epsilon, fork)


class RmsNorm(nnx.RMSNorm):
  """T5's: no mean is taken off, and there is no bias. `fork`: as `LayerNorm`'s."""

  def fork(self, x: Float[Array, "*rows D"]) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
    return self(x), x


def rms_norm(width: int, eps: float, dtype: DTypeLike, rngs: Rngs) -> RmsNorm:
  options = {"epsilon": eps, "dtype": dtype, "rngs": rngs}
  return RmsNorm(width, **options)


def layer_norm(width: int, eps: float, dtype: DTypeLike, rngs: Rngs) -> LayerNorm:
  options = {"epsilon": eps, "dtype": dtype, "use_fast_variance": False, "rngs": rngs}
  return LayerNorm(width, **options)
