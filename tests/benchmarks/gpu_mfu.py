"""MFU of the paper's sizes on the accelerators of this machine, in bfloat16, at the largest batch that fits.

    python tests/benchmarks/gpu_mfu.py
    python tests/benchmarks/gpu_mfu.py --sizes coca_base --set model.remat=full --set model.attention=cudnn

The batch doubles until memory runs out. Random pictures and full-length texts, the config's own optimizer and losses,
data parallel over all devices. FLOPs are those of `coca.plan`: nothing that remat computes again counts. Without an
accelerator, `--runlocal` runs the same code with the configs' small copies; its speed means nothing.
"""

import argparse
import os
import runpy
import statistics
import sys
import time
from pathlib import Path

from coca.training.flops import flops_per_pair

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")  # before jax: the largest batch wants all of it

import jax
import numpy as np
from train_step import changed

from coca import config
from coca.devices import hardware, sharding
from coca.devices.host import put_batch
from coca.training.state import Setup
from coca.training.step import TrainStep

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def settings(size: str, batch: int, runlocal: bool, changes: list[str]):
  c = runpy.run_path(str(CONFIGS / f"{size}.py"))["get_config"]("runlocal" if runlocal else None)
  c.model.dtype = "bfloat16"
  c.mesh.update(data=-1, fsdp=1, tensor=1)
  c.data.batch = batch
  return config.parse(changed(c, changes))


def seconds_a_step(c, steps: int) -> float:
  """The median of `steps` steps after two that warm up; raises jax.errors.JaxRuntimeError if memory runs out."""
  mesh, rng = sharding.make_mesh(c.mesh), np.random.default_rng(0)
  image, text = c.model.image, c.model.text
  batch = put_batch(
    {
      "image": rng.integers(0, 256, (c.data.batch, image.size, image.size, 3), np.uint8),
      "text": rng.integers(4, text.vocab, (c.data.batch, text.length), np.int32),
      "hashes": rng.integers(2**32, size=(c.data.batch, 2), dtype=np.uint32),
      "weight": np.ones(c.data.batch, np.float32),
    },
    mesh,
  )
  setup = Setup(c, mesh)
  state = setup.init_state()
  step, seconds = TrainStep(setup), []
  for _ in range(2 + steps):
    began = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, batch))
    seconds.append(time.perf_counter() - began)
  assert not int(metrics["skipped"]), "a loss or gradient was not finite"
  return statistics.median(seconds[2:])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sizes", nargs="+", default=["coca_base", "coca_large"], help="files of configs/")
  parser.add_argument("--first", type=int, default=32, help="the first batch, of each device")
  parser.add_argument("--last", type=int, default=65_536, help="no larger batch, of each device")
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--set", action="append", default=[], metavar="model.remat=full", help="a setting")
  parser.add_argument("--runlocal", action="store_true")
  args = parser.parse_args()
  devices = jax.devices()
  kind, peak = devices[0].device_kind, hardware.peak_flops(devices[0].device_kind)
  if devices[0].platform == "cpu" and not args.runlocal:
    sys.exit("error: no accelerator here, and MFU on a CPU means nothing; to only run the code, pass --runlocal")
  if args.runlocal:
    args.first, args.last, args.steps = 4, 8, 2
  print(f"{len(devices)} x {kind}, peak {f'{peak / 1e12:.0f} TFLOP/s each' if peak else 'unknown'}")

  for size in args.sizes:
    per_device = args.first
    while per_device <= args.last:
      c = settings(size, per_device * len(devices), args.runlocal, args.set)
      try:
        seconds = seconds_a_step(c, args.steps)
      except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
          raise
        print(f"{c.name}: batch {per_device} a device does not fit (remat {c.model.remat})")
        break
      flops = flops_per_pair(c)["total"] * c.data.batch / seconds / len(devices)
      mfu = f"MFU {flops / peak:.1%}" if peak else "MFU unknown"
      print(
        f"{c.name}: batch {per_device} a device, remat {c.model.remat}, {seconds:.3f} s a step, "
        f"{c.data.batch / seconds:,.0f} pairs/s, {flops / 1e12:.1f} TFLOP/s a device, {mfu}",
        flush=True,
      )
      per_device *= 2


if __name__ == "__main__":
  main()
