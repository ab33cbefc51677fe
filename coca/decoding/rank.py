"""The best of given answers to a question (BLIP, arXiv 2201.12086: 3,128 candidates for VQA).

Shapes: B questions, C candidates, k of them scored whole, A answer length, D width, V vocabulary.
"""

import jax
import jax.numpy as jnp

from coca.config.special import PAD

CHUNK = 8  # candidates of each question whose logits are held at once


def rank_answers(model, asked, candidates, k: int, smoothing: float):
  """The candidate that the model thinks likeliest: the k with the likeliest first words are scored whole, as BLIP does.

  Args:
    model: with `answer` and `logits`, as `coca.models.blip.Blip` has them.
    asked: of the model's `ask`.
    candidates: int32 [C, A]: the first token, words, EOS, padding.
    k: at most C.
    smoothing: of the labels. BLIP's scores are the negative loss, label smoothing of 0.1 and all.

  Returns:
    int32 [B], the best candidate; int32 [B, k] and fp32 [B, k], the candidates that were scored and their scores: sums
    of log-probabilities, smoothed.
  """
  batch = len(asked.tokens)
  first = jnp.broadcast_to(candidates[0, 0], (batch, 1, 1))
  logits = model.logits(model.answer(asked, first)[:, 0])
  _, chosen = jax.lax.top_k(jnp.take(logits, candidates[:, 1], axis=1), k)

  def score(chosen):  # [B] -> [B]
    answers = candidates[chosen]
    log_p = jax.nn.log_softmax(model.logits(model.answer(asked, answers[:, None])[:, :-1]))
    labels = answers[:, 1:]
    hit = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(labels != PAD, (1 - smoothing) * hit + smoothing * log_p.mean(axis=-1), 0), axis=1)

  scores = jax.lax.map(score, chosen.T, batch_size=min(CHUNK, k)).T
  best = jnp.argmax(scores, axis=1, keepdims=True)
  return jnp.take_along_axis(chosen, best, axis=1)[:, 0], chosen, scores
