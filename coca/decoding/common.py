"""The common part of the strategies: their result, the prompt, and what is done to logits before a token is chosen.

Shapes: B images, K rows of an image, P prompt length, T text length, V vocabulary.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from coca.config.special import PAD, Special
from coca.decoding.settings import Decoding
from coca.decoding.text_model import Start


class Decoded(NamedTuple):
  """The texts of B images, n of each, the best first where the strategy knows which that is (beams, re-ranking)."""

  text: jax.Array  # int32 [B, n, T]: BOS, prompt, words, EOS (where it came in time), padding
  score: jax.Array  # fp32 [B, n]: see `Decoding.length_penalty`; cosine similarities after re-ranking


def begin(start: Start, image_tokens, prompt, lengths, rows: int, length: int):
  """Reads the prompts and makes what the loops start with.

  Prompts may differ in length: the loop starts at the last token of the shortest and takes the others' tokens from
  their texts as they come.

  Args:
    start: `TextModel.start_decoding` with its weights filled in.
    image_tokens: [B, S, D].
    prompt: int32 [B, P], each BOS, words, padding; P at most `length`.
    lengths: int32 [B], of the prompts without padding, at least 1.
    rows: K.
    length: T.

  Returns:
    step and cache of the model; position int32 [], of the first token that the loop reads; text int32 [B, K, T] with
    the prompts; ancestors int32 [B, K, T], each row its own from `position` on.
  """
  batch, width = prompt.shape
  prompt = jnp.where(jnp.arange(width) < lengths[:, None], prompt, PAD)
  step, cache = start(image_tokens, length, rows, prompt[:, : width - 1])
  text = jnp.pad(prompt, ((0, 0), (0, length - width)), constant_values=PAD)
  text = jnp.broadcast_to(text[:, None], (batch, rows, length))
  position = jnp.min(lengths) - 1
  own = jnp.arange(length) >= position
  ancestors = jnp.broadcast_to(jnp.where(own, jnp.arange(rows)[:, None], 0), (batch, rows, length))
  return step, cache, position, text, ancestors.astype(jnp.int32)


def at(x, position):
  """x [..., T] -> [...] at `position`."""
  return jax.lax.dynamic_index_in_dim(x, position, axis=-1, keepdims=False)


def put_at(x, values, position):
  """x [..., T] with `values` [...] at `position`."""
  return jax.lax.dynamic_update_index_in_dim(x, values, position, axis=-1)


def process(logits, text, length, decoding: Decoding, special: Special, log_normalizer: jax.Array | float = 0.0):
  """Repetition penalty, then the tokens that may not come next, as transformers' processors of these names.

  Args:
    logits: fp32 [B, K, V].
    text: int32 [B, K, T], tokens so far, then padding.
    length: int32 [], number of the tokens so far.
    decoding: the settings.
    special: ids. BOS and padding never come, EOS not before the minimal length.
    log_normalizer: fp32 [B, K, 1]; the penalty is on logits minus this: transformers penalises logits where it samples
      and log-probabilities where it searches.

  Returns:
    fp32 [B, K, V], -inf where a token may not come.
  """
  if decoding.repetition_penalty != 1:  # CTRL, arXiv 1909.05858, section 4.1
    seen = jnp.take_along_axis(logits, text, axis=-1) - log_normalizer
    seen = jnp.where(seen < 0, seen * decoding.repetition_penalty, seen / decoding.repetition_penalty) + log_normalizer
    logits = jnp.put_along_axis(logits, text, seen, axis=-1, inplace=False)
  if decoding.no_repeat_ngram_size:
    logits = jnp.put_along_axis(
      logits, _completing(text, length, decoding.no_repeat_ngram_size), -jnp.inf, axis=-1, inplace=False
    )
  ids = jnp.arange(logits.shape[-1])
  barred = (ids == PAD) | (ids == special.bos) | (ids == special.eos) & (length < decoding.min_length)
  return jnp.where(barred, -jnp.inf, logits)


def _completing(text, length, n: int):
  """The tokens that would make the last n - 1 ones an n-gram which the text has already.

  Args:
    text: int32 [..., T], tokens so far, then others.
    length: int32 [], number of the tokens so far.
    n: at least 1.

  Returns:
    int32 [..., T], `PAD` in all other places.
  """
  place = jnp.arange(text.shape[-1])
  found = (place >= n - 1) & (place < length)
  for back in range(1, n):  # the token `back` places before, here and at the end
    found &= jnp.roll(text, back, axis=-1) == at(text, jnp.maximum(length - back, 0))[..., None]
  return jnp.where(found, text, PAD)


def top(x, k: int):
  """The k largest of x [..., N], as `jax.lax.top_k` (equal ones by index); for small k in one reading of x.

  The k largest lie in the k blocks with the largest maxima: only those are searched.
  """
  n = x.shape[-1]
  size = int(math.sqrt(n / k))
  blocks = -(-n // max(size, 1))
  if size < 8 or k > 32:
    return jax.lax.top_k(x, k)
  x = in_blocks(x, size)
  # In ascending order again, so that among equal values the first comes first.
  chosen = jnp.sort(jax.lax.top_k(x.max(axis=-1), min(k, blocks))[1], axis=-1)
  few = jnp.take_along_axis(x, chosen[..., None], axis=-2)
  values, where = jax.lax.top_k(few.reshape(*few.shape[:-2], -1), k)
  return values, jnp.take_along_axis(chosen, where // size, axis=-1) * size + where % size


def in_blocks(x, size: int):
  """x [..., N] -> [..., ceil(N / size), size], filled up with -inf."""
  n = x.shape[-1]
  blocks = -(-n // size)
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, blocks * size - n)], constant_values=-jnp.inf)
  return x.reshape(*x.shape[:-1], blocks, size)
