"""Transformer layers shared by all towers.

Shapes: B batch, T tokens (queries), S tokens (keys), D width, H heads, K width of a head, L layers.
Parameters are fp32; activations have the dtype that the tower is built with; norms' statistics and softmax are fp32.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from coca import config
from coca.devices.hardware import platform
from coca.devices.sharding import constrain_batch, gather_layer
from coca.models.attention import Attention, CachedKeysValues, Dropout
from coca.models.dropout import dropout
from coca.models.linear import few_rows_dot_general, layer_norm, linear, rms_norm
from coca.models.rngs import Rngs

# Of GELU by tanh (arXiv 1606.08415).
SCALE = math.sqrt(2 / math.pi)
CUBE = 0.044715 * SCALE

Cache = tuple[Float[Array, "B H slots K"], Float[Array, "B H slots K"]]  # keys and values of a text's tokens


def gelu(x: Float[Array, "*shape"], approximate: bool = False) -> Float[Array, "*shape"]:
  """x times the normal distribution function of x, or `approximate`, as jax.nn.gelu has it.

  In bfloat16 on TPUs both by tanh, which these have a unit for: libtpu expects a product with erf behind it to take
  40 % longer on v5e.
  """
  if platform() != "tpu" or x.dtype != jnp.bfloat16:
    return jax.nn.gelu(x, approximate=approximate)
  return _gelu_by_tanh(x, approximate)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _gelu_by_tanh(x, approximate):
  z, normal = _normal(x, approximate)
  return (z * normal).astype(x.dtype)


@_gelu_by_tanh.defjvp
def _gelu_jvp(approximate, primals, tangents):
  """The slope by fewer operations than autodiff's, for which v6e waits; not `approximate` by the density itself."""
  (x,), (dx,) = primals, tangents
  z, normal = _normal(x, approximate)
  if approximate:
    density = (normal - normal * normal) * (2 * SCALE + 6 * CUBE * jnp.minimum(z * z, 64.0))  # no 0 times infinity
  else:
    density = jnp.exp(-0.5 * z * z) * (SCALE / 2)
  slope = normal + z * density
  return _gelu_by_tanh(x, approximate), (slope * dx.astype(jnp.float32)).astype(x.dtype)


def _normal(x, approximate):
  """x in fp32, and its normal distribution function; not `approximate` a minimax fit, off by a tenth of what bfloat16
  rounds off."""
  z = x.astype(jnp.float32)
  u = z * z
  if approximate:
    p = SCALE + u * CUBE
  else:
    u = jnp.minimum(u, 64.0)  # beyond, the polynomial would fall again
    p = 0.79713965 + u * (0.0372891796 - u * 3.89701473e-4)
  return z, 0.5 + 0.5 * jnp.tanh(z * p)


ACTIVATIONS = {
  "gelu": gelu,
  "gelu_tanh": functools.partial(gelu, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "relu": jax.nn.relu,
}


class Mlp(nnx.Module):
  def __init__(self, width: int, hidden: int, activation: str, dtype: DTypeLike, rngs: Rngs, bias: bool = True):
    self.activation = activation
    self.up = linear(width, hidden, dtype, rngs, bias)
    self.down = linear(hidden, width, dtype, rngs, bias)

  def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    hidden = ACTIVATIONS[self.activation](self.up(x))
    return self.down(hidden)


def _matrix(x):
  """Rows [B, T, D] as a matrix on TPUs.

  Without the barrier libtpu gives its products three dimensions again, and worse tiles; of two in a row it then makes
  one fusion that takes half as long again as both (RESULTS.md: CoCa-Giant, 128 images a device and more).
  """
  return jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1])) if platform() == "tpu" else x


