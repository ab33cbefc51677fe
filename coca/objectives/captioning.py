"""The captioning loss (CoCa equation 3): cross-entropy of the next token, chunk by chunk.

Logits of batch x text x vocabulary are never held. Each device walks over chunks of its own tokens; where a gradient
is wanted, a chunk's gradients are computed while its logits are there, so that the vocabulary head costs three
matrix products instead of the four of recomputation.

Shapes: N texts, T tokens, D width, V vocabulary; n tokens of one device, v words of one device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int32

from coca import config
from coca.config.special import PAD
from coca.devices.sharding import BATCH


class SoftTargets(NamedTuple):
  """Another model's probabilities as a share of the targets; no gradient."""

  states: Float[Array, "N T D"]
  kernel: Float[Array, "D V"]
  bias: Float[Array, " V"]
  share: Float[Array, ""] | float


def next_tokens(
  text: Int32[Array, "N T"],
  weight: Float[Array, " N"],
  prompt: int | Int32[Array, " N"] = 0,
  last: Int32[Array, " N"] | None = None,
) -> tuple[Int32[Array, "N T"], Float32[Array, "N T"]]:
  """The token that each position has to predict.

  Args:
    text: BOS, words, EOS, padding.
    weight: of the texts.
    prompt: the number of words at the beginning that are no labels, of all texts or of each.
    last: the last token as a label: where a text was cut, the word that EOS took the place of, since EOS would teach
      the decoder to stop in mid-word. None: as in `text`.

  Returns:
    the text shifted by one, and the text's weight where the label is a word or EOS, 0 where it is padding or there is
    none.
  """
  last = text[:, -1] if last is None else last
  labels = jnp.concatenate([text[:, 1:-1], last[:, None], jnp.full_like(last, PAD)[:, None]], axis=1)
  learned = (labels != PAD) & (jnp.arange(text.shape[1]) >= jnp.asarray(prompt)[..., None])
  return labels, jnp.where(learned, weight[:, None], 0).astype(jnp.float32)


def prefix_lengths(text: Int32[Array, "N T"], drawn: Float[Array, " N"]) -> Int32[Array, " N"]:
  """Words that a prefix has of each text, BOS not counted: from none to all but the last label, each as likely.

  Args:
    text: BOS, words, EOS, padding.
    drawn: uniform, from 0 to below 1.
  """
  labels = (text != PAD).sum(1) - 1
  return jnp.maximum(jnp.floor(drawn * labels).astype(jnp.int32), 0)


def label_count(
  weights: Float[Array, "N T"], weight: Float[Array, " N"], settings: config.Captioning
) -> Float32[Array, ""]:
  """The loss' divisor, of `next_tokens`' weights and the texts': tokens ('mean') or texts."""
  return weights.sum() if settings.tokens == "mean" else weight.astype(jnp.float32).sum()


