"""BLIP's image-grounded encoder for two images (arXiv 2201.12086, section 5.4; models/nlvr_encoder.py of its code).

Each layer has two cross-attentions, one for each image, which begin with the same weights. In the first half of the
layers their mean is added; in the second half both, one behind the other, are projected.

Shapes: B batch, N image tokens, T text length, D text width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from coca.config import Med, Model, TextDecoder
from coca.models.attention import Attention, Dropout
from coca.models.bert import Bert
from coca.models.layers import Layer, Stack
from coca.models.linear import EMBED_INIT, linear
from coca.models.rngs import Rngs


class PairLayer(Layer):
  """BERT's layer with a cross-attention for each of two images."""

  def __init__(
    self, tower: TextDecoder, model: Model, dtype: DTypeLike, rngs: Rngs, *, kv_width: int, bert: Med | None = None
  ):
    super().__init__(tower, model, dtype, rngs, kv_width=kv_width, bert=bert)
    self.second_attention = Attention(
      tower.width, tower.heads, dtype, rngs, kv_width=kv_width, implementation=model.attention
    )

  def look(
    self,
    x: Float[Array, "B T D"],
    context: Float[Array, "B 2 N kv_width"],
    mask: Bool[Array, "#B 1 1 N"] | None,
    drop: Callable[[], Dropout | None],
  ) -> Float[Array, "B T D"]:
    """The mean of both cross-attentions, or both through `merge`, which `PairBert` lends to the upper layers."""
    both = [
      attention.over(x, context[:, i], mask, drop())
      for i, attention in enumerate((self.cross_attention, self.second_attention))
    ]
    merge = getattr(self, "merge", None)
    return merge(jnp.concatenate(both, axis=-1)) if merge else (both[0] + both[1]) / 2


class PairBert(Bert):
  """BERT that looks at two images, [B, 2, N, kv_width]. `merge` are the projections of the upper half's layers."""

  layer = PairLayer

  def __init__(self, model: Model, layers: int, kv_width: int, dtype: DTypeLike, rngs: Rngs):
    super().__init__(model, layers, kv_width, dtype, rngs)
    self.half, self.layers, width = layers // 2, layers, model.text.width  # 6 of 12

    def merge(rngs):
      return linear(2 * width, width, dtype, rngs, init=EMBED_INIT)  # as the authors' code draws them

    self.merge = Stack(layers - self.half, merge, model, dtype, rngs)

  def through(self, x: Float[Array, "B T D"], *args, key: PRNGKeyArray | None = None) -> Float[Array, "B T D"]:
    keys = (None, None) if key is None else jax.random.split(key)
    upper = self.stack.part(self.half, self.layers)
    lent: Any = upper.layers
    lent.merge = self.merge.layers
    if self.half:
      x = self.stack.part(0, self.half)(x, *args, key=keys[0])
    return upper(x, *args, key=keys[1])
