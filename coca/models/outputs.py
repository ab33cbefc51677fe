"""What CoCa and BLIP have in common: results, the temperature, and decoding over a list of layers.

Shapes: B batch, Q image tokens for the decoder, K texts an image, T text length, D text width, E embedding width,
V vocabulary, H heads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from coca.config import Config
from coca.devices.sharding import constrain_batch
from coca.models.layers import few_rows_dot_general


class Output(NamedTuple):
  """What one forward pass computed; what no loss asked for is None."""

  image: jax.Array | None  # [B, E] fp32, unit length
  text: jax.Array | None  # [B, E] fp32, unit length
  tokens: jax.Array | None  # [B, Q, D]: what the grounded text layers attend to
  words: jax.Array | None  # [B, T, D]: what they start from, where that is more than the text's ids
  states: jax.Array | None  # [B, T, D]: the softmax over them predicts the next token


class Encoded(NamedTuple):
  """All that the text side needs of pictures."""

  embedding: jax.Array | None  # [B, E] fp32, unit length; None: no contrastive side
  tokens: jax.Array | None  # [B, Q, D]; None: no grounded text layers
  mask: jax.Array | None = None  # bool [B, 1, 1, Q], which tokens count; None: all


class Scores(NamedTuple):
  """How well each text fits its picture."""

  contrastive: jax.Array | None  # [B, K] fp32, cosine; None: no contrastive side
  matching: jax.Array | None  # [B, K] fp32, the probability that they match; None: no matching head
  match_logit: jax.Array | None  # [B, K] fp32, the head's logit of a match, alone: what BLIP's retrieval adds up


class Temperature(nnx.Module):
  """Learned temperature (0.07 at the start) as log(1 / temperature), and SigLIP's bias where the loss wants one."""

  def __init__(self, config: Config):
    self.log_scale = nnx.Param(-jnp.log(jnp.float32(config.contrastive.temperature)))
    if config.contrastive.loss != "softmax":
      self.logit_bias = nnx.Param(jnp.float32(config.contrastive.bias))


def compute_dtype(config: Config):
  """The activations' dtype: 'auto' is bfloat16 on accelerators and float32 on CPU, where bfloat16 is slower."""
  name = config.model.dtype
  if name == "auto":
    name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return jnp.dtype(name)


def unit(x):
  """x [..., E] in fp32, divided by its length."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def start_layers(layers, contexts, context_mask, embed, predict, length: int, rows: int, prefix):
  """`start_decoding` of `coca.decoding` for a model whose text goes through one list of layers.

  The cache is a pair [B, H, length * rows, K] for each layer, apart from each other, so that a step writes them in
  place.

  Args:
    layers: `Layer`s of `Stack.decoding_layers`.
    contexts: for each, what it looks at (`Layer.context_cache`), or None.
    context_mask: as in `Layer`.
    embed: (ids int32 [B, N], their positions int32 [N] or []) -> [B, N, D].
    predict: states [n, D] of the last layer -> logits fp32 [n, V].
    length: T.
    rows: K.
    prefix: int32 [B, P].
  """
  batch, n = prefix.shape

  def run(x, caches, *where):
    new = []
    for layer, cache, context in zip(layers, caches, contexts, strict=True):
      x, cache = layer.decode(x, cache, context, context_mask, *where)
      new.append(cache)
    return x, tuple(new)

  def step(caches, ids, position, ancestors):
    own = jnp.arange(length)[:, None] <= position
    mask = (ancestors[..., None] == jnp.arange(rows)) & own  # [B, rows, length, rows]
    x, caches = run(embed(ids, position), caches, position * rows, mask.reshape(batch, 1, rows, length * rows))
    logits = predict(x.reshape(batch * rows, -1))
    return constrain_batch(logits.reshape(batch, rows, -1)), caches

  caches = tuple(jax.tree.map(constrain_batch, layer.empty_cache(batch, length * rows)) for layer in layers)
  if n:
    slot = jnp.arange(length * rows)
    mask = (slot % rows == 0) & (slot // rows <= jnp.arange(n)[:, None])
    mask = jnp.broadcast_to(mask, (batch, 1, *mask.shape))
    _, caches = run(embed(prefix, jnp.arange(n)), caches, 0, mask, rows)
  return step, caches


def vocabulary_logits(states, head):
  """states [n, D] times a turned vocabulary head [V, D] -> fp32 [n, V]."""
  return few_rows_dot_general(states, head, None, preferred_element_type=jnp.float32)
