"""The least time that a compiled program takes on a card: each of its kernels as long as its products or its bytes do.

XLA has a cost model for GPUs, too (`xla_gpu_collect_cost_model_stats`), which cannot be used: without a card to time
kernels on, it expects batched products to take 50 times as long as they do, and some fusions hours.
"""

import math
import re

from coca.planning import hlo
from coca.planning.expected import FREE, Cost, kind_of, part_of, with_parts

_NAME = re.compile(r"%([\w.-]+)")
_GEMM = re.compile(r'custom_call_target="__(cublas|cudnn\$conv)')
# The dimensions of the kernel, and whose gradient it is, if any: the labels are always those of the forward pass.
_CONVOLUTION = re.compile(r'dim_labels=\w+_(\w+)->.*"__cudnn\$conv(\w+)"')


def costs(text: str, flops: float, bandwidth: float, clock: float) -> list[Cost]:
  """All kernels, what takes longest first; collectives run beside them and count nothing.

  Args:
    text: `Compiled.as_text()`, for a GPU.
    flops: peak of a device, a second.
    bandwidth: of its memory, bytes a second.
    clock: its cycles a second, in which a `Cost` is told.
  """
  computations, entry = hlo.computations(text)
  sources, found = hlo.Sources(text), []
  fused = {name for lines in computations.values() for line in lines for name in hlo.held(line)}
  for name, (times, _) in hlo.runs(computations, entry).items():
    if name in fused:
      continue
    shapes, here = _shapes(computations[name]), []
    for line in computations[name]:
      match = hlo.INSTRUCTION.match(line)
      if not match or match[3] in FREE or match[3].endswith(("-start", "-done")):
        continue
      called = computations.get(next(iter(hlo.held(line)), ""), [])
      seconds = max(_products(line, shapes, computations) / flops, _moved(match, shapes, called) / bandwidth)
      kind = "products" if _GEMM.search(line) else kind_of(line, match[3], computations)
      here.append(Cost(seconds * clock * times, times, kind, *part_of(line), match[1], sources.of(line)))
    found += here if name == entry else with_parts(here)
  return sorted(found, key=lambda cost: -cost.cycles)


def _shapes(lines: list[str]) -> dict[str, list[hlo.Array]]:
  return {match[1]: hlo.arrays(match[2]) for match in map(hlo.INSTRUCTION.match, lines) if match}


def _operands(match: re.Match) -> list[str]:
  return _NAME.findall(match[4].partition(")")[0])


def _products(line: str, shapes: dict[str, list[hlo.Array]], computations: dict[str, list[str]]) -> float:
  """FLOPs of the matrix products of an instruction, or of its fusion."""
  match = hlo.INSTRUCTION.match(line)
  if not match:
    return 0.0
  if convolution := _CONVOLUTION.search(line):
    arrays = [shapes[name][0][1] for name in _operands(match)[:2]] + [hlo.arrays(match[2])[0][1]]
    outputs, kernel = {"BackwardInput": (0, 1), "BackwardFilter": (1, 2)}.get(convolution[2], (2, 1))
    return 2.0 * math.prod(arrays[outputs]) * math.prod(arrays[kernel]) / arrays[kernel][convolution[1].index("o")]
  if match[3] == "dot" or _GEMM.search(line):
    contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[:=][\[{]"?(\d+)', line)
    left, product = shapes[_operands(match)[0]][0][1], hlo.arrays(match[2])[0][1]
    return 2.0 * math.prod(product) * (left[int(contracted[1])] if contracted else 1)
  inner = [computations.get(name, []) for name in hlo.held(line)] if match[3] == "fusion" else []
  return sum(_products(each, _shapes(lines), computations) for lines in inner for each in lines)


def _moved(match: re.Match, shapes: dict[str, list[hlo.Array]], called: list[str]) -> int:
  """Bytes that an instruction reads and writes: of what a loop keeps the slice alone that it cuts out or puts in."""
  operands = [sum(map(hlo.nbytes, shapes.get(name, ()))) for name in _operands(match)]
  results = hlo.arrays(match[2])
  written = sum(map(hlo.nbytes, results[:1] if _GEMM.search(match[0]) else results))  # a product's second: room to work
  inner = [found for found in map(hlo.INSTRUCTION.match, called) if found]
  shapes = _shapes(called)
  for found in inner:
    if found[3] == "parameter":
      number = int(found[4].partition(")")[0])
      uses = [(user, _operands(user).index(found[1])) for user in inner if found[1] in _operands(user)]
      if uses and all(user[3] == "dynamic-slice" and at == 0 for user, at in uses):
        operands[number] = sum(hlo.nbytes(hlo.arrays(user[2])[0]) for user, _ in uses)
      elif uses and all(user[3] == "dynamic-update-slice" and at == 0 for user, at in uses):
        put_in = sum(hlo.nbytes(shapes[_operands(user)[1]][0]) for user, _ in uses)
        written += put_in - operands[number]
        operands[number] = 0
  return sum(operands) + max(written, 0)
