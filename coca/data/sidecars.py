"""Texts beside a source: what CapFilt writes for each shard (BLIP section 3.3), images not copied.

    OUT/manifest.json           the stage's settings, source, models, thresholds and list of shards
    OUT/texts/SHARD.parquet     one row a text in the order of the records, web texts before synthetic ones; a record
                                without a text has one row. The file exists when the shard is finished

`kept` is a column, so that other thresholds need no new scores (`keep`). The same columns give the same bytes, with the
same version of pyarrow. Checksums tell whether a record still has the image that its texts were made for: files'
times and versions would not, as a copy of the data has others. Paths are local or fsspec URLs.
"""

import os
import re
import zlib
from collections import deque
from collections.abc import Sequence

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coca.config import Source
from coca.config.data import ORIGINS
from coca.config.typed import entry, read_object
from coca.data.records import BadRecord, Record, Shard, ShardedRecords, image_checksum
from coca.files import finding, reading, writing
from coca.files.retries import Unavailable

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
  [
    ("index", pa.int64()),  # number of the record in the source, not in the shard
    ("key", pa.string()),  # the record's; "" where it can't be told
    ("image", pa.uint32()),  # checksum (CRC-32) of the encoded image; null: it could not be read or decoded
    ("text", pa.string()),  # null: none
    ("origin", _NAME),  # of the text, one of coca.config.data.ORIGINS; null without one
    ("matching", pa.float32()),  # P(match) that the filter gives; null: no score
    ("contrastive", pa.float32()),  # cosine of the filter's embeddings, likewise
    ("kept", pa.bool_()),  # null: not decided yet
    ("problem", pa.string()),  # why there is no text or score; null: nothing is wrong
    ("decoding", _NAME),  # JSON of the settings that a synthetic text was written with; else null
    ("captioner", _NAME),  # identity of the model that wrote it; else null
    ("filter", _NAME),  # identity of the model that gave the scores
    ("version", _NAME),  # of the code
  ]
)
LATER = ("image",)  # columns that old sidecars lack; they are read as null
SCORES = ("matching", "contrastive")
PROBES = 256  # records whose images are compared before any work
ROW_GROUP = 1 << 17  # fixed, since it decides the bytes
_PART = re.compile(r"-+\d{5,}$")  # what `coca.data.records.split` puts behind a name
_ERRORS = (pa.ArrowException, OSError, ValueError)


class SidecarError(ValueError):
  """Sidecars or a manifest that can't be used; the message names the file and says what to do."""


def path_of(out: str | os.PathLike, shard: str) -> str:
  """The path of the sidecar of a shard (`Shard.name`) in the CapFilt workdir `out`."""
  return f"{os.fspath(out).rstrip('/')}/texts/{shard}.parquet"


def write(path: str | os.PathLike, columns: dict[str, Sequence]) -> None:
  """Writes a sidecar: all of it or nothing.

  Args:
    path: the file; folders are made.
    columns: equally long lists or arrays by the names in `SCHEMA`, None for null. `index` is needed; columns that are
      left out are null. In keys, what is no Unicode (a file's name in another encoding) is written as '?'.

  Raises:
    ValueError: another column, lengths or types that do not fit, indices that go down, a text without an origin or the
      reverse, a score that is not finite.
    OSError: the file can't be written.
  """
  if unknown := set(columns) - set(SCHEMA.names):
    raise ValueError(f"{path}: no such column: {', '.join(sorted(unknown))}; a sidecar has {', '.join(SCHEMA.names)}")
  count = len(columns.get("index", ()))
  columns = {**dict.fromkeys(SCHEMA.names, [None] * count), **columns}
  columns["key"] = ["" if key is None else plain(key) for key in columns["key"]]
  try:
    table = pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], SCHEMA)
    _check_rows(table)
  except (pa.ArrowException, ValueError, OverflowError) as e:
    raise ValueError(f"{path}: {e}") from None
  for name in SCORES:
    if pc.any(pc.invert(pc.is_finite(table[name]))).as_py():
      raise ValueError(f"{path}: a score in '{name}' is not finite; where there is none, it is null, with a problem")
  with writing.writing(path) as file:
    pq.write_table(
      table,
      file,
      row_group_size=ROW_GROUP,
      compression="zstd",
      compression_level=3,
      version="2.6",
      data_page_version="1.0",
      write_page_checksum=True,
    )


def _check_rows(table: pa.Table) -> None:
  """Raises ValueError unless the columns that are there hold what `write` promises."""
  there = set(table.column_names)
  if "index" in there:
    index = table["index"].to_numpy()
    if index.dtype != np.int64 or (index < 0).any() or (np.diff(index) < 0).any():
      raise ValueError("the column 'index' has nulls or negative numbers, or goes down")
  if {"text", "origin"} <= there and not table["text"].is_valid().equals(table["origin"].is_valid()):
    raise ValueError("each text needs an origin, and each origin a text")
  if "origin" in there and (unknown := set(table["origin"].unique().to_pylist()) - {None, *ORIGINS}):
    raise ValueError(f"unknown origin {min(unknown)!r}; known: {', '.join(ORIGINS)}")


