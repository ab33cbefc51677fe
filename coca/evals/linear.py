"""Linear evaluation of frozen features (CLIP, arXiv 2103.00020): on all images of a training split (appendix A.3), and
on a few of each class (section 3.1.5).

The paper does not say how lambda is found for a few images. Here min(k, 4) further ones of each class are what it is
chosen by, as in the linear probe beside CoOp (arXiv 2109.01134, section 4.1 and its code, lpclip).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special
from tqdm import tqdm

from coca.data.embeddings import Embedded
from coca.evals.logistic import Logistic, sweep

VALIDATION = 0.2  # of each class' images, where the data have no validation split; not in the paper
MOST = 4  # images of a class for validation with a few to learn from (CoOp)
METRICS = ("top1", "mean_per_class_recall")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
  """Images of a data set."""

  x: np.ndarray  # float32 [N, F]
  label: np.ndarray  # int [N]
  names: tuple[str, ...]  # of the classes

  def at(self, rows: np.ndarray) -> "Features":
    return Features(self.x[rows], self.label[rows], self.names)

  def __add__(self, other: "Features") -> "Features":
    x, label = np.concatenate([self.x, other.x]), np.concatenate([self.label, other.label])
    return Features(x, label, self.names)


def usable(embedded: Embedded, names: Sequence[str]) -> Features:
  """The features of images that can be read and have a label."""
  x, label = (np.concatenate([rows[column] for rows in embedded.rows]) for column in ("state", "label"))
  keep = (label >= 0) & (label < len(names)) & ~np.isnan(x[:, 0])
  return Features(x[keep], label[keep], tuple(names))


def numbered_as(train: Features, other: Features, where: str) -> Features:
  """`other` with the numbers of `train`'s classes.

  Raises:
    ValueError: it has classes that `train` lacks.
  """
  number = {name: i for i, name in enumerate(train.names)}
  found = [other.names[i] for i in np.unique(other.label)]
  if lacking := [name for name in found if name not in number]:
    some = ", ".join(map(repr, lacking[:5]))
    raise ValueError(
      f"{where} has images of {len(lacking)} classes that the training data lack, such as {some}; take them out, or "
      "name classes alike"
    )
  if other.names == train.names:
    return other
  numbers = np.array([number.get(name, -1) for name in other.names])
  return replace(other, label=numbers[other.label], names=train.names)


def linear(
  train: Features, tests: Mapping[str, Features], val: Features | None, metric: str, seed: int, penalty: float = 0.0
) -> dict:
  """Logistic regression with the lambda that is best on the validation split, fitted again with that split (CLIP).

  Args:
    train: what is learned.
    tests: by name.
    val: chooses lambda. None: `VALIDATION` of `train` does.
    metric: of `METRICS`, by which lambda is chosen.
    seed: of that part.
    penalty: lambda, which is then not looked for; 0: it is.

  Returns:
    {"lambda", "sweep": [[lambda, metric], ...], "tests": {name: {metric: share}}}.
  """
  tried = {}
  if not penalty:
    first, second = (train, val) if val is not None else halves(train, seed)
    penalty, tried = chosen(first, second, metric, "looking for lambda")
  whole = train if val is None else train + val
  fitted = Logistic(whole.x, whole.label, len(train.names)).fit(penalty)
  measured = {name: measure(test, *fitted) for name, test in tests.items()}
  return {"lambda": penalty, "sweep": [list(x) for x in tried.items()], "tests": measured}


def few_shot(
  train: Features,
  tests: Mapping[str, Features],
  val: Features | None,
  metric: str,
  shots: Sequence[int],
  seeds: int,
  penalty: float = 0.0,
) -> dict:
  """Logistic regression on k images a class, drawn anew for each seed; those of a seed are among those of its larger k.

  Args:
    shots: the k's.
    seeds: draws of each.
    others: as of `linear`; without `val`, min(k, 4) further images of each class choose lambda.

  Returns:
    {"k": {"lambda": [of each seed], "tests": {name: {metric: {"mean", "half_width", "seeds": [...]}}}}}; `interval`
    says what these are.

  Raises:
    ValueError: a class has fewer images than that, or none is left to choose lambda by.
  """
  found = {}
  for k in shots:
    penalties, measured = [], []
    for seed in tqdm(range(seeds), f"{k} images a class", leave=False, delay=2, disable=None):
      few, further = drawn(train, k, seed)
      second = further if val is None else val
      if not penalty and not len(second.label):
        raise ValueError(f"--shots={k} leaves no image of any class to choose lambda by: give --val or --lambda")
      penalties.append(penalty or chosen(few, second, metric)[0])
      fitted = Logistic(few.x, few.label, len(train.names)).fit(penalties[-1])
      measured.append({name: measure(test, *fitted) for name, test in tests.items()})
    of_tests = {name: {m: interval([x[name][m] for x in measured]) for m in METRICS} for name in tests}
    found[str(k)] = {"lambda": penalties, "tests": of_tests}
  return found


def chosen(train: Features, val: Features, metric: str, said: str = "") -> tuple[float, dict[float, float]]:
  """The lambda that is best on `val`, and what each one that was tried is worth."""
  model = Logistic(train.x, train.label, len(train.names))
  with tqdm(desc=said, unit=" fits", leave=False, delay=2, disable=None if said else True) as bar:

    def score(penalty):
      bar.update()
      return measure(val, *model.fit(penalty))[metric]

    return sweep(score)


def measure(test: Features, weights: np.ndarray, biases: np.ndarray) -> dict[str, float]:
  """Shares of right answers by weights [F, C]: of the images, and the mean over the classes that have images."""
  right = (test.x @ weights + biases).argmax(axis=1) == test.label
  count = np.bincount(test.label)
  recall = np.bincount(test.label, right)[count > 0] / count[count > 0]
  return {"top1": float(right.mean()), "mean_per_class_recall": float(recall.mean())}


def halves(train: Features, seed: int) -> tuple[Features, Features]:
  """Training images without `VALIDATION` of each class, and these; at least one image of a class, if it has two."""
  place, count = _places(train, seed)
  part = np.where(count > 1, np.maximum(np.rint(VALIDATION * count), 1), 0)
  is_held = place < part[train.label]
  if not is_held.any():
    raise ValueError("the training data have one image a class, and none to choose lambda by: give --val or --lambda")
  return train.at(~is_held), train.at(is_held)


def drawn(train: Features, k: int, seed: int) -> tuple[Features, Features]:
  """k images of each class, and up to min(k, `MOST`) others. Raises ValueError if a class has fewer than k."""
  place, count = _places(train, seed)
  short = [i for i in np.unique(train.label) if count[i] < k]
  if short:
    raise ValueError(
      f"--shots={k}: {len(short)} classes have fewer training images, such as '{train.names[short[0]]}' with "
      f"{count[short[0]]}"
    )
  return train.at(place < k), train.at((place >= k) & (place < k + min(k, MOST)))


def interval(values: Sequence[float]) -> dict:
  """Mean, half of the 95 % interval of it by Student's t (None with one value), and the values."""
  n = len(values)
  half = float(special.stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else None
  return {"mean": float(np.mean(values)), "half_width": half, "seeds": list(values)}


def _places(train: Features, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Each image's place in a random order of its class, int [N], and the number of images of each class, int [C]."""
  count = np.bincount(train.label, minlength=len(train.names))
  order = np.random.default_rng(seed).permutation(len(train.label))
  order = order[np.argsort(train.label[order], kind="stable")]  # by class, at random within
  place = np.empty(len(order), np.int64)
  place[order] = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
  return place, count
