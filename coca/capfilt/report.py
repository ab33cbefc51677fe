"""The report of a CapFilt run, `OUT/report.html`: one file that shows everything and loads nothing.

page/ beside this file holds its parts; they become one file here.
"""

import base64
import hashlib
import html
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from coca.capfilt.tally import COLUMNS, IDENTITIES, PHRASE, C, M, Tally
from coca.data import sidecars
from coca.data.images import decode_eval
from coca.data.records import BadRecord, Records
from coca.files.retries import exists
from coca.files.threads import read_ahead
from coca.files.writing import write_atomic
from coca.inference.page import SIDE, data_url

PARTS = ("frame.html", "style.css", "counts.js", "thresholds.js", "images.js")
SHOWN = ("index", "key", "text", "origin", "matching", "contrastive", "kept", "problem")
ROWS = 1 << 17  # that are held at once
COARSE = 10  # bins of contrastive that the page has as one


def write_report(out, source: Records, limit: int = 400) -> tuple[epath.Path, Tally]:
  """Writes OUT/report.html from OUT/manifest.json and the finished sidecars; it has its name when it is complete.

  Args:
    out: working directory of `python -m coca.capfilt`.
    source: the source that the run read; its images are shown.
    limit: records with their images on the page, spread evenly over the finished shards (20 kB each).

  Returns:
    the page's path, and the counts on it.

  Raises:
    coca.data.sidecars.SidecarError: the manifest or a sidecar can't be read.
  """
  out = epath.Path(out)
  manifest = sidecars.read_manifest(out)
  there = {path.name for path in (out / "texts").iterdir()} if exists(out / "texts") else set()
  finished = [shard for shard in manifest["shards"] if f"{shard.name}.parquet" in there]
  tally, rows = Tally(), {}
  for shard, indices in _spread(finished, manifest.get("preview", limit)):
    path = sidecars.path_of(out, shard.name)
    _count(sidecars.read(path), indices, tally, rows)
  images = read_ahead(lambda index: _image(source, index, rows[index][0]["key"]), rows)
  records = [
    {"index": index, "key": rows[index][0]["key"] or "", **image, "texts": [_text(r) for r in rows[index]]}
    for index, image in zip(rows, images, strict=True)
  ]
  data = {
    "name": out.name,
    "manifest": {k: v for k, v in manifest.items() if k != "shards"},
    "shards": {"finished": len(finished), "all": len(manifest["shards"])},
    "identities": {name: values.most_common(20) for name, values in tally.identities.items()},
    "origins": {
      name: {
        "kept": o.kept,
        "dropped": o.dropped,
        "failed": o.failed,
        "undecided": o.undecided,
        "repeating": o.repeating,
        "repeating_kept": o.repeating_kept,
        "joint": _coarse(o.joint),
      }
      for name, o in tally.origins.items()
      if o.texts
    },
    "images": tally.images,
    "bins": {"matching": M, "contrastive": C // COARSE},
    "phrase": PHRASE,
    "agreement": tally.agreement(),
    "failures": [[reason, *count] for reason, count in sorted(tally.failures.items(), key=lambda f: -f[1][0])[:50]],
    "records": records,
  }
  path = out / "report.html"
  write_atomic(path, _page(f"CapFilt: {out.name}", data).encode("utf-8", "replace"))
  return path, tally


def evenly(count: int, total: int) -> list[int]:
  """`count` of the numbers below `total`, or all of them, at even distances."""
  count = min(count, total)
  return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _spread(shards: list, limit: int) -> list:
  """(shard, the records to show) of each one: `limit` records at even distances over all shards together."""
  ends = np.cumsum([0, *(shard.stop - shard.start for shard in shards)])
  chosen = np.array(evenly(limit, int(ends[-1])), np.int64)
  cuts = np.searchsorted(chosen, ends)
  return [
    (shard, (chosen[a:b] - end + shard.start).tolist())
    for shard, end, a, b in zip(shards, ends, cuts, cuts[1:], strict=False)
  ]


def _count(table: pa.Table, indices: list[int], tally: Tally, rows: dict[int, list[dict]]) -> None:
  """Counts all rows of a shard; of the records in `indices` the rows are added to `rows`."""
  for batch in table.select([*COLUMNS, *IDENTITIES]).to_batches(ROWS):
    tally.add(batch)
  for row in table.select(SHOWN).filter(pc.is_in(table["index"], pa.array(indices, pa.int64()))).to_pylist():
    rows.setdefault(row["index"], []).append(row)


def _image(source: Records, index: int, key: str | None) -> dict:
  """The square that the models saw, as a data URL, or why there is none."""
  try:
    record = source[index]
    if key and sidecars.plain(record.key) != key:
      return {"problem": f"the source has another record here: {record.key}"}
    return {"image": data_url(decode_eval(record.image, SIDE))}
  except BadRecord as e:
    return {"problem": str(e)}
  except (OSError, IndexError) as e:
    return {"problem": f"{type(e).__name__}: {e}"}


def _text(row: dict) -> dict:
  scores = {name: row[name] for name in ("matching", "contrastive")}
  scores = {name: round(s, 5) if s is not None and math.isfinite(s) else None for name, s in scores.items()}
  return {name: row[name] for name in ("text", "origin", "kept", "problem")} | scores


def _coarse(joint: np.ndarray) -> list[list[int]]:
  """[matching's bin, contrastive's, texts] where there are texts; the last bin of either is 'no score'."""
  columns = np.add.reduceat(joint, np.append(np.arange(0, C, COARSE), C), axis=1)
  return [[int(m), int(c), int(columns[m, c])] for m, c in np.argwhere(columns)]


def _page(title: str, data: dict) -> str:
  here = Path(__file__).parent / "page"
  frame, style, *scripts = ((here / name).read_text(encoding="utf-8") for name in PARTS)
  script = "".join(scripts)
  parts = {
    "TITLE": html.escape(title),
    "STYLE": style,
    "SCRIPT": script,
    "STYLE_HASH": _sha256(style),  # the page's policy lets these two run and nothing else, from wherever it came
    "SCRIPT_HASH": _sha256(script),
    # No text can end the script element around it, or begin a comment there.
    "DATA": json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
  }
  # The texts between the marks come from the frame alone, so that nothing in the data is taken for a mark.
  pieces = frame.split("@@")
  pieces[1::2] = [parts[name] for name in pieces[1::2]]
  return "".join(pieces)


def _sha256(text: str) -> str:
  return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
