"""Contrastive losses over the global batch: softmax (CoCa equation 2) and pairwise sigmoid (arXiv 2303.15343).

All take global arrays split over the batch axes of the mesh in context and return a replicated fp32 scalar. Inside
`shard_map` each device compares its own rows with everybody's, so that no device holds the global matrix; the
gradients are those of the one global loss, with no factor for the number of devices.

Shapes: N pairs of the global batch, n pairs of one device, E embedding width.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped, UInt32

from coca import config
from coca.devices.sharding import BATCH

ROWS, LOWEST = P(BATCH), jnp.finfo(jnp.float32).min


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
  weight = weight.astype(jnp.float32)
  if settings.loss == "softmax":
    return _softmax(image, text, hashes, weight, scale, settings)
  bias = temperature.get("logit_bias", jnp.float32(0))
  local = {"sigmoid": _sigmoid, "sigmoid_ring": _sigmoid_ring}[settings.loss]

  def sharded(image, text, hashes, weight, scale, bias):
    return jax.lax.psum(local(image, text, hashes, weight, scale, bias, settings) * _each(weight), BATCH)

  return jax.shard_map(sharded, in_specs=(ROWS, ROWS, ROWS, ROWS, P(), P()), out_specs=P())(
    image, text, hashes, weight, scale, bias
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


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _softmax(image, text, hashes, weight, scale, settings):
  return _softmax_forward(image, text, hashes, weight, scale, settings)[0]


def _each(weight, directions="sum"):
  """The factor of one pair's loss in the mean over the global batch."""
  return (0.5 if directions == "mean" else 1) / jnp.maximum(jax.lax.psum(weight.sum(), BATCH), 1e-9)


def _global(hashes, weight, settings):
  """`compare` of a device's rows with everybody's."""
  first = jax.lax.axis_index(BATCH) * len(hashes)
  return compare(hashes, everyone(hashes), everyone(weight), first, settings)


def _logits(queries, keys, scale):
  return scale * jnp.dot(queries, keys.T, preferred_element_type=jnp.float32)


def _targets(valid, positive, candidates, matches, settings):
  """The targets of rows or columns that have so many candidates and matches."""
  targets = positive / matches
  if settings.label_smoothing:
    targets = (1 - settings.label_smoothing) * targets + settings.label_smoothing * valid / candidates
  return targets


def _softmax_forward(image, text, hashes, weight, scale, settings):
  def sharded(image, text, hashes, weight, scale):
    valid, positive = _global(hashes, weight, settings)
    targets = _targets(valid, positive, valid.sum(1)[:, None], positive.sum(1)[:, None], settings)

    def direction(queries, keys):
      logits = jnp.where(valid, _logits(queries, everyone(keys), scale), LOWEST)
      norm = jax.nn.logsumexp(logits, axis=1)
      return jnp.sum(weight * jnp.sum(targets * (norm[:, None] - logits), axis=1)), norm

    image_loss, image_norm = direction(image, text)
    text_loss, text_norm = direction(text, image)
    loss = jax.lax.psum((image_loss + text_loss) * _each(weight, settings.directions), BATCH)
    return loss, image_norm, text_norm

  loss, *norms = jax.shard_map(sharded, in_specs=(ROWS, ROWS, ROWS, ROWS, P()), out_specs=(P(), ROWS, ROWS))(
    image, text, hashes, weight, scale
  )
  return loss, (image, text, hashes, weight, scale, *norms)


def _softmax_backward(settings, kept, given):
  """Each device makes its own embeddings' gradients, whole.

  A logit is in the softmax of its image and in that of its text. With the norms of all, N numbers each, a device knows
  both for its own rows; autodiff makes the other softmax' part where its norm is known, of everybody's embeddings, and
  has to sum those over the devices, [N, E] in fp32 twice.
  """

  def sharded(image, text, hashes, weight, scale, image_norm, text_norm, given):
    valid, positive = _global(hashes, weight, settings)
    candidates, matches = valid.sum(1), positive.sum(1)
    own, others = weight[:, None], everyone(weight)
    targets = own * _targets(valid, positive, candidates[:, None], matches[:, None], settings)
    targets += others * _targets(valid, positive, everyone(candidates), everyone(matches), settings)
    valid &= own > 0  # nor is a pair of weight 0 a negative of the others
    each = given * _each(weight, settings.directions)

    def direction(queries, keys, norm, keys_norm):
      keys = everyone(keys)
      logits = jnp.where(valid, _logits(queries, keys, scale), LOWEST)
      p = own * jnp.exp(logits - norm[:, None]) + others * jnp.exp(logits - everyone(keys_norm))
      gradient = each * valid * (p - targets)
      return jnp.dot(gradient, keys, preferred_element_type=jnp.float32)

    of_images = direction(image, text, image_norm, text_norm)
    of_texts = direction(text, image, text_norm, image_norm)
    of_scale = jax.lax.psum(jnp.sum(of_images * image), BATCH)
    return (scale * of_images).astype(image.dtype), (scale * of_texts).astype(text.dtype), of_scale

  of_images, of_texts, of_scale = jax.shard_map(
    sharded, in_specs=(ROWS, ROWS, ROWS, ROWS, P(), ROWS, ROWS, P()), out_specs=(ROWS, ROWS, P())
  )(*[*kept, given])
  return of_images, of_texts, None, None, of_scale


_softmax.defvjp(_softmax_forward, _softmax_backward)


def _pairs(image, text, valid, positive, weight, scale, bias):
  """Sum of -log sigmoid(z (scale x.y + bias)) over a block of pairs, z = 1 for a match and -1 for none."""
  logits = _logits(image, text, scale) + bias
  return -jnp.sum(weight[:, None] * valid * jax.nn.log_sigmoid(jnp.where(positive, logits, -logits)))


def _sigmoid(image, text, hashes, weight, scale, bias, settings):
  return _pairs(image, everyone(text), *_global(hashes, weight, settings), weight, scale, bias)


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
