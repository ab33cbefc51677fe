"""Orders the texts of an image by their cosine with it (the contrastive head).

Shapes: B images, n texts each, T text length, L the text length of the model, E embedding width.
"""

import jax
import jax.numpy as jnp

from coca.config.special import PAD, Special
from coca.decoding.common import Decoded


def rerank(model, image_embedding, decoded: Decoded, length: int, special: Special) -> Decoded:
  """Sorts each image's texts by the cosine of their embedding with the image's, the most similar first.

  Args:
    model: with `embed_text`, as `coca.models.coca.CoCa` has it.
    image_embedding: fp32 [B, E], unit length.
    decoded: texts [B, n, T]. One that was cut gets its EOS for this, as the tokenizer cuts texts.
    length: L, what the texts are padded to.
    special: ids.

  Returns:
    the texts in their new order, with the cosines [B, n] as scores; texts without a word (all padding) are last.
  """
  text = decoded.text
  batch, n, width = text.shape
  closed = jnp.pad(text, ((0, 0), (0, 0), (0, max(length - width, 0))), constant_values=PAD)[..., :length]
  used = jnp.max(jnp.where(closed != PAD, jnp.arange(length) + 1, 0), axis=-1, keepdims=True)
  cut = (closed != special.eos).all(axis=-1, keepdims=True)
  closed = jnp.where(cut & (jnp.arange(length) == jnp.minimum(used, length - 1)), special.eos, closed)
  embedded = model.embed_text(closed.reshape(batch * n, length)).reshape(batch, n, -1)
  cosine = jnp.einsum("be,bne->bn", image_embedding, embedded, precision=jax.lax.Precision.HIGHEST)
  cosine, order = jax.lax.top_k(jnp.where((text != PAD).any(axis=-1), cosine, -jnp.inf), n)
  return Decoded(jnp.take_along_axis(text, order[..., None], axis=1), cosine)
