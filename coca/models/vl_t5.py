"""VL-T5: T5 reads the text of a task beside a detector's regions, and writes text (arXiv 2102.02779).

The encoder reads [text; regions], all of it seeing all of it; the decoder is causal and looks at what came of that.
Both are T5's (arXiv 1910.10683, section 2.1): norms without mean and bias before each part of a layer, no biases,
logits of attention that are not scaled, a bias for the distance from a query to a key in place of positions, the same
in all layers, and the words' table over the root of the width as head. Regions have no distances. A region is the sum
of its feature, projected and normed, its box with its area, likewise, and two embeddings, of the image and of its
number: that of region i is the word <vis_extra_id_i>, the (i + 1)th from the end of the vocabulary.

Shapes: B batch, T text length, G tokens that the encoder reads, R regions, D width, H heads, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from coca.config import Config, Model
from coca.config.regions import Regions
from coca.config.special import PAD
from coca.devices.sharding import constrain_batch, gather
from coca.models.attention import LOWEST
from coca.models.cached_decoding import start_layers, vocabulary_logits
from coca.models.dropout import dropout
from coca.models.layers import Layer, Stack
from coca.models.linear import EMBED_INIT, gathered, linear, rms_norm, spread
from coca.models.outputs import Encoded, Output, compute_dtype
from coca.models.rngs import Rngs
from coca.models.text_decoder import causal_mask, look_up

KINDS, FARTHEST = 32, 128  # of distances; the last kind has all from 128 on


def kinds_of(distances: np.ndarray, both_ways: bool) -> np.ndarray:
  """The kind of each distance, key minus query, 0 to 31.

  Half of the kinds are a distance each, the others grow with it. `both_ways`: half of all are of keys behind the query;
  otherwise these count as the query's own place.
  """
  n = KINDS // 2 if both_ways else KINDS
  far = np.abs(distances) if both_ways else np.maximum(-distances, 0)
  exact = n // 2
  shares = np.log(np.maximum(far, 1).astype(np.float32) / exact) / np.log(np.float32(FARTHEST / exact))
  kinds = np.where(far < exact, far, np.minimum(exact + (shares * (n - exact)).astype(int), n - 1))
  return kinds + n * (distances > 0) if both_ways else kinds


class RegionReader(nnx.Module):
  """Regions as VL-T5 and VL-BART embed them, and the pass of both."""

  dtype: DTypeLike
  encode: Callable[..., Encoded]
  _write: Callable

  def add_regions(self, model: Model, norm: Callable[[], nnx.Module], rngs: Rngs) -> None:
    width = model.text.width
    self.image_order = nnx.Param(EMBED_INIT(rngs.params(), (width,)))
    self.region_projection = linear(model.regions.width, width, self.dtype, rngs)
    self.box_projection = linear(5, width, self.dtype, rngs)
    self.region_norm, self.box_norm = norm(), norm()

  def __call__(
    self, image: Regions, text: Int32[Array, "B T"], *, caption: bool = True, key: PRNGKeyArray | None = None, **_
  ) -> Output:
    """The encoder's states of regions and of the text beside them; with `caption`, also the decoder's.

    All other arguments are those of other models, and not looked at.
    """
    key, more = (None, None) if key is None else jax.random.split(key)
    encoded = self.encode(image, key)
    return Output(None, None, encoded, None, self._write(text, encoded, more) if caption else None)

  def embed_regions(self, image: Regions, words: Float[Array, "V D"]) -> Float[Array, "B R D"]:
    """Regions as the encoder reads them; `words`: the table, in the compute dtype."""
    area = jnp.prod(image.boxes[..., 2:] - image.boxes[..., :2], axis=-1, keepdims=True)
    boxes = jnp.concatenate([image.boxes, area], axis=-1).astype(self.dtype)
    features = gathered(self.region_projection, self.dtype, "region_projection/")(image.features.astype(self.dtype))
    x = self.region_norm(features) + self.box_norm(gathered(self.box_projection, self.dtype, "box_projection/")(boxes))
    order = words[-x.shape[1] :][::-1] + self.image_order[...].astype(self.dtype)
    return x + spread(order, x.shape, self.dtype)

  def seen(self, image: Regions) -> Bool[Array, "B 1 1 G"]:
    """Those words and regions that there are; never none, for a softmax needs something."""
    return jnp.concatenate([image.tags != PAD, image.mask], axis=1).at[:, 0].set(True)[:, None, None]


class VlT5(RegionReader):
  """`config.model.text` has the sizes; `unimodal_layers` are its encoder's, `multimodal_layers` its decoder's."""

  softmax_bias = None

  def __init__(self, config: Config, rngs: Rngs):
    model = config.model
    text, width, dtype = model.text, model.text.width, compute_dtype(config)
    self.dtype, self.width, self.dropout = dtype, width, model.med.dropout
    self.words = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (text.vocab, width)))

    def norm():
      return rms_norm(width, model.norm_eps, dtype, rngs)

    def stack(layers, kv_width):
      return Stack(layers, lambda r: Layer(text, model, dtype, r, kv_width=kv_width, t5=model.med), model, dtype, rngs)

    def distances():
      return nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (KINDS, text.heads)))

    self.add_regions(model, norm, rngs)
    self.encoder_norm, self.decoder_norm = norm(), norm()
    self.encoder, self.decoder = stack(text.unimodal_layers, None), stack(text.multimodal_layers, width)
    self.encoder_distances, self.decoder_distances = distances(), distances()

  @jax.named_scope("encoder")
  def encode(self, image: Regions, key: PRNGKeyArray | None = None) -> Encoded:
    """The states of the text that comes with the regions, and of the regions, and which of them there are."""
    words, n = gather("words", self.words[...], self.dtype), image.tags.shape[1]
    regions = self.embed_regions(image, words)
    x, seen = constrain_batch(jnp.concatenate([look_up(words, image.tags), regions], axis=1)), self.seen(image)
    kinds = kinds_of(np.arange(n) - np.arange(n)[:, None], both_ways=True)
    among_words = self.encoder_distances[...][kinds].transpose(2, 0, 1)
    bias = jnp.pad(among_words, ((0, 0), (0, regions.shape[1]), (0, regions.shape[1])))
    return Encoded(None, self._read(self.encoder, self.encoder_norm, x, key, jnp.where(seen, bias, LOWEST)), seen)

  def softmax_kernel(self) -> Float[Array, "D V"]:
    """The vocabulary head: states @ kernel are the logits."""
    return self.words[...].T

  def decoding_weights(self) -> dict:
    """The decoding protocol of `coca.decoding`: what `start_decoding` takes, a tree of arrays."""
    return {"words": gather("words", self.words[...], self.dtype), "stack": self.decoder.decoding_weights()}

  def start_decoding(
    self,
    weights: dict,
    image_tokens: Float[Array, "B S D"],
    length: int,
    rows: int,
    prefix: Int32[Array, "B P"],
    context_mask: Bool[Array, "B 1 1 S"],
  ):
    """The decoding protocol of `coca.decoding`."""
    layers = self.decoder.decoding_layers(weights["stack"])

    def embed(ids, _):
      return weights["words"][ids]

    def predict(states):
      return vocabulary_logits(self._scaled(self.decoder_norm(states)), weights["words"])

    given = layers, image_tokens, context_mask, embed, predict, length, rows, prefix
    return start_layers(*given, bias=lambda positions: self._back(positions, length))

  @jax.named_scope("decoder")
  def _write(self, text, encoded: Encoded, key):
    """The states [B, T, D] from which the head predicts the next word of each."""
    n = text.shape[1]
    x = look_up(gather("words", self.words[...], self.dtype), text)
    mask = jnp.where(causal_mask(n), self._back(np.arange(n), n), LOWEST)
    return self._scaled(self._read(self.decoder, self.decoder_norm, x, key, mask, encoded.tokens, encoded.mask))

  def _read(self, stack: Stack, norm, x, key, *args):
    """Embedded words -> states behind the last norm, with dropout before the layers, in them and after the norm."""
    if key is None or not self.dropout:
      return norm(stack(x, *args))
    before, layers, after = jax.random.split(key, 3)
    return dropout(norm(stack(dropout(x, self.dropout, before), *args, key=layers)), self.dropout, after)

  def _back(self, positions, length: int):
    """The decoder's bias [H, N, T] of queries at `positions` [N]; what it is for keys behind them means nothing."""
    by_distance = self.decoder_distances[...][kinds_of(-np.arange(length), both_ways=False)]
    return by_distance[jnp.maximum(positions[:, None] - np.arange(length), 0)].transpose(2, 0, 1)

  def _scaled(self, states):
    """Before the head, which is the table of words (T5 ties them so)."""
    return states * self.width**-0.5
