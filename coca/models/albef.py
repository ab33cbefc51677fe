"""ALBEF: BERT cut in two (arXiv 2107.07651, section 3.1).

The lower layers are the text encoder; the upper ones, with cross-attention to all image tokens, are the fusion encoder,
which goes on from the text encoder's states. Nothing is causal and nothing is written: masked words are filled in.

Shapes: B batch, S side in pixels, N image tokens, K texts an image, T text length, M masked words, D text width, E
embedding width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt8

from coca.config import Config
from coca.config.special import PAD
from coca.models.bert import Bert, CaptionHead
from coca.models.blip import ImageHeads
from coca.models.image_encoder import ImageEncoder
from coca.models.layers import Layer, Stack
from coca.models.outputs import Output, compute_dtype
from coca.models.rngs import Rngs

# Parts that a config has no use for are None; coca/config/checks.py says what needs what, and pyright can't know it.
# pyright: reportOptionalCall=false, reportOptionalMemberAccess=false


class Albef(ImageHeads):
  """The fusion encoder is built where it has layers, the head that tells words where its loss has a weight."""

  def __init__(self, config: Config, rngs: Rngs):
    model, dtype = config.model, compute_dtype(config)
    text, med, width = model.text, model.med, model.image.width
    self.med = med
    self.image_encoder = ImageEncoder(model, dtype, rngs)
    self.text_encoder = Bert(model, text.unimodal_layers, None, dtype, rngs)
    n, layer = text.multimodal_layers, lambda r: Layer(text, model, dtype, r, kv_width=width, bert=med)
    self.fusion = Stack(n, layer, model, dtype, rngs) if n else None
    self.masked_head = CaptionHead(model, dtype, rngs) if config.masked.weight > 0 else None
    self.add_heads(config, rngs)

  def __call__(
    self,
    image: UInt8[Array, "B S S 3"],
    text: Int32[Array, "B T"],
    *,
    contrast: bool = True,
    match: bool = False,
    patch_noise: Float[Array, "B N"] | None = None,
    key: PRNGKeyArray | None = None,
    **_,
  ) -> Output:
    """One pass over each encoder that the losses need.

    Args:
      image: pixels of 0 to 255.
      text: a first token of any kind, words, [SEP], padding.
      contrast: whether to compute the embeddings.
      match: whether to compute the states that `ground` goes on from.
      patch_noise: see `ImageEncoder`.
      key: for dropout; None: none.
    """
    tokens = self.image_encoder(image, patch_noise)
    words = self._read(text, key) if contrast or match else None
    embeddings = (self._project(tokens), self._embed(words)) if contrast else (None, None)
    return Output(*embeddings, tokens, words, None)

  @jax.named_scope("fusion_encoder")
  def ground(
    self,
    words: Float[Array, "B *K T D"],
    text: Int32[Array, "B *K T"],
    tokens: Float[Array, "B N kv_width"],
    key: PRNGKeyArray | None = None,
  ) -> Float[Array, "B *K T D"]:
    """The fusion encoder: the text encoder's states of texts, one or K an image, over image tokens."""
    length, width = words.shape[-2:]
    mask = (text.reshape(-1, length) != PAD)[:, None, None]
    return self.fusion(words.reshape(-1, length, width), mask, tokens, None, key=key).reshape(words.shape)

  def fill(
    self,
    tokens: Float[Array, "B N kv_width"],
    text: Int32[Array, "B T"],
    places: Int32[Array, "B M"],
    key: PRNGKeyArray | None = None,
  ) -> Float[Array, "B M D"]:
    """The states from which the softmax predicts the words that were at some places of masked texts."""
    key, more = (None, None) if key is None else jax.random.split(key)
    states = self.ground(self._read(text, key), text, tokens, more)
    return self.masked_head(jnp.take_along_axis(states, places[..., None], axis=1))

  def softmax_kernel(self) -> Float[Array, "D V"]:
    """The vocabulary head: states @ kernel + `softmax_bias` are the logits."""
    return self.text_encoder.embedding.tokens[...].T

  @property
  def softmax_bias(self) -> Float[Array, " V"]:
    return self.masked_head.bias[...]
