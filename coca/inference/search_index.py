"""An index of images by their embeddings, a folder that grows:

    INDEX/index.json                 the model it is of
    INDEX/parts/000000000000.npy     embeddings, float16 [n, E], of the rows from that number on
    INDEX/parts/000000000000.json    where these are: {"data": PATH, "keys": [n], "places": [n]}
    INDEX/graph.usearch              for approximate search, of the first rows (HNSW, arXiv:1603.09320)

A part is there whole or not at all, so that a killed run loses no more than the one that it was at.
"""

import bisect
import functools
import importlib.util
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from coca.data.records import BadRecord, ShardedRecords
from coca.files.threads import read_ahead
from coca.files.writing import write_atomic, writing
from coca.inference.batches import SAID
from coca.inference.identity import identity
from coca.inference.images import images_in, is_folder, is_url

BATCH = 64  # images that are embedded at once
PART, SECONDS = 4096, 60  # rows of a part at most, and how long one may take to fill
GRAPH = 100_000  # rows from which on there is a graph: fewer are compared one by one in about a second
EXPANSION = 512  # candidates of a search of the graph; texts lie far from images, and find 90 % of their ten with 128


class Images:
  """Those that a path names.

  Args:
    path: an image, a folder of images, or the name of `source`.
    source: whose records they are; None: they are files.
  """

  def __init__(self, path: str, source: ShardedRecords | None = None):
    self.path, self._source = path, source
    self._starts = {shard.name: shard.start for shard in source.shards} if source is not None else {}
    self.problems = source.problems if source is not None else ()

  def places(self) -> Iterator[str]:
    """The place of each: its path or URL, or SHARD#ROW, which stays as it is when there are more shards."""
    if self._source is None:
      yield from map(str, images_in(self.path) if is_folder(self.path) else [self.path])
    else:
      for shard in self._source.shards:
        yield from (f"{shard.name}#{i}" for i in range(shard.stop - shard.start))

  def read(self, model, place: str) -> tuple[str, np.ndarray]:
    """Its key (the path, or the record's) and uint8 [S, S, 3], as the model sees it. Raises ValueError, ImportError."""
    if self._source is None:
      return place, model.prepare(place)
    shard, _, row = place.rpartition("#")
    try:
      record = self._source[self._starts[shard] + int(row)]
      return record.key, model.decode(record.image)
    except (KeyError, IndexError):
      raise ValueError(f"{self.path} has no {place} any more") from None
    except BadRecord as e:
      raise ValueError(f"{self.path}, {place}: {e}") from e


class Found(NamedTuple):
  """An image that was found: its cosine, its key, and the path and the place it was read from."""

  cosine: float
  key: str
  data: str
  place: str


