"""Questions and their answers as BLIP takes them (section 5.3)."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from coca.config import Answering
from coca.config.special import Tokenizer
from coca.data import texts
from coca.data.records import BadRecord, Record

WORDS = 50  # of a question at most
_OFF = str.maketrans("", "", '.!"()*#:;~')


def clean(question: str) -> str:
  """Lower case, without . ! " ( ) * # : ; ~ and spaces at the end, 50 words at most; the question mark stays.

  BLIP's `pre_question`: characters are taken out, not replaced by spaces as in its captions.
  """
  return " ".join(question.lower().translate(_OFF).rstrip(" ").split(" ")[:WORDS])


def question_of(record: Record) -> str:
  """A record's question, clean. Raises BadRecord if nothing of it is left ("no question")."""
  question = clean(record.question)
  if not question.strip():
    raise BadRecord("no question")
  return question


def weighed_answers(answers: Sequence[str], most: int) -> list[tuple[str, float]]:
  """The different answers, each with the share of annotators who gave it.

  Args:
    answers: one an annotator.
    most: the number of different ones that are kept, the most frequent; of equally frequent ones those that came first.
      They keep their share: it is of all annotators.

  Returns:
    answers and shares, the most frequent first.
  """
  return [(answer, count / len(answers)) for answer, count in Counter(answers).most_common(most)]


def encode_answers(
  record: Record, settings: Answering, weight: float, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
  """A record's different answers and their weights in the loss: int32 [K, A] and float32 [K], 0 where there is none.

  An answer that is cut has no EOS.

  Args:
    record: its texts are the answers, one an annotator; empty ones do not count.
    settings: K is `answers`, A is `length`.
    weight: times each answer's share of the annotators (`Source.answer_weight`).
    tokenizer: for the answers.

  Raises:
    BadRecord: there is no answer.
  """
  ids, weights = np.zeros((settings.answers, settings.length), np.int32), np.zeros(settings.answers, np.float32)
  given = [text for text in (texts.collapse(t.text) for t in record.texts) if text]
  if not given:
    raise BadRecord("no answer")
  for k, (answer, share) in enumerate(weighed_answers(given, settings.answers)):
    ids[k], weights[k] = tokenizer.encode(answer, settings.length, ends=False), weight * share
  return ids, weights


def encode_candidates(answers: Sequence[str], tokenizer: Tokenizer, length: int) -> np.ndarray:
  """Possible answers as token rows int32 [C, A], A those of the longest one.

  Raises:
    ValueError: an answer is longer than `length`, or has no tokens.
  """
  ids = np.stack([tokenizer.encode(answer, length + 1) for answer in answers])
  tokens = np.count_nonzero(ids, axis=1)
  for wrong, what in (
    (tokens > length, f"more than the {length} tokens of config.model.text.length"),
    (tokens < 3, "no token that the tokenizer knows"),
  ):
    if wrong.any():
      raise ValueError(f"answers: {answers[int(wrong.argmax())]!r} has {what}; take it out")
  return ids[:, : tokens.max()]
