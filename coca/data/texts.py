"""Texts: the choice among a record's, label names as text, and rows of ids."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from coca.config.special import PAD, Tokenizer
from coca.data.prompts import in_prompt
from coca.data.records import BadRecord, Record


def choose(
  record: Record,
  rule: str,
  prompts: Sequence[str],
  rng: np.random.Generator,
  origins: Mapping[str, float] | None = None,
) -> str:
  """The first of the texts that `draws` gives."""
  return next(draws(record, rule, prompts, rng, origins))


def draws(
  record: Record,
  rule: str,
  prompts: Sequence[str],
  rng: np.random.Generator,
  origins: Mapping[str, float] | None = None,
) -> Iterator[str]:
  """Texts of a record one after the other, white space collapsed, without end: all of them, then all again.

  Args:
    record: its texts; empty ones do not count.
    rule: 'first', in their order; 'random', in one that is drawn anew for each round, all equally likely; 'labels':
      each time label names, shuffled, joined by commas, in a prompt drawn at random, as in "a photo of the cat, animal"
      (CoCa section 4.1).
    prompts: for 'labels', with {} where the names go; without any, the names stand alone.
    rng: source of the choice.
    origins: for 'random', how likely a text of each origin is, relative to those of others that are left; without any,
      all are alike.

  Raises:
    BadRecord: no text is left ("no caption").
  """
  usable = label_names(record) if rule == "labels" else captions(record)
  if rule == "labels":
    while True:
      names = ", ".join(usable[i] for i in rng.permutation(len(usable)))
      yield in_prompt(prompts[int(rng.integers(len(prompts)))], names) if prompts else names
  if rule == "first" or len(usable) == 1:
    yield from itertools.cycle(usable)
  weights = [origins.get(t.origin, 0) if origins else 1 for t in record.texts if collapse(t.text)]
  if not any(weights):
    raise BadRecord("no caption")
  left: list[int] = []
  while True:
    left = left or [i for i, weight in enumerate(weights) if weight > 0]
    if origins:
      ends = np.cumsum([weights[i] for i in left])
      drawn = int(np.searchsorted(ends[:-1], rng.random() * ends[-1], "right"))
    else:
      drawn = int(rng.integers(len(left)))
    yield usable[left.pop(drawn)]


def captions(record: Record) -> list[str]:
  """All texts of a record that are not empty, white space collapsed. Raises BadRecord if none is."""
  usable = [text for text in (collapse(t.text) for t in record.texts) if text]
  if not usable:
    raise BadRecord("no caption")
  return usable


def label_names(record: Record) -> list[str]:
  """The texts whose origin is 'label', or else all of them. Raises BadRecord if all are empty."""
  labels = [text for text in (collapse(t.text) for t in record.texts if t.origin == "label") if text]
  return labels or captions(record)


_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


def sides_exchanged(text: str) -> str:
  """The text with 'left' and 'right', where they are words, in each other's place."""
  return re.sub(rf"\b({'|'.join(_SIDES)})\b", lambda side: _SIDES[side[0]], text)


def collapse(text: str) -> str:
  """Every run of white space becomes one space; none at the ends."""
  return " ".join(text.split())


def framed(ids: Sequence[int], bos: int, eos: int, length: int, ends: bool = True) -> np.ndarray:
  """A text's ids as a row: BOS, as many as there is room for, EOS, then zeros (PAD): int32 [length].

  Without `ends`, one that has to be cut is without EOS, and has a word more.
  """
  ids = [*ids[: length - 2], eos] if ends else [*ids, eos][: length - 1]
  out = np.zeros(length, np.int32)
  out[: len(ids) + 1] = bos, *ids
  return out


def all_unknown(tokenizer: Tokenizer, ids) -> np.ndarray:
  """True for texts that consist of nothing that the tokenizer knows: equal ids do not make those equal.

  Args:
    tokenizer: of any kind.
    ids: int [..., L], as `encode` gives them.

  Returns:
    bool [...]; False for texts without any token.
  """
  ids = np.asarray(ids)
  unknown = ids == tokenizer.unknown
  nothing = np.isin(ids, (PAD, tokenizer.bos, tokenizer.eos, tokenizer.blank))
  return unknown.any(-1) & (unknown | nothing).all(-1)


def equality(names: Sequence[str], ids: np.ndarray, tokenizer: Tokenizer, rng: np.random.Generator) -> np.ndarray:
  """64 bits that are the same for texts that are equal: uint32 [2].

  Equal are those of the same labels, whatever their order and the prompt around them; without labels, those of the same
  words. Texts of which the tokenizer knows nothing equal no other.

  Args:
    names: the labels that the text was made of; empty: it is no text of labels.
    ids: int32 [L], the text as the tokenizer has it.
    tokenizer: of the ids.
    rng: of texts that equal no other.
  """
  if not names and all_unknown(tokenizer, ids):
    return rng.integers(2**32, size=2, dtype=np.uint32)
  said = "\n".join(sorted(set(names))).encode(errors="surrogatepass") if names else ids[ids != PAD].tobytes()
  return np.frombuffer(hashlib.blake2b(said, digest_size=8).digest(), np.uint32)
