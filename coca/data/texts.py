"""Texts: the choice among a record's, label names as text, and rows of ids."""

from collections.abc import Mapping, Sequence

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
  """One text of a record, white space collapsed.

  Args:
    record: its texts; empty ones do not count.
    rule: 'first'; 'random' (all equally likely); 'labels': label names, shuffled, joined by commas, in a prompt drawn
      at random, as in "a photo of the cat, animal" (CoCa section 4.1).
    prompts: for 'labels', with {} where the names go; without any, the names stand alone.
    rng: source of the choice.
    origins: for 'random', how likely a text of each origin is, relative to those of others; without any, all are alike.

  Raises:
    BadRecord: no text is left ("no caption").
  """
  usable = label_names(record) if rule == "labels" else captions(record)
  if rule == "first" or (rule == "random" and len(usable) == 1):
    return usable[0]
  if rule == "random" and origins:
    ends = np.cumsum([origins.get(t.origin, 0) for t in record.texts if collapse(t.text)])
    return usable[int(np.searchsorted(ends[:-1], rng.random() * ends[-1], "right"))]
  if rule == "random":
    return usable[int(rng.integers(len(usable)))]
  names = ", ".join(usable[i] for i in rng.permutation(len(usable)))
  return in_prompt(prompts[int(rng.integers(len(prompts)))], names) if prompts else names


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
