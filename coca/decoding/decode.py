"""Settings to texts: which strategy, with what prompt.

Shapes: B images, S side in pixels, P prompt length, T text length.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from coca.config import Config
from coca.config.special import Special, Tokenizer
from coca.decoding.beam import beam_search
from coca.decoding.common import Decoded
from coca.decoding.rerank import rerank
from coca.decoding.sample import image_keys, sample
from coca.decoding.settings import Decoding
from coca.decoding.text_model import TextModel

_WIDTHS = (1, 4, 8, 16, 32)  # of prompts: one compiled program each


def decode(
  model: TextModel,
  weights,
  encoded,
  decoding: Decoding,
  length: int,
  special: Special,
  *,
  ids=None,
  prompt=None,
  lengths=None,
  seed=0,
) -> Decoded:
  """Texts for images, by the strategy of `decoding`.

  Args:
    model: with `embed_text` for re-ranking.
    weights: its `decoding_weights`.
    encoded: tokens [B, S, D], and for re-ranking embedding [B, E], of the images.
    decoding: the settings; `seed` is not looked at.
    length: of the model's texts at most, BOS and EOS included.
    special: ids.
    ids: uint32 [B], which images these are: they and the seed decide what is drawn. Needed for sampling only.
    prompt: int32 [B, P], BOS, words, padding, as `prompts` makes it; None: BOS.
    lengths: int32 [B], of the prompts.
    seed: uint32 [].

  Returns:
    texts [B, n, T], T being decoding.max_length or `length`.
  """
  batch, longest = encoded.tokens.shape[0], decoding.max_length or length
  if prompt is None or lengths is None:
    prompt, lengths = jnp.full((batch, 1), special.bos, jnp.int32), jnp.ones((batch,), jnp.int32)
  lengths = jnp.minimum(lengths, longest)
  if read := getattr(model, "with_prompt", None):  # of a model whose encoder reads it
    encoded = read(encoded, prompt[:, :longest], lengths)
  masked = {} if encoded.mask is None else {"context_mask": encoded.mask}
  start = functools.partial(model.start_decoding, weights, **masked)
  given = encoded.tokens, prompt[:, :longest], lengths
  if decoding.strategy == "beam":
    decoded = beam_search(start, *given, longest, decoding, special)
  else:
    keys = image_keys(seed, ids) if decoding.strategy == "sample" else None
    decoded = sample(start, *given, keys, longest, decoding, special)
  return rerank(model, encoded.embedding, decoded, length, special) if decoding.rerank else decoded


def own_prompt(config: Config, tokenizer: Tokenizer, rows: int, longest: int = 0, prompt: str = "") -> tuple[dict, int]:
  """The prompt that all of a model's captions begin with (`config.data.prompt`).

  Args:
    config: the model's run.
    tokenizer: the model's.
    rows: B.
    longest: tokens of a text at most; 0: as many as the model reads.
    prompt: another one in its place.

  Returns:
    what `decode` takes, 'prompt' and 'lengths', or nothing where there is none; and where in a row of tokens the
    caption begins.

  Raises:
    ValueError: as `prompts`.
  """
  prompt = prompt or config.data.prompt
  if not prompt:
    return {}, 1
  ids, lengths = prompts(tokenizer, [prompt], longest or config.model.text.length)
  return {"prompt": np.repeat(ids, rows, axis=0), "lengths": np.repeat(lengths, rows)}, int(lengths[0])


def prompts(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
  """Texts as the beginnings of texts.

  Args:
    tokenizer: the model's.
    texts: B texts; an empty one leaves all to the model.
    length: T, of the texts with their prompts.

  Returns:
    int32 [B, P], BOS, words, padding; int32 [B], how many of them are no padding. P is one of a few widths.

  Raises:
    ValueError: a prompt leaves no room for another token.
  """
  encoded = []
  for text in texts:
    # Two more than fit, so that a longer one is seen and not cut.
    row = np.asarray(tokenizer.encode(text, length + 2))
    row = row[: np.flatnonzero(row == tokenizer.eos)[0]]
    if len(row) >= length:
      raise ValueError(
        f"the prompt {text!r} has {len(row)} tokens with BOS; texts have {length} with EOS: shorten it, "
        "or raise max_length"
      )
    encoded.append(row)
  lengths = np.array([len(row) for row in encoded], np.int32)
  longest = lengths.max(initial=1)
  width = min(next((w for w in _WIDTHS if w >= longest), length), length)
  out = np.zeros((len(encoded), width), np.int32)
  for row, ids in zip(out, encoded, strict=True):
    row[: len(ids)] = ids
  return out, lengths
