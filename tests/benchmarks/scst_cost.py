"""Cost of a step of self-critical sequence training beside one of cross-entropy, in turns in one run, on scenes.

    python tests/benchmarks/scst_cost.py --model=runs/tiny

All train the captioner of configs/finetune_caption.py:tiny from the model's parameters on the same batch. 'wait' is the
share of a step in which the host scores captions and the device has nothing to do.
"""

import argparse
import runpy
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from coca.config import parse
from coca.data.pipeline import open_sources, rows_of, train_batches
from coca.devices import sharding
from coca.inference.forward import Forward
from coca.storage.workdir import read_workdir
from coca.training import self_critical
from coca.training.init_from import start_from
from coca.training.state import Setup
from coca.training.step import TrainStep

FILE = Path(__file__).parents[2] / "configs" / "finetune_caption.py"


class Timed(self_critical.Critic):
  """A critic that knows how long it took to score, once captions were there."""

  scoring = 0.0

  def _rewards(self, ids, references):
    began = time.perf_counter()
    found = super()._rewards(ids, references)
    self.scoring += time.perf_counter() - began
    return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", required=True)
  parser.add_argument("--rounds", type=int, default=7)
  args = parser.parse_args()
  runs = {}
  for name, more in (("cross-entropy", ""), ("greedy", ",scst=greedy"), ("mean of 5", ",scst=mean")):
    draft = runpy.run_path(str(FILE))["get_config"](f"init_from={args.model},tiny{more}")
    draft.contrastive.weight, draft.self_critical.images = 0.0, 500
    config, mesh = parse(draft), sharding.make_mesh()
    tokenizer, sources, setup = read_workdir(args.model)[1], open_sources(config), Setup(config, mesh)
    rows = rows_of(sharding.batch_sharding(mesh), config.data.batch)
    forward, stream = Forward(config, mesh), train_batches(config, sources, tokenizer, rows)
    critic = Timed(config, forward, tokenizer, sources, rows) if more else None
    batch = (critic or forward).put(next(stream)[0])
    stream.close()
    state = start_from(args.model, config, setup.init_state(), mesh)[0]
    runs[name] = [TrainStep(setup), critic, batch, state, []]
  for _ in range(args.rounds + 1):  # the first compiles
    for run in runs.values():
      step, critic, batch, state, seconds = run
      began = time.perf_counter()
      if critic:
        critic.scoring = 0.0
        batch = critic(state.params, batch, int(state.step) + 1)
      run[3], _ = jax.block_until_ready(step(state, batch))
      seconds.append((time.perf_counter() - began, critic.scoring if critic else 0.0))
  base = statistics.median(whole for whole, _ in runs["cross-entropy"][4][1:])
  for name, (*_, seconds) in runs.items():
    whole, scoring = (statistics.median(x) for x in np.array(seconds[1:]).T)
    print(f"{name:<14} {whole:6.2f} s a step of {config.data.batch}: {whole / base:.2f}, wait {scoring / whole:.0%}")


if __name__ == "__main__":
  main()
