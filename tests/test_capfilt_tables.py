"""The benchmark that reproduces BLIP's tables: its noise is what it says, and its statistics are the textbook's."""

import json
import math
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import capfilt_noise as noise
import capfilt_tables as tables

N = 1000
CAPTIONS = [f"thing {n % 400}" if n % 3 else "boiler" for n in range(N)]
SOURCES = [f"set {n % 7}" for n in range(N)]
TITLES = ["boiler", "plate", "plate", "title"]


@pytest.mark.parametrize("texts", [["a", "b"], ["a", "a", "b", "c"], ["a"] * 50 + ["b"] * 25 + ["c"] * 25, CAPTIONS])
def test_derangement(texts):
  found = set()
  for seed in range(20):
    p = noise.derangement(texts, np.random.default_rng(seed))
    assert sorted(p) == list(range(len(texts)))
    assert all(texts[j] != texts[i] for i, j in enumerate(p))
    found.add(tuple(p))
  assert len(found) > 1 or len(texts) == 2


def test_no_derangement():
  for texts in (["a"], ["a", "a", "b"]):
    with pytest.raises(ValueError, match="they can't all change places"):
      noise.derangement(texts, np.random.default_rng(0))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.333])
def test_corruption(share):
  captions, kinds = noise.corrupt(CAPTIONS, SOURCES, TITLES, share, seed=3)
  count = round(share * N)
  assert sum(map(bool, kinds)) == sum(new != old for new, old in zip(captions, CAPTIONS, strict=True)) == count
  by_kind = Counter(filter(None, kinds))
  assert all(by_kind[kind] in (count // 4, -(-count // 4)) for kind in noise.KINDS)
  of_source = {source: {c for c, s in zip(CAPTIONS, SOURCES, strict=True) if s == source} for source in set(SOURCES)}
  for new, kind, source in zip(captions, kinds, SOURCES, strict=True):
    holds = {
      "": True,
      "any": new in CAPTIONS,
      "source": new in of_source[source],
      "boilerplate": new in TITLES,
      "file_name": "." in new and new not in CAPTIONS,
    }
    assert holds[kind]
  assert (captions, kinds) == noise.corrupt(CAPTIONS, SOURCES, TITLES, share, seed=3)
  if count:
    assert kinds != noise.corrupt(CAPTIONS, SOURCES, TITLES, share, seed=4)[1]


def test_sources_that_cannot_be_deranged():
  sources = ["one caption"] * 600 + ["two"] * 400
  captions = ["same"] * 500 + [str(n) for n in range(500)]
  kinds = noise.corrupt(captions, sources, TITLES, 0.6, seed=0)[1]
  assert Counter(kinds[600:])["source"] == 150 == Counter(kinds)["source"]
  with pytest.raises(ValueError, match=r"0 of 2 captions can change places inside their source; take more pairs"):
    noise.corrupt(["a", "b", "c", "d", "e", "f", "g", "h"], list("abcdefgh"), TITLES, 1.0, seed=0)


def test_auc():
  rng = np.random.default_rng(0)
  good, bad = rng.integers(0, 12, 70), rng.integers(0, 9, 50)  # with many ties
  expected = np.mean([1.0 * (g > b) + 0.5 * (g == b) for g in good for b in bad])
  assert noise.auc(good, bad) == pytest.approx(expected, abs=1e-12)
  assert (noise.auc([2, 3], [0, 1]), noise.auc([0], [1]), noise.auc([1, 1], [1])) == (1.0, 0.0, 0.5)
  assert math.isnan(noise.auc([], [1])) and math.isnan(noise.auc([1], []))


def test_t_interval():
  # 4.302653 and 2.776445: Student's t with 2 and 4 degrees of freedom, from printed tables
  for values, t in (([0.31, 0.35, 0.36], 4.302653), ([1.0, 2.0, 4.0, 8.0, 16.0], 2.776445)):
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    assert noise.t_interval(values) == pytest.approx((mean, t * deviation / math.sqrt(len(values))), rel=1e-6)
  mean, half = noise.t_interval([0.5])
  assert mean == 0.5 and math.isnan(half)


def test_wilson():
  z = 1.959964
  for share, n in ((0.0, 10), (0.113, 1940), (1.0, 50)):
    low, high = noise.wilson(share, n)
    for p in (low, high):  # it ends where the normal test of p just rejects the share
      assert abs(share - p) == pytest.approx(z * math.sqrt(max(p * (1 - p), 0) / n), rel=1e-5, abs=1e-12)
    assert low <= share <= high


def test_quality():
  truth = {
    "key": list("abcde"),
    "kind": ["", "", "any", "source", ""],
    "boilerplate": [False] * 4 + [True],
    "original": ["cat", "dog", "cow", "ant", "title"],
  }
  scores = [0.9, 0.4, 0.6, 0.1, 0.9]
  rows = [
    {"index": i, "key": "abcde"[i], "text": "x", "origin": "web", "matching": s, "contrastive": 1 - s, "kept": s >= 0.5}
    for i, s in enumerate(scores)
  ]
  rows += [
    {"index": 0, "key": "a", "text": "cat", "origin": "synthetic", "matching": 0.9, "contrastive": 0.0, "kept": True},
    {"index": 1, "key": "b", "text": "cat", "origin": "synthetic", "matching": 0.2, "contrastive": 0.0, "kept": False},
  ]
  found = noise.quality(rows, truth)
  assert found["auc"] == 0.75 and found["auc_contrastive"] == 0.25
  assert found["auc_any"] == 0.5 and found["auc_source"] == 1.0 and math.isnan(found["auc_file_name"])
  assert (found["noise_before"], found["noise_after"]) == (0.5, 0.5)
  assert (found["true_kept"], found["wrong_kept"]) == (0.5, 0.5)
  assert (found["synthetic"], found["synthetic_rejected"], found["synthetic_right"]) == (2, 0.5, 0.5)
  with pytest.raises(ValueError, match="are not of these 5 pairs"):
    noise.quality(rows[1:], truth)


def test_tables(tmp_path):
  """Means over the seeds that are finished; a gain is of differences seed by seed."""
  none, both = [0.10, 0.20, 0.30], [0.12, 0.22, 0.35]
  for variant, values, seeds in (("none", none, 3), ("both", both, 3), ("filter", [0.5], 1)):
    for seed in range(seeds):
      folder = tmp_path / f"noise20-seed{seed}" / variant
      folder.mkdir(parents=True)
      cell = {f"eval/{style}/top1": values[seed] for style in tables.EVALS}
      cell |= {f"eval/{style}/examples": 1940.0 for style in tables.EVALS} | {"texts": {"web": 100.0 * seed}}
      (folder / "done.json").write_text(json.dumps(cell))
  (tmp_path / "pixels.json").write_text('{"openmoji": 0.145}')
  args = SimpleNamespace(out=tmp_path, web=0, steps=5, captioner_steps=2, filter_steps=3, min_matching=0.5, share=0.0)
  grid = tables.Grid(args)
  text = tables.table(grid, [20, 40], ["none", "filter", "both"], [0, 1, 2], 20, False, False)
  rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| 20 %")]
  assert [row[:3] for row in rows] == [["20 %", "none", "100"], ["20 %", "filter", "0"], ["20 %", "both", "100"]]
  low, high = noise.wilson(0.5, 1940)
  assert rows[0][3:] == ["20.0 ± 24.8", "", "20.0 ± 24.8", "", ""]  # 4.3027 x 0.1 / sqrt(3)
  assert rows[1][3:5] == [f"50.0 ({100 * low:.1f} to {100 * high:.1f})", "+40.0"] and rows[1][-1] == "+0.2"
  assert rows[2][4] == "+3.0 ± 4.3, unclear"  # 0.02, 0.02, 0.05: 4.3027 x 0.01732 / sqrt(3)
  args.steps = 6
  with pytest.raises(SystemExit, match="holds a grid with"):
    tables.Grid(args)
