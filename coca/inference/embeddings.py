"""Fills a folder (coca/data/embeddings.py) with states of a frozen image encoder: for training, and for probes.

A job that was killed goes on with the parts that are missing.
"""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from coca.config import Config
from coca.config.typed import read_object, to_plain
from coca.data.embeddings import States, parts_of, path_of
from coca.data.pipeline import image_batches, rows_of
from coca.data.records import Shard, ShardedRecords
from coca.devices import processes
from coca.devices.host import Lagged, from_first, round_up, to_host
from coca.devices.sharding import batch_sharding
from coca.files.writing import write_atomic
from coca.inference.forward import Forward
from coca.models.outputs import compute_dtype


def fill(
  folder: str,
  where: str,
  states: States,
  config: Config,
  forward: Forward,
  params,
  sources: Mapping[str, ShardedRecords],
) -> list[str]:
  """Writes what is missing, a part at a time. Collective: all processes see the folder, and call this.

  Args:
    folder: where the files are.
    where: what names it, for errors.
    states: what is kept.
    config: of the model; `config.data` says how images are decoded and how many at once.
    forward, params: the model.
    sources: by the names of their folders.

  Returns:
    what has to be said.

  Raises:
    ValueError: the folder has the states of another encoder, or of images that were decoded in another way, or other
      states; or float16 is too small for them.
  """
  first, encoder = jax.process_index() == 0, Path(folder).expanduser() / "encoder.json"
  own: dict = {"sha256": fingerprint(config, params, states)}
  if states.labelled:
    own |= json.loads(json.dumps(states._asdict()))
  if encoder.exists():
    found = read_object(encoder.read_bytes())
    if found.get("sha256") != own["sha256"]:
      raise ValueError(
        f"{where}={folder} has the embeddings of another image encoder, or of images that were decoded in another way; "
        "name a new folder, or delete that one"
      )
    if found != own:
      raise ValueError(f"{where}={folder} has other states ({_said(found)}) than are asked for ({_said(own)})")
  parts = [(name, part) for name in sorted(sources) for part in parts_of(sources[name], states)]
  there = from_first(np.array([path_of(folder, *part).exists() for part in parts]))
  missing = [part for part, is_there in zip(parts, there, strict=True) if not is_there]
  if first:
    write_atomic(encoder, json.dumps(own).encode())
  batch = round_up(min(config.data.batch, max((part.stop - part.start for _, part in parts), default=1)), forward.mesh)
  broken = []
  for name, part in tqdm(missing, "embedding images", leave=False, delay=2, disable=None if first else True):
    rows, problems = _embed(config, forward, params, states, sources[name], part, batch)
    broken += problems
    if first:
      file = io.BytesIO()
      np.save(file, rows, allow_pickle=False)
      write_atomic(path_of(folder, name, part), file.getvalue())
  processes.barrier("the first process to write embeddings", math.inf)
  records = sum(part.stop - part.start for _, part in missing)
  said = [f"data: {records:,} images were embedded; {folder} has them"] if missing else []
  return said + ([f"data: {len(broken)} can't be read, such as: {'; '.join(broken[:3])}"] if broken else [])


def fingerprint(config: Config, params, states: States) -> str:
  """sha256 of the parameters and settings that the states come from, and of how images are decoded for them."""
  model, data = config.model, config.data
  settings = [to_plain(model.image), model.norm_eps, model.activation, compute_dtype(config).name]
  decoding = [data.background, data.max_pixels]
  if states.labelled:
    decoding += [data.squash, data.resize, data.filter]
  if states.kind == "pooled":
    settings.append(to_plain(model.poolers))
  digest = hashlib.sha256(json.dumps([settings, *decoding], sort_keys=True).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params if states.kind == "pooled" else params["image_encoder"]):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(to_host(leaf).tobytes())
  return digest.hexdigest()


def _embed(
  config: Config, forward: Forward, params, states: States, source: ShardedRecords, part: Shard, batch: int
) -> tuple[np.ndarray, list[str]]:
  """The rows of a part, on every process, and why images of this one's are not among them."""
  encode = {"class_token": forward.first_tokens, "tokens": forward.tokens, "pooled": forward.features}[states.kind]
  found, more, broken = Lagged(), [], []
  for local, problems in image_batches(
    config, source, part, rows_of(batch_sharding(forward.mesh), batch), batch, states.labelled
  ):
    device = forward.put(local)
    found.append(encode(params, device["image"]))
    more.append({name: to_host(x) for name, x in device.items() if name != "image"})
    broken += problems
  columns = {name: np.concatenate([x[name] for x in more])[: part.stop - part.start] for name in more[0]}
  rows = np.empty(part.stop - part.start, states.row)
  rows["image"] = columns["sum"]
  if states.labelled:
    rows["label"] = columns["label"]
  with np.errstate(over="ignore"):
    rows["state"] = found.concatenate()[: len(rows)]
  if states.type == "float16" and np.isinf(rows["state"]).any():
    raise ValueError(f"states of {source.name} are beyond float16, 65,504: set config.data.embeddings_type to float32")
  rows["state"][columns["weight"] == 0] = np.nan
  return rows, broken


def _said(states: dict) -> str:
  return f"{states.get('kind', 'class_token')} {states.get('shape', '')} {states.get('type', 'float32')}"
