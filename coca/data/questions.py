"""Questions and their answers as BLIP takes them (section 5.3), and as classes (CoCa section 4.2.3)."""

from collections import Counter
from collections.abc import Mapping, Sequence

import fsspec
import numpy as np

from coca.config import Answering
from coca.config.special import Tokenizer
from coca.data import texts
from coca.data.records import BadRecord, Record
from coca.files import reading
from coca.files.retries import Unavailable

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


def given_answers(record: Record) -> list[str]:
  """A record's answers, one an annotator, white space collapsed. Raises BadRecord if all are empty ("no answer")."""
  given = [text for text in (texts.collapse(t.text) for t in record.texts) if text]
  if not given:
    raise BadRecord("no answer")
  return given


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
  for k, (answer, share) in enumerate(weighed_answers(given_answers(record), settings.answers)):
    ids[k], weights[k] = tokenizer.encode(answer, settings.length, ends=False), weight * share
  return ids, weights


def encode_classes(
  record: Record, number: Mapping[str, int], most: int, weight: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
  """The classes of a record's different answers and their weights in the loss: int32 [K], float32 [K].

  An answer that is no class has the weight 0.

  Args:
    record: as for `encode_answers`.
    number: of the classes, by the answers' words.
    most: K, of different answers.
    weight: times each answer's share of the annotators (`Source.answer_weight`).

  Raises:
    BadRecord: there is no answer.
  """
  ids, shares = np.full(most, -1, np.int32), np.zeros(most, np.float32)
  for k, (answer, share) in enumerate(weighed_answers(given_answers(record), most)):
    if answer in number:
      ids[k], shares[k] = number[answer], weight * share
  return ids, shares


def with_answer(record: Record, tokenizer: Tokenizer, rng: np.random.Generator | None) -> tuple[list[int], int]:
  """The tokens of a record's question, with `rng` those of an annotator's answer behind them, and how many the question
  has, BOS included."""
  asked = tokenizer.tokens(question_of(record))
  answers = given_answers(record) if rng else []
  said = tokenizer.tokens(answers[int(rng.integers(len(answers)))]) if rng else []
  return [*asked, *said], 1 + len(asked)


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


def read_answers(path: str) -> list[str]:
  """The lines of a text file, each once, white space collapsed and empty ones left out.

  Raises:
    ValueError: it can't be read, or holds nothing.
  """
  try:
    lines = reading.read_all(*fsspec.core.url_to_fs(path)).decode("utf-8-sig").splitlines()
  except Unavailable:
    raise
  except (OSError, ValueError) as e:
    raise ValueError(
      f"answers: {path!r} can't be read ({e}); it takes a text file with one possible answer a line, or "
      "nothing: answers are then generated"
    ) from None
  answers = [answer for answer in dict.fromkeys(map(texts.collapse, lines)) if answer]
  if not answers:
    raise ValueError(f"answers: {path} holds none; write one possible answer a line")
  return answers
