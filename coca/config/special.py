"""The ids that every tokenizer has."""

from typing import NamedTuple

PAD = 0  # in every tokenizer


class Special(NamedTuple):
  """A tokenizer's ids of the beginning and the end of a text; padding is `PAD`."""

  bos: int
  eos: int
