"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) as pycocoevalcap has it, of a set of captions or one by one.

A caption is a list of words (`coca.evals.ptb.tokens`). N captions, each with one reference or more.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Words = Sequence[str]
ORDERS = (1, 2, 3, 4)  # lengths of n-grams


def grams(words: Words, order: int) -> Counter:
  """The n-grams of `order` words in a text, each with its number."""
  return Counter(zip(*(words[i:] for i in range(order)), strict=False))


class Weighed(NamedTuple):
  """The TF-IDF vectors of a text, one an order."""

  weights: list[dict]
  norms: list[float]
  length: int  # in n-grams of two words, as in pycocoevalcap


class Cider:
  """The measure by document frequencies that are given.

  Args:
    frequency: the number of images that have an n-gram in a reference. One that is missing counts as 1.
    images: the number of all images.
    sigma: of the Gaussian of the difference in length.
  """

  def __init__(self, frequency: Mapping[tuple, int], images: int, sigma: float = 6.0):
    self._frequency, self._images, self._sigma = frequency, math.log(images or 1), sigma

  def weigh(self, words: Words) -> Weighed:
    counts = [grams(words, order) for order in ORDERS]
    weights = [
      {gram: n * (self._images - math.log(self._frequency.get(gram) or 1)) for gram, n in c.items()} for c in counts
    ]
    return Weighed(weights, [math.sqrt(math.fsum(x * x for x in w.values())) for w in weights], counts[1].total())

  def score(self, words: Words, references: Sequence[Weighed]) -> float:
    """The mean over n-grams of 1 to 4 words, and over the references, of 10 times the cosine of TF-IDF vectors.

    Weights of the caption count up to the reference's. A Gaussian of the difference in length lowers it.
    """
    mine, norms, length = self.weigh(words)
    total = 0.0
    for theirs, their_norms, their_length in references:
      penalty = math.exp(-((length - their_length) ** 2) / (2 * self._sigma**2))
      for a, b, own, other in zip(mine, theirs, norms, their_norms, strict=True):
        total += penalty * sum(min(x, b[gram]) * b[gram] for gram, x in a.items() if gram in b) / (own * other or 1)
    return 10 * total / len(ORDERS) / len(references)


def frequencies(references: Iterable[Sequence[Words]]) -> tuple[Counter, int]:
  """The number of images that have each n-gram in one of their references, and the number of images."""
  found, images = Counter(), 0
  for texts in references:
    found.update(set().union(*(grams(text, order) for text in texts for order in ORDERS)))
    images += 1
  return found, images


def cider_d(captions: Sequence[Words], references: Sequence[Sequence[Words]], sigma: float = 6.0) -> np.ndarray:
  """`Cider.score` of each caption: float64 [N].

  Document frequencies are those of the evaluated images' references: a score is of its image in that set, and all are
  0 where the set is one image.
  """
  cider = Cider(*frequencies(references), sigma)
  return np.array(
    [cider.score(words, list(map(cider.weigh, texts))) for words, texts in zip(captions, references, strict=True)]
  )
