"""Masked language modelling over image and text (ALBEF, arXiv 2107.07651, sections 3.2 and 3.3).

Of each text some words are hidden, as BERT hides them (arXiv 1810.04805, section 3.1), and told from the others and the
image. A momentum model's probabilities of them are a part of the target. Only hidden words have a loss, so that only
their states reach the vocabulary.

Shapes: N texts, T text length, M hidden words at most, D width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

from coca import config
from coca.config.special import PAD
from coca.objectives.captioning import SoftTargets, vocabulary_nll

MASKED, RANDOM = 0.8, 0.1  # shares of the hidden words that become [MASK] and any word; the others stay (BERT)


def hide_words(text: Int32[Array, "N T"], key: PRNGKeyArray, settings: config.Masked, model: config.Model) -> dict:
  """Draws the words to hide: each with `settings.share`, of more than `settings.most` those with the smallest draws.

  The first token and the last, which are special, and padding are never drawn. ALBEF's code draws [SEP] as well. With
  `settings.draw` 'number' it is a number of them, the last one too, as in run_captioning.py of Oscar and VinVL.

  Returns:
    'masked', the texts with hidden words replaced, int32 [N, T]; 'masked_at', their places, int32 [N, M]; and
    'masked_words', what stood there, int32 [N, M], PAD where there are fewer.
  """
  keys = jax.random.split(key, 3)
  draw, kind = (jax.random.uniform(k, text.shape) for k in keys[:2])
  word = jax.random.randint(keys[2], text.shape, 0, model.text.vocab)
  following = jnp.pad(text[:, 1:], ((0, 0), (0, 1)), constant_values=PAD)
  by_number = settings.draw == "number"
  may = (text if by_number else following) != PAD
  draw = jnp.where((jnp.arange(text.shape[1]) > 0) & may, draw, 1.0)
  places = jnp.argsort(draw, axis=1)[:, : settings.most].astype(jnp.int32)
  drawn = jnp.take_along_axis(draw, places, axis=1)
  if by_number:
    number = jnp.maximum(jnp.round(settings.share * (text != PAD).sum(axis=1, keepdims=True)), 1)
    drawn = (drawn < 1) & (jnp.arange(places.shape[1]) < number)
  else:
    drawn = drawn < settings.share
  rows = jnp.arange(len(text))[:, None]
  hidden = jnp.zeros(text.shape, bool).at[rows, places].set(drawn)
  replaced = jnp.where(kind < MASKED, model.med.mask, jnp.where(kind < MASKED + RANDOM, word, text))
  return {
    "masked": jnp.where(hidden, replaced, text),
    "masked_at": places,
    "masked_words": jnp.where(drawn, jnp.take_along_axis(text, places, axis=1), PAD),
  }


def masked_loss(
  states: Float[Array, "N M D"],
  kernel: Float[Array, "D V"],
  bias: Float[Array, " V"],
  words: Int32[Array, "N M"],
  weight: Float[Array, " N"],
  chunk: int,
  soft: SoftTargets | None = None,
) -> Float32[Array, ""]:
  """The sum of the weighted cross-entropies of hidden words, in nats; `word_weights` adds up to its divisor.

  Args:
    states: `coca.models.albef.Albef.fill`'s.
    kernel: of the vocabulary head.
    bias: likewise.
    words: PAD where there is none.
    weight: of the texts.
    chunk: as `config.captioning.chunk`.
    soft: the momentum model's share in the targets; None: it has none.
  """
  return vocabulary_nll(states, kernel, words, word_weights(words, weight), bias, chunk, soft=soft)


def word_weights(words: Int32[Array, "N M"], weight: Float[Array, " N"]) -> Float32[Array, "N M"]:
  """The text's weight for each hidden word, 0 where there is none."""
  return jnp.where(words != PAD, weight[:, None], 0).astype(jnp.float32)
