"""Image-text matching with hard negatives (BLIP, arXiv 2201.12086, section 3.2; ALBEF, arXiv 2107.07651, section 3.2).

For each image another pair's text is drawn, and for each text another pair's image, with probability proportional
to the softmax of the contrastive similarities; a two-way head then tells the pair from both. BLIP's pre-training adds
1e-4 to each probability (`floor`), its fine-tune that makes CapFilt's filter does not.

All take global arrays split over the batch axes of the mesh in context. A device holds its own rows' similarities only.
Where a group of `config.matching.group` pairs lies within a device's rows, nothing leaves the device; otherwise what is
compared and taken is gathered from all: image tokens and text states of the whole batch, on each device.

Shapes: N pairs of the global batch, n pairs of one device, G pairs of a group, E embedding width.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray, PyTree, Shaped, UInt32

from coca import config
from coca.devices.sharding import BATCH
from coca.objectives.term import Pass, Stream, Triples


class Negatives(NamedTuple):
  """Rows of the global batch."""

  text: Int32[Array, " N"]  # whose text each image gets
  image: Int32[Array, " N"]  # whose image each text gets
  found: Bool[Array, " N"]  # False where the group has no negative for this pair; text and image mean nothing then


def draw_negatives(
  image: Float[Array, "N E"],
  text: Float[Array, "N E"],
  hashes: UInt32[Array, "N 2"],
  weight: Float[Array, " N"],
  log_scale: Float[Array, ""],
  key: PRNGKeyArray,
  group: int = 0,
  floor: float = 0.0,
  keys: tuple[Float[Array, "N E"], Float[Array, "N E"]] | None = None,
) -> Negatives:
  """Draws a text for each image and an image for each text.

  Never drawn: one's own pair, a pair with an equal text, a pair of weight 0. The same numbers on any mesh; no gradient.

  Args:
    image: embeddings of unit length.
    text: likewise.
    hashes: the same for equal texts.
    weight: of the pairs.
    log_scale: the logarithm of 1 / temperature.
    key: of this draw.
    group: size of the groups of consecutive pairs that are drawn from; 0: the whole batch.
    floor: added to each probability, before one's own pair and equal texts are left out.
    keys: images and texts that texts and images are compared with, where these are not `image` and `text`: those of
      momentum encoders.
  """
  group = group or len(image)
  keys = keys or (image, text)

  def sharded(image, text, image_keys, text_keys, hashes, weight, scale, key):
    n = len(image)
    reach, first = _reach(n, group)
    row = jax.lax.axis_index(BATCH) * n + jnp.arange(n)
    columns = (row // group * group)[:, None] + jnp.arange(group)  # [n, G]
    # A pair's own text equals itself.
    allowed = (reach(hashes)[columns - first] != hashes[:, None]).any(-1) & (reach(weight)[columns - first] > 0)
    # By row and place in the group, whatever the device: adding Gumbel noise to logits draws from their softmax.
    noise = jax.vmap(lambda row: jax.random.gumbel(jax.random.fold_in(key, row), (2, group)))(row)

    def draw(queries, keys, noise):
      logits = scale * jnp.dot(queries, reach(keys).T, preferred_element_type=jnp.float32)
      logits = jax.nn.log_softmax(jnp.take_along_axis(logits, columns - first, axis=1))
      logits = jnp.logaddexp(logits, jnp.log(floor)) if floor else logits
      best = jnp.argmax(jnp.where(allowed, logits + noise, -jnp.inf), axis=1, keepdims=True)
      return jnp.take_along_axis(columns, best, axis=1)[:, 0]

    return Negatives(draw(image, text_keys, noise[:, 0]), draw(text, image_keys, noise[:, 1]), allowed.any(1))

  batch = P(BATCH)
  scale = jnp.exp(log_scale)
  given = jax.lax.stop_gradient((image, text, *keys, hashes, weight))
  return jax.shard_map(sharded, in_specs=(*(batch,) * 6, P(), P()), out_specs=batch)(
    *given, jax.lax.stop_gradient(scale), key
  )


def take_rows(
  arrays: PyTree[Shaped[Array, "N ..."]], rows: Int32[Array, " N"], group: int = 0
) -> PyTree[Shaped[Array, "N ..."]]:
  """`x[rows]` of each x in a tree; `rows` stay within their groups, as `draw_negatives`' do."""

  def sharded(arrays, rows):
    reach, first = _reach(len(rows), group or len(rows) * jax.lax.axis_size(BATCH))
    return jax.tree.map(lambda x: reach(x)[rows - first], arrays)

  return jax.shard_map(sharded, in_specs=(P(BATCH), P(BATCH)), out_specs=P(BATCH))(arrays, rows)


def _reach(n: int, group: int):
  """For a device with n rows: how it gets at the rows of their groups, and the number of the first row it then has."""
  if n % group == 0:
    return lambda x: x, jax.lax.axis_index(BATCH) * n
  return lambda x: jax.lax.all_gather(x, BATCH, tiled=True), 0


def ground_triples(passed: Pass, batch: dict, settings: config.Matching) -> Pass:
  """The pass with its `triples`, grounded: an image's own and drawn text share its keys and values."""
  assert passed.image is not None and passed.text is not None and passed.temperature and passed.key is not None
  text, group, memory = batch["text"], settings.group, passed.memory
  keys = (memory["image"], memory["text"]) if memory and settings.slow_keys else None
  drawn = draw_negatives(
    passed.image,
    passed.text,
    batch["hashes"],
    batch["weight"],
    passed.temperature["log_scale"],
    passed.key,
    group,
    settings.floor,
    keys,
  )
  own = passed.words, text
  two = jax.tree.map(lambda *x: jnp.stack(x, axis=1), own, take_rows(own, drawn.text, group))
  states = passed.model.ground(*two, passed.tokens, passed.stream(Stream.TEXTS))
  images = take_rows(passed.tokens, drawn.image, group)
  other_states = passed.model.ground(*own, images, passed.stream(Stream.IMAGES))
  triples = Triples(
    jnp.concatenate([states, other_states[:, None]], axis=1),
    jnp.concatenate([two[1], text[:, None]], axis=1),
    drawn.found,
  )
  return replace(passed, triples=triples)


def matching_loss(
  logits: Float[Array, "N 3 2"], weight: Float[Array, " N"], found: Bool[Array, " N"]
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
  """Cross-entropy over true pairs and their negatives, without its weight.

  Args:
    logits: of no match and of a match: for the true pair, the image with another text, the text with another
      image.
    weight: of the pairs.
    found: the negatives of other rows do not count.

  Returns:
    the mean over all that count (3 N where each pair has negatives and weight 1), in nats; and the share of them that
    the head gets right, a tie being wrong.
  """
  is_pair = jnp.arange(3) == 0
  margin = (logits[..., 1] - logits[..., 0]).astype(jnp.float32)
  margin = jnp.where(is_pair, margin, -margin)
  weights = weight[:, None] * (is_pair | found[:, None])
  total = jnp.maximum(weights.sum(), 1e-9)
  return jnp.sum(weights * jax.nn.softplus(-margin)) / total, jnp.sum(weights * (margin > 0)) / total
