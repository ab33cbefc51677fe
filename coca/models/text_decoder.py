"""The text decoder's two halves (CoCa section 3.2): unimodal, then multimodal with cross-attention. Both are causal,
unless `config.model.text.mask` is 'full' (SigLIP) or an example is predicted in parallel (CapPa).

Shapes: B batch, T text length (BOS, words, EOS, padding), D width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from coca.config import Model
from coca.config.special import PAD
from coca.devices.sharding import along_width, constrain_batch, gather
from coca.models.layers import Layer, Stack
from coca.models.linear import EMBED_INIT, layer_norm, linear, spread
from coca.models.rngs import Rngs


@jax.custom_vjp
def look_up(table: Float[Array, "V D"], ids: Int32[Array, "*ids"]) -> Float[Array, "*ids D"]:
  """Rows of a table; its gradient is summed in fp32, see `spread`."""
  return table[ids]


def _look_up_fwd(table, ids):
  return table[ids], (table, ids)


def _look_up_bwd(given, rows):
  table, ids = given
  rows = along_width(rows)  # they go there as they are, and become fp32 there
  return jnp.zeros(table.shape, jnp.float32).at[ids].add(rows.astype(jnp.float32)).astype(table.dtype), None


look_up.defvjp(_look_up_fwd, _look_up_bwd)


class Embedding(nnx.Module):
  """Token and learned position embeddings; positions are not in the paper. [CLS]' position comes after the words'.

  With `masks`, there is [MASK] too, which stands for every word of an example that is predicted in parallel.
  """

  def __init__(self, model: Model, dtype: DTypeLike, rngs: Rngs, *, masks: bool = False, positions: int = 0):
    """`positions`: 0 for as many as a text has tokens."""
    text = model.text
    self.dtype = dtype
    self.tokens = nnx.Param(EMBED_INIT(rngs.params(), (text.vocab, text.width)))
    self.has_cls_position = text.cls_position
    self.positions = nnx.Param(EMBED_INIT(rngs.params(), (positions or text.length + text.cls_position, text.width)))
    self.mask = nnx.Param(EMBED_INIT(rngs.params(), (text.width,))) if masks else None

  def __call__(self, ids: Int32[Array, "B T"], parallel: Bool[Array, " B"] | None = None) -> Float[Array, "B T D"]:
    """The words' embeddings; parallel: which examples are all [MASK]."""
    tokens, positions = self.tables()
    words = look_up(tokens, ids)
    if parallel is not None:
      assert self.mask is not None, "made without `masks`"
      words = jnp.where(parallel[:, None, None], spread(self.mask[...], words.shape, self.dtype), words)
    return constrain_batch(words + spread(positions[: ids.shape[1]], words.shape, self.dtype))

  def tables(self) -> tuple[Float[Array, "V D"], Float[Array, "positions D"]]:
    """The embeddings of the tokens and of the positions, in the compute dtype."""
    tokens = gather("embedding/tokens", self.tokens[...], self.dtype)
    return tokens, gather("positions", self.positions[...], self.dtype)

  def cls_position(self, length: int) -> Float[Array, " D"] | None:
    """The embedding of [CLS]' position after `length` words; None: it has none."""
    return self.positions[...][length].astype(self.dtype) if self.has_cls_position else None


def unimodal_mask(text: Int32[Array, "B T"], legacy: bool = False) -> Bool[Array, "B 1 T+1 T+1"]:
  """The mask of the unimodal half, [CLS] last; True may be attended.

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


def causal_mask(length: int) -> Bool[Array, "1 1 {length} {length}"]:
  """Each position sees itself and what stands before."""
  return jnp.tril(jnp.ones((length, length), bool))[None, None]


def with_first(text: Int32[Array, "*rows T"], token: int) -> Int32[Array, "*rows T"]:
  """Texts with another first token; by a choice and no scatter, which ONNX' exporters get wrong."""
  return jnp.where(jnp.arange(text.shape[-1]) == 0, token, text)


class Group(nnx.Module):
  """Layers of which the last alone has cross-attention (MaMMUT); `layers` in all."""

  def __init__(self, layers: int, model: Model, kv_width: int, dtype: DTypeLike, rngs: Rngs):
    self.before = nnx.List([Layer(model.text, model, dtype, rngs) for _ in range(layers - 1)])
    self.last = Layer(model.text, model, dtype, rngs, kv_width=kv_width)

  def __call__(
    self,
    x: Float[Array, "BK T D"],
    mask: Bool[Array, "#BK #H #T T"] | None = None,
    context: Float[Array, "B S kv_width"] | None = None,
    context_mask: Bool[Array, "#B 1 1 S"] | None = None,
    key: PRNGKeyArray | None = None,
  ) -> Float[Array, "BK T D"]:
    """As `Layer`, without dropout."""
    for layer in self.before:
      x = layer(x, mask)
    return self.last(x, mask, context, context_mask, key)


