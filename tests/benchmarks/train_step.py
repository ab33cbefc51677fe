"""Our training step beside open_clip's coca_ViT-B-32, in turns in one run: pairs/s and peak memory.

    python tests/benchmarks/train_step.py --peer_python=PEER/bin/python

PEER is an environment with torch and open_clip_torch. Each side is a process of its own; while one makes a step, the
other waits. Same shapes (224 px, patch 32, 12 layers of 768; text of 76 tokens and [CLS], vocabulary 49,408, 12 + 12
layers of 512; 256 queries), fp32, AdamW, erf GELU, random pairs with full-length texts, two threads, batch 16. Peak
memory is all of a process: interpreter, libraries, initialisation, compilation, steps.

One difference costs: open_clip has two feed-forwards in each multimodal layer, the paper and we have one. So FLOPs are
printed too, and `--same_flops` widens our text feed-forwards from 2,048 to 3,072, which makes up for it: 254.3M
parameters and 99.8 GFLOPs a pair here, 253.6M and 99.2 there.
"""

import argparse
import ast
import contextlib
import statistics
import sys
from pathlib import Path

from turns import Worker, limit_threads, serve

from coca.training.flops import flops_per_pair

PEER = Path(__file__).with_name("peer_open_clip.py")


def changed(c, changes: list[str]):
  """A ConfigDict with `changes`, as `model.unroll=2`, made in place."""
  for change in changes:
    name, _, value = change.partition("=")
    with contextlib.suppress(SyntaxError, ValueError):  # a word stays one
      value = ast.literal_eval(value)
    c.update_from_flattened_dict({name: value})
  return c


def settings(batch: int, same_flops: bool, changes: list[str]):
  """Our config with the shapes of coca_ViT-B-32. `changes` are as `model.unroll=2`."""
  from coca import config

  c = config.default()
  c.model.image.update(size=224, patch=32, layers=12, width=768, mlp=3072, heads=12)
  c.model.poolers.update(n_query=256, heads=8)
  c.model.text.update(vocab=49_408, length=76, unimodal_layers=12, multimodal_layers=12, width=512, mlp=2048, heads=8)
  c.model.text.mlp = 3072 if same_flops else 2048
  c.model.update(activation="gelu", dtype="float32")
  c.optim.update(name="adamw", lr=1e-4, schedule="constant", warmup="1", b2=0.98, weight_decay=0.2)
  c.data.batch = batch
  return config.parse(changed(c, changes))


def work(args) -> None:
  """Our side: builds the state, then serves steps."""
  limit_threads(args.threads)
  from coca.devices.hardware import keep_memory

  keep_memory()  # as coca.train does
  import numpy as np

  from coca.devices import sharding
  from coca.devices.host import put_batch
  from coca.planning import arithmetic
  from coca.training.state import Setup
  from coca.training.step import TrainStep

  config = settings(args.batch, args.same_flops, args.set)
  mesh = sharding.make_mesh()
  setup = Setup(config, mesh)
  state = setup.init_state()
  step_fn = TrainStep(setup)
  rng, size, text = np.random.default_rng(0), config.model.image.size, config.model.text
  batch = put_batch(
    {
      "image": rng.integers(0, 256, (args.batch, size, size, 3), np.uint8),
      "text": rng.integers(4, text.vocab, (args.batch, text.length), np.int32),
      "hashes": rng.integers(2**32, size=(args.batch, 2), dtype=np.uint32),
      "weight": np.ones(args.batch, np.float32),
    },
    mesh,
  )

  def step():
    nonlocal state
    state, metrics = step_fn(state, batch)
    assert not int(metrics["skipped"])  # waits for the new state, too: it leaves the same program
    return float(metrics["loss"])

  serve(step, parameters=arithmetic.parameter_table(config)[-1][1], flops=flops_per_pair(config)["total"])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--peer_python", help="a Python with torch and open_clip_torch; without it, only ours is timed")
  parser.add_argument("--python", default=sys.executable, help="a Python with coca")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--same_flops", action="store_true")
  parser.add_argument("--set", action="append", default=[], metavar="model.unroll=2", help="a setting of ours")
  parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    return work(args)

  common = [f"--batch={args.batch}", f"--threads={args.threads}"]
  own = [f"--set={change}" for change in args.set] + ["--same_flops"] * args.same_flops
  workers = [Worker("coca", [args.python, __file__, "--worker", *common, *own])]
  if args.peer_python:
    counter = Worker("open_clip", [args.peer_python, str(PEER), *common, "--count"])
    counter.close()
    workers.append(Worker("open_clip", [args.peer_python, str(PEER), *common]))
    workers[1].facts |= counter.facts
  for w in workers:
    w.step()  # compiles, and warms up
    print(
      f"{w.name}: {w.facts['parameters'] / 1e6:.1f}M parameters, {w.facts['flops'] / 1e9:.1f} GFLOPs a pair; "
      f"first step {w.seconds.pop():.1f} s",
      flush=True,
    )
  for _ in range(args.rounds):
    for w in workers:
      w.step()
    print("  ".join(f"{w.name} {w.seconds[-1]:6.2f} s" for w in workers), flush=True)

  for w in workers:
    w.close()
    speed = args.batch / statistics.median(w.seconds)
    print(
      f"{w.name:<10} {speed:.3f} pairs/s (median; best {args.batch / min(w.seconds):.3f}), "
      f"{speed * w.facts['flops'] / 1e9:.1f} GFLOP/s, peak memory {w.peak / 2**30:.2f} GiB, "
      f"loss {w.losses[0]:.2f} to {w.losses[-1]:.2f}"
    )
  if args.peer_python:
    ours, peer = workers
    print(
      f"ours : open_clip: {statistics.median(peer.seconds) / statistics.median(ours.seconds):.2f} x pairs/s "
      f"(best {min(peer.seconds) / min(ours.seconds):.2f}), {ours.peak / peer.peak:.2f} x peak memory"
    )


if __name__ == "__main__":
  main()
