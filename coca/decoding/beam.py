"""Beam search.

Shapes: B images, K beams, P prompt length, T text length, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from coca.config.special import PAD, Special
from coca.decoding.common import Decoded, at, begin, process, put_at, top
from coca.decoding.settings import Decoding
from coca.decoding.text_model import Start


class _State(NamedTuple):
  position: jax.Array  # int32 [], of the tokens to read
  text: jax.Array  # int32 [B, K, T], of the beams that run
  score: jax.Array  # fp32 [B, K], sum of their log-probabilities
  ancestors: jax.Array  # int32 [B, K, T]
  done_text: jax.Array  # int32 [B, K, T], the best that have ended, in order
  done_score: jax.Array  # fp32 [B, K], normalised; -inf: none yet
  ended: jax.Array  # bool [B], nothing better is to come
  cache: tuple


def beam_search(
  start: Start, image_tokens, prompt, lengths, length: int, decoding: Decoding, special: Special
) -> Decoded:
  """The texts with the best scores that a search with K beams finds, as transformers' `generate` searches.

  In each step the 2K most probable continuations of all beams are looked at: those of the first K that end are kept as
  texts, and the first K that don't go on, so that there are always K. At the last position all of the first K end. An
  image has ended when it has K texts and either `early_stop` or no beam that runs could beat the worst of them by the
  score that it has now (for a length penalty above 0 a guess: it might get better with every word).

  With `length_normalisation` 'whole' it is the search of transformers 4.15, with which BLIP's tables were made
  (generation_beam_search.py there). Besides the length that a score is divided by: whether an image has ended is
  judged by the best continuation of all, also by one that just did; and at the last position the K texts that don't
  end are kept beside those that do, unless the image has ended.

  Args:
    start: see `begin`.
    image_tokens: [B, S, D].
    prompt: int32 [B, P], BOS included; see `begin`.
    lengths: int32 [B], of the prompts.
    length: T.
    decoding: beams is K.
    special: ids.

  Returns:
    texts [B, n, T], best first, n <= K. Where there are fewer (a tiny vocabulary), the rest is padding and scores -inf.
  """
  beams = decoding.beams
  stops = decoding.early_stop or beams == 1  # a single beam is greedy: no other text is looked for
  step, cache, position, text, ancestors = begin(start, image_tokens, prompt, lengths, beams, length)
  batch, whole = text.shape[0], decoding.length_normalisation == "whole"

  def norm_of(tokens):
    """Number of tokens, int32 [] or [B] -> what the scores [B, 1] are divided by."""
    tokens = jnp.broadcast_to(jnp.maximum(tokens, 1), (batch,))[:, None]
    return tokens.astype(jnp.float32) ** decoding.length_penalty

  def goes_on(state):
    return (state.position < length - 1) & ~state.ended.all()

  def body(state):
    following = state.position + 1
    logits, cache = step(state.cache, at(state.text, state.position), state.position, state.ancestors)
    normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    logits = process(logits, state.text, following, decoding, special, normalizer)
    width = min(2 * beams, logits.shape[-1])
    values, ids = top(logits, width)  # of each beam; then of all
    candidates = (state.score[..., None] + values - normalizer).reshape(batch, -1)
    score, chosen = jax.lax.top_k(candidates, min(2 * beams, beams * width))
    parent, ids = chosen // width, jnp.take_along_axis(ids.reshape(batch, -1), chosen, axis=-1)
    text = put_at(_rows(state.text, parent), ids, following)

    last, best = following == length - 1, score[:, :1]
    norm = norm_of(following if whole else following + 1 - lengths)
    ends = (ids == special.eos) if whole else (ids == special.eos) | last
    given = (following < lengths)[:, None]  # by the prompt
    counts = ends & (jnp.arange(ends.shape[1]) < beams) & ~state.ended[:, None] & ~given
    done_text, done_score = _best(state.done_text, state.done_score, text, jnp.where(counts, score / norm, -jnp.inf))

    score, kept = jax.lax.top_k(jnp.where(ids == special.eos, -jnp.inf, score), beams)
    parent = jnp.where(given, jnp.arange(beams), jnp.take_along_axis(parent, kept, axis=1))
    text = jnp.where(given[..., None], state.text, _rows(text, kept))
    score = jnp.where(given, state.score, score)
    # Where each beam's past lies; its next token is kept in its own row.
    ancestors = put_at(_rows(state.ancestors, parent), jnp.arange(beams)[None].repeat(batch, 0), following)

    full = done_score[:, -1] > -jnp.inf
    best = best if whole else score[:, :1]
    hopeless = full & (best / norm <= done_score[:, -1:])[:, 0]
    ended = state.ended | ~given[:, 0] & (hopeless | (score[:, 0] == -jnp.inf) | full & stops)
    if whole:
      cut = last & ~ended[:, None] & ~given
      done_text, done_score = _best(
        done_text, done_score, text, jnp.where(cut, score / norm_of(following + 1), -jnp.inf)
      )
    return _State(following, text, score, ancestors, done_text, done_score, ended, cache)

  # A prompt as long as the text leaves nothing to write.
  ended = lengths >= length
  only_first = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf).astype(jnp.float32)
  state = _State(
    position,
    text,
    jnp.broadcast_to(only_first, (batch, beams)),
    ancestors,
    jnp.where(ended[:, None, None], text, PAD),
    jnp.where(ended[:, None], only_first, -jnp.inf),
    ended,
    cache,
  )
  state = jax.lax.while_loop(goes_on, body, state)
  return Decoded(state.done_text[:, : decoding.n], state.done_score[:, : decoding.n])


def _best(done_text, done_score, text, score):
  """The K texts with the highest scores of [B, K, T] and [B, M, T], in order; of equal ones the earlier."""
  done_score, kept = jax.lax.top_k(jnp.concatenate([done_score, score], axis=1), done_score.shape[1])
  return _rows(jnp.concatenate([done_text, text], axis=1), kept), done_score


def _rows(x, rows):
  """x [B, K, T] -> [B, M, T], the rows [B, M] of each image."""
  return jnp.take_along_axis(x, rows[..., None], axis=1)