def plain(key: str) -> str:
  """A record's key as sidecars have it."""
  return key.encode("utf-8", "replace").decode()


def key_checksum(key: str) -> int:
  """The checksum by which a key is remembered; 0: it is not known."""
  return zlib.crc32(plain(key).encode()) if key else 0


def changed(source: ShardedRecords, number: int, record: Record, key: int, image: int) -> str:
  """The change of a source's record since its texts were made, by its checksums; empty: there is none."""
  if key not in (0, key_checksum(record.key)):
    was = f"record {number} is '{record.key}', which it was not when its texts were made"
  elif image not in (0, image_checksum(record)):
    was = f"the image of record {number}, '{record.key}', is not the one that its texts were made for"
  else:
    return ""
  shard = next((shard.name for shard in source.shards if shard.start <= number < shard.stop), "")
  return (
    f"{source.name}, {shard}: {was}: the source has changed since; restore it, or run CapFilt on it as it is in "
    "another workdir"
  )


def check_images(source: ShardedRecords, rows: Sequence[tuple[int, int, int]]) -> None:
  """Raises SidecarError if a record is not as it was. `rows`: number and checksums of its key and its image."""

  def look(row):
    try:
      return changed(source, row[0], source[row[0]], *row[1:])
    except BadRecord:  # counted where it is used
      return ""

  for problem in finding.for_each(look, rows, "comparing images"):
    if problem:
      raise SidecarError(problem)


