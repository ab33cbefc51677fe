"""Counts over the texts of a CapFilt run: a billion rows pass through, and only histograms stay."""

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coca.config.data import ORIGINS

COLUMNS = ("index", "key", "text", "origin", "matching", "contrastive", "kept", "problem")
IDENTITIES = ("decoding", "captioner", "filter", "version")
M, C = 100, 2000  # bins of matching from 0 to 1, of contrastive from -1 to 1; one more each for texts without
MOST_REASONS = 1000  # that are told apart
PHRASE = 4  # words of a phrase at most that `repeats` looks for
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # thresholds of matching in `agreement`


@dataclass
class Origin:
  """The texts of one origin: each is kept, dropped, failed (not kept, and there is no score) or undecided."""

  kept: int = 0
  dropped: int = 0
  failed: int = 0
  undecided: int = 0
  repeating: int = 0  # of these, whatever became of them: texts that `repeats` finds
  repeating_kept: int = 0  # and those of them that are kept
  joint: np.ndarray = field(default_factory=lambda: np.zeros((M + 1, C + 1), np.int64))  # texts by both scores

  @property
  def texts(self) -> int:
    return self.kept + self.dropped + self.failed + self.undecided


class Tally:
  """`add` takes the rows in order; then the attributes hold the counts.

  Attributes:
    origins: name -> `Origin`.
    textless: rows without a text.
    images: with 0, 1 and 2 or more kept texts.
    failures: reason -> [images, texts, one problem in full]. Names and numbers in a reason are left out.
    identities: column of `IDENTITIES` -> Counter of its values, in texts.
  """

  def __init__(self):
    self.origins, self.textless = {name: Origin() for name in ORIGINS}, 0
    self.failures, self.identities = {}, {name: Counter() for name in IDENTITIES}
    self._images = np.zeros(3, np.int64)
    self._open = None  # the last record and its kept texts: more of its rows may follow
    self._last_failed = {}

  @property
  def images(self) -> list[int]:
    images = self._images.copy()
    if self._open:
      images[min(self._open[1], 2)] += 1
    return images.tolist()

  def add(self, rows: pa.RecordBatch) -> None:
    """Rows of a sidecar, the columns of `COLUMNS` and `IDENTITIES`; a record's rows follow each other."""
    if not len(rows):
      return
    kept = pc.fill_null(rows["kept"], False).to_numpy(zero_copy_only=False)
    self._count_images(rows["index"].to_numpy(zero_copy_only=False), kept)
    failed = pc.is_valid(rows["problem"]).to_numpy(zero_copy_only=False)
    undecided = pc.is_null(rows["kept"]).to_numpy(zero_copy_only=False) & ~failed
    m = _bins(rows["matching"], np.arange(1, M) / M)
    c = _bins(rows["contrastive"], np.arange(1, C) / C * 2 - 1)
    repeating = repeats(rows["text"])
    origin = _encoded(rows["origin"])
    codes = pc.fill_null(origin.indices, -1).to_numpy(zero_copy_only=False)
    self.textless += origin.null_count
    for code, name in enumerate(origin.dictionary.to_pylist()):
      mine = codes == code
      if mine.any():
        one = self.origins.setdefault(name, Origin())
        one.kept += int((mine & kept).sum())
        one.failed += int((mine & failed & ~kept).sum())
        one.undecided += int((mine & undecided).sum())
        one.dropped += int((mine & ~kept & ~failed & ~undecided).sum())
        one.repeating += int((mine & repeating).sum())
        one.repeating_kept += int((mine & repeating & kept).sum())
        np.add.at(one.joint, (m[mine], c[mine]), 1)
    for name, values in self.identities.items():
      for pair in pc.value_counts(_encoded(rows[name]).dictionary_decode().drop_null()).to_pylist():
        values[pair["values"]] += pair["counts"]
    if failed.any():
      self._count_failures(rows.filter(pa.array(failed)))

  def __str__(self):
    """Kept texts by origin, for the terminal."""
    lines = [
      f"  {name:15} {o.kept:,} of {o.texts:,} kept ({o.kept / o.texts:.1%})"
      + f", {o.repeating_kept:,} of them repeat themselves" * bool(o.repeating_kept)
      for name, o in self.origins.items()
      if o.texts
    ]
    return "\n".join(lines + [f"  {'without a text':15} {self.textless:,}"] * bool(self.textless))

  def _count_images(self, index: np.ndarray, kept: np.ndarray) -> None:
    starts = np.flatnonzero(np.diff(index, prepend=index[0] - 1))
    counts = np.add.reduceat(kept.astype(np.int64), starts)
    if self._open and self._open[0] == index[0]:
      counts[0] += self._open[1]
    elif self._open:
      self._images[min(self._open[1], 2)] += 1
    self._open = (int(index[-1]), int(counts[-1]))
    self._images += np.bincount(np.minimum(counts[:-1], 2), minlength=3)

  def _count_failures(self, rows: pa.RecordBatch) -> None:
    columns = (rows[name].to_pylist() for name in ("index", "key", "problem", "origin"))
    for index, key, problem, origin in zip(*columns, strict=True):
      text = problem.replace(key, "…") if key else problem
      reason = re.sub(r"'[^']*'|\d+", "…", text)
      if reason not in self.failures and len(self.failures) >= MOST_REASONS:
        reason = "other reasons"
      count = self.failures.setdefault(reason, [0, 0, problem])
      count[0] += self._last_failed.get(reason) != index
      count[1] += origin is not None
      self._last_failed[reason] = index

  def agreement(self, levels=LEVELS) -> list[dict]:
    """The agreement of a threshold of matching with one of contrastive that keeps the same share.

    Over the texts that have both scores, human ones aside (those are always kept). The threshold of contrastive is the
    edge of a bin whose share comes nearest.

    Returns:
      a dict for each level: matching and contrastive (the thresholds), matching_keeps and contrastive_keeps (texts), of
      (all texts), agree (share of texts that both keep or both drop), chance (the share if they had nothing to do with
      each other). Empty where no text has both scores.
    """
    joint = sum(origin.joint[:M, :C] for name, origin in self.origins.items() if name != "human")
    total = int(joint.sum())
    keeps = np.append(np.cumsum(joint.sum(0)[::-1])[::-1], 0)  # at each threshold of contrastive
    rows = []
    for level in levels if total else ():
      above = joint[round(level * M) :]
      a = int(above.sum())
      edge = int(np.argmin(np.abs(keeps - a)))
      b, both = int(keeps[edge]), int(above[:, edge:].sum())
      rows.append(
        {
          "matching": level,
          "contrastive": round(edge / C * 2 - 1, 4),
          "matching_keeps": a,
          "contrastive_keeps": b,
          "of": total,
          "agree": (total - a - b + 2 * both) / total,
          "chance": (a * b + (total - a) * (total - b)) / total**2,
        }
      )
    return rows


