"""Single-encoder classification: softmax cross-entropy over label ids (CoCa section 3.1), with mixup and cutmix.

Both mix a batch with itself in reverse, in one share for all of it, as timm's `Mixup` with mode 'batch' does: mixup
(arXiv 1710.09412) blends the images, cutmix (arXiv 1905.04899) puts a box of one into the other. Labels are mixed in
the same shares.

Shapes: N images, S side in pixels, C classes, K labels of an image: its own, and where images are mixed the other's.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray, UInt8

from coca import config
from coca.config import Config
from coca.objectives.term import Pass, Term


def classification_loss(
  logits: Float32[Array, "N C"], labels: Int32[Array, "N K"], shares: Float[Array, "N K"], label_smoothing: float
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
  """Sums of the cross-entropies in nats and of the likeliest classes that are right, both by the labels' shares.

  Args:
    logits: of the classes.
    labels: of the images; where the share is 0, anything.
    shares: of the labels in their image, times its weight.
    label_smoothing: share of each target that is spread over all classes, its own included.
  """
  log_p = jax.nn.log_softmax(logits)
  own = jnp.take_along_axis(log_p, jnp.maximum(labels, 0), axis=1)
  nll = -((1 - label_smoothing) * own + label_smoothing * log_p.mean(axis=1, keepdims=True))
  right = jnp.argmax(logits, axis=1)[:, None] == labels
  return jnp.sum(shares * nll), jnp.sum(shares * right)


def mix(batch: dict, key: PRNGKeyArray, settings: config.Classification) -> dict:
  """The batch with its images mixed, 'label' int32 [N, 2] and 'share' fp32 [N, 2]; see `blended` and `pasted`.

  With both settings above 0 a fair coin decides between them.
  """
  for_coin, for_share, for_box = jax.random.split(key, 3)
  is_cutmix = jnp.bool_(settings.cutmix > 0)
  if settings.mixup and settings.cutmix:
    is_cutmix = jax.random.bernoulli(for_coin)
  alpha = jnp.where(is_cutmix, settings.cutmix, settings.mixup)
  share = jax.random.beta(for_share, alpha, alpha)
  centre = jax.random.randint(for_box, (2,), 0, batch["image"].shape[1])
  image, share = jax.lax.cond(
    is_cutmix, lambda x: pasted(x, share, centre), lambda x: (blended(x, share), share), batch["image"]
  )
  label = jnp.stack([batch["label"], batch["label"][::-1]], axis=1)
  shares = jnp.broadcast_to(jnp.stack([share, 1 - share]), label.shape)
  # An image without a label, or that could not be read, leaves the other's part alone to be learned.
  known = jnp.stack([batch["weight"], batch["weight"][::-1]], axis=1) > 0
  return batch | {"image": image, "label": jnp.where(known, label, -1), "share": shares}


def blended(image: UInt8[Array, "N S S 3"], share: Float[Array, ""]) -> UInt8[Array, "N S S 3"]:
  """`share` of each image and the rest of its partner, in whole numbers, as images are sent."""
  mixed = share * image.astype(jnp.float32) + (1 - share) * image[::-1].astype(jnp.float32)
  return jnp.round(mixed).astype(jnp.uint8)


def pasted(
  image: UInt8[Array, "N S S 3"], share: Float[Array, ""], centre: Int32[Array, "2"]
) -> tuple[UInt8[Array, "N S S 3"], Float32[Array, ""]]:
  """Each image with a box of its partner, 1 - `share` of the area around `centre`, cut off at the edges.

  Returns:
    the images, and the share of the area that is left to their own.
  """
  side = image.shape[1]
  half = jnp.floor(side * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
  low, high = jnp.clip(centre - half, 0, side), jnp.clip(centre + half, 0, side)
  at = jnp.arange(side)
  row, column = ((at >= low[i]) & (at < high[i]) for i in (0, 1))
  box = row[:, None] & column
  return jnp.where(box[None, :, :, None], image[::-1], image), 1 - box.mean(dtype=jnp.float32)


class Classification(Term):
  """The class of each image that has a label."""

  name, metrics = "classification", ("classification", "classification_accuracy")
  asks = frozenset({"classify"})
  cut = "adds_up"

  def __init__(self, config: Config):
    self.weight, self.settings = config.classification.weight, config.classification
    self.answers = config.answering.answers if config.answers_by_classes else 0

  def value(self, passed: Pass, batch: dict):
    assert passed.classes is not None
    labels, shares = _targets(batch)
    nll, right = classification_loss(passed.classes, labels, shares, self.settings.label_smoothing)
    return {"classification": nll, "classification_accuracy": right}

  def divisor(self, batch: dict):
    return jnp.maximum(_targets(batch)[1].sum(), 1e-9)

  def arrays(self):
    k = self.answers
    if not k:
      return {"label": ((), jnp.int32)}
    return {"label": ((k,), jnp.int32), "share": ((k,), jnp.float32), "given": ((), jnp.int32)}

  def at_start(self):
    return math.log(self.settings.classes), f"ln {self.settings.classes:,}"


def _targets(batch: dict) -> tuple[jax.Array, jax.Array]:
  """Labels and their shares [N, K], 0 where there is none; K is 1, 2 behind `mix`, and the number of answers."""
  labels = batch["label"].reshape(len(batch["weight"]), -1)
  share = batch.get("share", batch["weight"][:, None])
  return labels, jnp.where(labels >= 0, share, 0).astype(jnp.float32)