def captioning_loss(
  states: Float[Array, "N T D"],
  kernel: Float[Array, "D V"],
  text: Int32[Array, "N T"],
  weight: Float[Array, " N"],
  settings: config.Captioning,
  bias: Float[Array, " V"] | None = None,
  last: Int32[Array, " N"] | None = None,
  prefix: Int32[Array, " N"] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
  """Sum of the weighted negative log-likelihoods, and what to divide it by.

  Two sums rather than their quotient, so that micro-batches add up to one batch.

  Args:
    states: of the multimodal decoder, split over the batch axes of the mesh in context.
    kernel: the vocabulary head, split over the fsdp and tensor axes.
    text: BOS, words, EOS, padding.
    weight: of the texts.
    settings: see `coca.config.Captioning`.
    bias: of the vocabulary head; None: none.
    last: see `next_tokens`.
    prefix: words of each text that are no labels, in place of `settings.prompt_tokens`.

  Returns:
    nll in nats, with 'per_text' each text's by its number of tokens; and the number of tokens ('mean'), or of texts.
  """
  labels, weights = next_tokens(text, weight, settings.prompt_tokens if prefix is None else prefix, last)
  count = label_count(weights, weight, settings)
  if settings.tokens == "per_text":
    weights /= jnp.maximum((weights > 0).sum(1, keepdims=True), 1)
  nll = vocabulary_nll(states, kernel, labels, weights, bias, settings.chunk, settings.label_smoothing)
  return nll, count


def log_likelihood(
  states: Float[Array, "N T D"],
  kernel: Float[Array, "D V"],
  text: Int32[Array, "N T"],
  bias: Float[Array, " V"] | None = None,
) -> Float32[Array, " N"]:
  """Each text's sum of log-probabilities, in nats, EOS included. Arguments as of `captioning_loss`."""
  labels, weights = next_tokens(text, jnp.ones(len(text)))

  def step(total, token):  # one of each text at a time: no logits of all tokens at once
    x, label, weight = token
    logits = jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    hit = jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]
    return total + weight * hit, None

  tokens = states.swapaxes(0, 1), labels.T, weights.T
  return jax.lax.scan(step, jnp.zeros(len(text), jnp.float32), tokens)[0]


