"""The protocol of models that write texts.

Shapes: B images, K rows of an image (beams or samples; 1 for greedy), S image tokens, P tokens of a prefix, T text
length, D widths, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

Tree = Any  # of arrays
# `TextModel.start_decoding` with its weights filled in: (image_tokens, length, rows, prefix) -> step and cache.
Start = Callable[..., tuple["Step", Tree]]


class Step(Protocol):
  """Reads one token of each row and predicts the next.

  It may be asked for a position again (the last token of a prefix, for one): it writes the slots anew.

  Args:
    cache: a tree of arrays with static shapes, whose slots are pairs of position and row.
    ids: int32 [B, K], the tokens at `position`. They are kept in the slots (position, row).
    position: int32 [], from 0 to T - 1.
    ancestors: int32 [B, K, T]: row k sees at position t, up to `position` and that included, what row
      ancestors[b, k, t] kept there, and nothing else. So a beam that takes over another one's text copies a row of this
      table and no cache.

  Returns:
    fp32 [B, K, V], the logits of the tokens at `position` + 1, and the cache.
  """

  def __call__(
    self, cache: Tree, ids: jax.Array, position: jax.Array, ancestors: jax.Array
  ) -> tuple[jax.Array, Tree]: ...


class TextModel(Protocol):
  """A model that writes texts about images; with `embed_text` they can be re-ranked."""

  def decoding_weights(self) -> Tree:
    """Arrays for `start_decoding`: what can be done once for all images, by a program of its own.

    To cut stacked layers apart, to cast, to gather, to turn kernels.
    """
    ...

  def start_decoding(
    self, weights: Tree, image_tokens: jax.Array, length: int, rows: int, prefix: jax.Array
  ) -> tuple[Step, Tree]:
    """Reads the prefix, and makes what is done once a batch: a step is the body of a loop.

    Args:
      weights: from `decoding_weights`.
      image_tokens: [B, S, D], what the decoder attends to. Its keys and values are computed here, once an image; the K
        rows are K queries of the same attention, so nothing is held or read K times.
      length: T, of the texts at most.
      rows: K.
      prefix: int32 [B, P], tokens at the positions 0 to P - 1, the same for all rows of an image; P may be 0. They are
        read at once and kept as row 0's.

    A model whose encoder reads the prompt has `with_prompt(encoded, prompt, lengths)`, which returns an `Encoded`.

    A model whose `Encoded.mask` may say that only some image tokens count takes `context_mask`, bool [B, 1, 1, S], too.
    """
    ...
