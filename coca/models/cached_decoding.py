"""Texts token by token over a list of layers, as the protocol of `coca.decoding` has it.

Shapes: B images, K rows of an image, P tokens of a prefix, T text length, D widths, H heads, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from coca.devices.sharding import constrain_batch
from coca.models.attention import LOWEST
from coca.models.layers import Layer
from coca.models.linear import few_rows_dot_general


def start_layers(
  layers: Sequence[Layer],
  image_tokens: Float[Array, "B S kv_width"],
  context_mask: Bool[Array, "#B 1 1 S"] | None,
  embed: Callable,
  predict: Callable,
  length: int,
  rows: int,
  prefix: Int32[Array, "B P"],
  first: Int32[Array, " B"] | None = None,
  bias: Callable | None = None,
) -> tuple[Callable, tuple]:
  """`start_decoding` of `coca.decoding` for a model whose text goes through one list of layers.

  The cache is a pair [B, H, length * rows, K] for each layer, apart from each other, so that a step writes them in
  place.

  Args:
    layers: of `Stack.decoding_layers`.
    image_tokens: what those with cross-attention look at.
    context_mask: as in `Layer`.
    embed: (ids int32 [B, N], their positions int32 [N] or []) -> [B, N, D].
    predict: states [n, D] of the last layer -> logits fp32 [n, V].
    length: T.
    rows: K.
    prefix: the tokens that all rows begin with.
    first: the first position that an image's texts see from there on; None: all.
    bias: positions int32 [N] -> [H, N, T], added to their logits; None: nothing is.
  """
  batch, n = prefix.shape

  def with_bias(mask, positions):
    """bool [B, 1, N or K, T * K], of tokens at `positions` [N], or of K at one."""
    if bias is None:
      return mask
    return jnp.where(mask, jnp.repeat(bias(positions), rows, axis=2), LOWEST)

  contexts = [layer.context_cache(image_tokens, rows * length) if layer.crosses else None for layer in layers]
  run = functools.partial(run_layers, layers, contexts, context_mask)

  def step(caches, ids, position, ancestors):
    own = jnp.arange(length)[:, None] <= position
    if first is not None:
      own &= jnp.arange(length)[:, None] >= first[:, None, None, None]
    mask = (ancestors[..., None] == jnp.arange(rows)) & own  # [B, rows, length, rows]
    mask = with_bias(mask.reshape(batch, 1, rows, length * rows), position[None])
    x, caches = run(embed(ids, position), caches, position * rows, mask)
    logits = predict(x.reshape(batch * rows, -1))
    return constrain_batch(logits.reshape(batch, rows, -1)), caches

  caches = tuple(jax.tree.map(constrain_batch, layer.empty_cache(batch, length * rows)) for layer in layers)
  if n:
    slot = jnp.arange(length * rows)
    mask = (slot % rows == 0) & (slot // rows <= jnp.arange(n)[:, None])
    mask = with_bias(jnp.broadcast_to(mask, (batch, 1, *mask.shape)), jnp.arange(n))
    _, caches = run(embed(prefix, jnp.arange(n)), caches, 0, mask, rows)
  return step, caches


def run_layers(
  layers: Sequence[Layer], contexts: Sequence, mask: Bool[Array, "#B 1 1 S"] | None, x: Array, caches: Sequence, *where
) -> tuple[Float[Array, "B N D"], tuple]:
  """Tokens through `Layer.decode` of each layer, with its cache and its context."""
  new = []
  for layer, cache, context in zip(layers, caches, contexts, strict=True):
    x, cache = layer.decode(x, cache, context, mask, *where)
    new.append(cache)
  return x, tuple(new)


def vocabulary_logits(states: Float[Array, "n D"], head: Float[Array, "V D"]) -> Float32[Array, "n V"]:
  """States times a turned vocabulary head."""
  return few_rows_dot_general(states, head, None, preferred_element_type=jnp.float32)
