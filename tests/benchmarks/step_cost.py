"""Cost of the training step by loss: contrastive only, captioning only, both, in turns in one run.

    python tests/benchmarks/step_cost.py

CoCa's Table 8b says 1 : 1.17 : 1.18 on TPU, for Base with 12 decoder layers. So here: 288 px, patch 18, 256 queries,
6 + 6 text layers of 64 tokens, half of Base's widths so that it fits two cores, and a vocabulary of 32,000. The table
compares a contrastive model whose text tower has all 12 layers; ours is given them, as 12 unimodal layers and no
multimodal ones.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from coca import config
from coca.devices import sharding
from coca.devices.host import put_batch
from coca.training.flops import flops_per_pair
from coca.training.state import Setup
from coca.training.step import TrainStep


def settings(batch: int, contrastive: bool, captioning: bool):
  c = config.default()
  c.model.image.update(layers=12, width=384, mlp=1536, heads=6)
  c.model.text.update(vocab=32_000, width=384, mlp=1536, heads=6, unimodal_layers=6, multimodal_layers=6)
  c.model.dtype = "float32"
  c.data.batch = batch
  if not captioning:
    c.model.text.update(unimodal_layers=12, multimodal_layers=0)
    c.captioning.weight = 0.0
  if not contrastive:
    c.contrastive.weight = 0.0
  return config.parse(c)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=7)
  args = parser.parse_args()
  mesh, rng = sharding.make_mesh(), np.random.default_rng(0)
  runs = {}
  for name, losses in {"contrastive": (1, 0), "captioning": (0, 1), "both": (1, 1)}.items():
    c = settings(args.batch, *map(bool, losses))
    setup = Setup(c, mesh)
    state = setup.init_state()
    size, text = c.model.image.size, c.model.text
    batch = put_batch(
      {
        "image": rng.integers(0, 256, (args.batch, size, size, 3), np.uint8),
        "text": rng.integers(4, text.vocab, (args.batch, text.length), np.int32),
        "hashes": rng.integers(2**32, size=(args.batch, 2), dtype=np.uint32),
        "weight": np.ones(args.batch, np.float32),
      },
      mesh,
    )
    step = TrainStep(setup)
    state, _ = jax.block_until_ready(step(state, batch))
    runs[name] = [step, state, batch, [], flops_per_pair(c)["total"]]
  for _ in range(args.rounds):
    for run in runs.values():
      step, state, batch, seconds, _ = run
      began = time.perf_counter()
      run[1], _ = jax.block_until_ready(step(state, batch))
      seconds.append(time.perf_counter() - began)
  base = statistics.median(runs["contrastive"][3])
  for name, (_, _, _, seconds, flops) in runs.items():
    median = statistics.median(seconds)
    print(
      f"{name:<12} {median:6.2f} s a step of {args.batch}: {median / base:.2f}; {flops / 1e9:.1f} GFLOPs a pair: "
      f"{flops / runs['contrastive'][4]:.2f}"
    )


if __name__ == "__main__":
  main()
