"""Fills the folder `config.data.embeddings` (coca/data/embeddings.py) with states of the run's frozen image encoder."""

import hashlib
import io
import json
import math
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from coca.config import Config
from coca.config.typed import read_object, to_plain
from coca.data.embeddings import parts_of, path_of, row_type
from coca.data.pipeline import image_batches, rows_of
from coca.data.records import Shard, ShardedRecords
from coca.devices import processes
from coca.devices.host import Lagged, from_first, round_up, to_host
from coca.devices.sharding import batch_sharding
from coca.files.writing import write_atomic
from coca.inference.forward import Forward
from coca.models.outputs import compute_dtype


def fill(config: Config, forward: Forward, params, sources: dict[str, ShardedRecords]) -> list[str]:
  """Writes what is missing, a part at a time. Collective: all processes see the folder, and call this.

  Returns:
    what has to be said.

  Raises:
    ValueError: the folder has the states of another encoder, or of images that were decoded in another way.
  """
  folder, first = config.data.embeddings, jax.process_index() == 0
  encoder, own = Path(folder).expanduser() / "encoder.json", fingerprint(config, params)
  if encoder.exists() and read_object(encoder.read_bytes()).get("sha256") != own:
    raise ValueError(
      f"config.data.embeddings={folder} has the embeddings of another image encoder, or of images that were decoded in "
      "another way; name a new folder, or delete that one"
    )
  parts = [(name, part) for name in sorted(sources) for part in parts_of(sources[name])]
  there = from_first(np.array([path_of(folder, *part).exists() for part in parts]))
  missing = [part for part, is_there in zip(parts, there, strict=True) if not is_there]
  if first:
    write_atomic(encoder, json.dumps({"sha256": own}).encode())
  for name, part in tqdm(missing, "embedding images", leave=False, delay=2, disable=None if first else True):
    rows = _embed(config, forward, params, sources[name], part)
    if first:
      file = io.BytesIO()
      np.save(file, rows, allow_pickle=False)
      write_atomic(path_of(folder, name, part), file.getvalue())
  processes.barrier("the first process to write embeddings", math.inf)
  records = sum(part.stop - part.start for _, part in missing)
  return [f"data: {records:,} images were embedded; {folder} has them"] if missing else []


def fingerprint(config: Config, params) -> str:
  """sha256 of the image encoder's parameters and settings, and of how images are decoded for it."""
  model, data = config.model, config.data
  settings = to_plain(model.image), model.norm_eps, model.activation, compute_dtype(config).name
  digest = hashlib.sha256(json.dumps([settings, data.background, data.max_pixels], sort_keys=True).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params["image_encoder"]):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(to_host(leaf).tobytes())
  return digest.hexdigest()


def _embed(config: Config, forward: Forward, params, source: ShardedRecords, part: Shard) -> np.ndarray:
  """The rows of a part, on every process."""
  batch = round_up(min(config.data.batch, part.stop - part.start), forward.mesh)
  states, sums, weights = Lagged(), [], []
  for local, _ in image_batches(config, source, part, rows_of(batch_sharding(forward.mesh), batch), batch):
    device = forward.put(local)
    states.append(forward.first_tokens(params, device["image"]))
    sums.append(to_host(device["sum"]))
    weights.append(to_host(device["weight"]))
  rows = np.empty(part.stop - part.start, row_type(config.model.image.width))
  rows["image"] = np.concatenate(sums)[: len(rows)]
  rows["state"] = np.where(np.concatenate(weights)[:, None] > 0, states.concatenate(), np.nan)[: len(rows)]
  return rows
