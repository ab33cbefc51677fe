"""Which of a record's texts is used, and label names as text."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from coca.checks import ORIGINS
from coca.config import Source
from coca.data.records import BadRecord, Record


def choose(record: Record, rule: str, prompts: Sequence[str], rng: np.random.Generator,
           origins: Mapping[str, float] | None = None) -> str:
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


def in_prompt(prompt: str, name: str) -> str:
  return prompt.replace("{}", name)


def collapse(text: str) -> str:
  """Every run of white space becomes one space; none at the ends."""
  return " ".join(text.split())


def framed(ids: Sequence[int], bos: int, eos: int, length: int) -> np.ndarray:
  """A text's ids as a row: BOS, as many as there is room for, EOS, then zeros (PAD): int32 [length]."""
  ids = ids[:length - 2]
  out = np.zeros(length, np.int32)
  out[:len(ids) + 2] = bos, *ids, eos
  return out


def check_prompts(prompts: Sequence[str], where: str) -> None:
  """Raises ValueError if a prompt has no place for the name."""
  for prompt in prompts:
    if prompt.count("{}") != 1:
      raise ValueError(f"{where}: the prompt {prompt!r} has to hold {{}} once, where the label's name goes")


def check_choice(s: Source, where: str) -> None:
  """Raises ValueError if the settings that choose among texts, answers or those of sidecars make no sense."""
  if s.question_key and not s.text_key:
    raise ValueError(f"{where}.question_key is {s.question_key!r}; set {where}.text_key to what holds the answers")
  if s.question_key and s.sidecars:
    raise ValueError(f"{where}.question_key and {where}.sidecars are both set: sidecars hold captions, no answers")
  changed = [name for name in ("sample", "origins", "min_matching", "min_contrastive")
             if getattr(s, name) != getattr(Source(), name)]
  if changed and not s.sidecars:
    raise ValueError(f"{where}.{changed[0]} chooses among a CapFilt workdir's texts; set {where}.sidecars to one")
  for name in s.origins:
    if name not in ORIGINS:
      raise ValueError(f"{where}.origins.{name}: no such origin; known: {', '.join(ORIGINS)}")
  values = s.origins.values()
  if values and not (all(0 <= v < math.inf for v in values) and any(values)):
    raise ValueError(f"{where}.origins is {s.origins}: weights are 0 or above, and one has to be above 0")
  if s.sample == "text" and not set(values) <= {0.0, 1.0}:
    raise ValueError(f"{where}.origins is {s.origins}: with sample 'text' (each kept text is an example) it takes 0 "
                     "and 1. To weigh origins, list a source for each and set their weights, or say sample 'image'")
  if s.sample == "image" and s.text == "first" and len(set(values) - {0.0}) > 1:
    raise ValueError(f"{where}.text 'first' draws nothing, so {where}.origins can't weigh; say text 'random'")
  if s.min_matching != -1 and not 0 <= s.min_matching <= 1:
    raise ValueError(f"{where}.min_matching {s.min_matching} is no probability; -1: as the sidecars have it")
  if s.min_contrastive != -2 and not -1 <= s.min_contrastive <= 1:
    raise ValueError(f"{where}.min_contrastive {s.min_contrastive} is no cosine; -2: as the sidecars have it")
