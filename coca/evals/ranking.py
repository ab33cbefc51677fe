"""Ranks of the right answers among candidates, without the whole matrix of scores."""

from collections.abc import Callable

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
    best = np.max(scores, axis=1, where=right, initial=-np.inf, keepdims=True)
    before = np.count_nonzero(~(scores < best - TIE) & ~right, axis=1)  # 'not less' also catches NaN
    out[start:stop] = np.where(right.any(axis=1), before, len(candidates))
  return out


def recall(rank: np.ndarray, k: int) -> float:
  """Share of queries with a right candidate among the first k; NaN if there are no queries."""
  return float(np.mean(rank < k)) if len(rank) else float("nan")
