"""The work of an instruction of a compiled program: FLOPs of its matrix products, and bytes."""

import math
import re

from coca.planning import hlo

_NAME = re.compile(r"%([\w.-]+)")
_GEMM = re.compile(r'custom_call_target="__(cublas|cudnn\$conv)')
# The dimensions of the kernel, and whose gradient it is, if any: the labels are always those of the forward pass.
_CONVOLUTION = re.compile(r'dim_labels=\w+_(\w+)->.*"__cudnn\$conv(\w+)"')


def least_seconds(
  line: str, shapes: dict[str, list[hlo.Array]], computations: dict[str, list[str]], flops: float, bandwidth: float
) -> float:
  """As long as an instruction's products take at the peak, or its bytes from and to memory, whichever is longer.

  Args:
    line: the instruction.
    shapes: `shapes_of` its computation's lines.
    computations: of the program, for what is in fusions.
    flops: peak of a device, a second.
    bandwidth: of its memory, bytes a second.
  """
  match = hlo.INSTRUCTION.match(line)
  if not match:
    return 0.0
  called = computations.get(next(iter(hlo.held(line)), ""), [])
  return max(_products(line, shapes, computations) / flops, _moved(match, shapes, called) / bandwidth)


def is_product(line: str) -> bool:
  """True if a GPU's library computes it, as a matrix product or a convolution."""
  return bool(_GEMM.search(line))


def shapes_of(lines: list[str]) -> dict[str, list[hlo.Array]]:
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
  if match[3] == "convolution":
    return _convolution(match, shapes)
  if match[3] == "dot" or _GEMM.search(line):
    contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[:=][\[{]"?(\d+)', line)
    left, product = shapes[_operands(match)[0]][0][1], hlo.arrays(match[2])[0][1]
    return 2.0 * math.prod(product) * (left[int(contracted[1])] if contracted else 1)
  inner = [computations.get(name, []) for name in hlo.held(line)] if match[3] == "fusion" else []
  return sum(_products(each, shapes_of(lines), computations) for lines in inner for each in lines)


def _convolution(match: re.Match, shapes: dict[str, list[hlo.Array]]) -> float:
  """As libtpu writes all products; 0 where padding, strides or gaps say that only parts of it meet."""
  window = re.search(r"window=\{size=([\dx]+)( ?)", match[4])
  if window and window[2]:
    return 0.0
  features = re.search(r"dim_labels=(\w+)_", match[4])[1].index("f")  # pyright: ignore[reportOptionalSubscript]
  contracted = shapes[_operands(match)[0]][0][1][features] * math.prod(map(int, window[1].split("x") if window else ()))
  return 2.0 * math.prod(hlo.arrays(match[2])[0][1]) * contracted


def _moved(match: re.Match, shapes: dict[str, list[hlo.Array]], called: list[str]) -> int:
  """Bytes that an instruction reads and writes: of what a loop keeps the slice alone that it cuts out or puts in."""
  operands = [sum(map(hlo.nbytes, shapes.get(name, ()))) for name in _operands(match)]
  results = hlo.arrays(match[2])
  written = sum(map(hlo.nbytes, results[:1] if _GEMM.search(match[0]) else results))  # a product's second: room to work
  inner = [found for found in map(hlo.INSTRUCTION.match, called) if found]
  shapes = shapes_of(called)
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
