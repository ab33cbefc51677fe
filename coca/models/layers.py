"""Transformer layers shared by all towers.

Shapes: B batch, T tokens (queries), S tokens (keys), D width, H heads, K width of a head, L layers.
Parameters are fp32; activations have the dtype that the tower is built with; norms' statistics and softmax are fp32.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from coca.devices.hardware import platform
from coca.devices.sharding import constrain_batch, gather_layer

# What the papers leave open: kernels as in the ViT code (Xavier), embeddings as in BERT.
KERNEL_INIT = nnx.initializers.xavier_uniform()
EMBED_INIT = nnx.initializers.normal(0.02)

ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "relu": jax.nn.relu,
}


def flat_dot_general(x, kernel, dimension_numbers, keep="matmul", **options):
  """x [..., D] @ kernel [D, E] as a product of two matrices: twice as fast backward on CPU as over [B, T, D].

  `keep` names the result for `REMAT`.
  """
  del dimension_numbers  # nnx.Linear only ever contracts the last dimension with the first
  flat = x.reshape(-1, x.shape[-1])
  y = checkpoint_name(jax.lax.dot_general(flat, kernel, (((1,), (0,)), ((), ())), **options), keep)
  return y.reshape(*x.shape[:-1], -1)


def few_rows_dot_general(x, kernel, dimension_numbers, **options):
  """x [..., D] with a turned kernel [E, D]: the faster order on CPU for a step of decoding.

  The barrier keeps it: XLA would turn the product around again, and be slower by a quarter at 16 rows.
  """
  del dimension_numbers
  flat = x.reshape(-1, x.shape[-1])
  y = jax.lax.optimization_barrier(jax.lax.dot_general(kernel, flat, (((1,), (1,)), ((), ())), **options)).T
  return y.reshape(*x.shape[:-1], -1)


def spread(x, shape, dtype):
  """x, a parameter or what comes of some, broadcast to many rows [..., D] in the compute dtype.

  Its gradient is their sum, in fp32: in bfloat16 a sum of many numbers stops growing where one of them is less than a
  256th of it.
  """
  return jnp.broadcast_to(x.astype(jnp.float32), shape).astype(dtype)


class Linear(nnx.Linear):
  """With the bias as `spread` has it."""

  def __call__(self, x):
    y = self.dot_general(x.astype(self.dtype), self.kernel[...].astype(self.dtype), None)
    return y if self.bias is None else y + spread(self.bias[...], y.shape, y.dtype)


def linear(n_in: int, n_out: int, dtype, rngs: nnx.Rngs, bias: bool = True, keep: str = "matmul") -> Linear:
  dot_general = functools.partial(flat_dot_general, keep=keep)
  return Linear(
    n_in, n_out, use_bias=bias, dtype=dtype, kernel_init=KERNEL_INIT, dot_general=dot_general, rngs=rngs
  )


def gathered(module: nnx.Module, dtype, prefix: str = "") -> nnx.Module:
  """The module with its kernels in the compute dtype, gathered over fsdp; `prefix`: of their paths, as 'patches/'."""
  graphdef, state = nnx.split(module)
  return nnx.merge(graphdef, gather_layer(state, dtype, prefix))


def layer_norm(width: int, eps: float, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
  return nnx.LayerNorm(width, epsilon=eps, dtype=dtype, use_fast_variance=False, rngs=rngs)


def _one_by_one(q, k) -> bool:
  """Whether examples take turns: on CPU, the logits of one with many tokens stay in its caches."""
  mesh = jax.sharding.get_abstract_mesh()
  alone = mesh.empty or mesh.size == 1
  return alone and platform() == "cpu" and k.shape[0] > 1 and q.shape[1] * k.shape[1] >= 2**16


def _usable(implementation: str, q, k, mask) -> bool:
  """Whether there is such a kernel here: a model goes from the devices that it was trained on to others."""
  t, s, width = q.shape[1], k.shape[1], q.shape[3]
  if implementation == "cudnn":
    # A mask becomes a bias there, one of all queries, and its gradient wants even lengths.
    fits = mask is None or (mask.shape[2] == t and t % 2 == s % 2 == 0)
    return platform() in ("gpu", "cuda") and q.dtype.itemsize == 2 and fits and width % 8 == 0 and width <= 128
  tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
  return implementation == "flash" and platform() == "tpu" and mask is None and min(t, s) >= 128 and (
    q.shape[2] % tensor == 0)


def dropout(x, rate: float, key):
  """Zeroes values of x with probability `rate` and scales the others up; 16 random bits a value are precise enough."""
  kept = jax.random.bits(key, x.shape, jnp.uint16) >= round(rate * 2**16)
  return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def dot_product_attention(q, k, v, mask=None, implementation: str = "xla", drop=None):
  """Softmax attention.

  Args:
    q: [B, T, H, K]; B may be 1 where k and v have more (shared queries).
    k: [B, S, H, K].
    v: [B, S, H, K].
    mask: bool, broadcastable to [B, H, T, S]; True may be attended. Each row must allow something.
    implementation: 'xla'; 'cudnn', on NVIDIA GPUs in half precision; 'flash', on TPUs without a mask and with at least
      128 tokens. Elsewhere, and where weights are dropped out, both are as 'xla'.
    drop: a function of the softmax' weights [B, H, T, S], dropout; None: none.

  Returns:
    [B, T, H, K].
  """
  if len(q) < len(k):
    q = spread(q, (len(k), *q.shape[1:]), q.dtype)
  if drop is None and _usable(implementation, q, k, mask):
    if implementation == "flash":
      from coca.models.flash import flash  # Pallas is slow to import
      return flash(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
  if mask is None and drop is None and _one_by_one(q, k):
    def attend(x):
      return dot_product_attention(*(y[None] for y in x))[0]

    return jax.lax.map(attend, (q, k, v))
  # Explicit [B, H, T, K] operands are a few percent faster on CPU than an einsum over the given layout.
  q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
  return _attend(q, k, v, mask, drop).transpose(0, 2, 1, 3)


def _attend(q, k, v, mask, drop=None):
  """`dot_product_attention` with the heads in front: q [B, H, T, K], k and v [B, H, S, K] -> [B, H, T, K]."""
  weights = _attention_weights(q, k, mask).astype(v.dtype)
  weights = drop(weights) if drop else weights
  return jnp.einsum("bhts,bhsk->bhtk", weights, v)


def _attention_weights(q, k, mask=None):
  """q [B, H, T, K] and k [B, H, S, K] -> fp32 [B, H, T, S], rows sum to 1."""
  logits = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  return jax.nn.softmax(logits, axis=-1)


class Attention(nnx.Module):
  """Multi-head attention; queries of width `width`, keys and values from tokens of width `kv_width`."""

  def __init__(self, width, heads, dtype, rngs, *, kv_width=None, inner=None, out=None, implementation="xla"):
    inner = inner or width
    self.heads, self.implementation = heads, implementation
    self.query = linear(width, inner, dtype, rngs)
    keep = "context" if kv_width else "matmul"
    self.key = linear(kv_width or width, inner, dtype, rngs, keep=keep)
    self.value = linear(kv_width or width, inner, dtype, rngs, keep=keep)
    self.out = linear(inner, out or width, dtype, rngs)

  def keys_values(self, x):
    """x [B, S, D] -> keys and values [B, S, H, K]."""
    return self._split(self.key(x)), self._split(self.value(x))

  def __call__(self, x, kv, mask=None, drop=None):
    """x [B, T, D] attends to `kv`, a pair as `keys_values` returns it -> [B, T, D]."""
    y = dot_product_attention(self._split(self.query(x)), *kv, mask, self.implementation, drop)
    return self.out(y.reshape(*y.shape[:2], -1))

  def weights(self, x, context):
    """How much x [B or 1, T, D] attends to each token of context [B, S, D]: fp32 [B, T, S], the mean over the heads."""
    q, k = (self._split(y).transpose(0, 2, 1, 3) for y in (self.query(x), self.key(context)))
    return _attention_weights(jnp.broadcast_to(q, (k.shape[0], *q.shape[1:])), k).mean(axis=1)

  def cached_keys_values(self, x):
    """x [B, S, D] -> keys and values [B, H, S, K], the layout that is read without a copy in each step of decoding."""
    return tuple(y.transpose(0, 2, 1, 3) for y in self.keys_values(x))

  def over_cache(self, x, kv, mask=None):
    """x [B, T, D] attends to `kv`, keys and values [B, H, S, K] -> [B, T, D]."""
    y = _attend(self._split(self.query(x)).transpose(0, 2, 1, 3), *kv, mask)
    return self.out(y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))

  def over_tokens(self, x, tokens, mask=None):
    """As `over_cache`, but from tokens [B, S, kv_width] without their keys and values; with kernels turned [E, D].

    The projections are moved to the few queries: q (k W) = (q W) k, and the sum of weighted tokens is projected once.
    The key's bias adds the same to all of a query's logits.
    """
    key, value = (y.kernel[...].reshape(self.heads, -1, tokens.shape[2]) for y in (self.key, self.value))
    q = jnp.einsum("bthk,hkd->bhtd", self._split(self.query(x)), key) * (key.shape[2] / key.shape[1]) ** 0.5
    y = _attend(q.reshape(len(x), 1, -1, key.shape[2]), tokens[:, None], tokens[:, None], mask)
    y = jnp.einsum("bhtd,hkd->bthk", y.reshape(q.shape), value).reshape(*x.shape[:2], -1)
    return self.out(y + self.value.bias[...].astype(y.dtype))

  def _split(self, x):
    return x.reshape(*x.shape[:2], self.heads, -1)


class Mlp(nnx.Module):
  def __init__(self, width, hidden, activation, dtype, rngs):
    self.activation = activation
    self.up = linear(width, hidden, dtype, rngs)
    self.down = linear(hidden, width, dtype, rngs)

  def __call__(self, x):
    return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Layer(nnx.Module):
  """Transformer layer: self-attention, cross-attention if `kv_width` is given, one feed-forward.

  A LayerNorm stands before each of them (pre-LN), or, where `bert`, a `coca.config.Med`, is given, after the sum.
  With cross-attention, `tower.feedforwards` 2 puts one more feed-forward before it, and `tower.norm_context` a
  LayerNorm on what it looks at.
  """

  def __init__(self, tower, model, dtype, rngs, *, kv_width=None, bert=None):
    self.post_norm, self.dropout = bert is not None, bert.dropout if bert else 0.0
    norm = functools.partial(layer_norm, tower.width, bert.norm_eps if bert else model.norm_eps, dtype, rngs)
    attention = functools.partial(Attention, tower.width, tower.heads, dtype, rngs, implementation=model.attention)
    self.norm_self, self.self_attention = norm(), attention()
    crosses = kv_width is not None
    mlp = functools.partial(Mlp, tower.width, tower.mlp, model.activation, dtype, rngs)
    two = crosses and tower.feedforwards == 2
    self.norm_self_mlp, self.self_mlp = (norm(), mlp()) if two else (None, None)
    if crosses:
      self.norm_cross, self.cross_attention = norm(), attention(kv_width=kv_width)
      self.norm_context = layer_norm(kv_width, model.norm_eps, dtype, rngs) if tower.norm_context else None
    self.norm_mlp, self.mlp = norm(), mlp()

  def __call__(self, x, mask=None, context=None, context_mask=None, key=None):
    """One layer.

    Args:
      x: [B, T, D]; or [B * K, T, D], an image's K texts in a row, which share its keys and values.
      mask: as in `dot_product_attention`.
      context: [B, S, kv_width]; None: the cross-attention is passed over.
      context_mask: bool [B, 1, 1, S], what of it may be attended.
      key: of `jax.random`, for dropout; None: none.

    Returns:
      [B, T, D].
    """
    drops = key is not None and self.dropout > 0
    keys = iter(jax.random.split(key, 6) if drops else ())  # two attentions with their weights, two feed-forwards

    def drop(x):
      return dropout(x, self.dropout, next(keys)) if drops else x

    def add(norm, x, function):
      return self._after(norm, x, drop(function(self._before(norm, x))))

    def attend(y):
      return self.self_attention(y, self.self_attention.keys_values(y), mask, drop if drops else None)

    def look(y):
      kv = self.cross_attention.keys_values(self._context(context))
      queries = y.reshape(len(context), -1, y.shape[-1])  # of one attention: they don't see each other
      return self.cross_attention(queries, kv, context_mask, drop if drops else None).reshape(y.shape)

    x = add(self.norm_self, x, attend)
    if self.self_mlp:
      x = add(self.norm_self_mlp, x, self.self_mlp)
    if context is not None:
      x = add(self.norm_cross, x, look)
    return constrain_batch(add(self.norm_mlp, x, self.mlp))

  def _before(self, norm, x):
    return x if self.post_norm else norm(x)

  def _after(self, norm, x, y):
    return norm(x + y) if self.post_norm else x + y

  def _context(self, context):
    return self.norm_context(context) if self.norm_context else context

  def context_cache(self, context, reads: int):
    """What `decode` needs of the image tokens: once an image, whatever the number of decoding steps.

    Keys and values; or, where as few queries as `reads` will look, the tokens as they are: then projecting the queries
    is less work than projecting the tokens (half as much by count, since its matrices are small).
    """
    context, attention = self._context(context), self.cross_attention
    few = 2 * reads * attention.heads <= attention.query.out_features
    return context if few else attention.cached_keys_values(context)

  def empty_cache(self, batch: int, slots: int):
    """Keys and values of no tokens yet: a pair [B, H, slots, K] of zeros."""
    query, heads = self.self_attention.query, self.self_attention.heads
    return (jnp.zeros((batch, heads, slots, query.out_features // heads), query.dtype),) * 2

  def decode(self, x, cache, context, context_mask, first, mask, spread: int = 1):
    """Tokens of an image's texts, with their keys and values kept for the tokens to come.

    Args:
      x: [B, N, D], the new tokens.
      cache: a pair [B, H, slots, K].
      context: from `context_cache`; None in layers without cross-attention.
      context_mask: as in `__call__`.
      first: int32 [], the slot of the first of the N.
      mask: bool [B, 1, N, slots], what each may attend, its own slot among them.
      spread: from one of the N slots to the next.

    Returns:
      [B, N, D] and the new cache.
    """
    y = self._before(self.norm_self, x)
    new = self.self_attention.cached_keys_values(y)
    if spread > 1:
      new = [jax.lax.pad(k, jnp.zeros((), k.dtype), [(0, 0, 0)] * 2 + [(0, 0, spread - 1), (0, 0, 0)]) for k in new]
    cache = tuple(
      jax.lax.dynamic_update_slice_in_dim(a, b.astype(a.dtype), first, axis=2) for a, b in zip(cache, new, strict=True)
    )
    x = self._after(self.norm_self, x, self.self_attention.over_cache(y, cache, mask))
    if self.self_mlp:
      x = self._after(self.norm_self_mlp, x, self.self_mlp(self._before(self.norm_self_mlp, x)))
    if context is not None:
      look = self.cross_attention.over_cache if isinstance(context, tuple) else self.cross_attention.over_tokens
      x = self._after(self.norm_cross, x, look(self._before(self.norm_cross, x), context, context_mask))
    return self._after(self.norm_mlp, x, self.mlp(self._before(self.norm_mlp, x))), cache


KEEP = jax.checkpoint_policies.save_only_these_names
REMAT = {
  "none": lambda body: body,
  "dots": functools.partial(jax.checkpoint, policy=KEEP("matmul", "context")),
  "lean": functools.partial(jax.checkpoint, policy=KEEP("matmul")),
  "full": jax.checkpoint,
}


class Stack(nnx.Module):
  """Equal layers, parameters stacked along a leading dimension [L, ...], run by one `jax.lax.scan`."""

  def __init__(self, layers: int, make, model, dtype, rngs: nnx.Rngs):
    """`make(rngs)` builds one layer."""
    self.remat, self.unroll, self.dtype = model.remat, min(model.unroll, layers), dtype
    keys = jax.random.split(rngs.params(), layers)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    self.layers = nnx.merge(graphdef, jax.vmap(lambda key: nnx.state(make(nnx.Rngs(params=key))))(keys))

  def __call__(self, x, *args, key=None):
    """Each layer as `layer(x, *args)`: x [B, T, D] -> [B, T, D]. `key`, for dropout, gives each one of its own."""
    graphdef, state = nnx.split(self.layers)
    keys = None if key is None else jax.random.split(key, len(jax.tree.leaves(state)[0]))

    def body(x, inputs):
      params, key = inputs
      layer = nnx.merge(graphdef, gather_layer(params, self.dtype))
      return layer(x, *args, key=key), None

    return jax.lax.scan(REMAT[self.remat](body), x, (state, keys), unroll=self.unroll)[0]

  def decoding_weights(self) -> list:
    """The parameters of each layer for `decoding_layers`: cut apart, in the compute dtype, kernels turned."""
    state = nnx.state(self.layers)
    layers = jax.tree.leaves(state)[0].shape[0]
    return [
      jax.tree.map(
        lambda x: x.T if x.ndim > 1 else x, gather_layer(jax.tree.map(lambda x, i=i: x[i], state), self.dtype)
      ) for i in range(layers)
    ]

  def decoding_layers(self, weights: list) -> list:
    """The layers with parameters of `decoding_weights`, for `Layer.decode`."""
    layers = [nnx.merge(nnx.graphdef(self.layers), state) for state in weights]
    for layer in layers:
      for _, module in nnx.iter_graph(layer):
        if isinstance(module, nnx.Linear):
          module.dot_general = few_rows_dot_general
    return layers
