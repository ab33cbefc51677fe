"""The least time that a compiled program takes on a card: each of its kernels as long as its products or its bytes do.

XLA has a cost model for GPUs, too (`xla_gpu_collect_cost_model_stats`), which cannot be used: without a card to time
kernels on, it expects batched products to take 50 times as long as they do, and some fusions hours.
"""

from coca.planning import hlo, work
from coca.planning.expected import FREE, Cost, kind_of, part_of, with_parts


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
    shapes, here = work.shapes_of(computations[name]), []
    for line in computations[name]:
      match = hlo.INSTRUCTION.match(line)
      if not match or match[3] in FREE or match[3].endswith(("-start", "-done")):
        continue
      seconds = work.least_seconds(line, shapes, computations, flops, bandwidth)
      kind = "products" if work.is_product(line) else kind_of(line, match[3], computations)
      here.append(Cost(seconds * clock * times, times, kind, *part_of(line), match[1], sources.of(line)))
    found += here if name == entry else with_parts(here)
  return sorted(found, key=lambda cost: -cost.cycles)
