"""The text decoder's two halves (CoCa section 3.2): unimodal, then multimodal with cross-attention; both causal.

Shapes: B batch, T text length (BOS, words, EOS, padding), D width, V vocabulary.
"""

import jax.numpy as jnp
from flax import nnx

from coca.config import Model
from coca.data.tokenizer import PAD
from coca.models.layers import EMBED_INIT, Layer, Stack, layer_norm, linear
from coca.sharding import constrain_batch, gather


class Embedding(nnx.Module):
  """Token and learned position embeddings; positions are not in the paper. [CLS]' position comes after the words'."""

  def __init__(self, model: Model, dtype, rngs: nnx.Rngs, positions: int = 0):
    """`positions`: 0 for as many as a text has tokens."""
    text = model.text
    self.dtype = dtype
    self.tokens = nnx.Param(EMBED_INIT(rngs.params(), (text.vocab, text.width)))
    self.has_cls_position = text.cls_position
    self.positions = nnx.Param(EMBED_INIT(rngs.params(), (positions or text.length + text.cls_position, text.width)))

  def __call__(self, ids):
    """ids [B, T] -> [B, T, D]."""
    tokens, positions = self.tables()
    return constrain_batch(tokens[ids] + positions[: ids.shape[1]])

  def tables(self):
    """Of the tokens [V, D] and of the positions [T, D], in the compute dtype."""
    tokens = gather("embedding/tokens", self.tokens[...], self.dtype)
    return tokens, gather("positions", self.positions[...], self.dtype)

  def cls_position(self, length: int):
    """The embedding of [CLS]' position after `length` words [D]; None: it has none."""
    return self.positions[...][length].astype(self.dtype) if self.has_cls_position else None


def unimodal_mask(text, legacy: bool = False):
  """Who sees whom in the unimodal half, [CLS] last: bool [B, 1, T + 1, T + 1], True may be attended.

  Words see themselves and what stands before; [CLS] sees all words but no padding, and itself. Nothing else sees
  [CLS], since it is last. Padding sees what stands before, so that no row is empty.

  `legacy` is the mask that open_clip's CoCa models were trained with: what [CLS] may see is shifted by one, so that it
  sees the words and the first padding behind them, and itself only where there is no padding.
  """
  batch, length = text.shape
  causal = jnp.tril(jnp.ones((length + 1, length + 1), bool))
  words, always = text != PAD, jnp.ones((batch, 1), bool)
  seen_by_cls = jnp.concatenate([always, words] if legacy else [words, always], axis=1)
  is_cls = jnp.arange(length + 1) == length
  return (causal & ~is_cls[:, None] | is_cls[:, None] & seen_by_cls[:, None, :])[:, None]


class UnimodalDecoder(nnx.Module):
  """Causal text layers without cross-attention; the learned [CLS] at the end gives the text embedding.

  With `config.model.text.pool` 'eos' there is no [CLS], and the state at EOS takes its place (CLIP). With `embed_dim` 0
  there is neither and only `states`.
  """

  def __init__(self, model: Model, embed_dim: int, dtype, rngs: nnx.Rngs):
    text = model.text
    self.dtype = dtype
    self.stack = Stack(text.unimodal_layers, lambda r: Layer(text, model, dtype, r), model, dtype, rngs)
    self.legacy = text.cls_mask == "legacy"
    if embed_dim:
      self.cls = nnx.Param(EMBED_INIT(rngs.params(), (text.width,))) if text.pool == "cls" else None
      self.norm = layer_norm(text.width, model.norm_eps, dtype, rngs)
      self.projection = linear(text.width, embed_dim, dtype, rngs, bias=False)

  def __call__(self, embedded, text, cls_position=None):
    """Embedded words [B, T, D], ids [B, T] and `Embedding.cls_position` -> states [B, T, D], text embedding [B, E].

    The states are the words', and go to the multimodal half as they are; the final norm is the embedding's only.
    """
    if self.cls is None:
      states = constrain_batch(self.states(embedded))
      # EOS is the last id that is no padding.
      last = text.shape[1] - 1 - jnp.argmax(text[:, ::-1] != PAD, axis=1)
      pooled = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
      return states, self.projection(self.norm(pooled))
    cls = self.cls[...].astype(self.dtype) + (0 if cls_position is None else cls_position)
    cls = jnp.broadcast_to(cls, (embedded.shape[0], 1, embedded.shape[2]))
    states = self.stack(jnp.concatenate([embedded, cls], axis=1), unimodal_mask(text, self.legacy))
    states = constrain_batch(states)
    return constrain_batch(states[:, :-1]), self.projection(self.norm(states[:, -1]))

  def states(self, embedded):
    """The words' states alone [B, T, D]: without [CLS], the causal triangle is all the mask there is."""
    length = embedded.shape[1]
    return self.stack(embedded, jnp.tril(jnp.ones((length, length), bool))[None, None])


class MultimodalDecoder(nnx.Module):
  """Causal text layers with cross-attention to the image tokens [B, S, kv_width]."""

  def __init__(self, model: Model, kv_width: int, dtype, rngs: nnx.Rngs):
    text = model.text
    self.stack = Stack(
      text.multimodal_layers, lambda r: Layer(text, model, dtype, r, kv_width=kv_width), model, dtype, rngs
    )
    self.norm = layer_norm(text.width, model.norm_eps, dtype, rngs)

  def __call__(self, states, image_tokens):
    """Unimodal states [B, T, D], or [B, K, T, D] of K texts an image -> states for the softmax, of the same shape."""
    length, width = states.shape[-2:]
    mask = jnp.tril(jnp.ones((length, length), bool))[None, None]
    return self.norm(self.stack(states.reshape(-1, length, width), mask, image_tokens)).reshape(states.shape)
