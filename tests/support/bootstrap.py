"""A small CapFilt workdir for tests: what the stage leaves beside a source, with scores that follow from the number."""

import json
import zlib

from coca.config import Source
from coca.config.typed import to_plain
from coca.data import sidecars
from coca.data.records import BadRecord, split
from coca.data.sources import open_source


def rows_of(source, shard):
  """Two synthetic texts beside a record's own ones. The scores of record n, text k are ((7n + k) mod 11) / 10, and
  that less 0.5; texts of at least 0.5 are kept, and human ones."""
  rows = []
  for n in range(shard.start, shard.stop):
    try:
      record = source[n]
      texts = [(t.text, t.origin) for t in record.texts] + [(f"synthetic {n} {k}", "synthetic") for k in range(2)]
    except BadRecord as e:
      rows.append({"index": n, "key": "", "problem": str(e), "kept": False})
      continue
    for k, (text, origin) in enumerate(texts):
      score = (7 * n + k) % 11 / 10
      rows.append(
        {
          "index": n,
          "key": record.key,
          "image": zlib.crc32(record.image),
          "text": text,
          "origin": origin,
          "matching": score,
          "contrastive": score - 0.5,
          "kept": score >= 0.5 or origin == "human",
          "filter": "sha256:f",
          "version": "1",
          **({"decoding": '{"p": 0.9}', "captioner": "sha256:c"} if k else {}),
        }
      )
  return rows


def write_rows(path, rows):
  sidecars.write(path, {name: [row.get(name) for row in rows] for name in sidecars.SCHEMA.names})


def bootstrap(out, settings: Source, most=4, change=lambda rows: rows):
  """Writes manifest and sidecars for a source; `change` gets each shard's rows."""
  source = open_source(settings)
  shards = split(source.shards, most)
  out.mkdir(parents=True, exist_ok=True)
  (out / "manifest.json").write_text(
    json.dumps(
      {
        "settings": {},
        "captioner": "sha256:c",
        "filter": "sha256:f",
        "version": "1",
        "source": to_plain(settings),
        "shards": [[s.name, s.start, s.stop] for s in shards],
        "threshold": {"matching": 0.5},
      }
    )
  )
  for shard in shards:
    write_rows(sidecars.path_of(out, shard.name), change(rows_of(source, shard)))
  return shards
