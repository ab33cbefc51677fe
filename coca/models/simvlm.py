"""SimVLM: an encoder of image and text prefix, and a decoder of the rest of the text (arXiv 2108.10904).

The encoder sees all of the image (through a convolutional stem) and the prefix, in both directions; the decoder is
causal and looks at all that the encoder read. Tokens keep their positions: the rest of a text starts where the prefix
ends, with its last token, BOS if there is no other, as the first that the decoder sees.

Shapes: B batch, S side in pixels, N image tokens, T text length, P tokens of a prompt, D width, V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray, UInt8

from coca.config import Config, Model
from coca.devices.sharding import constrain_batch, gather
from coca.models.attention import LOWEST
from coca.models.cached_decoding import start_layers, vocabulary_logits
from coca.models.conv_stem import ConvStem
from coca.models.image_encoder import first_positions, normalized
from coca.models.layers import Layer, Stack
from coca.models.linear import layer_norm, linear, spread
from coca.models.outputs import Encoded, Output, compute_dtype
from coca.models.rngs import Rngs
from coca.models.text_decoder import Embedding, MultimodalDecoder, causal_mask


def prefix_mask(
  images: Bool[Array, " B"], tokens: int, read: Int32[Array, " B"], length: int
) -> Bool[Array, "B 1 1 {tokens}+{length}"]:
  """The part of image tokens and text that the encoder reads: the image, if there is one, and `read` text tokens."""
  image = jnp.broadcast_to(images[:, None], (images.shape[0], tokens))
  return jnp.concatenate([image, jnp.arange(length) < read[:, None]], axis=1)[:, None, None]


def suffix_mask(prefix: Int32[Array, " B"], length: int) -> Bool[Array, "B 1 {length} {length}"]:
  """The decoder's: from position `prefix` on, a token sees those from there to itself. Those before, from which nothing
  is learned, see what stands before them, so that no row is empty."""
  position = jnp.arange(length)
  start = prefix[:, None, None, None]
  return causal_mask(length) & ((position >= start) | (position[:, None] < start))


class PatchLayer(Layer):
  """A layer of the encoder in which each head has a number for each distance between two image tokens, in rows and in
  columns, that is added to its logits (CoAtNet, arXiv 2106.04803, appendix A.1). Words have no distances."""

  def __init__(self, model: Model, dtype: DTypeLike, rngs: Rngs):
    # Of the kernels, XLA's alone takes numbers as a mask.
    super().__init__(model.image, dataclasses.replace(model, attention="xla"), dtype, rngs)
    self.side = model.image.size // model.image.patch
    self.patch_distances = nnx.Param(jnp.zeros(((2 * self.side - 1) ** 2, model.image.heads)))

  def __call__(
    self, x: Float[Array, "B T D"], mask: Bool[Array, "B 1 1 T"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "B T D"]:
    side, distances, words = self.side, 2 * self.side - 1, x.shape[1] - self.side**2
    table = self.patch_distances[...].reshape(distances, distances, -1)
    # From i, j to k, l. Products with 0 and 1 are faster on TPUs than looking up, and so is their gradient.
    one_hot = np.eye(distances, dtype=table.dtype)[np.arange(side)[:, None] - np.arange(side) + side - 1]
    bias = jnp.einsum("abh,ika,jlb->hijkl", table, one_hot, one_hot, precision="highest").reshape(-1, side**2, side**2)
    bias = jnp.pad(bias.astype(jnp.float32), ((0, 0), (0, words), (0, words)))
    return super().__call__(x, jnp.where(mask, bias, LOWEST), key=key)


class SimVlm(nnx.Module):
  """There are no embeddings of images and texts in one space; both parts of a text share the word embeddings."""

  softmax_bias = temperature = None

  def __init__(self, config: Config, rngs: Rngs):
    model = config.model
    image, text, self.dtype = model.image, model.text, compute_dtype(config)
    self.mean, self.std, self.tokens = image.mean, image.std, image.tokens
    self.stem = ConvStem(model, self.dtype, rngs)
    self.positions = first_positions(model, rngs)
    self.embedding = Embedding(model, self.dtype, rngs)
    layer = PatchLayer if model.stem.distances else functools.partial(Layer, image)
    self.encoder = Stack(image.layers, lambda r: layer(model, self.dtype, r), model, self.dtype, rngs)
    self.norm = layer_norm(image.width, model.norm_eps, self.dtype, rngs)
    self.decoder = MultimodalDecoder(model, image.width, self.dtype, rngs)
    self.softmax = None if text.tied_softmax else linear(text.width, text.vocab, self.dtype, rngs, bias=False)

  def __call__(
    self,
    image: UInt8[Array, "B S S 3"],
    text: Int32[Array, "B T"],
    *,
    prefix: Int32[Array, " B"] | None = None,
    has_image: Float[Array, " B"] | None = None,
    **_,
  ) -> Output:
    """The decoder's states.

    Args:
      image: pixels of 0 to 255.
      text: BOS, words, EOS, padding.
      prefix: words of each text that the encoder reads, after BOS; None: none.
      has_image: 0 where a text stands alone, and nothing sees the image; None: all have one.
      all others: of other models; not looked at.
    """
    prefix = jnp.zeros(text.shape[0], jnp.int32) if prefix is None else prefix
    embedded = self.embedding(text)
    encoded = self._read(self._see(image), embedded, prefix + 1, has_image)
    with jax.named_scope("decoder"):
      mask = suffix_mask(prefix, text.shape[1])
      states = self.decoder.norm(self.decoder.stack(embedded, mask, encoded.tokens, encoded.mask))
    return Output(None, None, encoded.tokens, None, states)

  def encode(self, image: UInt8[Array, "B S S 3"]) -> Encoded:
    """The image as the encoder's input: what it makes of it takes the prompt, too (`with_prompt`)."""
    return Encoded(None, self._see(image))

  def with_prompt(self, encoded: Encoded, prompt: Int32[Array, "B P"], lengths: Int32[Array, " B"]) -> Encoded:
    """All that the decoder looks at: images and the beginnings of their texts, read by the encoder."""
    return self._read(encoded.tokens, self.embedding(prompt), lengths, None)

  def softmax_kernel(self) -> Float[Array, "D V"]:
    """The vocabulary head: states @ kernel are the logits."""
    return self.embedding.tokens[...].T if self.softmax is None else self.softmax.kernel[...]

  def decoding_weights(self) -> dict:
    """The decoding protocol of `coca.decoding`: what `start_decoding` takes, a tree of arrays."""
    tokens, positions = self.embedding.tables()
    head = gather("softmax/kernel", self.softmax_kernel(), self.dtype).T
    return {"tokens": tokens, "positions": positions, "stack": self.decoder.stack.decoding_weights(), "head": head}

  def start_decoding(
    self,
    weights: dict,
    image_tokens: Float[Array, "B NP D"],
    length: int,
    rows: int,
    prefix: Int32[Array, "B P"],
    context_mask: Bool[Array, "B 1 1 NP"],
  ):
    """The decoding protocol of `coca.decoding`, over what `with_prompt` made: the decoder sees no more of a prompt than
    its last token."""
    layers = self.decoder.decoding_layers(weights["stack"])
    first = context_mask[:, 0, 0, self.tokens :].sum(1) - 1

    def embed(ids, position):
      return weights["tokens"][ids] + weights["positions"][position]

    def predict(states):
      return vocabulary_logits(self.decoder.norm(states), weights["head"])

    return start_layers(layers, image_tokens, context_mask, embed, predict, length, rows, prefix, first)

  def _see(self, image):
    """Images [B, S, S, 3] -> [B, N, D]."""
    x = self.stem(normalized(image, self.mean, self.std, self.dtype))
    return x + spread(gather("positions", self.positions[...], self.dtype), x.shape, self.dtype)

  @jax.named_scope("encoder")
  def _read(self, image_tokens, embedded, read, has_image) -> Encoded:
    """Image tokens and the first `read` [B] of the embedded words [B, T, D] -> all states, and which of them count."""
    has_image = jnp.ones(embedded.shape[0]) if has_image is None else has_image
    mask = prefix_mask(has_image > 0, self.tokens, read, embedded.shape[1])
    x = constrain_batch(jnp.concatenate([image_tokens, embedded], axis=1))
    return Encoded(None, self.norm(self.encoder(x, mask)), mask)
