"""BERT's embedding, layers and language model head (arXiv 1810.04805), which BLIP and others are made of.

Shapes: B batch, N image tokens, K texts an image, T text length, D text width, V vocabulary, L layers.
"""

import functools
from collections.abc import Callable, Iterable
from enum import IntEnum

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from coca.config import Model
from coca.config.special import PAD
from coca.models.cached_decoding import start_layers
from coca.models.dropout import dropout
from coca.models.layers import ACTIVATIONS, Layer, Stack
from coca.models.linear import layer_norm, linear
from coca.models.rngs import Rngs
from coca.models.text_decoder import Embedding, causal_mask


class Dropped(IntEnum):
  """Random streams of `Bert`, folded into its key: dropout in the embedding and in the layers."""

  EMBEDDING = 0
  LAYERS = 1


class Bert(nnx.Module):
  """BERT's embedding and layers (arXiv 1810.04805), with cross-attention where there is a `kv_width`."""

  layer: type[Layer] = Layer

  def __init__(self, model: Model, layers: int, kv_width: int | None, dtype: DTypeLike, rngs: Rngs):
    text, med, layer = model.text, model.med, self.layer
    self.dropout = med.dropout
    self.embedding = Embedding(model, dtype, rngs, positions=med.positions)
    self.norm = layer_norm(text.width, med.norm_eps, dtype, rngs)
    self.stack = Stack(layers, lambda r: layer(text, model, dtype, r, kv_width=kv_width, bert=med), model, dtype, rngs)

  def __call__(
    self,
    ids: Int32[Array, "BK T"],
    context: Float[Array, "B *images N kv_width"] | None = None,
    context_mask: Bool[Array, "B 1 1 N"] | None = None,
    *,
    causal: bool = False,
    key: PRNGKeyArray | None = None,
  ) -> Float[Array, "BK T D"]:
    """States of texts.

    Args:
      ids: of B * K texts, K an image.
      context: None: no cross-attention.
      context_mask: which of it may be attended; None: all.
      causal: whether a word sees only itself and those before it; otherwise all but padding.
      key: for dropout; None: none.
    """
    mask = causal_mask(ids.shape[1]) if causal else (ids != PAD)[:, None, None]
    return self.read(self.norm(self.embedding(ids)), mask, context, context_mask, key=key)

  def read(self, x: Float[Array, "BK T D"], *args, key: PRNGKeyArray | None = None) -> Float[Array, "BK T D"]:
    """States of what is embedded and normed: as `Layer`, with dropout before the first."""
    if key is not None and self.dropout:
      x = dropout(x, self.dropout, jax.random.fold_in(key, Dropped.EMBEDDING))
      key = jax.random.fold_in(key, Dropped.LAYERS)
    return self.through(x, *args, key=key)

  def through(self, x: Float[Array, "BK T D"], *args, key: PRNGKeyArray | None = None) -> Float[Array, "BK T D"]:
    """The layers, one after the other: as `Stack`."""
    return self.stack(x, *args, key=key)

  def share(self, other: "Bert", parts: Iterable[str]) -> None:
    """Makes parts of the layers, and the embedding, those of `other`."""
    if parts:
      self.embedding, self.norm = other.embedding, other.norm
    for part in parts:
      setattr(self.stack.layers, part, getattr(other.stack.layers, part))

  # --- Writing: the decoding protocol of `coca.decoding` ---

  def decoding_weights(self) -> dict:
    """For `start_decoding`: a tree of arrays."""
    tokens, positions = self.embedding.tables()
    return {"tokens": tokens, "positions": positions, "stack": self.stack.decoding_weights()}

  def start_decoding(
    self,
    head: Callable,
    weights: dict,
    image_tokens: Float[Array, "B S kv_width"],
    length: int,
    rows: int,
    prefix: Int32[Array, "B P"],
    context_mask: Bool[Array, "B 1 1 S"] | None = None,
  ):
    """`head`: the table of words [V, D] and states [n, D] -> logits fp32 [n, V]. `context_mask`: as in a pass."""
    layers = self.stack.decoding_layers(weights["stack"])

    def embed(ids, position):
      return self.norm(weights["tokens"][ids] + weights["positions"][position])

    predict = functools.partial(head, weights["tokens"])
    return start_layers(layers, image_tokens, context_mask, embed, predict, length, rows, prefix)


class CaptionHead(nnx.Module):
  """BERT's language model head before the vocabulary, whose matrix is that of the embedding."""

  def __init__(self, model: Model, dtype: DTypeLike, rngs: Rngs):
    self.activation = ACTIVATIONS[model.activation]
    self.transform = linear(model.text.width, model.text.width, dtype, rngs)
    self.norm = layer_norm(model.text.width, model.med.norm_eps, dtype, rngs)
    self.bias = nnx.Param(jnp.zeros(model.text.vocab))

  def __call__(self, states: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    return self.norm(self.activation(self.transform(states)))
