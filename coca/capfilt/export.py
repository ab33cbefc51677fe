"""The bootstrapped data set as files of its own, with the images, for those who want copies.

One file a shard of the workdir, in the order of its records. The same sidecars give the same bytes. What is finished
stays, so an export that was stopped goes on.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from tqdm import tqdm

from coca.config import Source
from coca.config.data_checks import check_source
from coca.config.typed import from_plain, to_plain
from coca.data import images, sidecars
from coca.data.records import BadRecord, Record, Shard, ShardedRecords
from coca.data.sidecars import SidecarError
from coca.data.sources import open_source
from coca.files import finding, reading, writing
from coca.files.threads import read_ahead

SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}
FIELDS = ("origin", "matching", "contrastive", "decoding", "captioner", "filter", "version")  # of a text
BLOCK = 256  # images held at once
_LEFT = re.compile(r"\..+\.(tar|parquet)\.(partial|[0-9a-f]{32})")  # what `files.writing` has, when it is killed
ROW_GROUP = 100  # rows; a reader that jumps reads a whole group


class _Sample(NamedTuple):
  name: str  # unique in the export
  number: int  # of the record
  key: str
  image: bytes
  rows: list[dict]  # of the sidecar, one a text


@dataclasses.dataclass
class Exported:
  """The numbers of what an export wrote, and of what it found written."""

  files: int = 0
  samples: int = 0
  found: int = 0  # files from before
  problems: list[str] = dataclasses.field(default_factory=list)  # images that could not be read, one text each
  incomplete: list[str] = dataclasses.field(default_factory=list)  # files that lack them


def export(
  out: str | os.PathLike,
  to: str | os.PathLike,
  format: str = "webdataset",
  *,
  sample: str = "text",
  min_matching: float = -1.0,
  min_contrastive: float = -2.0,
  origins: dict[str, float] | None = None,
  source: Source | None = None,
) -> Exported:
  """Writes the kept texts of a CapFilt workdir, human, web and synthetic ones alike, with their images.

  The images' bytes stay as they are; what is no image is never written, whatever a source found there. In names and
  keys of samples stands the record's number in the source, since keys of sources may hold anything; the record's own
  key is the field `key` (Parquet) or in the JSON.

    webdataset   KEY.jpg (or png, webp, ...: what it is), KEY.txt, KEY.json with key, index and the text's scores and
                 origin. With sample 'image' no .txt: the JSON's "caption" lists all texts, "texts" has them with scores
    parquet      the columns key, jpg (the image, of whatever format), caption, index and those of the text. With
                 sample 'image', all columns of the text are lists

  Args:
    out: the workdir, with all shards finished.
    to: a folder, local or an fsspec URL. Shards without a kept text get no file.
    format: 'webdataset', 'parquet'.
    sample: 'text', a sample is a kept text with its image; 'image', an image with all its kept texts.
    min_matching, min_contrastive, origins: other choices than the sidecars' `kept`; as in `coca.config.Source`.
    source: where the images are now; None: where they were.

  Raises:
    ValueError: a wrong setting, or another export is in `to`.
    SidecarError: the workdir is unfinished or damaged, or the source has changed since.
    FileNotFoundError: the source is not there.
    OSError: a file can't be written.
  """
  if format not in SUFFIXES:
    raise ValueError(f"export format {format!r}; it may be {', '.join(map(repr, SUFFIXES))}")
  if sample not in ("text", "image"):
    raise ValueError(f"export sample {sample!r}; it may be 'text', 'image'")
  out, to = os.fspath(out).rstrip("/"), os.fspath(to).rstrip("/")
  manifest = sidecars.read_manifest(out)
  settings = source or from_plain(Source, manifest.get("source", {}), f"{out}/manifest.json: source")
  choice = Source(
    sidecars=out, sample=sample, min_matching=min_matching, min_contrastive=min_contrastive, origins=origins or {}
  )
  check_source(choice, "export")
  opened = open_source(settings, "source" if source else f"{out}/manifest.json: source")
  sidecars.check_source(manifest["shards"], opened, out)
  sidecars.check_finished(manifest["shards"], out)
  _begin(
    to,
    {
      "format": format,
      **{k: v for k, v in to_plain(choice).items() if k in ("sample", "min_matching", "min_contrastive", "origins")},
      "manifest": _manifest_sha256(out),
    },
  )
  done, write = Exported(), _write_tar if format == "webdataset" else _write_parquet
  there = set(_names(to))
  with tqdm(
    total=sum(s.stop - s.start for s in manifest["shards"]), desc=f"export to {to}", unit="image", disable=None
  ) as bar:
    for shard in manifest["shards"]:
      name = shard.name + SUFFIXES[format]
      if name in there:
        done.found += 1
      elif len(table := _chosen(shard, choice)):
        with contextlib.closing(_samples(opened, table, sample, done.problems)) as samples:
          before = len(done.problems)
          done.samples += write(f"{to}/{name}", samples, sample)
        done.files += 1
        done.incomplete += [name] * (len(done.problems) > before)
      bar.update(shard.stop - shard.start)
  return done


def _manifest_sha256(out: str) -> str:
  file = reading.one(f"{out}/manifest.json")
  return hashlib.sha256(file.read(0, file.size)).hexdigest()


def _names(to: str) -> Iterator[str]:
  fs, folder = fsspec.core.url_to_fs(to)
  fs.invalidate_cache()
  for path in fs.ls(folder, detail=False) if fs.isdir(folder) else ():
    yield path.rpartition("/")[2]


def _begin(to: str, settings: dict) -> None:
  """Writes export.json, or compares with the one that is there; removes what a killed export left."""
  fs, folder = fsspec.core.url_to_fs(to)
  if fs.isfile(folder):
    raise ValueError(f"{to} is a file; export to an empty folder")
  names, path = set(_names(to)), f"{to}/export.json"
  if "export.json" not in names and any(name.endswith(tuple(SUFFIXES.values())) for name in names):
    raise ValueError(f"{to} holds other data; export to an empty folder")
  text = (json.dumps(settings, indent=2) + "\n").encode()
  if "export.json" in names:
    file = reading.one(path)
    if file.read(0, file.size) != text:
      raise ValueError(
        f"{to} holds an export with other settings or of another workdir (export.json); export to an empty folder"
      )
  else:
    writing.write_atomic(path, text)
  if isinstance(fs, LocalFileSystem):
    for name in names:
      if _LEFT.fullmatch(name):
        (Path(folder) / name).unlink()


def _chosen(shard: Shard, choice: Source) -> pa.Table:
  """The kept rows of a shard's sidecar."""
  path = sidecars.path_of(choice.sidecars, shard.name)
  table = sidecars.read(path)
  try:
    return table.filter(pa.array(sidecars.keep(table, choice)))
  except SidecarError as e:
    raise SidecarError(f"{path}: {e}; finish the stage, or export with a threshold") from None


