"""The ids that every tokenizer has, and what else a tokenizer is."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

PAD = 0  # in every tokenizer
SENTINELS = 200  # of models of kind 'vl_t5' and 'vl_bart': the last words of its vocabulary (coca/data/tasks.py)


class Special(NamedTuple):
  """A tokenizer's ids of the beginning and the end of a text; padding is `PAD`."""

  bos: int
  eos: int


class Tokenizer(Protocol):
  """Texts to token ids and back; `coca.data.tokenizers` has the kinds."""

  bos: int
  eos: int
  unknown: int  # -1: every text has ids of its own
  blank: int  # of a space alone; -1: there is no such id
  vocab: int  # ids are below it
  file: str  # the name under which a working directory keeps it
  sha256: str  # of that file

  def tokens(self, text: str) -> list[int]:
    """The ids of the whole text, without BOS and EOS."""
    ...

  def encode(self, text: str, length: int, ends: bool = True) -> np.ndarray:
    """BOS, the text's ids, EOS, then PAD: int32 [length]. A longer text is cut so that the last id is EOS.

    Without `ends` that is a word: a text that was cut does not end there.
    """
    ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text up to the first EOS."""
    ...

  def save(self, path) -> None:
    """Writes the model file; a reader sees all of it or nothing."""
    ...
