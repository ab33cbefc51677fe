"""The contrastive loss with momentum encoders (BLIP, arXiv 2201.12086, section 3.2; ALBEF, arXiv 2107.07651).

A slow copy of both encoders, the average of their parameters over the steps, embeds each batch too. Its embeddings are
what the texts and images of the batch are compared with, they wait in a queue as negatives of later steps, and its
similarities, those of the two slow copies, are a part of the targets.

BLIP compares a GPU's pairs with those of the same GPU and the queue; here all pairs of the global batch are compared.
The queues are replicated: 118 MB a device for the paper's 57,600 embeddings of 256 numbers.

Shapes: N pairs of the global batch, n pairs of one device, E embedding width, Q queue.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, PRNGKeyArray, UInt32

from coca import config
from coca.devices.sharding import BATCH
from coca.devices.trees import flat, nested
from coca.objectives.contrastive import compare, everyone

PARTS = ("image_encoder", "image_projection", "text_encoder", "text_projection")
FILLING = ("fusion", "masked_head")  # ALBEF's, that fill in hidden words


def momentum_params(params: dict) -> dict:
  """The parameters that the embeddings come from: without the cross-attention and what is the decoder's alone.

  Of a model that fills in hidden words, all that does so too.
  """
  leaves = flat(params)
  filling = FILLING if "masked_head" in params else ()

  def wanted(name):
    part, _, rest = name.partition("/")
    # What encoder and decoder share is kept under the decoder's name.
    shared = part == "text_decoder" and f"text_encoder/{rest}" not in leaves
    return part in filling or ((part in PARTS or shared) and "cross" not in rest)

  return nested({name: x for name, x in leaves.items() if wanted(name)})


def with_momentum(params: dict, momentum: dict) -> dict:
  """`params` with those of `momentum_params` in place of their own."""
  return nested(flat(params) | flat(momentum))


def empty_queue(settings: config.Contrastive, width: int, key: PRNGKeyArray) -> dict:
  """Queues of random unit vectors, as the authors begin; `hashes` of 0 are those of no text."""
  image, text = jax.random.normal(key, (2, settings.queue, width))
  image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
  return {
    "image": image,
    "text": text,
    "hashes": jnp.zeros((settings.queue, 2), jnp.uint32),
    "weight": jnp.ones(settings.queue),
    "next": jnp.int32(0),
  }


def enqueue(
  queue: dict,
  image: Float[Array, "N E"],
  text: Float[Array, "N E"],
  hashes: UInt32[Array, "N 2"],
  weight: Float[Array, " N"],
) -> dict:
  """The queue with a batch in place of its oldest entries; a batch may be of any size."""
  size, batch = len(queue["weight"]), len(weight)
  new = {"image": image, "text": text, "hashes": hashes, "weight": weight}
  last = min(size, batch)
  slots = (queue["next"] + batch - last + jnp.arange(last)) % max(size, 1)
  out = {name: queue[name].at[slots].set(x[batch - last :]) for name, x in new.items()}
  return out | {"next": (queue["next"] + batch) % max(size, 1)}


def momentum_contrastive_loss(
  image: Float[Array, "N E"],
  text: Float[Array, "N E"],
  slow_image: Float[Array, "N E"],
  slow_text: Float[Array, "N E"],
  queue: dict,
  hashes: UInt32[Array, "N 2"],
  weight: Float[Array, " N"],
  log_scale: Float[Array, ""],
  alpha: Float[Array, ""] | float,
  settings: config.Contrastive,
) -> Float32[Array, ""]:
  """The loss without its weight.

  Args:
    image: embeddings of unit length.
    text: likewise.
    slow_image: of the momentum encoder, unit length; no gradient.
    slow_text: likewise.
    queue: of earlier steps.
    hashes: the same for equal texts, in the batch and the queue.
    weight: a pair of weight 0 is no query and no negative.
    log_scale: the logarithm of 1 / temperature.
    alpha: the share of the soft targets.
    settings: equal_texts and directions are read.

  Returns:
    a mean over the pairs of the global batch.
  """

  def sharded(image, text, slow_image, slow_text, hashes, weight, queue, scale, alpha):
    first = jax.lax.axis_index(BATCH) * len(image)

    def keys(x, name):
      return jnp.concatenate([everyone(x), queue[name]])

    valid, positive = compare(hashes, keys(hashes, "hashes"), keys(weight, "weight"), first, settings)
    hard = positive / positive.sum(1, keepdims=True)

    def direction(queries, slow, keys):
      def logits(queries):
        x = scale * jnp.dot(queries, keys.T, preferred_element_type=jnp.float32)
        return jnp.where(valid, x, jnp.finfo(jnp.float32).min)

      targets = alpha * jax.lax.stop_gradient(jax.nn.softmax(logits(slow))) + (1 - alpha) * hard
      return -jnp.sum(weight * jnp.sum(jnp.where(valid, targets * jax.nn.log_softmax(logits(queries)), 0), axis=1))

    total = direction(image, slow_image, keys(slow_text, "text"))
    total += direction(text, slow_text, keys(slow_image, "image"))
    total = total / 2 if settings.directions == "mean" else total
    return jax.lax.psum(total, BATCH) / jnp.maximum(jax.lax.psum(weight.sum(), BATCH), 1e-9)

  slow_image, slow_text = jax.lax.stop_gradient((slow_image, slow_text))
  batch = P(BATCH)
  return jax.shard_map(sharded, in_specs=(*(batch,) * 6, P(), P(), P()), out_specs=P())(
    image, text, slow_image, slow_text, hashes, weight.astype(jnp.float32), queue, jnp.exp(log_scale), alpha
  )
