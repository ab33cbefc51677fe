"""Ranks of the right answers among candidates, without the whole matrix of scores."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TIE = 1e-6  # cosines closer than this are equal: more than float32 rounding of a dot product of unit vectors
BLOCK = 1024  # queries whose scores are held at once


def ranks(
  queries: np.ndarray,
  candidates: np.ndarray,
  positive: Callable[[int, int], np.ndarray],
  block: int = BLOCK,
  kind: np.ndarray | None = None,
) -> np.ndarray:
  """The number of wrong candidates before the first right one.

  Ties are counted against the model: a wrong candidate whose score equals that of the best right one (within `TIE`)
  comes before it, and so does one whose score is not a number. A model with constant embeddings finds nothing.

  Candidates of one `kind` are the same to any model (a caption that two images own, two classes of one name): there a
  tie says nothing against it. They stay in the order they are given in, as in a stable sort. Published code takes them
  as its sort happens to leave them (`torch.topk` in CLIP_benchmark, `np.argsort` in BLIP and big_vision); over all
  owners of a text the given order finds as many as a random one does on average.

  Args:
    queries: [N, E], unit length.
    candidates: [M, E], unit length.
    positive: (start, stop) -> bool [stop - start, M]: which candidates are right for queries[start:stop].
    block: queries at a time; memory is about 20 bytes x block x M.
    kind: int [M]; None: all candidates differ.

  Returns:
    int64 [N], 0 for a right candidate in front; M for a query without any.
  """
  out = np.empty(len(queries), np.int64)
  for start in range(0, len(queries), block):
    stop = min(start + block, len(queries))
    scores = queries[start:stop] @ candidates.T
    right = positive(start, stop)
    out[start:stop] = np.where(right.any(axis=1), _wrong_before(scores, right, kind), len(candidates))
  return out


class Nearest(NamedTuple):
  """Some candidates of each query."""

  index: np.ndarray  # int32 [N, k], ascending
  cosine: np.ndarray  # float32 [N, k]
  right: np.ndarray  # bool [N, k]


def nearest(
  queries: np.ndarray,
  candidates: np.ndarray,
  positive: Callable[[int, int], np.ndarray],
  k: int,
  block: int = BLOCK,
  kind: np.ndarray | None = None,
) -> Nearest:
  """The k candidates of the highest cosine.

  Ties are counted against the model here too: where a right candidate's cosine is within `TIE` of a wrong one's, the
  wrong one comes first, and so does one whose cosine is not a number. Of equal ones, and of those of one kind, the
  first in line are taken.

  Args:
    queries, candidates, positive, block, kind: as for `ranks`; memory is about 35 bytes x block x M.
    k: all candidates if there are fewer.
  """
  k, parts = min(k, len(candidates)), []
  for start in range(0, len(queries), block):
    stop = min(start + block, len(queries))
    scores, right = queries[start:stop] @ candidates.T, positive(start, stop)
    order = np.where(np.isnan(scores), np.where(right, -np.inf, np.inf), np.where(right, scores - TIE, scores))
    if kind is not None:
      order = np.where(_in_line(scores, right, kind), _best(scores, right) - TIE, order)
    last = np.partition(order, -k, axis=1)[:, -k, None]
    above, level = order > last, order == last
    room = k - np.count_nonzero(above, axis=1, keepdims=True)
    chosen = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= room))
    index = np.nonzero(chosen)[1].reshape(-1, k).astype(np.int32)
    parts.append((index, np.take_along_axis(scores, index, axis=1), np.take_along_axis(right, index, axis=1)))
  return Nearest(*map(np.concatenate, zip(*parts, strict=True)))


def reranked(rank: np.ndarray, scores: np.ndarray, right: np.ndarray, kind: np.ndarray | None = None) -> np.ndarray:
  """Ranks after some candidates of each query got new scores; all others come after them, in the order they had.

  Where no right candidate is among them, that leaves the rank as it was: those before it are still before it.

  Args:
    rank: int64 [N], from `ranks`.
    scores: [N, k], the new scores of the candidates that `nearest` chose.
    right: bool [N, k].
    kind: int [N, k], of the candidates; None: all differ.

  Returns:
    int64 [N]; ties and what is not a number count as in `ranks`.
  """
  return np.where(right.any(axis=1), _wrong_before(scores, right, kind), rank)


def _wrong_before(scores: np.ndarray, right: np.ndarray, kind: np.ndarray | None) -> np.ndarray:
  """[N, M] all -> [N]: how many wrong candidates are not below the best right one, those of its kind by their place."""
  before = ~(scores < _best(scores, right) - TIE) & ~right  # 'not less' also catches NaN
  if kind is not None:
    before &= ~_in_line(scores, right, kind)
  return np.count_nonzero(before, axis=1)


def _best(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
  return np.max(scores, axis=1, where=right, initial=-np.inf, keepdims=True)


def _in_line(scores: np.ndarray, right: np.ndarray, kind: np.ndarray) -> np.ndarray:
  """bool [N, M]: the best right candidate and those of its kind that stand behind the first right one of it."""
  best = np.argmax(np.where(right, scores, -np.inf), axis=1, keepdims=True)
  kind = np.broadcast_to(kind, scores.shape)
  same = (kind == np.take_along_axis(kind, best, axis=1)) & ~np.isnan(scores) & right.any(axis=1, keepdims=True)
  return same & (np.arange(scores.shape[1]) >= np.argmax(same & right, axis=1, keepdims=True))


def recall(rank: np.ndarray, k: int) -> float:
  """Share of queries with a right candidate among the first k; NaN if there are no queries."""
  return float(np.mean(rank < k)) if len(rank) else float("nan")
