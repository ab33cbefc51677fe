"""Tasks as text (VL-T5, arXiv 2102.02779, sections 3 and 4): what the encoder reads beside the regions, and what the
decoder writes.

Words that stand for others are the last 200 of the vocabulary, as in the authors' tokenization.py: <vis_extra_id_0>,
the first region, is the last one of all; <extra_id_0>, the first span, the last but 100. VL-BART's <mask> stands before
them, as in BART's vocabulary. No tokenizer has them.
"""

import re
from collections.abc import Callable

import numpy as np

from coca.config import Model
from coca.config.special import SENTINELS, Tokenizer
from coca.data.questions import clean, question_of
from coca.data.records import BadRecord, Record
from coca.data.texts import framed

SHARES = {"span prediction": 0.15, "denoise text": 0.3}  # of a text's words that are left out
_SENTINEL = re.compile(r"<(vis_)?extra_id_(\d\d?)>|<mask>")


def encode(tokenizer: Tokenizer, vocab: int, text: str, length: int, ends: bool = True) -> np.ndarray:
  """As `Tokenizer.encode`, with sentinels; `vocab` is `config.model.text.vocab`."""
  ids, at = [], 0
  for found in _SENTINEL.finditer(text):
    ids += tokenizer.tokens(text[at : found.start()].strip())
    ids.append(vocab - 1 - (int(found[2]) if found[2] else SENTINELS // 2) - (0 if found[1] else SENTINELS // 2))
    at = found.end()
  return framed(ids + tokenizer.tokens(text[at:].strip()), tokenizer.bos, tokenizer.eos, length, ends)


def read(tokenizer: Tokenizer, model: Model, question: str = "", text: str = "") -> np.ndarray:
  """The ids that the encoder reads: of a `text`, or of what is asked of an evaluated record: int32 [G]."""
  text = text or (f"vqa: {clean(question)}" if question else "caption:")
  begins = model.kind == "vl_bart"  # with BOS; T5 has none
  return encode(tokenizer, model.text.vocab, text, model.regions.tags + (not begins))[not begins :]


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
  elif task in SHARES:
    given, target = without_some(text, task, rng)
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


def without_some(text: str, task: str, rng: np.random.Generator) -> tuple[str, str]:
  """The text without some of its words, one at least, drawn one by one, and what is to be written.

  Those that stand together have one word in their place: a sentinel, and the target has these with the words that they
  stand for; or, to 'denoise text' (VL-BART), <mask>, and the target is the text.
  """
  words, spans = text.split(), task == "span prediction"
  hidden = np.zeros(len(words), bool)
  hidden[rng.permutation(len(words))[: max(int(SHARES[task] * len(words)), 1)]] = True
  left, target, n = [], [], 0
  for i, word in enumerate(words):
    if hidden[i] and not (i and hidden[i - 1]):
      left.append(f"<extra_id_{n}>" if spans else "<mask>")
      target.append(left[-1])
      n += 1
    (target if hidden[i] else left).append(word)
  return " ".join(left), " ".join(target) if spans else text
