"""Statistics of tables: intervals over seeds and of shares, and the area under the ROC curve."""

import math

import numpy as np
from scipy import special


def t_interval(values, level: float = 0.95) -> tuple[float, float]:
  """(mean, half of the interval's width) by Student's t; the width is NaN for a single value."""
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return float(values.mean()), math.nan
  t = special.stdtrit(len(values) - 1, (1 + level) / 2)
  return float(values.mean()), float(t * values.std(ddof=1) / math.sqrt(len(values)))


def wilson(share: float, n: float, level: float = 0.95) -> tuple[float, float]:
  """Wilson's interval for a share of n images: (low, high)."""
  z = special.ndtri((1 + level) / 2)
  middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
  return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def auc(good, bad) -> float:
  """Chance that a good score is above a bad one, ties half: the area under the ROC curve. NaN where one is missing."""
  good, bad = np.asarray(good, np.float64), np.sort(np.asarray(bad, np.float64))
  if not len(good) or not len(bad):
    return math.nan
  below = (np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")) / 2
  return float(below.mean() / len(bad))