def repeats(column: pa.Array) -> np.ndarray:
  """Texts that repeat themselves: a word, or a phrase of up to `PHRASE` words, stands there three times in a row.

  Words are what white space and signs separate, in lower case: "2 2 2", "A dog, a dog, a dog". That happens to
  captioners that got stuck, and a filter may let it pass, for each word may well be true.

  Args:
    column: texts [N].

  Returns:
    bool [N]; False where there is no text.
  """
  texts = pc.utf8_lower(pc.fill_null(column.cast("string"), ""))
  texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, r"[^\p{L}\p{M}\p{N}\s]+", " "))
  words = pc.utf8_split_whitespace(texts)
  ids = pc.list_flatten(words).dictionary_encode().indices.to_numpy()
  rows = pc.list_parent_indices(words).to_numpy()
  found = np.zeros(len(column), bool)
  for phrase in range(1, PHRASE + 1):
    again = np.flatnonzero(ids[phrase:] == ids[:-phrase])  # the same word so many words later
    again = again[rows[again] == rows[again + phrase]]
    more = 2 * phrase - 1  # of them right behind one: three phrases
    starts, ends = again[: max(len(again) - more, 0)], again[more:]
    found[rows[starts[ends - starts == more]]] = True
  return found


def _bins(column: pa.Array, inner: np.ndarray) -> np.ndarray:
  """The bin of each score, len(inner) + 1 for none; a score that equals an edge is in the bin above it."""
  values = column.to_numpy(zero_copy_only=False).astype(np.float32)
  bins = np.searchsorted(inner.astype(np.float32), values, side="right")
  return np.where(np.isnan(values), len(inner) + 1, bins)


def _encoded(column: pa.Array) -> pa.DictionaryArray:
  return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