class UnimodalDecoder(nnx.Module):
  """Causal text layers without cross-attention; the learned [CLS] at the end gives the text embedding.

  With `config.model.text.pool` 'eos' there is no [CLS], and the state at EOS takes its place (CLIP), with 'last' that
  of the last position (SigLIP). With `embed_dim` 0 there is none of these and only `states`. With `mask` 'full' it is
  no decoder but an encoder, bidirectional (SigLIP). With `shared`, the multimodal half's layers, it reads in MaMMUT's
  first pass: all but padding.
  """

  def __init__(self, model: Model, embed_dim: int, dtype: DTypeLike, rngs: Rngs, shared: Stack | None = None):
    text = model.text
    self.dtype, self.two_passes = dtype, shared is not None
    self.stack = shared or Stack(text.unimodal_layers, lambda r: Layer(text, model, dtype, r), model, dtype, rngs)
    self.legacy, self.causal, self.pool = text.cls_mask == "legacy", text.mask == "causal", text.pool
    if embed_dim:
      self.cls = nnx.Param(EMBED_INIT(rngs.params(), (text.width,))) if text.pool == "cls" else None
      self.norm = layer_norm(text.width, model.norm_eps, dtype, rngs)
      self.projection = linear(text.width, embed_dim, dtype, rngs, bias=text.projection_bias)

  def __call__(
    self, embedded: Float[Array, "B T D"], text: Int32[Array, "B T"], cls_position: Float[Array, " D"] | None = None
  ) -> tuple[Float[Array, "B T D"], Float[Array, "B E"]]:
    """Embedded words, ids and `Embedding.cls_position` -> states, and the text embedding.

    The states are the words', and go to the multimodal half as they are; the final norm is the embedding's only.
    """
    if self.cls is None:
      states = constrain_batch(self.states(embedded))
      if self.pool == "last":
        return states, self.projection(self.norm(states[:, -1]))
      # EOS is the last id that is no padding.
      last = text.shape[1] - 1 - jnp.argmax(text[:, ::-1] != PAD, axis=1)
      pooled = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
      return states, self.projection(self.norm(pooled))
    cls = self.cls[...].astype(self.dtype) + (0 if cls_position is None else cls_position)
    cls = spread(cls, (embedded.shape[0], 1, embedded.shape[2]), self.dtype)
    if self.two_passes:
      mask = jnp.pad(text != PAD, ((0, 0), (0, 1)), constant_values=True)[:, None, None]
    else:
      mask = unimodal_mask(text, self.legacy)
    states = self.stack(jnp.concatenate([embedded, cls], axis=1), mask)
    states = constrain_batch(states)
    return constrain_batch(states[:, :-1]), self.projection(self.norm(states[:, -1]))

  def states(self, embedded: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The words' states alone: without [CLS], the causal triangle is all the mask there is, if any."""
    return self.stack(embedded, causal_mask(embedded.shape[1]) if self.causal else None)


class MultimodalDecoder(nnx.Module):
  """Causal text layers with cross-attention to the image tokens [B, S, kv_width]."""

  def __init__(self, model: Model, kv_width: int, dtype: DTypeLike, rngs: Rngs):
    text = model.text
    self.every = every = text.cross_every

    def make(rngs):
      group = Group(every, model, kv_width, dtype, rngs) if every > 1 else None
      return group or Layer(text, model, dtype, rngs, kv_width=kv_width)

    self.stack = Stack(text.multimodal_layers // every, make, model, dtype, rngs)
    self.norm = layer_norm(text.width, model.norm_eps, dtype, rngs)

  @jax.named_scope("multimodal_decoder")
  def __call__(
    self,
    states: Float[Array, "B *K T D"],
    image_tokens: Float[Array, "B S kv_width"],
    parallel: Bool[Array, " B"] | None = None,
  ) -> Float[Array, "B *K T D"]:
    """Unimodal states, of one text or K texts an image -> states for the softmax.

    parallel: which examples are all [MASK] and have no causal mask (CapPa); not with K texts.
    """
    length, width = states.shape[-2:]
    mask = causal_mask(length) if parallel is None else causal_mask(length) | parallel[:, None, None, None]
    return self.norm(self.stack(states.reshape(-1, length, width), mask, image_tokens)).reshape(states.shape)

  def decoding_layers(self, weights: list) -> list[Layer]:
    """As `Stack.decoding_layers`, the layers of groups one after the other."""
    parts = self.stack.decoding_layers(weights)
    return parts if self.every == 1 else [layer for group in parts for layer in (*group.before, group.last)]