class Layer(nnx.Module):
  """Transformer layer: self-attention, cross-attention if `kv_width` is given, one feed-forward.

  A LayerNorm stands before each of them (pre-LN), or, where `bert`, a `coca.config.Med`, is given, after the sum, or,
  with `tower.norm_after`, behind them and before the sum.
  With cross-attention, `tower.feedforwards` 2 puts one more feed-forward before it, and `tower.norm_context` a
  LayerNorm on what it looks at. Where `t5`, a `coca.config.Med` for its dropout, is given, norms are RMS norms, nothing
  has a bias, and logits of attention are not scaled.
  """

  def __init__(
    self,
    tower: config.ImageEncoder | config.TextDecoder,
    model: config.Model,
    dtype: DTypeLike,
    rngs: Rngs,
    *,
    kv_width: int | None = None,
    bert: config.Med | None = None,
    t5: config.Med | None = None,
  ):
    med = bert or t5
    self.post_norm, self.dropout = bert is not None, med.dropout if med else 0.0
    self.norm_after = isinstance(tower, config.ImageEncoder) and tower.norm_after
    self.crosses = kv_width is not None
    kind = rms_norm if t5 else layer_norm
    norm = functools.partial(kind, tower.width, bert.norm_eps if bert else model.norm_eps, dtype, rngs)
    attention = functools.partial(Attention, tower.width, tower.heads, dtype, rngs, implementation=model.attention)
    if t5:  # of the kernels, XLA's alone takes numbers as a mask
      attention = functools.partial(attention, implementation="xla", bias=False, unscaled=True)
    self.norm_self, self.self_attention = norm(), attention()
    own = tower.activation if isinstance(tower, config.TextDecoder) else "model"
    activation = model.activation if own == "model" else own
    mlp = functools.partial(Mlp, tower.width, tower.mlp, activation, dtype, rngs, bias=t5 is None)
    two = kv_width is not None and isinstance(tower, config.TextDecoder) and tower.feedforwards == 2
    self.norm_self_mlp, self.self_mlp = (norm(), mlp()) if two else (None, None)
    if kv_width is not None:
      self.norm_cross, self.cross_attention = norm(), attention(kv_width=kv_width)
      norms = isinstance(tower, config.TextDecoder) and tower.norm_context
      self.norm_context = layer_norm(kv_width, model.norm_eps, dtype, rngs) if norms else None
    self.norm_mlp, self.mlp = norm(), mlp()

  def __call__(
    self,
    x: Float[Array, "BK T D"],
    mask: Bool[Array, "#BK #H #T T"] | Float[Array, "#BK #H #T T"] | None = None,
    context: Float[Array, "B *images S kv_width"] | None = None,
    context_mask: Bool[Array, "#B 1 1 S"] | None = None,
    key: PRNGKeyArray | None = None,
    turn: Float32[Array, "2 #BK T half"] | None = None,
  ) -> Float[Array, "BK T D"]:
    """One layer.

    Args:
      x: one text an image, or B * K, an image's K texts in a row, which share its keys and values.
      mask: as in `dot_product_attention`.
      context: None: the cross-attention is passed over.
      context_mask: what of it may be attended.
      key: for dropout; None: none.
      turn: of self-attention's queries and keys, as `attention.turned`.
    """
    drops = key is not None and self.dropout > 0
    keys = iter(() if key is None else jax.random.split(key, 6))  # two attentions with their weights, two feed-forwards

    def drop(x):
      return dropout(x, self.dropout, next(keys)) if drops else x

    def drop_weights():
      return Dropout(self.dropout, next(keys)) if drops else None

    def add(norm, x, function):
      y, x = self._before(norm, x)
      return self._after(norm, x, drop(function(y)))

    def feed(norm, x, mlp):
      return add(norm, x, lambda y: mlp(_matrix(y)))

    def attend(y):
      return self.self_attention.over(y, mask=mask, drop=drop_weights(), turn=turn)

    x = add(self.norm_self, x, attend)
    if self.self_mlp:
      x = feed(self.norm_self_mlp, x, self.self_mlp)
    if context is not None:
      x = add(self.norm_cross, x, lambda y: self.look(y, context, context_mask, drop_weights))
    return constrain_batch(feed(self.norm_mlp, x, self.mlp))

  def look(
    self,
    x: Float[Array, "BK T D"],
    context: Float[Array, "B *images S kv_width"],
    mask: Bool[Array, "#B 1 1 S"] | None,
    drop: Callable[[], Dropout | None],
  ) -> Float[Array, "BK T D"]:
    """The cross-attention; `drop()` gives the next dropout of its weights."""
    queries = x.reshape(context.shape[0], -1, x.shape[-1])  # of one attention: they don't see each other
    return self.cross_attention.over(queries, self._context(context), mask, drop()).reshape(x.shape)

  def _before(self, norm, x):
    """The input of a part of the layer, and the sum that its output is added to."""
    return (x, x) if self.post_norm or self.norm_after else norm.fork(x)

  def _after(self, norm, x, y):
    """`y` may be a matrix of x's rows."""
    if self.norm_after:
      return x + norm(y.reshape(x.shape))
    x = (x.reshape(y.shape) + y).reshape(x.shape)
    return norm(x) if self.post_norm else x

  def _context(self, context):
    return self.norm_context(context) if self.norm_context else context

  def context_cache(
    self, context: Float[Array, "B S kv_width"], reads: int
  ) -> CachedKeysValues | Float[Array, "B S kv_width"]:
    """The form of the image tokens that `decode` needs: once an image, whatever the number of decoding steps.

    Keys and values; or, where as few queries as `reads` will look, the tokens as they are: then projecting the queries
    is less work than projecting the tokens (half as much by count, since its matrices are small).
    """
    context, attention = self._context(context), self.cross_attention
    few = 2 * reads * attention.heads <= attention.query.out_features
    return context if few else attention.cached_keys_values(context)

  def empty_cache(self, batch: int, slots: int) -> CachedKeysValues:
    """Keys and values of no tokens yet: zeros."""
    query, heads = self.self_attention.query, self.self_attention.heads
    zeros = jnp.zeros((batch, heads, slots, query.out_features // heads), query.dtype)
    return zeros, zeros

  def decode(
    self,
    x: Float[Array, "B N D"],
    cache: Cache,
    context: CachedKeysValues | Float[Array, "B S kv_width"] | None,
    context_mask: Bool[Array, "#B 1 1 S"] | None,
    first: Int[Array, ""] | int,
    mask: Bool[Array, "B 1 N slots"] | Float[Array, "B H N slots"],
    spread: int = 1,
  ) -> tuple[Float[Array, "B N D"], Cache]:
    """Tokens of an image's texts, with their keys and values kept for the tokens to come.

    Args:
      x: the new tokens.
      cache: of the tokens before.
      context: from `context_cache`; None in layers without cross-attention.
      context_mask: as in `__call__`.
      first: the slot of the first of the N.
      mask: what each may attend, its own slot among them; or numbers for the logits.
      spread: from one of the N slots to the next.

    Returns:
      the states, and the new cache.
    """
    y, x = self._before(self.norm_self, x)
    new = self.self_attention.cached_keys_values(y)
    if spread > 1:
      new = [jax.lax.pad(k, jnp.zeros((), k.dtype), [(0, 0, 0)] * 2 + [(0, 0, spread - 1), (0, 0, 0)]) for k in new]
    keys, values = (
      jax.lax.dynamic_update_slice_in_dim(a, b.astype(a.dtype), first, axis=2) for a, b in zip(cache, new, strict=True)
    )
    cache = keys, values
    x = self._after(self.norm_self, x, self.self_attention.over_cache(y, cache, mask))
    if self.self_mlp:
      y, x = self._before(self.norm_self_mlp, x)
      x = self._after(self.norm_self_mlp, x, self.self_mlp(y))
    if context is not None:
      (y, x), attention = self._before(self.norm_cross, x), self.cross_attention
      y = (
        attention.over_cache(y, context, context_mask)
        if isinstance(context, tuple)
        else attention.over_tokens(y, context, context_mask)
      )
      x = self._after(self.norm_cross, x, y)
    y, x = self._before(self.norm_mlp, x)
    return self._after(self.norm_mlp, x, self.mlp(y)), cache


KEEP = jax.checkpoint_policies.save_only_these_names
REMAT = {
  "none": lambda body: body,
  "dots": functools.partial(jax.checkpoint, policy=KEEP("matmul", "context")),
  "lean": functools.partial(jax.checkpoint, policy=KEEP("matmul")),
  "full": jax.checkpoint,
}


class Stack(nnx.Module):
  """Equal layers, parameters stacked along a leading dimension [L, ...], run by one `jax.lax.scan`."""

  def __init__(
    self, layers: int, make: Callable[[Rngs], nnx.Module], model: config.Model, dtype: DTypeLike, rngs: Rngs
  ):
    """`make(rngs)` builds one layer."""
    self.remat, self.unroll, self.dtype = model.remat, min(model.unroll, layers), dtype
    keys = jax.random.split(rngs.params(), layers)
    self.layers = jax.vmap(lambda key: make(Rngs(key)))(keys)

  def __call__(
    self, x: Float[Array, "BK *T D"], *args, key: PRNGKeyArray | None = None, **kwargs
  ) -> Float[Array, "BK *T D"]:
    """Each layer as `layer(x, *args, **kwargs)`. `key`, for dropout, gives each one of its own."""
    graphdef, state = nnx.split(self.layers)
    keys = None if key is None else jax.random.split(key, len(jax.tree.leaves(state)[0]))

    def body(x, inputs):
      params, key = inputs
      layer = nnx.merge(graphdef, gather_layer(params, self.dtype))
      return layer(x, *args, key=key, **kwargs), None

    return jax.lax.scan(REMAT[self.remat](body), x, (state, keys), unroll=self.unroll)[0]

  def part(self, first: int, last: int) -> "Stack":
    """Layers `first` to `last` - 1, with their parameters."""
    graphdef, state = nnx.split(self)
    part = nnx.merge(graphdef, jax.tree.map(lambda x: x[first:last], state))
    part.unroll = min(self.unroll, last - first)
    return part

  def decoding_weights(self) -> list:
    """The parameters of each layer for `decoding_layers`: cut apart, in the compute dtype, kernels turned."""
    state = nnx.state(self.layers)
    layers = jax.tree.leaves(state)[0].shape[0]
    return [
      jax.tree.map(
        lambda x: x.T if x.ndim > 1 else x, gather_layer(jax.tree.map(lambda x, i=i: x[i], state), self.dtype)
      )
      for i in range(layers)
    ]

  def decoding_layers(self, weights: list) -> list:
    """The layers with parameters of `decoding_weights`, for `Layer.decode`."""
    layers = [nnx.merge(nnx.graphdef(self.layers), state) for state in weights]
    for layer in layers:
      for _, module in nnx.iter_graph(layer):
        if isinstance(module, nnx.Linear):
          module.dot_general = few_rows_dot_general
    return layers