def probes(out: str | os.PathLike, shards: Sequence[Shard]) -> list[tuple[int, int, int]]:
  """Rows for `check_images`: one of each of at most `PROBES` finished shards, evenly spread."""
  rows = []
  for n in range(count := min(PROBES, len(shards))):
    try:
      table = read(path_of(out, shards[n * len(shards) // count].name), ("index", "key", "image"))
    except (FileNotFoundError, SidecarError):  # it is still to be made, or made again
      continue
    if len(table := table.filter(table["image"].is_valid())):
      row = table.slice(len(table) // 2, 1).to_pylist()[0]
      rows.append((row["index"], key_checksum(row["key"]), row["image"]))
  return rows


def read(path: str | os.PathLike, columns: Sequence[str] | None = None) -> pa.Table:
  """A sidecar's rows, of the types in `SCHEMA`.

  Args:
    path: the file.
    columns: which; None: all.

  Raises:
    FileNotFoundError: there is none (the shard is not finished).
    coca.files.retries.Unavailable: the file can't be read; it may be sound.
    SidecarError: damaged, or no sidecar.
  """
  try:
    data = reading.read_all(*fsspec.core.url_to_fs(os.fspath(path)))
  except FileNotFoundError:
    raise FileNotFoundError(f"{path}: no such sidecar; the shard is not finished") from None
  try:
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as opened:
      _check_schema(opened.schema_arrow)
      table = opened.read(list(columns or SCHEMA.names), use_threads=False)
    table.validate(full=True)  # texts are UTF-8
    _check_rows(table)
  except _ERRORS as e:
    raise SidecarError(f"{path} is damaged or no sidecar ({e}); delete it, and the stage writes it again") from None
  for name in set(columns or SCHEMA.names) - set(table.column_names):
    table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
  return table.select(list(columns or SCHEMA.names))


def is_complete(path: str | os.PathLike) -> bool:
  """True if a whole sidecar is there, as far as its last bytes tell (`read` verifies the checksums of all)."""
  try:
    file = reading.one(path)
    # Python's own reading, which is tried again where the disk fails.
    with pq.ParquetFile(pa.PythonFile(reading.RangeFile(file), mode="r")) as opened:
      _check_schema(opened.schema_arrow)
    return True
  except Unavailable:
    raise
  except _ERRORS:
    return False


def _check_schema(schema: pa.Schema) -> None:
  for field in SCHEMA:
    there = schema.get_field_index(field.name)  # -1: none, or several
    found = schema.field(there).type if there >= 0 else None
    if found != field.type and (field.name in schema.names or field.name not in LATER):
      raise ValueError(f"column '{field.name}' is {found or 'missing, or there twice'}; it has to be {field.type}")


# --- Choosing texts ---


def keep(table: pa.Table, settings: Source) -> np.ndarray:
  """True for rows that hold a text to train with: bool [rows].

  Human texts always. Others as `kept` says, or where `settings.min_matching` or `settings.min_contrastive` ask for
  something else, if they have these scores and reach them; a text without the score is not kept. `settings.origins`
  leaves out whole origins.

  Raises:
    SidecarError: a text is not decided on yet, and no threshold is asked for.
  """
  origin = origins_of(table)
  human = origin == ORIGINS.index("human")
  kept = np.ones(len(table), bool)
  asked = asked_scores(settings)
  for name, least in asked.items():
    kept &= table[name].fill_null(-np.inf).to_numpy() >= np.float32(least)
  if not asked:
    undecided = np.count_nonzero((origin >= 0) & ~human & table["kept"].is_null().to_numpy())
    if undecided:
      raise SidecarError(f"{undecided} of {len(table)} texts are not decided on yet ('kept' is null)")
    kept = table["kept"].fill_null(False).to_numpy()
  wanted = [i for i, name in enumerate(ORIGINS) if not settings.origins or settings.origins.get(name, 0) > 0]
  return (kept | human) & np.isin(origin, wanted)


def asked_scores(settings: Source) -> dict[str, float]:
  """The scores that decide at reading, each with the least value kept; empty: `kept` decides."""
  least = {"matching": settings.min_matching, "contrastive": settings.min_contrastive}
  return {name: value for name, value in least.items() if value != getattr(Source(), f"min_{name}")}


def origins_of(table: pa.Table) -> np.ndarray:
  """Position of each row's origin in ORIGINS, int8 [rows]; -1: no text."""
  found = pc.index_in(table["origin"].cast(pa.string()), pa.array(ORIGINS))
  return found.fill_null(-1).to_numpy().astype(np.int8)


# --- The workdir ---


def read_manifest(out: str | os.PathLike) -> dict:
  """manifest.json of a CapFilt workdir, with 'shards' as a list of `Shard`s, and all that `coca.capfilt.job` writes.

  Raises:
    SidecarError: there is none, or a damaged one.
  """
  path = f"{os.fspath(out).rstrip('/')}/manifest.json"
  try:
    file = reading.one(path)
    manifest = read_object(file.read(0, file.size))
    found = {"captioner": None, "filter": None, **manifest}
    for name in ("captioner", "filter", "preview"):  # that may be null or missing
      entry(manifest, name, 0 if name == "preview" else "", most=1 << 53)
    return found | {
      "settings": entry(manifest, "settings", {}),
      "source": entry(manifest, "source", {}),
      "version": entry(manifest, "version", ""),
      "shards": [_shard(shard) for shard in entry(manifest, "shards", list)],
    }
  except FileNotFoundError:
    raise SidecarError(
      f"{out} is no CapFilt workdir: it has no manifest.json; python -m coca.capfilt makes one"
    ) from None
  except Unavailable:
    raise
  except (OSError, ValueError) as e:
    raise SidecarError(
      f"{path} can't be read ({type(e).__name__}: {e}); restore it, or run CapFilt in another workdir"
    ) from None


def _shard(values) -> Shard:
  """Raises ValueError. A name becomes that of a file, so it may not lead out of the folder."""
  if (
    isinstance(values, list)
    and [type(value) for value in values] == [str, int, int]
    and re.fullmatch(r"[\w-][\w.-]*", values[0], re.ASCII)
    and 0 <= values[1] <= values[2] < 1 << 53
  ):
    return Shard(*values)
  raise ValueError(f"{values!r:.80} is no shard; it takes a name, a start and a stop")


def check_source(shards: Sequence[Shard], source: ShardedRecords, out: str | os.PathLike) -> None:
  """Raises SidecarError if `shards` of a manifest are not those of `source` or parts of them; it names the first."""
  now, rest = source.shards, deque(shards)
  names = {shard.name for shard in now}
  wrong = ""
  for shard in now:
    parts = []
    while rest and (
      rest[0].name == shard.name or (rest[0].name not in names and _PART.sub("", rest[0].name) == shard.name)
    ):
      parts.append(rest.popleft())
    ends = [shard.start, *(part.stop for part in parts)]
    if ends[-1] != shard.stop or [part.start for part in parts] != ends[:-1]:
      if parts:
        wrong = (
          f"'{shard.name}' was records {parts[0].start} to {parts[-1].stop} and is now {shard.start} to {shard.stop}"
        )
      elif rest and names.isdisjoint((rest[0].name, _PART.sub("", rest[0].name))):
        wrong = f"'{rest[0].name}' is gone"
      else:
        wrong = f"'{shard.name}' is new, or in another place"
      break
  if not wrong and rest:
    wrong = f"'{rest[0].name}' is gone"
  if wrong:
    raise SidecarError(
      f"{source.name} is not the source that {out} was made from, or has changed since: {wrong}. "
      "Restore it, or run CapFilt on it as it is in another workdir"
    )


def check_finished(shards: Sequence[Shard], out: str | os.PathLike) -> None:
  """Raises SidecarError if shards have no sidecar; it says how many, and the command that goes on."""
  fs, folder = fsspec.core.url_to_fs(f"{os.fspath(out).rstrip('/')}/texts")
  fs.invalidate_cache()
  there = {path.rpartition("/")[2] for path in fs.ls(folder, detail=False)} if fs.isdir(folder) else set()
  missing = [shard.name for shard in shards if f"{shard.name}.parquet" not in there]
  if missing:
    raise SidecarError(
      f"{out}: {len(missing)} of {len(shards)} shards are not finished, such as '{missing[0]}'. The "
      f"command that began goes on with them: python -m coca.capfilt --config=... --workdir={out}"
    )
