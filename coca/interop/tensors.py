"""Other people's tensors as our parameters, and back: the same numbers in another arrangement.

Theirs are names of torch's modules, one tensor a layer, `Linear.weight` as [out, in], and some projections fused by
rows. Ours are paths with '/', layers stacked [L, ...], kernels as [in, out]. A layout is a list of entries; several
entries may name one parameter of ours, where they keep copies of what is shared.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from coca.config import Config
from coca.config.differing import listed
from coca.devices.trees import path_name
from coca.models.abstract import abstract_model


class Entry(NamedTuple):
  """One of their tensors.

  Kinds: 'same'; 'transposed'; 'conv', [D, 3, P, P] where our patches are rows, columns, colours; 'leading', three
  dimensions, the first of them 1; 'temperature', where ours is the logarithm of its inverse.
  """

  key: str
  paths: tuple[str, ...]  # ours; several are rows of theirs, one after the other
  layer: int | None  # index into our stack
  kind: str


def linear(theirs: str, ours: str, layer: int | None = None) -> Iterator[Entry]:
  """The entries of a `torch.nn.Linear`."""
  yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), layer, "transposed")
  yield Entry(f"{theirs}.bias", (f"{ours}/bias",), layer, "same")


def norm(theirs: str, ours: str, layer: int | None = None) -> Iterator[Entry]:
  """The entries of a `torch.nn.LayerNorm`."""
  yield Entry(f"{theirs}.weight", (f"{ours}/scale",), layer, "same")
  yield Entry(f"{theirs}.bias", (f"{ours}/bias",), layer, "same")


def to_params(state_dict: Mapping[str, np.ndarray], config: Config, entries: Iterable[Entry]) -> dict:
  """Our parameters, fp32.

  Args:
    state_dict: as torch saves it.
    config: of the model.
    entries: all tensors of the layout that such a model has.

  Raises:
    ValueError: names that are unknown or missing, or shapes that differ (they are listed), copies of one parameter that
      are not equal, or values that are not finite.
  """
  entries = list(entries)
  shapes, treedef = jax.tree_util.tree_flatten_with_path(abstract_model(config)[1])
  ours = {path_name(path): np.broadcast_to(np.float32(0), x.shape) for path, x in shapes}  # of no size in memory
  _check(state_dict, entries, ours)
  ours = {path: np.zeros(x.shape, np.float32) for path, x in ours.items()}
  filled = {}
  for entry in tqdm(entries, unit=" tensors", desc="converting", disable=None, delay=2):
    if entry.key not in state_dict:  # a copy
      continue
    value = np.asarray(state_dict[entry.key]).astype(np.float32)
    if not np.isfinite(value).all():
      raise ValueError(f"'{entry.key}' holds values that are not finite: the file is damaged, or the training diverged")
    for path, part in zip(
      entry.paths, np.split(value, len(entry.paths)) if len(entry.paths) > 1 else [value], strict=True
    ):
      target = _of_layer(ours[path], entry)
      part = _to_ours(part, entry.kind).reshape(target.shape)
      first = filled.setdefault((path, entry.layer), entry.key)
      if first != entry.key and not np.array_equal(target, part):
        raise ValueError(
          f"'{first}' and '{entry.key}' are one parameter here, and differ in the file: these weights "
          "were trained without sharing them"
        )
      target[...] = part
  return jax.tree.unflatten(treedef, list(ours.values()))


def to_state_dict(params, entries: Iterable[Entry]) -> dict[str, np.ndarray]:
  """Their tensors of our parameters, fp32, in the order of the entries; of copies the first."""
  ours = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
  out, written = {}, set()
  for entry in entries:
    if (entry.paths, entry.layer) in written:
      continue
    written.add((entry.paths, entry.layer))
    parts = [_to_theirs(_of_layer(ours[path], entry), entry.kind) for path in entry.paths]
    out[entry.key] = np.ascontiguousarray(np.concatenate(parts) if len(parts) > 1 else parts[0])
    if not parts[0].ndim:
      out[entry.key] = out[entry.key].reshape(())  # ascontiguousarray makes it [1]
  return out


def _of_layer(x, entry: Entry):
  return x if entry.layer is None else x[entry.layer]


def _to_ours(x, kind: str):
  if kind == "transposed":
    return x.T
  if kind == "conv":
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])
  if kind == "temperature":
    return -np.log(x)
  return x


def _to_theirs(x, kind: str):
  if kind == "transposed":
    return x.T
  if kind == "conv":
    patch = round((x.shape[0] / 3) ** 0.5)
    return x.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
  if kind == "leading":
    return x.reshape((1,) * (3 - x.ndim) + x.shape)
  if kind == "temperature":
    return np.exp(-x)
  return x


def _check(state_dict: Mapping, entries: list[Entry], ours: dict) -> None:
  there = {(path, entry.layer) for entry in entries if entry.key in state_dict for path in entry.paths}
  differing, seen = [], set()
  for entry in entries:
    seen.add(entry.key)
    part = _to_theirs(_of_layer(ours[entry.paths[0]], entry), entry.kind).shape
    expected = (len(entry.paths) * part[0], *part[1:]) if part else part
    if entry.key not in state_dict:
      if not all((path, entry.layer) in there for path in entry.paths):
        differing.append(f"{entry.key}: missing, {list(expected)} expected")
    elif (found := tuple(state_dict[entry.key].shape)) != expected and not (expected == () and found == (1,)):
      differing.append(f"{entry.key}: {list(found)} in the file, {list(expected)} expected")
  differing += [f"{key}: unknown" for key in state_dict if key not in seen]
  if differing:
    raise ValueError(f"the weights are not those of the config:\n  {listed(differing, 12)}")
