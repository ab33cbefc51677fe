"""Visual question answering as BLIP does it (section 5.3): the share of answers that people gave too.

An answer is written, by beam search, or chosen from a list of possible ones: those whose first tokens are the
likeliest are ranked by the log-probability of the whole.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from coca.config import Config, Eval
from coca.config.special import Special, Tokenizer
from coca.data.pipeline import Wants
from coca.data.questions import encode_candidates, question_of, read_answers
from coca.data.records import Records
from coca.decoding.settings import answer_decoding
from coca.devices.host import to_host
from coca.evals.captions import known
from coca.evals.evaluator import Evaluator
from coca.evals.server import questions_of, read_questions
from coca.evals.stream import Batch, Stream
from coca.evals.vqa_accuracy import vqa_accuracy
from coca.files.threads import read_ahead
from coca.inference.forward import Forward


class Vqa(Evaluator):
  """VQA accuracy (Antol et al. 2015, arXiv 1505.00468) of the answers to each record's question.

  A class head that reads texts chooses among its classes (CoCa section 4.2.3).

  Args:
    config, forward, tokenizer: see `Evaluator`.
    settings: the evaluator's: source, batch, limit, answers, rank, annotations.
    source: images with a question each; their texts are the annotators' answers.
    labels: names of the head's classes.

  Raises:
    ValueError: there is no usable file `settings.answers`, or an answer in it is too long for the model.
  """

  def __init__(
    self,
    config: Config,
    settings: Eval,
    forward: Forward,
    tokenizer: Tokenizer,
    source: Records,
    labels: Sequence[str] = (),
  ):
    self.labels = labels
    self.candidates = read_answers(settings.answers) if settings.answers else []
    if self.candidates:
      self._ids = encode_candidates(self.candidates, tokenizer, config.model.text.length)
    wants = Wants(lambda record: [question_of(record)])
    self.decoding = answer_decoding(config.answering.length)
    self.stream = Stream(config, settings, forward, tokenizer, source, wants, lambda index, _: index)
    self.records = source
    self._questions = read_questions(settings.annotations) if settings.annotations else {}
    self._known = {}  # by the record's index; read once

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields, on the first process, 'accuracy' and 'examples', the number of questions that have answers."""
    writer, found = self.writer(params), {}
    for batch in self.stream:
      answers = self.answer(params, writer, batch)
      found |= {int(batch.rows["label"][row]): answers[row] for row in np.nonzero(batch.rows["weight"] > 0)[0]}
    if jax.process_index() == 0:
      unread = [i for i in found if i not in self._known]
      self._known.update(zip(unread, read_ahead(lambda i: known(self.records, i), unread), strict=True))
      scores = [vqa_accuracy(answer, self._known[i].texts) for i, answer in found.items() if self._known[i].texts]
      yield "accuracy", float(np.mean(scores)) if scores else math.nan
      yield "examples", float(len(scores))
      if self._questions:
        answers = {}
        for i, (key, _, question) in ((i, self._known[i]) for i in found):
          if key:
            answers |= dict.fromkeys(questions_of(self._questions, key, question), found[i])
        self.results = [{"question_id": number, "answer": answer} for number, answer in answers.items()]

  @staticmethod
  def check(settings: Eval, source: Records, neighbours: Records | None) -> None:
    if settings.answers:
      read_answers(settings.answers)
    if settings.annotations:
      read_questions(settings.annotations)

  @staticmethod
  def places(settings: Eval) -> dict[str, str]:
    return {name: path for name in ("answers", "annotations") if (path := getattr(settings, name))}

  def writer(self, params):
    """The weights that `answer` needs once for many batches."""
    return None if self.candidates or self.labels else self.stream.forward.writer(params)

  def answer(self, params, writer, batch: Batch) -> list[str]:
    """Answers to the questions of a batch, of all hosts' rows."""
    forward, tokenizer = self.stream.forward, self.stream.tokenizer
    if self.labels:
      logits = forward.classify(params, batch.device["image"], batch.device["text"][:, 0])
      return [self.labels[i] for i in to_host(logits).argmax(axis=1).tolist()]
    encoded, question = forward.encode(params, batch.device["image"]), batch.device["text"][:, 0]
    if self.candidates:
      k = min(self.stream.settings.rank, len(self.candidates))
      return [self.candidates[i] for i in to_host(forward.rank_answers(params, encoded, question, self._ids, k))]
    special = Special(tokenizer.bos, tokenizer.eos)
    written = forward.answer(writer, encoded, question, self.decoding, special=special)
    return [tokenizer.decode(ids) for ids in to_host(written.text)[:, 0]]
