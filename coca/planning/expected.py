"""The time that a TPU's compiler expects a program to take, read from its text.

libtpu writes beside most instructions how many cycles it expects them to take; they are summed here, each as often as
it runs. It is the compiler's model and no clock. Where its finished schedules are at hand (`coca.planning.schedule`), a
product or a kernel takes as long as its own, or as its FLOPs at the peak or its bytes from memory if these take longer.
What it leaves out is counted by rules: a Pallas kernel without a schedule takes as long as its products, its
exponentials or its bytes do, whichever is longest (`kernel_cycles`); a collective that nothing hides takes its bytes
round a ring. Copies between memories that run beside other work, and what a collective that is hidden takes longer than
the work that hides it, count nothing.
"""

import json
import re
from collections import defaultdict
from typing import NamedTuple

from coca.devices.hardware import Tpu
from coca.planning import hlo, work
from coca.planning.collectives import Collective
from coca.training.flops import scope_of

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN = 2**62  # from here on libtpu's number says that it has none, as of lookups on v6e's SparseCores: bytes count
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_PALLAS = 'custom_call_target="tpu_custom_call"'
# Instructions that only move what is there, and those that cut it out of what a loop keeps, or put it in.
_MOVES = {"copy", "transpose", "reshape", "bitcast", "parameter", "tuple", "get-tuple-element", "slice", "concatenate"}
_SLICES = {"dynamic-slice", "dynamic-update-slice"}
# Those that take no time.
FREE = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "conditional",
  "call",
  "partition-id",
}
_FILLS = {"broadcast", "constant", "iota", "bitcast", "parameter"}
# Share of the peak at which the products of a kernel are counted. The compiler's own schedules of coca's attention come
# to 0.74 forward and 0.77 backward, with 256 tokens and heads of 64 on v5e (tests/benchmarks/RESULTS.md).
IN_KERNELS = 0.75
# Published step times of language models over what is expected of them, by chip: the least and the most of those that
# `tests/benchmarks/calibration.py` rebuilds (tests/benchmarks/RESULTS.md, which says where the model is off).
PUBLISHED = {"v5e": (0.73, 0.83), "v5p": (0.89, 0.98)}
BY_SCHEDULE = {"v5e": (0.85, 0.93), "v5p": (0.97, 1.06)}  # the same, of products by their schedules
KINDS = ("products", "kernels", "copies", "slices of loops", "fills", "reductions", "element-wise", "collectives")


class Cost(NamedTuple):
  """An instruction, or one kind of collective."""

  cycles: float  # a step: of all times that it runs
  times: int
  kind: str  # of `KINDS`
  part: str  # of the model, as its scope is called: 'image_encoder'; '': not known
  backward: bool
  name: str
  source: str  # lines of code, innermost first


def costs(text: str, tpu: Tpu, sent: list[Collective], scheduled: dict[str, int] | None = None) -> list[Cost]:
  """All that takes time, what takes longest first.

  Args:
    text: `Compiled.as_text()`, by libtpu.
    tpu: what it was compiled for.
    sent: the program's collectives.
    scheduled: cycles by the compiler's finished schedules, of the instructions that have one.
  """
  computations, entry = hlo.computations(text)
  sources, found = hlo.Sources(text), []
  for name, (times, _) in hlo.runs(computations, entry).items():
    here, shapes = [], work.shapes_of(computations[name])
    for line in computations[name]:
      cycles = _cycles(line, tpu)
      if cycles:
        match = hlo.INSTRUCTION.match(line)
        name_of_it, op = (match[1], match[3]) if match else ("", "")
        kind = kind_of(line, op, computations)
        if kind in ("products", "kernels") and scheduled and name_of_it in scheduled:
          # Bytes count that the core may hold, and arrays that only a part is read of: no more than without a schedule.
          least = work.least_seconds(line, shapes, computations, tpu.flops, tpu.memory) * tpu.clock
          cycles = max(scheduled[name_of_it], min(least, cycles))
        here.append(Cost(cycles * times, times, kind, *part_of(line), name_of_it, sources.of(line)))
    found += here if name == entry else with_parts(here)
  for row in sent:
    if not row.hidden:
      name = f"{row.kind} {row.dtype}[{','.join(map(str, row.shape))}]"
      found.append(Cost(row.sent / tpu.ring * tpu.clock, row.times, "collectives", "", False, name, ""))
  return sorted(found, key=lambda cost: -cost.cycles)


def with_parts(of_loop: list[Cost]) -> list[Cost]:
  """The compiler's own copies in a loop have no scope: they get that of most of the loop's work."""
  work = defaultdict(float)
  for cost in of_loop:
    if cost.part:
      work[cost.part, cost.backward] += cost.cycles
  if not work:
    return of_loop
  part, backward = max(work, key=lambda key: work[key])
  return [cost if cost.part else cost._replace(part=part, backward=backward) for cost in of_loop]


def part_of(line: str) -> tuple[str, bool]:
  """The part of the model that an instruction is of, ('', ...) if none is named, and whether in the backward pass.

  A loss has what is in none of the model's parts.
  """
  found = _OP_NAME.search(line)
  names = found[1] if found else ""
  return scope_of(names), "transpose" in re.findall(r"\w+", names)[:3]


def kernel_cycles(line: str, tpu: Tpu) -> float:
  """A Pallas kernel's: its products, its exponentials, or its bytes; whichever takes longest.

  The kernel's author states these (`cost_estimate`). Without that, the bytes of what it reads and writes are all that
  is known, once each.
  """
  stated = re.search(r'"cost_estimate":(\{[^}]*\})', line)
  cost = {k: float(v) for k, v in json.loads(stated[1]).items()} if stated else {}
  moved = cost.get("bytes_accessed") or sum(map(hlo.nbytes, hlo.arrays(line.partition("custom_call_target")[0])))
  seconds = cost.get("flops", 0.0) / tpu.flops / IN_KERNELS, moved / tpu.memory
  return max(max(seconds) * tpu.clock, cost.get("transcendentals", 0.0) / tpu.exponentials)


def _cycles(line: str, tpu: Tpu) -> float:
  stated = _CYCLES.search(line)
  if stated and int(stated[1]) < _UNKNOWN:
    return float(stated[1])
  if stated or _PALLAS in line:
    return kernel_cycles(line, tpu)
  return 0.0


def kind_of(line: str, op: str, computations: dict[str, list[str]]) -> str:
  """One of `KINDS`, by the operations of an instruction and of the fusions in it."""
  if _PALLAS in line:
    return "kernels"
  ops = _ops(line, op, computations)
  if ops & {"convolution", "dot"}:
    return "products"
  if ops <= _MOVES:
    return "copies"
  if ops <= _FILLS:
    return "fills"
  if ops & {"reduce", "reduce-window", "sort", "scatter"}:
    return "reductions"
  if ops & _SLICES and ops <= _MOVES | _SLICES | {"convert", "constant", "broadcast", "iota", "select", "compare"}:
    return "slices of loops"
  return "element-wise"


def _ops(line: str, op: str, computations: dict[str, list[str]]) -> set[str]:
  """The operations of an instruction, with those in its fusions."""
  if op != "fusion":
    return {op}
  matches = [(inner, hlo.INSTRUCTION.match(inner)) for name in hlo.held(line) for inner in computations.get(name, ())]
  return set().union(*(_ops(inner, match[3], computations) for inner, match in matches if match))
