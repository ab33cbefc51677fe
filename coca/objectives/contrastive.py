"""Contrastive losses over the global batch: softmax (CoCa equation 2) and pairwise sigmoid (arXiv 2303.15343).

All take global arrays split over the batch axes of the mesh in context and return a replicated fp32 scalar. Inside
`shard_map` each device compares its own rows with everybody's, so that no device holds the global matrix; the
gradients are those of the one global loss, with no factor for the number of devices.

Shapes: N pairs of the global batch, n pairs of one device, E embedding width.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped, UInt32

from coca import config
from coca.devices.sharding import BATCH


def contrastive_loss(
  image: Float[Array, "N E"],
  text: Float[Array, "N E"],
  hashes: UInt32[Array, "N 2"],
  weight: Float[Array, " N"],
  temperature: dict,
  settings: config.Contrastive,
) -> Float32[Array, ""]:
  """The loss that `settings.loss` names, without its weight.

  Args:
    image: embeddings of unit length.
    text: likewise.
    hashes: the same for equal texts (`coca.data.texts.equality`).
    weight: a pair of weight 0 is no query and no negative.
    temperature: {'log_scale': []} and, for the sigmoid, 'logit_bias'.
    settings: see `coca.config.Contrastive`.

  Returns:
    a mean over the pairs of the global batch.
  """
  scale = jnp.exp(temperature["log_scale"])
  bias = temperature.get("logit_bias", jnp.float32(0))
  local = {"softmax": _softmax, "sigmoid": _sigmoid, "sigmoid_ring": _sigmoid_ring}[settings.loss]

  def sharded(image, text, hashes, weight, scale, bias):
    total = local(image, text, hashes, weight, scale, bias, settings)
    return jax.lax.psum(total, BATCH) / jnp.maximum(jax.lax.psum(weight.sum(), BATCH), 1e-9)

  batch = P(BATCH)
  return jax.shard_map(sharded, in_specs=(batch, batch, batch, batch, P(), P()), out_specs=P())(
    image, text, hashes, weight.astype(jnp.float32), scale, bias
  )


def compare(
  hashes: UInt32[Array, "n 2"],
  all_hashes: UInt32[Array, "N 2"],
  all_weight: Float[Array, " N"],
  first: Int[Array, ""],
  settings: config.Contrastive,
) -> tuple[Bool[Array, "n N"], Bool[Array, "n N"]]:
  """The relation of each of n rows to each of N columns; row i's own column is `first` + i.

  Returns:
    `valid`, the columns that count at all, and `positive`, those that match.
  """
  own = jnp.arange(len(hashes))[:, None] + first == jnp.arange(len(all_hashes))
  equal = (hashes[:, None] == all_hashes).all(-1)
  valid = own | (all_weight > 0)
  if settings.equal_texts == "positives":
    return valid, valid & equal | own
  if settings.equal_texts == "mask":
    valid &= own | ~equal
  return valid, own


def everyone(x: Shaped[Array, "n ..."]) -> Shaped[Array, "N ..."]:
  """The rows of all devices, inside `shard_map`."""
  # One by one: over both axes at once, TPUs make all-reduces of the gathered size of it and of its gradient.
  for axis in reversed(BATCH):
    x = jax.lax.all_gather(x, axis, tiled=True)
  return x


def _softmax(image, text, hashes, weight, scale, bias, settings):
  first = jax.lax.axis_index(BATCH) * len(image)
  valid, positive = compare(hashes, everyone(hashes), everyone(weight), first, settings)
  targets = positive / positive.sum(1, keepdims=True)
  if settings.label_smoothing:
    targets = (1 - settings.label_smoothing) * targets
    targets += settings.label_smoothing * valid / valid.sum(1, keepdims=True)

  def direction(queries, keys):
    logits = scale * jnp.dot(queries, keys.T, preferred_element_type=jnp.float32)
    log_p = jax.nn.log_softmax(jnp.where(valid, logits, jnp.finfo(jnp.float32).min))
    return -jnp.sum(weight * jnp.sum(targets * log_p, axis=1))

  total = direction(image, everyone(text)) + direction(text, everyone(image))
  return total / 2 if settings.directions == "mean" else total


def _pairs(image, text, valid, positive, weight, scale, bias):
  """Sum of -log sigmoid(z (scale x.y + bias)) over a block of pairs, z = 1 for a match and -1 for none."""
  logits = scale * jnp.dot(image, text.T, preferred_element_type=jnp.float32) + bias
  return -jnp.sum(weight[:, None] * valid * jax.nn.log_sigmoid(jnp.where(positive, logits, -logits)))


def _sigmoid(image, text, hashes, weight, scale, bias, settings):
  first = jax.lax.axis_index(BATCH) * len(image)
  valid, positive = compare(hashes, everyone(hashes), everyone(weight), first, settings)
  return _pairs(image, everyone(text), valid, positive, weight, scale, bias)


def _sigmoid_ring(image, text, hashes, weight, scale, bias, settings):
  """The texts travel round the devices; each holds one block of n x n pairs at a time."""
  n, devices = len(image), jax.lax.axis_size(BATCH)
  neighbours = [(j, (j - 1) % devices) for j in range(devices)]

  @jax.checkpoint
  def block(visitors, hop):
    text, visiting_hashes, visiting_weight = visitors
    first = jnp.where(hop == 0, 0, n)  # one's own column is in the block only before the first hop
    valid, positive = compare(hashes, visiting_hashes, visiting_weight, first, settings)
    return _pairs(image, text, valid, positive, weight, scale, bias)

  def hop(carry, k):
    visitors, total = carry
    total += block(visitors, k)
    return (jax.lax.ppermute(visitors, BATCH, neighbours), total), None

  zero = jax.lax.pcast(jnp.float32(0), BATCH, to="varying")
  (_, total), _ = jax.lax.scan(hop, ((text, hashes, weight), zero), jnp.arange(devices))
  return total
