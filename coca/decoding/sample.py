"""One token after the other: the most probable one, or one that is drawn.

Shapes: B images, K rows (samples) of an image, P prompt length, T text length, V vocabulary.
"""

import jax
import jax.numpy as jnp

from coca.config.special import PAD, Special
from coca.decoding.common import Decoded, at, begin, in_blocks, process, put_at, top
from coca.decoding.settings import Decoding
from coca.decoding.text_model import Start

_CANDIDATES = 256  # tokens among which a nucleus is looked for before all are
_BLOCK = 256


def sample(
  start: Start, image_tokens, prompt, lengths, keys, length: int, decoding: Decoding, special: Special
) -> Decoded:
  """Greedy texts (strategy 'greedy') or samples of the model's distribution ('sample'), until all have ended.

  Logits are processed in the order of transformers: repetition penalty, minimal length, temperature, top-k, nucleus.

  Args:
    start: see `begin`.
    image_tokens: [B, S, D].
    prompt: int32 [B, P], BOS included; see `begin`.
    lengths: int32 [B], of the prompts.
    keys: [B], one random key an image; unused where nothing is drawn. What is drawn depends on the key, the position
      and the number of the sample, so not on the batch.
    length: T.
    decoding: n is the number of rows.
    special: ids.

  Returns:
    texts [B, n, T] in the order of their numbers; the scores are those of the model's own distribution.
  """
  rows = decoding.n
  step, cache, position, text, ancestors = begin(start, image_tokens, prompt, lengths, rows, length)

  def goes_on(carry):
    position, _, _, _, ended = carry
    return (position < length - 1) & ~ended.all()

  def body(carry):
    position, text, cache, score, ended = carry
    raw, cache = step(cache, at(text, position), position, ancestors)
    logits = process(raw, text, position + 1, decoding, special)
    if decoding.strategy == "greedy":
      ids = top(logits, 1)[1][..., 0]
    else:
      ids = draw(logits, uniforms(keys, position, rows), decoding)
    given = position + 1 < lengths[:, None]  # by the prompt
    ids = jnp.where(given, at(text, position + 1), jnp.where(ended, PAD, ids))
    logp = jnp.take_along_axis(raw, ids[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(raw, axis=-1)
    score = score + jnp.where(given | ended, 0, logp)
    return position + 1, put_at(text, ids, position + 1), cache, score, ended | ~given & (ids == special.eos)

  # A prompt as long as the text leaves nothing to write.
  ended = jnp.broadcast_to(lengths[:, None] >= length, (text.shape[0], rows))
  state = (position, text, cache, jnp.zeros((text.shape[0], rows), jnp.float32), ended)
  _, text, _, score, _ = jax.lax.while_loop(goes_on, body, state)
  new = ((text != PAD) & (jnp.arange(length) >= lengths[:, None, None])).sum(axis=-1)
  return Decoded(text, score / jnp.maximum(new, 1).astype(jnp.float32) ** decoding.length_penalty)


def image_keys(seed, ids):
  """One random key for each of the images with the uint32 `ids` [B], of which the caller says what they are."""
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(ids)


def uniforms(keys, position, rows: int):
  """Two numbers from [0, 1) for each sample of each image: fp32 [B, K, 2]."""

  def one(key, row):
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, position), row), (2,))

  return jax.vmap(lambda key: jax.vmap(lambda row: one(key, row))(jnp.arange(rows)))(keys)


def draw(logits, u, decoding: Decoding):
  """Tokens from the processed logits.

  Args:
    logits: fp32 [..., V].
    u: fp32 [..., 2], from [0, 1).
    decoding: temperature, top_k, top_p.

  Returns:
    int32 [...].
  """
  logits, vocab = logits / decoding.temperature, logits.shape[-1]
  if decoding.top_k and decoding.top_k < vocab:
    values, ids = top(logits, decoding.top_k)
    return _draw_sorted(values, ids, jax.nn.logsumexp(values, axis=-1), u, decoding.top_p)[0]
  if decoding.top_p == 1:
    return _draw_any(logits, u)
  normalizer = jax.nn.logsumexp(logits, axis=-1)

  ids, complete = _draw_sorted(*top(logits, min(_CANDIDATES, vocab)), normalizer, u, decoding.top_p)

  def among_all():
    kept = _nucleus(logits, jnp.exp(logits - normalizer[..., None]), decoding.top_p)
    return jnp.where(complete, ids, _draw_any(jnp.where(kept, logits, -jnp.inf), u))

  return ids if vocab <= _CANDIDATES else jax.lax.cond(complete.all(), lambda: ids, among_all)


def _nucleus(logits, mass, top_p: float):
  """The nucleus of tokens, bool [..., V]: found by bisection of its least logit, a tenth of a sort's time.

  Of equal logits at its end the first are in it, as if all were sorted.
  """
  bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
  keys = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # in the order of the logits

  def halve(_, limits):
    low, high = limits
    middle = (low & high) + ((low ^ high) >> 1)  # of two int32 without overflow
    enough = jnp.sum(jnp.where(keys >= middle, mass, 0), axis=-1, keepdims=True) >= top_p
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  limits = tuple(jnp.full((*logits.shape[:-1], 1), x, jnp.int32) for x in (-(2**31), 2**31 - 1))
  least, _ = jax.lax.fori_loop(0, 32, halve, limits)
  above, equal = keys > least, keys == least
  missing = top_p - jnp.sum(jnp.where(above, mass, 0), axis=-1, keepdims=True)
  before = jnp.cumsum(equal, axis=-1) - 1
  return above | equal & (before * mass < missing)


def _draw_sorted(values, ids, normalizer, u, top_p: float):
  """By inversion of the distribution function over the nucleus of descending `values` [..., M].

  Returns:
    tokens int32 [...], and whether the nucleus lies within the M.
  """
  mass = jnp.cumsum(jnp.exp(values - normalizer[..., None]), axis=-1)
  kept = 1 + (mass[..., :-1] < top_p).sum(axis=-1)  # those before which there is less than top_p
  total = jnp.take_along_axis(mass, kept[..., None] - 1, axis=-1)
  # Rounding may not lead beyond the last one kept, nor to one of mass 0 at the end.
  kept = jnp.minimum(kept, (values > -jnp.inf).sum(axis=-1))
  where = jnp.minimum((mass <= u[..., :1] * total).sum(axis=-1), kept - 1)
  return jnp.take_along_axis(ids, where[..., None], axis=-1)[..., 0], mass[..., -1] >= top_p


def _draw_any(logits, u):
  """From the whole distribution, in two steps: a block of tokens, then a token of it. Nothing is sorted."""
  mass = jnp.exp(in_blocks(logits - logits.max(axis=-1, keepdims=True), min(_BLOCK, logits.shape[-1])))

  def invert(mass, u):
    upto = jnp.cumsum(mass, axis=-1)
    last = mass.shape[-1] - 1 - jnp.argmax(mass[..., ::-1] > 0, axis=-1)  # rounding may not lead beyond it
    return jnp.minimum((upto <= (u * upto[..., -1])[..., None]).sum(axis=-1), last)

  block = invert(mass.sum(axis=-1), u[..., 0])
  chosen = jnp.take_along_axis(mass, block[..., None, None], axis=-2)[..., 0, :]
  return (block * mass.shape[-1] + invert(chosen, u[..., 1])).astype(jnp.int32)
