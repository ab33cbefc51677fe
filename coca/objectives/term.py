"""A loss as the training step sees it, and the forward pass that all losses of a step share."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray

from coca.config import Config


class Stream(IntEnum):
  """Random streams of one forward pass, folded into its key."""

  DROPOUT = 1  # in the towers
  QUESTION = 2  # dropout in the encoder that reads a question, or the caption of a dialog
  ANSWER = 3  # and in the decoder that writes its answers, or the encoder that reads the dialog
  TEXTS = 4  # dropout where each image is grounded in its own and in a drawn text
  IMAGES = 5  # and where each text is grounded in a drawn image
  MORE_TEXTS = 6  # and in the encoder of the further texts of images
  MASKED = 7  # and in the encoders of texts with hidden words
  SAMPLES = 8  # and in the decoder of captions that were drawn


class Triples(NamedTuple):
  """True pairs and their hard negatives: own image and text, a drawn text, a drawn image."""

  states: Float[Array, "B 3 T D"]  # of texts grounded in images
  text: Int32[Array, "B 3 T"]
  found: Bool[Array, " B"]  # False where there was nothing to draw


@dataclass(frozen=True)
class Pass:
  """One forward pass over a batch or a micro-batch; what no loss asked for is None. As in `coca.models.outputs.Output`.

  Shapes: B batch, K further texts an image, Q image tokens for the decoder, T text length, D text width, E embedding
  width, C classes.
  """

  image: Float32[Array, "B E"] | None = None  # unit length
  text: Float32[Array, "B E"] | None = None  # unit length
  more_texts: Float32[Array, "B K E"] | None = None  # of the batch's 'more_texts', unit length
  tokens: Any = None  # [B, Q, kv_width], or an `Encoded` where some do not count
  words: Float[Array, "B T D"] | None = None
  states: Float[Array, "B T D"] | None = None  # the softmax over them predicts the next token
  stats: dict | None = None  # of batch norms
  triples: Triples | None = None
  temperature: dict | None = None  # {'log_scale': []} and, for the sigmoid, 'logit_bias'
  memory: dict | None = (
    None  # of the momentum encoders: 'image' and 'text' [B, E], 'queue', 'alpha'; 'words', `SoftTargets`
  )
  classes: Float32[Array, "B C"] | None = None  # logits
  model: Any = None
  key: PRNGKeyArray | None = None

  @property
  def embeddings(self) -> tuple:
    """The first three fields."""
    return self.image, self.text, self.more_texts

  def stream(self, stream: Stream) -> PRNGKeyArray | None:
    """The key of one random stream; None where there is none."""
    return None if self.key is None else jax.random.fold_in(self.key, stream)


@runtime_checkable
class Term(Protocol):
  """A loss. To add one, write its class in a file of `coca.objectives` and name it in `coca.objectives.terms.LOSSES`.

  Attributes:
    name: of the loss, and of its settings.
    metrics: names of what `value` returns, the loss first.
    asks: what the forward pass has to compute: 'contrast', the embeddings; 'caption', the decoder's states; 'match',
      triples; 'classify', the classes' logits; 'write', the image tokens, for a loss that has texts of its own.
    cut: how the gradient is taken over micro-batches. 'adds_up': `value` is a sum over examples, which the step divides
      by the whole batch's `divisor`. 'by_embeddings': the loss compares all examples of the batch, and is a function of
      `Pass.embeddings` and the temperature, of which alone the forward pass consists then. 'no': not at all.
    weight: in the sum of all losses; 0 for a loss that the config does not have.
  """

  name: ClassVar[str]
  metrics: ClassVar[tuple[str, ...]]
  asks: frozenset[str]
  cut: Literal["adds_up", "by_embeddings", "no"]
  weight: float

  def __init__(self, config: Config): ...

  def value(self, passed: Pass, batch: dict) -> dict[str, jax.Array]:
    """The loss without its weight and what else is to be logged: fp32 scalars by the names in `metrics`."""
    ...

  def divisor(self, batch: dict) -> jax.Array | int:
    """The divisor of all that `value` returns: of the whole batch, whatever micro-batches it comes in."""
    return 1

  def arrays(self) -> dict[str, tuple[tuple[int, ...], type]]:
    """The batch's arrays for this loss alone: shapes, without the batch's dimension, and dtypes by name."""
    return {}

  def at_start(self) -> tuple[float, str]:
    """The loss of a model that tells nothing apart, in nats, and how it comes about."""
    ...