def vocabulary_nll(
  states: Float[Array, "N T D"],
  kernel: Float[Array, "D V"],
  labels: Int32[Array, "N T"],
  weights: Float[Array, "N T"],
  bias: Float[Array, " V"] | None,
  chunk: int,
  smoothing: float = 0.0,
  soft: SoftTargets | None = None,
) -> Float32[Array, ""]:
  """The sum of the weighted cross-entropies, `chunk` tokens of a device at a time. Arguments as of `captioning_loss`.

  The target is the label, a part of it spread over all words (`smoothing`), or shared with `soft`.
  """

  def sharded(states, kernel, labels, weights, bias, soft):
    flat = states.reshape(-1, states.shape[-1])
    size = -(-len(flat) // -(-len(flat) // chunk))  # chunks as equal as can be: the least padding
    pad = -len(flat) % size

    def chunks(x):
      x = jnp.pad(x, ((0, pad), *((0, 0),) * (x.ndim - 1)))
      return x.reshape(-1, size, *x.shape[1:])

    def whole(kernel, bias):
      # What differs between devices is marked so, which makes the transposes (sums over devices) come out right.
      kernel = jax.lax.pcast(kernel.astype(states.dtype), "data", to="varying")
      bias = jax.lax.pcast(bias, BATCH, to="varying")
      # Gathered here, its gradient is scattered over fsdp; left to the partitioner, all devices sum all of it.
      return jax.lax.all_gather(kernel, "fsdp", tiled=True), bias

    kernel, bias = whole(kernel, bias)
    flat, labels, weights = jax.lax.pcast((flat, labels.reshape(-1), weights.reshape(-1)), "tensor", to="varying")
    if soft:
      slow = jax.lax.pcast(soft.states.reshape(flat.shape), "tensor", to="varying")
      soft = SoftTargets(chunks(slow), *whole(soft.kernel, soft.bias), soft.share)
    nll = _chunked_nll(chunks(flat), kernel, bias, chunks(labels), chunks(weights), soft, smoothing)
    # Each device of the tensor axis has the same sum.
    return jax.lax.psum(nll, (*BATCH, "tensor")) / jax.lax.axis_size("tensor")

  batch, columns, words = P(BATCH), P("fsdp", "tensor"), P("tensor")
  soft_specs = soft and SoftTargets._make((batch, columns, words, P()))
  return jax.shard_map(sharded, in_specs=(batch, columns, batch, batch, words, soft_specs), out_specs=P())(
    states, kernel, labels, weights, bias, soft
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _chunked_nll(states, kernel, bias, labels, weights, soft, smoothing):
  """states [chunks, n, D], kernel [D, v], bias [v] or None, labels, weights [chunks, n] -> the sum of weighted nll."""

  def step(total, chunk):
    x, labels, weights, slow = chunk
    return total + _nll(x, kernel, bias, labels, weights, soft, slow, smoothing)[0], None

  slow = soft and soft.states
  return jax.lax.scan(step, _varying_zero(states, kernel), (states, labels, weights, slow))[0]


def _nll(x, kernel, bias, labels, weights, soft, slow, smoothing):
  """One chunk's sum of weighted nll, and what its gradient needs: exp(logits), their sums and the targets.

  `slow`: the chunk's part of `soft.states`.
  """
  logits = jnp.dot(x, kernel, preferred_element_type=jnp.float32)
  logits = logits if bias is None else logits + bias
  words = kernel.shape[1]
  local = labels - jax.lax.axis_index("tensor") * words
  is_label = jnp.arange(words) == local[:, None]
  exp, normaliser, top = _softmax(logits)
  if soft:
    slow_exp, slow_sum, _ = _softmax(jnp.dot(slow, soft.kernel, preferred_element_type=jnp.float32) + soft.bias)
    targets = soft.share * slow_exp / slow_sum[:, None] + (1 - soft.share) * is_label
    target = jax.lax.psum((targets * logits).sum(1), "tensor")
    return jnp.sum(weights * (jnp.log(normaliser) + top - target)), (exp, normaliser, targets)
  target = jax.lax.psum(jnp.where(is_label, logits, 0).sum(1), "tensor")
  nll = jnp.log(normaliser) + top - (1 - smoothing) * target
  if smoothing:
    vocab = words * jax.lax.axis_size("tensor")
    nll -= smoothing * jax.lax.psum(logits.sum(1), "tensor") / vocab
  return jnp.sum(weights * nll), (exp, normaliser, is_label)


def _softmax(logits):
  """exp(logits - top), its sum over all words, and top, the largest logit of all words."""
  top = jax.lax.stop_gradient(jax.lax.pmax(logits.max(1), "tensor"))
  exp = jnp.exp(logits - top[:, None])
  return exp, jax.lax.psum(exp.sum(1), "tensor"), top


def _chunked_nll_fwd(states, kernel, bias, labels, weights, soft, smoothing):
  def step(carry, chunk):
    total, d_kernel, d_bias = carry
    x, labels, weights, slow = chunk
    nll, (exp, normaliser, targets) = _nll(x, kernel, bias, labels, weights, soft, slow, smoothing)
    p = exp / normaliser[:, None] - (1 - smoothing) * targets
    if smoothing:
      p -= smoothing / (p.shape[1] * jax.lax.axis_size("tensor"))
    d_bias = None if bias is None else d_bias + (weights[:, None] * p).sum(0)
    p = (weights[:, None] * p).astype(x.dtype)
    d_x = jnp.dot(p, kernel.T)
    d_kernel += jnp.dot(x.T, p, preferred_element_type=jnp.float32)
    return (total + nll, d_kernel, d_bias), d_x

  zero = _varying_zero(states, kernel)
  d_kernel, d_bias = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32) + zero, (kernel, bias))
  rows = states, labels, weights, soft and soft.states
  (total, d_kernel, d_bias), d_states = jax.lax.scan(step, (zero, d_kernel, d_bias), rows)
  return total, (d_states, d_kernel.astype(kernel.dtype), d_bias)


def _chunked_nll_bwd(smoothing, gradients, g):
  g = jax.lax.psum(g, "tensor")  # every device's loss depends on this device's words
  return *jax.tree.map(lambda x: (g * x).astype(x.dtype), gradients), None, None, None


_chunked_nll.defvjp(_chunked_nll_fwd, _chunked_nll_bwd)


def _varying_zero(states, kernel):
  """fp32 0 that the scan may turn into a value that differs between devices."""
  return (states.ravel()[0] * 0 + kernel.ravel()[0] * 0).astype(jnp.float32)
