"""The data a compiled program sends between devices, read from its text: what kind, along which mesh axes, how much.

What stands in a loop counts as often as the loop runs. TPUs write a collective that overlaps with other work several
times, in the fusions that begin, continue and end it: the one that begins it counts.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from coca.planning import hlo

_KIND = re.compile(
  r" (all-gather|all-reduce|reduce-scatter|ragged-all-to-all|all-to-all|collective-permute|"
  r"collective-broadcast)(-start)?\("
)
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # numbers 0, 1, ... in this shape, transposed


class Collective(NamedTuple):
  """Collectives of one kind along the same axes, whose largest arrays are alike."""

  kind: str  # as XLA calls it: 'all-gather'
  axes: tuple[str, ...]  # of the mesh
  dtype: str
  shape: tuple[int, ...]  # of the largest array on a device: after a gather, before a scatter
  times: int  # a step
  sent: int  # bytes that each device sends a step, if it sends them round a ring
  counted: bool  # whether all loops around them say how often they run; one that does not counts once
  hidden: bool = False  # whether they run beside other work


def collectives(text: str, mesh: dict[str, int]) -> list[Collective]:
  """The collectives in `Compiled.as_text()`, what sends most first.

  Args:
    text: the compiled module.
    mesh: devices along each axis, in the mesh's order.
  """
  computations, entry = hlo.computations(text)
  alike = defaultdict(list)
  for name, (times, counted) in hlo.runs(computations, entry).items():
    lines = computations[name]
    if "async_collective_fusion" in name or any('"AsyncCollectiveDone"' in line for line in lines):
      continue
    starts = any('"AsyncCollectiveStart"' in line for line in lines)
    for line in lines:
      found = _KIND.search(line)
      group = _group(line, math.prod(mesh.values())) if found else ()
      n, axes = len(group), _axes(group, mesh)
      arrays = _arrays(line, found, n) if axes else ()
      if arrays:
        kind = "reduce-scatter" if "all-reduce-scatter" in name else found[1]  # TPUs' fusion of two
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
        sent = times * share * sum(map(hlo.nbytes, arrays))
        key = kind, axes, *max(arrays, key=hlo.nbytes), starts or bool(found[2])
        alike[key].append((times, sent, counted))
  rows = []
  for key, found in alike.items():
    times, sent, counted = zip(*found, strict=True)
    *key, hidden = key
    rows.append(Collective(*key, sum(times), round(sum(sent)), all(counted), hidden))
  return sorted(rows, key=lambda row: -row.sent)


def _arrays(line: str, found: re.Match, n: int) -> list[hlo.Array]:
  """(dtype, shape) of what a collective over n devices leaves on each; of a reduce-scatter, of what it starts from."""
  arrays = hlo.arrays(line[: found.start()].split(" = ", 1)[-1])
  kind, starts = found[1], found[2]
  if starts and kind == "all-gather":  # its inputs come first
    arrays = arrays[len(arrays) // 2 :]
  elif starts and kind == "collective-permute":
    arrays = arrays[1:2]
  elif kind == "reduce-scatter":
    split = int(re.search(r"dimensions=\{(\d+)", line)[1])
    arrays = [(dtype, (*shape[:split], shape[split] * n, *shape[split + 1 :])) for dtype, shape in arrays]
  return arrays


def _axes(group, mesh: dict[str, int]) -> tuple[str, ...]:
  """The mesh axes along which devices lie apart; they are numbered as the mesh has them."""
  places = np.unravel_index(np.asarray(group, int), tuple(mesh.values()))
  return tuple(axis for axis, along in zip(mesh, places, strict=True) if len(set(along.tolist())) > 1)


def _group(line: str, n_devices: int) -> np.ndarray:
  """Numbers of the devices in a collective's first group.

  XLA writes groups as lists, {{0,1},{2,3}}; as a shape of all numbers, [2,2]<=[4]; or as axes of a mesh of its own,
  mesh['a'=2,'b'=2] {'b'}. A permutation has pairs instead: the first that goes somewhere else.
  """
  if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
    pairs = np.array(re.findall(r"\d+", pairs[1]), int).reshape(-1, 2)
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    return np.array(listed[1].split(","), int)
  if shaped := re.search(r"replica_groups=\[([\d,]+)\]<=" + _IOTA, line):
    return _iota(shaped[2], shaped[3]).reshape([int(x) for x in shaped[1].split(",")])[0]
  if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(" + _IOTA + r"\))? \{([^}]*)\}", line):
    shape = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed[1])}
    devices = _iota(meshed[2] or str(math.prod(shape.values())), meshed[3]).reshape(list(shape.values()))
    # An axis may be a part of one, 'a':(2)4: four devices, two apart.
    named = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", meshed[4])
    for name, before, size in named:
      axis = list(shape).index(name)
      if before:
        parts = int(before), int(size), shape[name] // int(before) // int(size)
        devices = devices.reshape(*devices.shape[:axis], *parts, *devices.shape[axis + 1 :])
        names = list(shape)
        shape = dict.fromkeys([*names[:axis], f"{name}<", name, f"{name}>", *names[axis + 1 :]], 0)
      shape = {n: size for n, size in zip(shape, devices.shape, strict=True)}
    names = [name for name, *_ in named]
    return devices[tuple(slice(None) if name in names else 0 for name in shape)].ravel()
  return np.arange(n_devices)


def _iota(shape: str, order: str | None) -> np.ndarray:
  sizes = [int(x) for x in shape.split(",")]
  numbers = np.arange(math.prod(sizes)).reshape(sizes)
  return numbers.transpose([int(x) for x in order.split(",")]) if order else numbers
