"""Captions made wrong in known ways, and how well a CapFilt job told which (capfilt_tables.py)."""

import math

import numpy as np
from scipy import stats

KINDS = ("any", "source", "boilerplate", "file_name")  # of wrong captions
NAMES = ("IMG_{:04d}.jpg", "DSC{:05d}.JPG", "image ({}).png", "untitled-{}.svg", "scan_{:03d}.tif", "art{}_final.svg")


# --- Noise with a known truth ---


def derangement(texts, rng: np.random.Generator) -> np.ndarray:
  """A random permutation p of the places of `texts` in which no place keeps its text: texts[p[i]] != texts[i].

  Raises:
    ValueError: more than half of the texts are equal (or there is only one), so there is none.
  """
  codes = np.unique(np.asarray(texts, object).astype(str), return_inverse=True)[1]
  if 2 * np.bincount(codes).max() > len(codes):
    raise ValueError(f"more than half of the {len(codes)} texts are equal: they can't all change places")
  p = rng.permutation(len(codes))
  for i in np.flatnonzero(codes[p] == codes):
    if codes[p[i]] == codes[i]:  # not helped by a swap before
      fits = (codes[p] != codes[i]) & (codes != codes[p[i]])  # never empty: at most n - 1 places don't fit
      j = rng.choice(np.flatnonzero(fits))
      p[i], p[j] = p[j], p[i]
  return p


def corrupt(captions, sources, boilerplate, share: float, seed: int) -> tuple[list[str], list[str]]:
  """Makes a share of the captions wrong, a fourth of it in each of `KINDS`.

  Args:
    captions, sources: of N pairs.
    boilerplate: titles to draw from, as often as they stand there.
    share: of the N captions, exactly (rounded).
    seed: the same one makes the same captions wrong in the same way.

  Returns:
    new captions and kinds, "" where a caption is as it was.

  Raises:
    ValueError: too few captions can change places inside their source.
  """
  rng = np.random.default_rng(seed)
  captions, sources = list(captions), np.asarray(sources)
  count = round(share * len(captions))
  out, kinds = list(captions), [""] * len(captions)
  if not count:
    return out, kinds
  other = {"any": derangement(captions, rng), "source": np.full(len(captions), -1)}
  for source in np.unique(sources):
    rows = np.flatnonzero(sources == source)
    try:
      other["source"][rows] = rows[derangement([captions[i] for i in rows], rng)]
    except ValueError:
      continue  # a source of hardly more than one caption: other kinds of noise take its rows
  chosen = rng.permutation(len(captions))[:count]
  sizes = [count // len(KINDS) + (k < count % len(KINDS)) for k in range(len(KINDS))]
  movable = chosen[other["source"][chosen] >= 0][: sizes[1]]
  if len(movable) < sizes[1]:
    raise ValueError(f"{len(movable)} of {sizes[1]} captions can change places inside their source; take more pairs")
  rest = chosen[~np.isin(chosen, movable)]
  parts = np.split(rest, np.cumsum([sizes[0], sizes[2]]))
  for kind, rows in zip(("source", "any", "boilerplate", "file_name"), [movable, *parts], strict=True):
    for i in rows:
      kinds[i] = kind
      if kind in other:
        out[i] = captions[other[kind][i]]
      elif kind == "file_name":
        out[i] = NAMES[rng.integers(len(NAMES))].format(rng.integers(1000))
      else:
        wrong = captions[i]
        while wrong == captions[i]:
          wrong = boilerplate[rng.integers(len(boilerplate))]
        out[i] = wrong
  return out, kinds


# --- Statistics ---


def auc(good, bad) -> float:
  """Chance that a good score is above a bad one, ties half: the area under the ROC curve. NaN where one is missing."""
  good, bad = np.asarray(good, np.float64), np.sort(np.asarray(bad, np.float64))
  if not len(good) or not len(bad):
    return math.nan
  below = (np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")) / 2
  return float(below.mean() / len(bad))


def t_interval(values, level: float = 0.95) -> tuple[float, float]:
  """(mean, half of the interval's width) by Student's t; the width is NaN for a single value."""
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return float(values.mean()), math.nan
  t = stats.t.ppf((1 + level) / 2, len(values) - 1)
  return float(values.mean()), float(t * values.std(ddof=1) / math.sqrt(len(values)))


def wilson(share: float, n: float, level: float = 0.95) -> tuple[float, float]:
  """Wilson's interval for a share of n pictures: (low, high)."""
  z = stats.norm.ppf((1 + level) / 2)
  middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
  return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def quality(rows: list[dict], truth: dict[str, list]) -> dict:
  """How well a CapFilt job told the wrong captions: counts, shares and areas.

  Args:
    rows: of its sidecars.
    truth: columns of the web pairs. Titles that were boilerplate before are neither true nor made wrong: left out.

  Raises:
    ValueError: the rows are of other pairs.
  """
  web, synthetic = ([r for r in rows if r["origin"] == origin] for origin in ("web", "synthetic"))
  if any(truth["key"][r["index"]] != r["key"] for r in rows) or len(web) != len(truth["key"]):
    raise ValueError(f"the sidecars ({len(web)} web texts) are not of these {len(truth['key'])} pairs")
  known = [(r, truth["kind"][r["index"]]) for r in web if not truth["boilerplate"][r["index"]]]
  true, wrong = [r for r, kind in known if not kind], [r for r, kind in known if kind]

  def scores(found, name="matching"):
    return [r[name] for r in found if r[name] is not None]

  def share(found, holds):
    return sum(map(holds, found)) / len(found) if found else math.nan

  kept = [kind != "" for r, kind in known if r["kept"]]
  return {
    "auc": auc(scores(true), scores(wrong)),
    "auc_contrastive": auc(scores(true, "contrastive"), scores(wrong, "contrastive")),
    **{f"auc_{kind}": auc(scores(true), scores([r for r, k in known if k == kind])) for kind in KINDS},
    "noise_before": share(known, lambda pair: pair[1] != ""),
    "noise_after": share(kept, bool),
    "true_kept": share(true, lambda r: r["kept"]),
    "wrong_kept": share(wrong, lambda r: r["kept"]),
    "synthetic": len(synthetic),
    "synthetic_rejected": share(synthetic, lambda r: not r["kept"]),
    "synthetic_right": share(synthetic, lambda r: r["text"] == truth["original"][r["index"]]),
  }
