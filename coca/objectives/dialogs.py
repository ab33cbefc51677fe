"""BLIP's loss over answers within a dialog (arXiv 2201.12086, section 5.5): image-text matching, true or false."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from coca.config import Config
from coca.config.special import PAD
from coca.objectives.term import Pass, Stream, Term


def dialog_loss(
  logits: Float[Array, "N K 2"], weight: Float[Array, " N"], known: Bool[Array, "N K"]
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
  """Sums of the cross-entropies in nats and of the answers that are judged right, a tie being wrong.

  Args:
    logits: of false and true, for the right answer, which is the first of the K, and wrong ones.
    weight: of the questions.
    known: False where there was no further wrong answer.
  """
  margin = (logits[..., 1] - logits[..., 0]).astype(jnp.float32)
  margin = jnp.where(jnp.arange(logits.shape[1]) == 0, margin, -margin)
  weights = weight[:, None] * known
  return jnp.sum(weights * jax.nn.softplus(-margin)), jnp.sum(weights * (margin > 0))


class Dialogs(Term):
  """Over all answers that are judged, the mean."""

  name, metrics = "dialog", ("dialog", "dialog_accuracy")
  asks = frozenset()
  cut = "adds_up"

  def __init__(self, config: Config):
    self.weight, self.settings = config.dialog.weight, config.dialog

  def value(self, passed: Pass, batch: dict):
    recalled = passed.model.recall(passed.tokens, batch["text"], passed.stream(Stream.QUESTION))
    logits = passed.model.judge(recalled, batch["dialog"], passed.stream(Stream.ANSWER))
    nll, right = dialog_loss(logits, batch["weight"], _known(batch))
    return {"dialog": nll, "dialog_accuracy": right}

  def divisor(self, batch: dict):
    return jnp.maximum((batch["weight"][:, None] * _known(batch)).sum(), 1e-9)

  def arrays(self):
    return {"dialog": ((1 + self.settings.negatives, self.settings.length), jnp.int32)}

  def at_start(self):
    return math.log(2), "ln 2"


def _known(batch: dict) -> jax.Array:
  return (batch["dialog"] != PAD).any(axis=-1)
