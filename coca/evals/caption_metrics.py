"""Scores of captions beside references, as pycocoevalcap gives them, on which published tables rest.

    BLEU-1 to 4   Papineni et al. 2002, of the whole corpus
    ROUGE-L       Lin 2004, as coco-caption has it
    CIDEr-D       Vedantam et al. 2015 (arXiv 1411.5726); tables print 100 times it
    CLIPScore     Hessel et al. 2021 (arXiv 2104.08718), and RefCLIPScore

A caption is a list of words (`coca.evals.ptb.tokens`). N captions, each with one reference or more.
"""

import functools
import importlib.util
import math
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from coca.evals.cider import ORDERS, Words, cider_d, grams
from coca.evals.ptb import tokens

# By name: module and class in pycocoevalcap, and the files of its folder that have to be there. It would download
# those of SPICE, half a gigabyte, in the middle of an evaluation.
JAVA = {
  "meteor": ("meteor", "Meteor", ("meteor-1.5.jar",)),
  "spice": ("spice", "Spice", ("lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar")),
}


def scores(captions: Sequence[str], references: Sequence[Sequence[str]], java: bool = False) -> Iterator:
  """Yields names and numbers: 'bleu1' to 'bleu4', 'rouge_l', 'cider', with `java` 'meteor' and 'spice' if they can be.

  Args:
    captions: N texts.
    references: the true texts of each.
    java: whether pycocoevalcap's Java programs are asked too.
  """
  said, true = [tokens(caption) for caption in captions], [[tokens(text) for text in texts] for texts in references]
  for order, value in zip(ORDERS, bleu(said, true), strict=True):
    yield f"bleu{order}", value
  yield "rouge_l", _mean(rouge_l(said, true))
  yield "cider", _mean(cider_d(said, true))
  if java and said:
    yield from java_scores(said, true)


def _mean(values: np.ndarray) -> float:
  return float(np.mean(values)) if len(values) else math.nan


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
  """Corpus BLEU of orders 1 to 4: geometric means of clipped precisions, times the brevity penalty.

  An n-gram counts at most as often as in the reference that has it most often; the reference length is that of the
  closest reference, the shorter of two equally close. Zero counts are 1e-15 of 1e-9, as in pycocoevalcap.
  """
  if not captions:
    return [math.nan] * len(ORDERS)
  right, guessed = np.zeros(len(ORDERS)), np.zeros(len(ORDERS))
  written = wanted = 0
  for words, true in zip(captions, references, strict=True):
    for order in ORDERS:
      most = Counter()
      for text in true:
        most |= grams(text, order)
      right[order - 1] += (grams(words, order) & most).total()
      guessed[order - 1] += max(0, len(words) - order + 1)
    written += len(words)
    wanted += min((abs(len(text) - len(words)), len(text)) for text in true)[1]
  means = np.cumprod((right + 1e-15) / (guessed + 1e-9)) ** (1 / np.array(ORDERS))
  ratio = (written + 1e-15) / (wanted + 1e-9)
  return (means * min(1.0, math.exp(1 - 1 / ratio))).tolist()


def rouge_l(captions: Sequence[Words], references: Sequence[Sequence[Words]], beta: float = 1.2) -> np.ndarray:
  """F-measure of the longest common subsequence: float64 [N].

  Precision and recall are each the best over the references, which need not be of the same one.
  """
  found = []
  for words, true in zip(captions, references, strict=True):
    # pycocoevalcap splits an empty text into one empty word.
    common = [(_common(words or [""], text or [""]), len(text) or 1) for text in true]
    precision, recall = max(n for n, _ in common) / (len(words) or 1), max(n / length for n, length in common)
    found.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision else 0.0)
  return np.array(found)


def _common(a: Words, b: Words) -> int:
  """Length of the longest common subsequence."""
  row = [0] * (len(b) + 1)
  for word in a:
    before = 0
    for j, other in enumerate(b, 1):
      before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
  return row[-1]


def java_scores(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> Iterator[tuple[str, float]]:
  """Yields 'meteor' and 'spice' as pycocoevalcap's Java programs give them; says which is not available, and why."""
  found = importlib.util.find_spec("pycocoevalcap")
  folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
  said = {str(i): [" ".join(words)] for i, words in enumerate(captions)}
  true = {str(i): [" ".join(words) for words in texts] for i, texts in enumerate(references)}
  for name, (module, scorer, files) in JAVA.items():
    missing = [file for file in files if not any((folder / module / file).exists() for folder in folders)]
    if not shutil.which("java") or missing:
      lacks = f"pycocoevalcap's {module}/{missing[0]}" if missing else "java"
      _say_once(f"{name.upper()} is not available: {lacks} is missing")
      continue
    made = getattr(importlib.import_module(f"pycocoevalcap.{module}.{module}"), scorer)()
    try:
      value = float(made.compute_score(true, said)[0])
    except (OSError, ValueError, subprocess.SubprocessError) as e:  # what Java says stands above it
      _say_once(f"{name.upper()} is not available: its program failed ({e})")
    else:
      yield name, value


@functools.cache
def _say_once(text: str) -> None:
  logging.warning(text)


def clip_scores(
  images: np.ndarray, captions: np.ndarray, references: np.ndarray, owners: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """CLIPScore, 2.5 times the cosine of image and caption, and its harmonic mean with the best reference's cosine.

  Cosines below 0 count as 0.

  Args:
    images: [N, E], unit length.
    captions: [N, E], unit length.
    references: [R, E], unit length.
    owners: int [R], the caption that each reference belongs to.

  Returns:
    float64 [N] and float64 [N], the second NaN where there is no reference.
  """
  score = 2.5 * np.maximum(np.sum(images.astype(np.float64) * captions, axis=1), 0)
  best = np.full(len(images), np.nan)
  np.fmax.at(best, owners, np.maximum(np.sum(captions[owners].astype(np.float64) * references, axis=1), 0))
  return score, 2 * score * best / np.where(score + best == 0, 1, score + best)
