"""A source's images with the texts of a CapFilt workdir: BLIP's bootstrapped data set (section 3.3).

A text takes about 25 bytes of memory and its own UTF-8.
"""

import dataclasses
import functools
import operator

import numpy as np
import pyarrow as pa

from coca.config import Source
from coca.config.data import ORIGINS
from coca.data import sidecars
from coca.data.records import BadRecord, Record, Shard, ShardedRecords, Text
from coca.data.sidecars import SidecarError
from coca.files import finding
from coca.files.finding import SETTING

COLUMNS = ("index", "key", "image", "text", "origin", "matching", "contrastive", "kept")


@dataclasses.dataclass(frozen=True)
class _Texts:
  """The part of a sidecar that is used: N texts."""

  index: np.ndarray  # int64 [N], the record's number
  key: np.ndarray  # uint32 [N], checksum of the record's key, 0: unknown
  image: np.ndarray  # uint32 [N], and of its image
  origin: np.ndarray  # int8 [N], place in ORIGINS
  text: list[pa.Array]  # strings, N in all
  all: np.ndarray  # int64 [len(ORIGINS)]: texts before the choice
  scored: dict[str, int]  # of those that are not human, how many have the score


class Bootstrapped:
  """Images of `source` with the kept texts of `settings.sidecars`.

  With `settings.sample` 'text', each kept text is a record with this one text; with 'image', each image that has kept
  texts is one, with all of them. Keys and labels are the source's.

  Raises:
    SidecarError: no workdir, an unfinished or damaged one, texts that are not decided on, or none that is kept; or the
      source has changed since, other images under the same names included.
  """

  def __init__(self, source: ShardedRecords, settings: Source, where: str = SETTING):
    out = settings.sidecars
    self.name, self.label_names, self._source = f"{source.name} + {out}", source.label_names, source
    self._parts: list[Shard] = sidecars.read_manifest(out)["shards"]
    sidecars.check_source(self._parts, source, out)
    sidecars.check_finished(self._parts, out)
    load = functools.partial(_load, settings=settings, where=where)
    found = list(finding.for_each(load, self._parts, "reading sidecars"))
    self._index, self._key, self._image, self._origin = (
      np.concatenate([getattr(texts, name) for texts in found]) for name in ("index", "key", "image", "origin")
    )
    self._texts = pa.chunked_array([chunk for texts in found for chunk in texts.text], pa.string())
    total = sum(texts.all for texts in found)
    for name, least in sidecars.asked_scores(settings).items():
      if not any(texts.scored[name] for texts in found) and total.sum() > total[ORIGINS.index("human")]:
        raise SidecarError(f"{where}.min_{name} is {least}: no text in {out} has this score")
    first = np.flatnonzero(np.diff(self._index, prepend=-1))  # text of each image
    self._first = np.append(first, len(self._index)) if settings.sample == "image" else None
    kept = np.bincount(self._origin, minlength=len(ORIGINS))
    counts = [f"{name} {k:,} of {n:,}" for name, k, n in zip(ORIGINS, kept.tolist(), total.tolist(), strict=True) if n]
    summary = (
      f"{out}: {len(self._index):,} texts for {len(first):,} of {len(source):,} images "
      f"({', '.join(counts) or 'it has none'})"
    )
    if not len(self):
      raise SidecarError(
        f"{summary}: nothing is left to train on; look at {out}/report.html, and at "
        f"{where}.origins, min_matching and min_contrastive"
      )
    probes = np.linspace(0, len(self._index) - 1, min(sidecars.PROBES, len(self._index))).astype(np.int64)
    known = zip(*(values[probes].tolist() for values in (self._index, self._key, self._image)), strict=True)
    sidecars.check_images(source, list(known))
    self.problems = [summary, *source.problems]

  def __len__(self) -> int:
    return len(self._index) if self._first is None else len(self._first) - 1

  def __getitem__(self, i: int) -> Record:
    """Record `i`.

    Raises:
      BadRecord: its image can't be read, or it is not the one that the texts were made for.
    """
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name}: record {i} of {len(self)}")
    start, stop = (i, i + 1) if self._first is None else self._first[i : i + 2].tolist()
    number = int(self._index[start])
    record = self._source[number]
    if problem := sidecars.changed(self._source, number, record, int(self._key[start]), int(self._image[start])):
      raise BadRecord(problem)
    texts = tuple(Text(self._texts[n].as_py(), ORIGINS[self._origin[n]]) for n in range(start, stop))
    return dataclasses.replace(record, texts=texts)

  @property
  def shards(self) -> list[Shard]:
    """Those of the workdir that have kept texts, in this source's numbers."""
    numbers = self._index if self._first is None else self._index[self._first[:-1]]
    ends = np.searchsorted(numbers, [stop for part in self._parts for stop in (part.start, part.stop)]).tolist()
    return [
      Shard(part.name, *ends[2 * n : 2 * n + 2]) for n, part in enumerate(self._parts) if ends[2 * n] < ends[2 * n + 1]
    ]


def _load(shard: Shard, settings: Source, where: str) -> _Texts:
  path = sidecars.path_of(settings.sidecars, shard.name)
  table = sidecars.read(path, COLUMNS)
  index = table["index"].to_numpy()
  if len(index) and not shard.start <= index[0] <= index[-1] < shard.stop:
    raise SidecarError(
      f"{path} has records {index[0]} to {index[-1]}, and its shard {shard.start} to {shard.stop}; "
      "delete it, and the stage writes it again"
    )
  origin = sidecars.origins_of(table)
  others = (origin >= 0) & (origin != ORIGINS.index("human"))
  try:
    rows = sidecars.keep(table, settings)
  except SidecarError as e:
    raise SidecarError(
      f"{path}: {e}; finish the stage, or set {where}.min_matching or min_contrastive to a threshold"
    ) from None
  key = np.fromiter(map(sidecars.key_checksum, table["key"].filter(pa.array(rows)).to_pylist()), np.uint32)
  image = table["image"].fill_null(0).to_numpy()[rows]
  return _Texts(
    index[rows],
    key,
    image,
    origin[rows],
    table["text"].filter(pa.array(rows)).chunks,
    np.bincount(origin[origin >= 0], minlength=len(ORIGINS)),
    {name: np.count_nonzero(others & table[name].is_valid().to_numpy()) for name in sidecars.SCORES},
  )
