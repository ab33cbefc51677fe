"""The training steps of the paper's models, compiled for pods that are not here: what a device holds and sends.

    python tests/benchmarks/plan.py                    # all, one after the other: an hour or more on two cores
    python tests/benchmarks/plan.py giant_2048 base_16

Needs libtpu (`pip install -e '.[plan]'`) and up to 9 GiB of memory. The last column counts the collectives with an
array as large as a device's pictures or image tokens, or of the size of rows of the matrix of all pairs, where that is
no parameter and no embedding: there should be none.
"""

import math
import runpy
import subprocess
import sys
from pathlib import Path

import jax

from coca.config import parse
from coca.models.abstract import abstract_model
from coca.planning.compiled import compile_step
from coca.planning.topology import open_topology

RUNS = {  # config, topology, data x fsdp, pairs a device
  "giant_2048": ("coca_giant", "v4:8x16x16", (32, 64), 32),
  "giant_64": ("coca_giant", "v4:4x4x4", (1, 64), 32),
  "giant_2048_fsdp16": ("coca_giant", "v4:8x16x16", (128, 16), 32),
  "base_2048": ("coca_base", "v4:8x16x16", (256, 8), 64),
  "base_64": ("coca_base", "v4:4x4x4", (8, 8), 64),
  "base_256": ("coca_base", "v5e-256", (32, 8), 64),
  "base_16": ("coca_base", "v5e-16", (2, 8), 64),
  "large_256": ("coca_large", "v5e-256", (16, 16), 32),
  "large_16": ("coca_large", "v5e-16", (1, 16), 32),
}
COLUMNS = (
  "run",
  "topology",
  "data x fsdp",
  "pairs a device",
  "batch",
  "compiled in",
  "peak a device",
  "limit",
  "sent a step",
  "pictures",
)


def main() -> None:
  names = sys.argv[1:] or list(RUNS)
  if len(names) > 1:
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|", flush=True)
    for name in names:  # each in a process of its own, which gives its memory back
      subprocess.run([sys.executable, __file__, name], check=True)
    return
  file, topology, (data, fsdp), pairs = RUNS[names[0]]
  config = runpy.run_path(str(Path(__file__).parents[2] / "configs" / f"{file}.py"))["get_config"]()
  config.mesh.update(data=data, fsdp=fsdp)
  config.data.batch = pairs * data * fsdp
  config, devices = parse(config), open_topology(topology)
  program = compile_step(config, devices)
  sent = sum(row.sent for row in program.collectives)
  others = foreign(config, program, pairs)
  print(
    f"| {names[0]} | {topology} | {data} x {fsdp} | {pairs} | {config.data.batch:,} | {program.seconds:.0f} s | "
    f"{program.peak / 2**30:.2f} GiB | {devices.memory / 2**30:.2f} | {sent / 1e9:.2f} GB | "
    f"{len(others)} |",
    flush=True,
  )
  for row in others:
    print(row, file=sys.stderr, flush=True)


def foreign(config, program, pairs: int) -> list:
  """Collectives of arrays as large as a device's pictures or image tokens, or of the matrix of all pairs' size."""
  image, batch, fsdp = config.model.image, config.data.batch, config.mesh.fsdp
  pictures = pairs * min(3 * image.size**2, image.tokens * image.width)

  def padded(n):  # a device's share of a dimension fills whole tiles
    return {n, *(fsdp * tile * math.ceil(n / fsdp / tile) for tile in (8, 16))}

  matrices = {x.shape[-2:] for x in jax.tree.leaves(abstract_model(config)[1]) if x.ndim > 1}
  known = {a * b // share for m, n in matrices for a in padded(m) for b in padded(n) for share in (1, fsdp)}
  known.add(batch * config.model.text.length)  # the texts, compared for equal ones
  width = config.model.embed_dim or config.model.text.width

  def is_embeddings(row):  # of all pairs or of an fsdp group's, filled up a little
    return row.shape[-1:] == (width,) and any(n <= math.prod(row.shape[:-1]) < 1.05 * n for n in (batch, pairs * fsdp))

  return [
    row
    for row in program.collectives
    if (n := math.prod(row.shape)) not in known
    and not is_embeddings(row)
    and (n >= pictures or n in (batch * pairs, batch * pairs * fsdp, batch**2))
  ]


if __name__ == "__main__":
  main()
