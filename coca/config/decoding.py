"""Settings of decoding: of evaluators, of a CapFilt job, and of whoever asks a model for texts."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from coca.config.typed import check_choice

Strategy = Literal["greedy", "sample", "beam"]
LengthNormalisation = Literal["generated", "whole"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
  """Settings of decoding (coca/decoding). Not in the paper; names and meanings are those of transformers' `generate`.

  Raises ValueError when made with values that make no sense, alone or together.
  """

  # The next word is the likeliest, or drawn, or that of the likeliest texts so far.
  strategy: Strategy = "greedy"
  # Texts an image: samples, or the best of the beams.
  n: int = 1
  # Of beam search: texts that are followed.
  beams: int = 6
  # Tokens of a text at most, BOS, prompt and EOS included. 0: config.model.text.length.
  max_length: int = 0
  # Tokens before EOS at least, BOS and prompt included.
  min_length: int = 0
  # Of sampling: what the logits are divided by.
  temperature: float = 1.0
  # Of sampling: the number of most probable tokens that are drawn from. 0: all.
  top_k: int = 0
  # Of sampling: only the smallest set of most probable tokens with this mass is drawn from (nucleus). 1: all.
  top_p: float = 1.0
  # For tokens that the text or its prompt has already. BLIP samples with 1.1.
  repetition_penalty: float = 1.0
  # No sequence of this many tokens comes twice in a text and its prompt. 0: any may.
  no_repeat_ngram_size: int = 0
  # A score is the sum of log-probabilities / length ** length_penalty.
  length_penalty: float = 1.0
  # That length, with beams. 'generated': the new tokens with EOS (transformers from 4.36 on). 'whole': prompt and BOS
  # too but no EOS, and the search ends by it (transformers 4.15, which made BLIP's tables).
  length_normalisation: LengthNormalisation = "generated"
  # Beam search ends with as many ended texts as beams, though better ones might come.
  early_stop: bool = False
  # The texts of an image come in the order of the contrastive head's similarity to it.
  rerank: bool = False
  # Seed of sampling.
  seed: int = 0

  def __post_init__(self):
    _check(self)


def _check(d: Decoding) -> None:
  def check(ok, message):
    if not ok:
      raise ValueError(f"decoding: {message}")

  kinds = get_args(Strategy)
  check_choice(Strategy, d.strategy, "decoding: strategy")
  check_choice(LengthNormalisation, d.length_normalisation, "decoding: length_normalisation")
  for name, least in (
    ("n", 1),
    ("beams", 1),
    ("max_length", 0),
    ("min_length", 0),
    ("top_k", 0),
    ("seed", 0),
    ("no_repeat_ngram_size", 0),
  ):
    check(getattr(d, name) >= least, f"{name} is {getattr(d, name)}; it takes {least} or more")
  check(d.seed < 2**32, f"seed is {d.seed}; it has to be below 2 ** 32")
  check(d.max_length != 1, "max_length is 1; it counts BOS, so a text needs at least 2")
  check(
    d.max_length == 0 or d.min_length < d.max_length,
    f"min_length {d.min_length} tokens and EOS don't fit in max_length {d.max_length}",
  )
  for name in ("temperature", "repetition_penalty"):
    check(0 < getattr(d, name) < math.inf, f"{name} is {getattr(d, name)}; it has to be above 0")
  check(0 < d.top_p <= 1, f"top_p is {d.top_p}; it is a probability above 0, 1 for all tokens")
  check(math.isfinite(d.length_penalty), f"length_penalty is {d.length_penalty}; it has to be finite")
  for name, off, where in (
    ("n", 1, kinds[1:]),
    ("temperature", 1, kinds[1:2]),
    ("top_k", 0, kinds[1:2]),
    ("top_p", 1, kinds[1:2]),
    ("early_stop", False, kinds[2:]),
    ("length_normalisation", "generated", kinds[2:]),
  ):
    check(
      getattr(d, name) == off or d.strategy in where,
      f"{name} {getattr(d, name)} has no effect with strategy {d.strategy!r}; leave it out or set "
      f"{' or '.join(map(repr, where))}",
    )
  check(d.strategy != "beam" or d.n <= d.beams, f"n {d.n} is more than beams {d.beams}: only so many texts are kept")
  check(not d.rerank or d.n > 1, "rerank orders the texts of an image, and n is 1; ask for more texts")
