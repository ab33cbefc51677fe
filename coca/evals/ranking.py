"""Ranks of the right answers among candidates, without the whole matrix of scores."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TIE = 1e-6  # cosines closer than this are equal: more than float32 rounding of a dot product of unit vectors
BLOCK = 1024  # queries whose scores are held at once


def ranks(queries: np.ndarray, candidates: np.ndarray, positive: Callable[[int, int], np.ndarray],
          block: int = BLOCK) -> np.ndarray:
  """How many wrong candidates come before the first right one.

  Ties are counted against the model: a wrong candidate whose score equals that of the best right one (within `TIE`)
  comes before it, and so does one whose score is not a number. A model with constant embeddings finds nothing.

  Args:
    queries: [N, E], unit length.
    candidates: [M, E], unit length.
    positive: (start, stop) -> bool [stop - start, M]: which candidates are right for queries[start:stop].
    block: queries at a time; memory is about 10 bytes x block x M.

  Returns:
    int64 [N], 0 for a right candidate in front; M for a query without any.
  """
  out = np.empty(len(queries), np.int64)
  for start in range(0, len(queries), block):
    stop = min(start + block, len(queries))
    scores = queries[start:stop] @ candidates.T
    right = positive(start, stop)
    out[start:stop] = np.where(right.any(axis=1), _wrong_before(scores, right), len(candidates))
  return out


class Nearest(NamedTuple):
  """Some candidates of each query."""

  index: np.ndarray  # int32 [N, k], ascending
  cosine: np.ndarray  # float32 [N, k]
  right: np.ndarray  # bool [N, k]


def nearest(queries: np.ndarray, candidates: np.ndarray, positive: Callable[[int, int], np.ndarray], k: int,
            block: int = BLOCK) -> Nearest:
  """The k candidates of the highest cosine.

  Ties are counted against the model here too: where a right candidate's cosine is within `TIE` of a wrong one's, the
  wrong one comes first, and so does one whose cosine is not a number. Of equal ones the first in line are taken.

  Args:
    queries, candidates, positive, block: as for `ranks`; memory is about 25 bytes x block x M.
    k: all candidates if there are fewer.
  """
  k, parts = min(k, len(candidates)), []
  for start in range(0, len(queries), block):
    stop = min(start + block, len(queries))
    scores, right = queries[start:stop] @ candidates.T, positive(start, stop)
    order = np.where(np.isnan(scores), np.where(right, -np.inf, np.inf), np.where(right, scores - TIE, scores))
    last = np.partition(order, -k, axis=1)[:, -k, None]
    above, level = order > last, order == last
    room = k - np.count_nonzero(above, axis=1, keepdims=True)
    chosen = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= room))
    index = np.nonzero(chosen)[1].reshape(-1, k).astype(np.int32)
    parts.append((index, np.take_along_axis(scores, index, axis=1), np.take_along_axis(right, index, axis=1)))
  return Nearest(*map(np.concatenate, zip(*parts, strict=True)))


def reranked(rank: np.ndarray, scores: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Ranks after some candidates of each query got new scores; all others come after them, in the order they had.

  Where no right candidate is among them, that leaves the rank as it was: those before it are still before it.

  Args:
    rank: int64 [N], from `ranks`.
    scores: [N, k], the new scores of the candidates that `nearest` chose.
    right: bool [N, k].

  Returns:
    int64 [N]; ties and what is not a number count as in `ranks`.
  """
  return np.where(right.any(axis=1), _wrong_before(scores, right), rank)


def _wrong_before(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
  """[N, M] both -> [N]: how many wrong candidates are not below the best right one."""
  best = np.max(scores, axis=1, where=right, initial=-np.inf, keepdims=True)
  return np.count_nonzero(~(scores < best - TIE) & ~right, axis=1)  # 'not less' also catches NaN


def recall(rank: np.ndarray, k: int) -> float:
  """Share of queries with a right candidate among the first k; NaN if there are no queries."""
  return float(np.mean(rank < k)) if len(rank) else float("nan")
