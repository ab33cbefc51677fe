"""Tasks as text (VL-T5, arXiv 2102.02779, sections 3 and 4): what the encoder reads beside the regions, and what the
decoder writes.

Words that stand for others are the last 200 of the vocabulary, as in the authors' tokenization.py: <vis_extra_id_0>,
the first region, is the last one of all; <extra_id_0>, the first span, the last but 100. No tokenizer has them.
"""

import re
from collections.abc import Callable

import numpy as np

from coca.config import Model
from coca.config.special import SENTINELS, Tokenizer
from coca.data.questions import clean, question_of
from coca.data.records import BadRecord, Record
from coca.data.texts import framed

SHARE = 0.15  # of a text's words that are left out
_SENTINEL = re.compile(r"<(vis_)?extra_id_(\d\d?)>")


def encode(tokenizer: Tokenizer, vocab: int, text: str, length: int, ends: bool = True) -> np.ndarray:
  """As `Tokenizer.encode`, with sentinels; `vocab` is `config.model.text.vocab`."""
  ids, at = [], 0
  for found in _SENTINEL.finditer(text):
    ids += tokenizer.tokens(text[at : found.start()].strip())
    ids.append(vocab - 1 - int(found[2]) - (0 if found[1] else SENTINELS // 2))
    at = found.end()
  return framed(ids + tokenizer.tokens(text[at:].strip()), tokenizer.bos, tokenizer.eos, length, ends)


def read(tokenizer: Tokenizer, model: Model, question: str = "", text: str = "") -> np.ndarray:
  """The ids that the encoder reads: of a `text`, or of what is asked of an evaluated record: int32 [G]."""
  text = text or (f"vqa: {clean(question)}" if question else "caption:")
  return encode(tokenizer, model.text.vocab, text, model.regions.tags + 1)[1:]


def pose(
  task: str, text: str, record: Record, count: int, other: Callable[[], str], rng: np.random.Generator
) -> tuple[str, str]:
  """A task's two texts, the encoder's and the decoder's, of a caption or an answer of the record, `text`.

  `count` regions are read; `other` gives a caption of another record, which may be true of this one, too. Raises
  BadRecord: no question, or not a name for each region.
  """
  given, target = "", text
  if task == "vqa":
    given = question_of(record)
  elif task == "span prediction":
    given, target = without_some(text, rng)
  elif task == "image text match":
    given, target = (text, "true") if rng.random() < 0.5 else (other(), "false")
  elif task in ("visual grounding", "caption region"):
    if not record.regions or not len(record.regions.tags) == len(record.regions.boxes) > 0:
      raise BadRecord("not a name for each region")
    i = int(rng.integers(min(len(record.regions.tags), count)))
    given, target = record.regions.tags[i], f"<vis_extra_id_{i}>"
    if task == "caption region":
      given, target = target, given
  return f"{task}: {given}".rstrip(), target


def without_some(text: str, rng: np.random.Generator) -> tuple[str, str]:
  """The text with sentinels, and these with the words that they stand for: 15 %, one at least, drawn one by one. Those
  that stand together have one sentinel."""
  words = text.split()
  hidden = np.zeros(len(words), bool)
  hidden[rng.permutation(len(words))[: max(int(SHARE * len(words)), 1)]] = True
  left, target, spans = [], [], 0
  for i, word in enumerate(words):
    if hidden[i] and not (i and hidden[i - 1]):
      for texts in (left, target):
        texts.append(f"<extra_id_{spans}>")
      spans += 1
    (target if hidden[i] else left).append(word)
  return " ".join(left), " ".join(target)
