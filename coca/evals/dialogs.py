"""Answers within a dialog, by rank (VisDial, arXiv 1611.08669, section 5; BLIP, arXiv 2201.12086, section 5.5).

The possible answers to each question are put in the order of what the matching head says of them: the logit of 'true'
less that of 'false', which is the order of the probability. The rank of the given answer counts from 1. NDCG goes by
the dense annotations, as VisDial's evaluation server computes it: over the first k answers, k being the number of those
that are relevant. Ties count against the model, in the rank and in NDCG.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from coca.config import Config, Eval
from coca.config.special import Tokenizer
from coca.data.dialogs import caption_of, row, said_of
from coca.data.pipeline import Wants
from coca.data.records import BadRecord, Record, Records
from coca.devices.host import to_host
from coca.evals.evaluator import Evaluator
from coca.evals.ranking import recall
from coca.evals.stream import Batch, Stream, View, spread
from coca.files.threads import read_ahead
from coca.inference.forward import Forward

OPTIONS = 100  # of VisDial's questions; of more the first ones are judged


class Dialogs(Evaluator):
  """Ranks the possible answers of each record.

  Args:
    config, forward, tokenizer: see `Evaluator`.
    settings: the evaluator's: source, batch, limit (of questions).
    source: questions in dialogs.
  """

  def __init__(self, config: Config, settings: Eval, forward: Forward, tokenizer: Tokenizer, source: Records):
    self._records = View(source, turned(len(source), settings.limit), lambda _, record: record.label)
    wants, settings = Wants(lambda record: [caption_of(record)]), dataclasses.replace(settings, limit=0)
    self.stream = Stream(config, settings, forward, tokenizer, self._records, wants, lambda index, _: index)

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields 'mrr', 'recall1', 'recall5', 'recall10' and 'mean_rank', over the questions whose answer is known, and
    their number, 'examples'; 'ndcg' over those with relevant answers, and 'ndcg_examples' where there are some.
    """
    ranks, gains = [], []
    for batch in self.stream:
      records, ids = self._read(batch)
      encoded = self.stream.forward.encode(params, batch.device["image"])
      scores = self.stream.forward.judge(params, encoded, batch.device["text"][:, 0], ids)
      for at, score in zip(batch.rows["label"], to_host(scores), strict=True):
        record = records.get(int(at))
        if record is None:
          continue
        score = score[: min(len(record.texts), OPTIONS)]
        if 0 <= record.label < len(score):
          ranks.append(rank(score, record.label))
        if record.said and any(record.said.relevance[:OPTIONS]):
          gains.append(ndcg(score, np.array(record.said.relevance[:OPTIONS])))
    found = np.array(ranks, np.int64)
    yield "mrr", float(np.mean(1 / found)) if ranks else float("nan")
    for k in (1, 5, 10):
      yield f"recall{k}", recall(found - 1, k)
    yield "mean_rank", float(np.mean(found)) if ranks else float("nan")
    yield "examples", float(len(ranks))
    if gains:
      yield "ndcg", float(np.mean(gains))
      yield "ndcg_examples", float(len(gains))

  def _read(self, batch: Batch) -> tuple[dict[int, Record], object]:
    """The records of a batch's usable rows by their numbers, of all hosts, and the rows of ids of this host's on the
    mesh, int32 [B, OPTIONS, D]; PAD where there is no further answer."""
    config, tokenizer = self.stream.config, self.stream.tokenizer
    usable = [int(at) for at, weight in zip(batch.rows["label"], batch.rows["weight"], strict=True) if weight > 0]
    records = dict(zip(usable, read_ahead(self._known, usable), strict=True))
    ids = np.zeros((len(batch.local["label"]), OPTIONS, config.dialog.length), np.int32)
    for i, (at, weight) in enumerate(zip(batch.local["label"], batch.local["weight"], strict=True)):
      record = records[int(at)] if weight > 0 else None
      if record is None:
        continue
      for k, text in enumerate(record.texts[:OPTIONS]):
        ids[i, k] = row(said_of(record), record.question, text.text, tokenizer, config.dialog.length)
    return {at: record for at, record in records.items() if record}, self.stream.forward.put({"ids": ids})["ids"]

  def _known(self, index: int) -> Record | None:
    """A record that could be read before."""
    try:
      return self._records[index]
    except BadRecord:
      return None

  @staticmethod
  def check(settings: Eval, source: Records, neighbours: Records | None) -> None:
    pass


def turned(length: int, limit: int) -> np.ndarray:
  """`limit` indices spread over `length` questions, of all rounds: every tenth would be the first of its dialog."""
  chosen = spread(length, limit)
  return chosen + np.arange(len(chosen)) % max(length // max(len(chosen), 1), 1)


def rank(scores: np.ndarray, right: int) -> int:
  """The place of the right answer, from 1, among scores [C]; those that are no number come before it."""
  return int(np.count_nonzero(~(scores < scores[right]))) if not np.isnan(scores[right]) else len(scores)


def ndcg(scores: np.ndarray, relevance: np.ndarray) -> float:
  """Normalised discounted cumulative gain of the first k answers, k of which have a relevance above 0.

  Args:
    scores: [C], the higher the better; those that are no number count as the lowest.
    relevance: [C], 0 to 1, of which one is above 0.
  """
  k = np.count_nonzero(relevance)
  order = np.lexsort((relevance, -np.nan_to_num(scores.astype(np.float64), nan=-np.inf)))
  discount = 1 / np.log2(np.arange(2, k + 2))
  return float((relevance[order[:k]] * discount).sum() / (np.sort(relevance)[::-1][:k] * discount).sum())
