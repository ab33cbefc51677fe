"""ALIGN: EfficientNet and BERT side by side (arXiv 2102.05918, section 4).

The image embedding is the mean of the image tower's last states, with no projection; the text embedding is BERT's state
at [CLS], by a linear layer as wide as the image's.

Shapes: B batch, S side in pixels, K texts an image, T text length, E embedding width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32, Int32, PRNGKeyArray, UInt8

from coca.config import Config
from coca.models.bert import Bert
from coca.models.efficientnet import EfficientNet
from coca.models.linear import linear
from coca.models.outputs import Encoded, Output, Scores, Temperature, compute_dtype, unit
from coca.models.rngs import Rngs
from coca.models.text_decoder import with_first


class Align(nnx.Module):
  def __init__(self, config: Config, rngs: Rngs):
    model, dtype = config.model, compute_dtype(config)
    self.cls = model.med.cls
    self.image_encoder = EfficientNet(model, dtype, rngs)
    self.text_encoder = Bert(model, model.text.unimodal_layers, None, dtype, rngs)
    self.text_projection = linear(model.text.width, model.embed_dim, dtype, rngs)
    self.temperature = Temperature(config)

  def __call__(
    self,
    image: UInt8[Array, "B S S 3"],
    text: Int32[Array, "B T"],
    *,
    key: PRNGKeyArray | None = None,
    **_,
  ) -> Output:
    """Both embeddings and, with a key, the batch's statistics; what else models are asked for is not there.

    Args:
      image: pixels of 0 to 255.
      text: any first token, words, [SEP], padding.
      key: for dropout and stochastic depth: training. None: evaluation.
    """
    key, more = (None, None) if key is None else jax.random.split(key)
    embedding, stats = self._embed(image, key)
    stats = None if key is None else {"image_encoder": stats}
    return Output(embedding, self.embed_text(text, more), None, None, None, stats=stats)

  def embed_image(self, image: UInt8[Array, "B S S 3"]) -> Float32[Array, "B E"]:
    """Embeddings of unit length."""
    return self._embed(image, None)[0]

  def features(self, image: UInt8[Array, "B S S 3"]) -> Float32[Array, "B E"]:
    """The mean of the tokens, which is the embedding before it is made unit length."""
    return self.image_encoder(image, None)[0].astype(jnp.float32).mean(1)

  @jax.named_scope("text_encoder")
  def embed_text(self, text: Int32[Array, "B T"], key: PRNGKeyArray | None = None) -> Float32[Array, "B E"]:
    """Embeddings of unit length; `key` is for dropout."""
    return unit(self.text_projection(self.text_encoder(with_first(text, self.cls), key=key)[:, 0]))

  def encode(self, image: UInt8[Array, "B S S 3"]) -> Encoded:
    """The embedding alone: no text layer looks at image tokens."""
    return Encoded(self.embed_image(image), None)

  def score(self, encoded: Encoded, text: Int32[Array, "B K T"]) -> Scores:
    """Cosines of images and K texts of each, where the images are embedded."""
    if encoded.embedding is None:
      return Scores(None, None, None)
    embedding = self.embed_text(text.reshape(-1, text.shape[2])).reshape(*text.shape[:2], -1)
    return Scores(jnp.sum(encoded.embedding[:, None] * embedding, axis=-1), None, None)

  def _embed(self, image, key):
    tokens, stats = self.image_encoder(image, key)
    return unit(tokens.astype(jnp.float32).mean(1)), stats
