"""Questions within a dialog about an image, as rows of ids (BLIP, arXiv 2201.12086, section 5.5; VisDial, 1611.08669).

    [Encode] how many dogs are there two [SEP] are they big no [SEP] where are they on the beach [SEP]

The authors' code for it is not public. Here a row is what was said before, question and answer of each round with [SEP]
behind them, and the question with one possible answer. The caption is no part of it: it stands beside the image. Of a
dialog that is too long the oldest rounds are left out, whole ones; of a question that is too long with its answer, the
beginning.
"""

import numpy as np

from coca.config import Dialog
from coca.config.special import Tokenizer
from coca.data.records import BadRecord, Record, Said
from coca.data.texts import collapse


def said_of(record: Record) -> Said:
  """The rounds before a record's question. Raises BadRecord if there is no dialog, question or possible answer."""
  if record.said is None or not record.question.strip() or not record.texts:
    raise BadRecord("no dialog with a question and possible answers")
  return record.said


def caption_of(record: Record) -> str:
  """The caption that a dialog begins with; raises as `said_of`."""
  return collapse(said_of(record).caption)


def row(said: Said, question: str, answer: str, tokenizer: Tokenizer, length: int) -> np.ndarray:
  """A question in its dialog, with one answer: int32 [length]; BOS stands in the place of [Encode]."""
  asked, room = [*tokenizer.tokens(question), *tokenizer.tokens(answer)], length - 2
  ids = asked[-room:]
  for before, given in reversed(said.rounds):
    whole = [*tokenizer.tokens(before), *tokenizer.tokens(given), tokenizer.eos]
    if len(whole) + len(ids) > room:
      break
    ids = whole + ids
  out = np.zeros(length, np.int32)
  out[: len(ids) + 2] = [tokenizer.bos, *ids, tokenizer.eos]
  return out


def drawn(record: Record, settings: Dialog, tokenizer: Tokenizer, rng: np.random.Generator) -> np.ndarray:
  """The question with its answer, and with wrong ones, each drawn once: int32 [1 + K, D], PAD where there are no more.

  Wrong are all possible answers with other words than the given one's.

  Args:
    record: of a dialog.
    settings: K is `negatives`, D is `length`.
    tokenizer: for the texts.
    rng: of the draw.

  Raises:
    BadRecord: as `said_of`, or nobody says which answer was given.
  """
  said, options = said_of(record), [text.text for text in record.texts]
  if not 0 <= record.label < len(options):
    raise BadRecord("no answer")
  right = options[record.label]
  wrong = [option for option in dict.fromkeys(options) if option != right]
  chosen = [wrong[i] for i in rng.permutation(len(wrong))[: settings.negatives]]
  out = np.zeros((1 + settings.negatives, settings.length), np.int32)
  for k, answer in enumerate([right, *chosen]):
    out[k] = row(said, record.question, answer, tokenizer, settings.length)
  return out
