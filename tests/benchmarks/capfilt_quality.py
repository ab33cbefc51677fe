"""How well a CapFilt job over scenes told true texts from others, and wrote them: each is judged by its scene."""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from intervals import auc
from tqdm import tqdm

from coca.config import Source
from coca.config.typed import from_plain
from coca.data import sidecars
from coca.data.scenes.judge import judge
from coca.data.scenes.noise import KINDS
from coca.data.sources import open_source
from coca.data.sources.scenes import SceneSource

PARTS = ("object", "number", "relation")  # that the hard kind of noise, 'wrong', changes


def of_job(folder: Path) -> dict:
  """`quality` of a finished job."""
  manifest = sidecars.read_manifest(folder)
  columns = ["index", "text", "origin", "matching", "contrastive", "kept"]
  rows = [
    row
    for shard in manifest["shards"]
    for row in sidecars.read(sidecars.path_of(folder, shard.name), columns).to_pylist()
  ]
  return quality(rows, open_source(from_plain(Source, manifest["source"], f"{folder}/manifest.json: source")))


def quality(rows: Iterable[dict], source: SceneSource) -> dict:
  """Shares and areas; NaN where there is nothing to count.

  Args:
    rows: of the job's sidecars.
    source: the scenes.

  Returns:
    'auc': that of P(match), the web's true texts against its others, 'auc_contrastive' that of the cosine; 'auc_KIND'
    against one kind of noise, 'auc_wrong_PART' against texts of the hard kind with that part wrong; 'auc_synthetic':
    the captioner's true texts against its others. 'web_not_true', 'synthetic_true': shares before the filter, with
    '_kept' behind it of what was kept, 'not_true_kept' of both together. 'web_true_rejected', 'synthetic_rejected':
    shares that are thrown out. 'synthetic_right_parts': the mean share of what the captioner says that is true.
  """
  texts = defaultdict(list)  # by origin: row, judgement and kind of noise
  truth_of = functools.lru_cache(8)(source.truth)  # the texts of an image are beside each other
  for row in tqdm(rows, "judging", disable=None, leave=False):
    if row["text"] is not None and row["origin"] in ("web", "synthetic"):
      truth = truth_of(row["index"])
      texts[row["origin"]].append((row, judge(row["text"], truth.scene), truth.noise))
  web, synthetic = texts["web"], texts["synthetic"]

  def area(of: Iterable, bad: Callable, score: str = "matching") -> float:
    """Of true texts against those that are not and of which `bad` says so, by judgement and kind of noise."""
    scored = [(row[score], found, noise) for row, found, noise in of if row[score] is not None]
    return auc([s for s, found, _ in scored if found], [s for s, f, noise in scored if not f and bad(f, noise)])

  def part(found) -> str:
    return next((part for part in PARTS if part in found.wrong), "")

  kept = {origin: [text for text in texts[origin] if text[0]["kept"]] for origin in ("web", "synthetic")}
  out = {
    "auc": area(web, lambda *_: True),
    "auc_contrastive": area(web, lambda *_: True, "contrastive"),
    "auc_synthetic": area(synthetic, lambda *_: True),
    **{f"auc_{kind}": area(web, lambda _, noise, kind=kind: noise == kind) for kind in KINDS},
    **{f"auc_wrong_{p}": area(web, lambda f, noise, p=p: noise == "wrong" and part(f) == p) for p in PARTS},
  }
  return out | {
    "web_not_true": _share(web, lambda text: not text[1]),
    "web_not_true_kept": _share(kept["web"], lambda text: not text[1]),
    "synthetic_true": _share(synthetic, lambda text: bool(text[1])),
    "synthetic_true_kept": _share(kept["synthetic"], lambda text: bool(text[1])),
    "not_true_kept": _share(kept["web"] + kept["synthetic"], lambda text: not text[1]),
    "web_true_rejected": _share([text for text in web if text[1]], lambda text: not text[0]["kept"]),
    "synthetic_rejected": _share(synthetic, lambda text: not text[0]["kept"]),
    "synthetic_right_parts": _mean(
      sum(p.right for p in found.parts) / len(found.parts) if found.parts else 0.0 for _, found, _ in synthetic
    ),
    "synthetic": len(synthetic),
    "kept": sum(map(len, kept.values())),
  }


def _share(of, holds: Callable) -> float:
  return _mean(float(holds(each)) for each in of)


def _mean(values: Iterable[float]) -> float:
  values = list(values)
  return math.fsum(values) / len(values) if values else math.nan
