"""The common part of CoCa and BLIP: results, the temperature, the dtype.

Shapes: B batch, Q image tokens for the decoder, K texts an image, T text length, D text width, E embedding width,
C classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from coca.config import Config


class Output(NamedTuple):
  """Results of one forward pass; what no loss asked for is None."""

  image: Float32[Array, "B E"] | None  # unit length
  text: Float32[Array, "B E"] | None  # unit length
  tokens: Any  # what the grounded text layers attend to, [B, Q, D], or an `Encoded`; None
  words: Float[Array, "B T D"] | None  # what they start from, where that is more than the text's ids
  states: Float[Array, "B T D"] | None  # the softmax over them predicts the next token
  classes: Float32[Array, "B C"] | None = None  # logits of the classes
  stats: dict | None = None  # of batch norms in training, named as the parameters are


class Encoded(NamedTuple):
  """All that the text side needs of images."""

  embedding: Float32[Array, "B E"] | None  # unit length; None: no contrastive side
  tokens: Float[Array, "B Q D"] | None  # None: no grounded text layers
  mask: Bool[Array, "B 1 1 Q"] | None = None  # which tokens count; None: all


class Scores(NamedTuple):
  """The fit of each text to its image."""

  contrastive: Float32[Array, "B K"] | None  # cosine; None: no contrastive side
  matching: Float32[Array, "B K"] | None  # the probability that they match; None: no matching head
  match_logit: Float32[Array, "B K"] | None  # the head's logit of a match, alone: what BLIP's retrieval adds up


class Temperature(nnx.Module):
  """Learned temperature (0.07 at the start) as log(1 / temperature), and SigLIP's bias where the loss wants one."""

  def __init__(self, config: Config):
    self.log_scale = nnx.Param(-jnp.log(jnp.float32(config.contrastive.temperature)))
    if config.contrastive.loss != "softmax":
      self.logit_bias = nnx.Param(jnp.float32(config.contrastive.bias))


def compute_dtype(config: Config) -> np.dtype:
  """The activations' dtype: 'auto' is bfloat16 on accelerators and float32 on CPU, where bfloat16 is slower."""
  name = config.model.dtype
  if name == "auto":
    name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return jnp.dtype(name)


def joined(x: Float[Array, "BF N D"], frames: int) -> Float[Array, "B FN D"]:
  """The tokens of all frames of a video one behind the other, frame by frame."""
  return x if frames == 1 else x.reshape(-1, frames * x.shape[1], x.shape[2])


def mean_unit(x: Float32[Array, "BF E"], frames: int) -> Float32[Array, "B E"]:
  """The mean of the embeddings of a video's frames, of unit length."""
  return x if frames == 1 else unit(x.reshape(-1, frames, x.shape[1]).mean(axis=1))


def unit(x: Float[Array, "*rows E"]) -> Float32[Array, "*rows E"]:
  """x in fp32, divided by its length."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))
