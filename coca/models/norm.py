"""LayerNorm on TPUs (Pallas): one walk over the rows forward and one backward, where XLA takes two and four or five.

Shapes: B batch, T tokens, D width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32

from coca.devices.sharding import BATCH

BLOCK = 2**18  # numbers of a block, if one example has no more


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
  x: Float[Array, "B T D"], scale: Float32[Array, " D"], bias: Float32[Array, " D"], eps: float, fork: bool
) -> tuple[Float[Array, "B T D"], ...]:
  """Statistics and sums are fp32; the result has the type of x.

  fork: returns x as well, whose gradient then is added on the way back: that of what goes around the norm.
  """
  normed = _sharded(functools.partial(_forward, eps), 1, [x], scale, bias)
  return (*normed, x) if fork else tuple(normed)


def _layer_norm_fwd(x, scale, bias, eps, fork):
  return layer_norm(x, scale, bias, eps, fork), (x, scale)


def _layer_norm_bwd(eps, fork, given, grads):
  x, scale = given
  dx, d_scale, d_bias = _sharded(functools.partial(_backward, eps), 3, [x, *grads], scale)
  return dx, d_scale.sum((0, 1)), d_bias.sum((0, 1))


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def _sharded(body, n_outputs, rows, *vectors) -> list:
  """`_call` on each device's rows."""
  local = functools.partial(_call, body, n_outputs, len(rows))
  vectors = [v.reshape(1, 1, -1) for v in vectors]
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return local(*rows, *vectors)
  specs = *(P(BATCH) for _ in rows), *(P() for _ in vectors)
  outs = [P(BATCH)] * n_outputs
  return jax.shard_map(local, in_specs=specs, out_specs=outs, check_vma=False)(*rows, *vectors)


def _call(body, n_outputs, n_rows, *args):
  """`body` on blocks of some examples. The first output is as the rows, the others are a vector for each block."""
  batch, tokens, width = args[0].shape
  examples = max((n for n in range(1, batch + 1) if batch % n == 0 and n * tokens * width <= BLOCK), default=1)
  rows = pl.BlockSpec((examples, tokens, width), lambda b: (b, 0, 0))
  vector, own = (pl.BlockSpec((1, 1, width), where) for where in (lambda b: (0, 0, 0), lambda b: (b, 0, 0)))
  sums = jax.ShapeDtypeStruct((batch // examples, 1, width), jnp.float32)
  outputs = pl.pallas_call(
    body,
    grid=(batch // examples,),
    in_specs=[rows if i < n_rows else vector for i in range(len(args))],
    out_specs=[rows, *[own] * (n_outputs - 1)],
    out_shape=[jax.ShapeDtypeStruct(args[0].shape, args[0].dtype), *[sums] * (n_outputs - 1)],
    cost_estimate=pl.CostEstimate(
      flops=0,
      transcendentals=batch * tokens,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (args[0], *args)),  # what is written is as the first
    ),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),  # over the cores of a chip, if it has two
    name=f"norm{body.func.__name__}",
  )(*args)
  return list(outputs)


def _forward(eps, x_ref, scale_ref, bias_ref, y_ref):
  normed, _ = _normed(x_ref, eps)
  y_ref[...] = (normed * scale_ref[...] + bias_ref[...]).astype(y_ref.dtype)


def _backward(eps, x_ref, g_ref, *refs):
  *around_ref, scale_ref, dx_ref, d_scale_ref, d_bias_ref = refs
  normed, by = _normed(x_ref, eps)
  g = g_ref[...].astype(jnp.float32)
  scaled = g * scale_ref[...]
  along = (scaled * normed).mean(-1, keepdims=True)
  dx = by * (scaled - scaled.mean(-1, keepdims=True) - normed * along)
  for ref in around_ref:
    dx += ref[...]
  dx_ref[...] = dx.astype(dx_ref.dtype)
  d_scale_ref[...] = (g * normed).sum((0, 1), keepdims=True)
  d_bias_ref[...] = g.sum((0, 1), keepdims=True)


def _normed(x_ref, eps):
  """Rows with mean 0 and variance 1, and what they are multiplied by for that."""
  x = x_ref[...].astype(jnp.float32)
  x -= x.mean(-1, keepdims=True)
  by = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)
  return x * by, by
