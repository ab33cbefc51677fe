"""A web-scale source: how soon training starts on 1,000 tars of 10,000 pairs, and whether it waits for them.

    python tests/benchmarks/web_scale.py --out=DIR

Four tars of JPEG (as many bits a pixel as web photos, see loader.py) are written to DIR, 6 GB, and linked to 1,000
names: 10 million records. The source is opened without indexes and with them, each time in a process of its own. Then a
loop takes batches as coca.train does and sleeps while a device would compute: at the rate that --mfu of --peak is for
the config's model, shared among --cores, of which this machine's take their part.
"""

import argparse
import os
import resource
import runpy
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
from loader import photo

from coca.config import parse
from coca.data.feed import DeviceFeed
from coca.data.pipeline import train_batches
from coca.data.sources import open_source
from coca.data.tokenizers.sentencepiece import train
from coca.training.flops import flops_per_pair

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DIFFERENT = 4  # tars; the others are links


def write_tars(out: Path, tars: int, pairs: int) -> None:
  rng = np.random.default_rng(0)
  photos = [simplejpeg.encode_jpeg(photo(480, 640, rng), 85, colorsubsampling="420") for _ in range(50)]
  print(f"JPEG 640x480, {np.mean([len(p) for p in photos]) / 1e3:.0f} kB each", flush=True)
  for i in range(tars):
    path = out / f"{i:05}.tar"
    if path.exists():
      continue
    if i >= DIFFERENT:
      os.link(out / f"{i % DIFFERENT:05}.tar", path)
      continue
    with tarfile.open(path.with_suffix(".new"), "w") as tar:
      for j in range(pairs):
        key, text = f"{i:05}{j:04}", f"photo number {j} of tar {i}, shown on a page about things".encode()
        for extension, data in (("jpg", photos[j % len(photos)]), ("txt", text), ("json", b'{"status": "success"}')):
          member = tarfile.TarInfo(f"{key}.{extension}")
          member.size = len(data)
          tar.addfile(member, BytesIO(data))
    path.with_suffix(".new").rename(path)


def config_of(name: str, out: Path, batch: int):
  config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
  source = next(iter(config.data.sources.values()))
  config.data.sources = {"web": source}
  source.update(kind="webdataset", path=str(out / "*.tar"), split="")
  config.data.batch = batch
  return parse(config)


def measure(args) -> None:
  config, began = config_of(args.config, args.out, args.batch), time.perf_counter()
  source = open_source(config.data.sources["web"])
  opened = time.perf_counter() - began
  words = train((source[i].texts[0].text for i in range(200)), 300)
  began = time.perf_counter()
  batches = train_batches(config, {"web": source}, words, range(args.batch))
  next(batches)
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(
    f"{len(source):,} records opened in {opened:.1f} s, first batch of {args.batch} after "
    f"{time.perf_counter() - began:.1f} s more; {memory:.2f} GiB of memory",
    flush=True,
  )
  if not args.paced:
    return batches.close()
  began = time.perf_counter()
  for _ in range(args.steps):
    next(batches)
  print(f"nothing but loading: {args.steps * args.batch / (time.perf_counter() - began):,.0f} pairs/s")
  full = args.mfu * args.peak / flops_per_pair(config)["total"]
  rate = full * os.cpu_count() / args.cores
  step = args.batch / rate
  with DeviceFeed(batches, lambda batch: batch) as feed:
    next(feed)
    began, waited = time.perf_counter(), 0.0
    for _ in range(args.steps):
      asked = time.perf_counter()
      next(feed)
      waited += time.perf_counter() - asked
      time.sleep(step)
    seconds = time.perf_counter() - began
  print(
    f"a device that takes {rate:,.0f} pairs/s (for {os.cpu_count()} of {args.cores} cores; all {full:,.0f}) waits "
    f"for data {waited / seconds:.2%} of the time"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--tars", type=int, default=1000)
  parser.add_argument("--pairs", type=int, default=10_000, help="of each tar")
  parser.add_argument("--config", default="coca_base")
  parser.add_argument("--batch", type=int, default=256)
  parser.add_argument("--steps", type=int, default=40)
  parser.add_argument("--mfu", type=float, default=0.5)
  parser.add_argument("--peak", type=float, default=989.4e12, help="FLOP/s of the device; an H100's")
  parser.add_argument("--cores", type=int, default=16, help="beside one device")
  parser.add_argument("--paced", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.measure:
    return measure(args)
  args.out.mkdir(parents=True, exist_ok=True)
  write_tars(args.out, args.tars, args.pairs)
  for index in args.out.glob("*.npz"):
    index.unlink()
  for more in ([], ["--paced"]):
    print("with indexes:" if more else "the first time:", flush=True)
    subprocess.run([sys.executable, *sys.argv, "--measure", *more], check=True)


if __name__ == "__main__":
  main()