def _samples(
  source: ShardedRecords, table: pa.Table, sample: str, problems: list[str]
) -> Generator[_Sample, None, None]:
  numbers, starts = np.unique(table["index"].to_numpy(), return_index=True)
  places = list(zip(numbers.tolist(), starts.tolist(), [*starts[1:].tolist(), len(table)], strict=True))
  records = read_ahead(functools.partial(_read, source), numbers.tolist(), finding.THREADS, BLOCK)
  for (number, start, stop), record in zip(places, records, strict=True):
    rows = table.slice(start, stop - start).to_pylist()
    if isinstance(record, str):
      problems.append(record)
      continue
    key = sidecars.plain(record.key)
    if rows[0]["key"] not in ("", key):
      problems.append(
        f"{source.name}: record {number} is '{key}' and was '{rows[0]['key']}' when its texts were "
        "made; the source has changed since"
      )
    elif problem := _not_exported(source, number, record, rows[0]["image"]):
      problems.append(problem)
    elif sample == "image":
      yield _Sample(f"{number:09d}", number, key, record.image, rows)
    else:
      for n, row in enumerate(rows):
        yield _Sample(f"{number:09d}_{n}", number, key, record.image, [row])


def _read(source: ShardedRecords, number: int) -> Record | str:
  try:
    return source[number]
  except BadRecord as e:
    return str(e)


def _not_exported(source: ShardedRecords, number: int, record: Record, image: int | None) -> str:
  """The reason to leave an image out. Its bytes were decoded when the texts were made, unless there is no checksum:
  then they were not, or the sidecar is an old one."""
  if image is not None:
    return sidecars.changed(source, number, record, 0, image)
  try:
    images.decode_eval(record.image, 1)
    return ""
  except BadRecord as e:
    return f"{source.name}: record {number}, '{record.key}': {e}"


def _write_tar(path: str, samples: Iterator[_Sample], sample: str) -> int:
  count = 0
  with writing.writing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:

    def add(name: str, data: bytes) -> None:
      info = tarfile.TarInfo(name)  # of 1970 and nobody: the same bytes each time
      info.size, info.mode = len(data), 0o644
      tar.addfile(info, io.BytesIO(data))

    for s in samples:
      fields = [{name: row[name] for name in FIELDS} for row in s.rows]
      if sample == "image":
        captions = [row["text"] for row in s.rows]
        meta = {"caption": captions, "texts": [{"text": t, **f} for t, f in zip(captions, fields, strict=True)]}
      else:
        meta = {"caption": s.rows[0]["text"], **fields[0]}
      add(f"{s.name}.{_extension(s.image)}", s.image)
      add(f"{s.name}.json", json.dumps({"key": s.key, "index": s.number, **meta}, ensure_ascii=False).encode())
      if sample == "text":
        add(f"{s.name}.txt", s.rows[0]["text"].encode())
      count += 1
  return count


def _write_parquet(path: str, samples: Iterator[_Sample], sample: str) -> int:
  columns = {"caption": "text", **dict(zip(FIELDS, FIELDS, strict=True))}  # of a text: here and in the sidecar
  kinds = {name: sidecars.SCHEMA.field(of).type for name, of in columns.items()}
  if sample == "image":
    kinds = {name: pa.list_(pa.string() if pa.types.is_dictionary(kind) else kind) for name, kind in kinds.items()}
  schema = pa.schema([("key", pa.string()), ("jpg", pa.binary()), ("index", pa.int64()), *kinds.items()])
  count = 0
  with writing.writing(path) as file, pq.ParquetWriter(file, schema, compression="zstd", version="2.6") as writer:
    while part := list(itertools.islice(samples, ROW_GROUP)):
      rows = [
        {
          "key": s.key,
          "jpg": s.image,
          "index": s.number,
          **{name: [row[of] for row in s.rows] if sample == "image" else s.rows[0][of] for name, of in columns.items()},
        }
        for s in part
      ]
      writer.write_table(pa.Table.from_pylist(rows, schema))
      count += len(part)
  return count


def _extension(image: bytes) -> str:
  """The ending of the file with these bytes, which are an image: jpg, png, webp, ..."""
  if image.startswith(b"\xff\xd8\xff"):
    return "jpg"
  with Image.open(io.BytesIO(image), formats=images.FORMATS) as opened:
    return {"TIFF": "tif"}.get(opened.format, opened.format.lower())
