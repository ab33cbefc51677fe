"""Greedy decoding from a KV cache."""

import jax
import jax.numpy as jnp

from coca.data.tokenizer import PAD


def greedy(model, image_tokens, length: int, bos, eos):
  """The most probable next token, again and again, until every text of the batch has ended.

  Args:
    model: with `start_decoding` and `decode_step` as `coca.models.coca.CoCa` has them.
    image_tokens: [B, Q, D].
    length: of the texts at most, BOS and EOS included.
    bos, eos: the tokenizer's ids, int32 [].

  Returns:
    int32 [B, length]: BOS, words, EOS (where it came in time), padding.
  """
  batch = image_tokens.shape[0]
  text = jnp.full((batch, length), PAD, jnp.int32).at[:, 0].set(bos)

  def goes_on(carry):
    position, _, _, ended = carry
    return (position < length - 1) & ~ended.all()

  def step(carry):
    position, text, cache, ended = carry
    ids = jax.lax.dynamic_index_in_dim(text, position, axis=1, keepdims=False)
    logits, cache = model.decode_step(cache, ids, position)
    logits = logits.at[:, jnp.stack([PAD, bos])].set(-jnp.inf)
    ids = jnp.where(ended, PAD, jnp.argmax(logits, axis=-1).astype(jnp.int32))
    text = jax.lax.dynamic_update_index_in_dim(text, ids, position + 1, axis=1)
    return position + 1, text, cache, ended | (ids == eos)

  cache = model.start_decoding(image_tokens, length)
  return jax.lax.while_loop(goes_on, step, (jnp.int32(0), text, cache, jnp.zeros((batch,), bool)))[1]