class SearchIndex:
  """An index that is there.

  Args:
    folder: local.

  Attributes:
    model: where the model was that made it.

  Raises:
    FileNotFoundError: there is none.
    ValueError: the folder is of another kind.
  """

  def __init__(self, folder):
    self._folder = Path(folder)
    try:
      about = json.loads((self._folder / "index.json").read_bytes())
      self.model, self._identity = str(about["model"]), about["identity"]
    except FileNotFoundError:
      raise FileNotFoundError(f"{folder} is no search index; --data=PHOTOS --model=MODEL make one") from None
    except (ValueError, KeyError, TypeError):
      raise ValueError(f"{folder}/index.json is not that of a search index") from None
    self._names = functools.lru_cache(maxsize=64)(_names)
    self._parts = sorted((self._folder / "parts").glob("*.npy"))
    self._starts = [int(path.stem) for path in self._parts]

  def __len__(self) -> int:
    return self._starts[-1] + len(self._vectors(-1)) if self._parts else 0

  def check(self, model, name: str) -> None:
    """Raises ValueError where `model`, which lies at `name`, is not the one that made the index."""
    if identity(model) != self._identity:
      raise ValueError(
        f"{self._folder} is the index of another model: of {self.model} as it was then, and not of {name} as it is "
        "now. Give that model with --model=, or make another index"
      )

  def add(self, model, images: Images) -> tuple[int, int, int]:
    """Embeds the images that the index lacks; one writer at a time.

    Returns:
      how many were embedded, how many were there, and how many can't be read.

    Raises:
      ValueError: a folder without images, or a model that makes no embeddings.
      ImportError: as `coca.inference.images.locate`.
    """
    there = self._places(images.path)
    places = list(images.places())
    todo = [place for place in places if place not in there]
    rows, vectors, begun, added, broken = [], [], time.monotonic(), 0, 0

    def read(place):
      try:
        return place, *images.read(model, place)
      except ValueError as e:
        return place, str(e), None

    found = read_ahead(read, todo, ahead=2 * BATCH)
    with tqdm(total=len(places), initial=len(places) - len(todo), unit=" images", disable=None) as bar:
      while batch := list(itertools.islice(found, BATCH)):
        for reason in [said for _, said, pixels in batch if pixels is None]:
          broken += 1
          if broken <= SAID:
            logging.warning("%s", reason)
        if good := [(place, key, pixels) for place, key, pixels in batch if pixels is not None]:
          vectors.append(model.embed_images([pixels for _, _, pixels in good]).astype(np.float16))
          rows += [(key, place) for place, key, _ in good]
        if rows and (len(rows) > PART - BATCH or time.monotonic() - begun > SECONDS):
          self._write(images.path, rows, np.concatenate(vectors))
          added, rows, vectors, begun = added + len(rows), [], [], time.monotonic()
        bar.update(len(batch))
    if rows:
      self._write(images.path, rows, np.concatenate(vectors))
    return added + len(rows), len(places) - len(todo), broken

  def _write(self, data: str, rows: Sequence[tuple[str, str]], vectors: np.ndarray) -> None:
    start = len(self)
    path = self._folder / "parts" / f"{start:012d}.npy"
    keys, places = zip(*rows, strict=True)
    write_atomic(path.with_suffix(".json"), json.dumps({"data": data, "keys": keys, "places": places}).encode())
    with writing(path) as file:
      np.save(file, vectors, allow_pickle=False)
    self._parts.append(path)
    self._starts.append(start)

  def build_graph(self) -> None:
    """Brings INDEX/graph.usearch up to the last row. Raises ImportError without usearch."""
    if not has_usearch():
      raise ImportError("a graph for approximate search takes usearch: pip install -e '.[search]'")
    path, count = self._folder / "graph.usearch", len(self)
    graph = _graphs().restore(str(path)) if path.exists() else None
    if graph is None:
      graph = _graphs()(ndim=self._vectors(0).shape[1], metric="ip", dtype="f16")
    with tqdm(total=count, initial=len(graph), unit=" images", desc="graph", disable=None) as bar:
      for start, vectors in self._blocks(len(graph)):
        graph.add(np.arange(start, start + len(vectors)), vectors)
        bar.update(len(vectors))
    scratch = path.with_name(".graph.partial")
    graph.save(str(scratch))
    os.replace(scratch, path)

  def search(self, queries: np.ndarray, k: int = 10, exact: bool = False) -> list[list[Found]]:
    """The images that are closest to each query, the best first.

    Args:
      queries: float32 [Q, E], unit length.
      k: images of each.
      exact: whether all rows are compared, also where there is a graph.

    Returns:
      k images or all that there are, of each query; the cosines are exact to the embeddings' float16.
    """
    best = [(np.zeros(0, np.float32), np.zeros(0, np.int64)) for _ in queries]
    seen, path = 0, self._folder / "graph.usearch"
    if not exact and path.exists() and has_usearch():
      graph = _graphs().restore(str(path), view=True, expansion_search=max(EXPANSION, 2 * k))
      seen = len(graph)
      for i, query in enumerate(queries):
        rows = graph.search(query, k).keys.astype(np.int64)
        cosines = [self._vectors(part)[row - self._starts[part]] @ query for row in rows for part in [self._part(row)]]
        best[i] = _top(np.array(cosines, np.float32), rows, k)
    for start, vectors in self._blocks(seen):  # rows that are newer than the graph, or all
      for i, cosines in enumerate(queries @ vectors.astype(np.float32).T):
        rows = np.arange(start, start + len(vectors))
        best[i] = _top(np.concatenate([best[i][0], cosines]), np.concatenate([best[i][1], rows]), k)
    return [[self._found(*one) for one in zip(*each, strict=True)] for each in best]

  def _found(self, cosine: np.float32, row: int) -> Found:
    part = self._part(row)
    names, i = self._names(self._parts[part]), row - self._starts[part]
    return Found(float(cosine), names["keys"][i], names["data"], names["places"][i])

  def _places(self, data: str) -> set[str]:
    """Those in the index of images that `data` may name: records of it, and all files."""
    named = map(self._names, self._parts)
    return {
      place for names in named if names["data"] == data or names["keys"] == names["places"] for place in names["places"]
    }

  def _part(self, row: int) -> int:
    return bisect.bisect(self._starts, row) - 1

  def _blocks(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """The rows from one on, part by part: (number of the first, float16 [n, E])."""
    for part in range(max(self._part(start), 0), len(self._parts)):
      first = max(start, self._starts[part])
      vectors = self._vectors(part)[first - self._starts[part] :]
      if len(vectors):
        yield first, vectors

  def _vectors(self, part: int) -> np.ndarray:
    return np.load(self._parts[part], mmap_mode="r", allow_pickle=False)


def make_index(folder, model, name: str) -> SearchIndex:
  """The index in a folder, or a new one, of a model that lies at `name`.

  Raises:
    ValueError: the one that is there is of another model, or this one makes no embeddings.
  """
  path = Path(folder) / "index.json"
  model.embed_texts([])  # says so where it makes no embeddings, before there is an index of it
  if not path.exists():
    write_atomic(path, json.dumps({"model": name, "identity": identity(model)}).encode())
  index = SearchIndex(folder)
  index.check(model, name)
  return index


def read_found(model, found: Found, opened: Callable[[str], Images], allow_urls: bool) -> tuple[np.ndarray | None, str]:
  """An image that was found, uint8 [S, S, 3], or None and why not; what names it may be somebody else's index.

  Args:
    model: that made the index.
    found: the image.
    opened: from paths to the images that they name.
    allow_urls: whether images that are not on this machine may be opened.
  """
  try:
    if not allow_urls and (is_url(found.data) or is_url(found.place)):
      raise ValueError("it is not on this machine; --allow_urls opens it, with your credentials")
    key, pixels = opened(found.data).read(model, found.place)
    return (pixels, "") if key == found.key else (None, f"{found.data} has {key} there now")
  except (ValueError, OSError) as e:
    return None, str(e)


def has_usearch() -> bool:
  """True where the extra 'search' is installed."""
  return importlib.util.find_spec("usearch") is not None


def _graphs():
  return importlib.import_module("usearch.index").Index


def _names(part: Path) -> dict:
  return json.loads(part.with_suffix(".json").read_bytes())


def _top(cosines: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  order = np.argsort(-cosines, kind="stable")[:k]
  return cosines[order], rows[order]
