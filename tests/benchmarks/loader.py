"""Speed of decoding and of the whole loader, images/s.

  python tests/benchmarks/loader.py

Decoders are timed in turns, several rounds in one run, in CPU time of one thread; a decoder's time is its best round.
The loader is timed by the wall clock, and in CPU time of all its threads. No photos are needed: the JPEGs are made from
noise at several scales, shapes and grain, with about the bits a pixel of web photos.
"""

import argparse
import dataclasses
import io
import time

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from coca import config as settings
from coca.data import images, pipeline
from coca.data.records import Record, Text
from coca.data.tokenizers import sentencepiece


def photo(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
  """Something with the entropy of a photo: uint8 [H, W, 3]."""
  pixels = np.full((height, width, 3), 128, np.float32)
  for scale, strength in ((128, 45), (32, 25), (8, 12), (3, 7), (1, 8)):
    noise = rng.standard_normal((height // scale + 2, width // scale + 2, 3)).astype(np.float32)
    pixels += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
  pixels = np.clip(pixels, 0, 255).astype(np.uint8)
  for _ in range(15):
    centre = (int(rng.integers(width)), int(rng.integers(height)))
    shade = tuple(int(v) for v in rng.integers(0, 255, 3))
    cv2.circle(pixels, centre, int(rng.integers(5, height // 5)), shade, int(rng.choice([-1, 2])), cv2.LINE_AA)
  return pixels


def drawing(size: int, rng: np.random.Generator) -> bytes:
  """A small flat drawing as WebP, as the built-in corpus has them."""
  pixels = np.full((size, size, 3), 255, np.uint8)
  for _ in range(6):
    shade = tuple(int(v) for v in rng.integers(0, 255, 3))
    centre = tuple(int(v) for v in rng.integers(8, size - 8, 2))
    cv2.circle(pixels, centre, int(rng.integers(4, 20)), shade, -1, cv2.LINE_AA)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "WEBP", quality=75)
  return out.getvalue()


def pillow(data: bytes, size: int) -> np.ndarray:
  image = Image.open(io.BytesIO(data)).convert("RGB")
  side = min(image.size)
  left, top = (image.width - side) // 2, (image.height - side) // 2
  return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)))


class Memory:
  """Encoded pictures in memory as a source."""

  name, problems, label_names = "memory", (), ()

  def __init__(self, pictures: list[bytes], length: int):
    self.pictures, self.length = pictures, length

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, i: int) -> Record:
    return Record(str(i), self.pictures[i % len(self.pictures)], (Text(f"a drawing of thing number {i}"),))


def decoders(shape: tuple[int, int], size: int, rounds: int) -> None:
  rng = np.random.default_rng(0)
  pictures = [simplejpeg.encode_jpeg(photo(*shape, rng), 85, colorsubsampling="420") for _ in range(20)]
  bits = 8 * np.mean([len(p) for p in pictures]) / (shape[0] * shape[1])
  ways = {
    "Pillow decode + bicubic": lambda p: pillow(p, size),
    "decode_eval": lambda p: images.decode_eval(p, size),
    "decode_train, no crop": lambda p: images.decode_train(p, size, rng),
    "decode_train, crop 0.5-1": lambda p: images.decode_train(p, size, rng, (0.5, 1.0), True),
  }
  best = dict.fromkeys(ways, float("inf"))
  for _ in range(rounds):
    for name, decode in ways.items():
      began = time.thread_time()
      for picture in pictures:
        decode(picture)
      best[name] = min(best[name], (time.thread_time() - began) / len(pictures))
  print(f"\n{shape[1]}x{shape[0]} JPEG ({bits:.1f} bits a pixel) to {size}, one thread")
  for name, seconds in best.items():
    print(f"  {name:26} {1 / seconds:7.0f} images/s   {best['Pillow decode + bicubic'] / seconds:5.2f} x Pillow")


def loader(label: str, pictures: list[bytes], config: settings.Config, rounds: int) -> None:
  source = Memory(pictures, 10_000)
  words = sentencepiece.train((source[i].texts[0].text for i in range(1000)), 500)
  batch = config.data.batch
  best, core = {1: 0.0, 2: 0.0}, {1: 0.0, 2: 0.0}
  for _ in range(rounds):
    for threads in best:
      data = dataclasses.replace(config.data, threads=threads)
      batches = pipeline.train_batches(dataclasses.replace(config, data=data), {"memory": source}, words, range(batch))
      next(batches)
      began, cpu, count = time.perf_counter(), time.process_time(), 0
      while time.perf_counter() - began < 1.5:
        next(batches)
        count += batch
      best[threads] = max(best[threads], count / (time.perf_counter() - began))
      core[threads] = max(core[threads], count / (time.process_time() - cpu))
      batches.close()
  print(
    f"\nwhole loader, {label}: {best[1]:.0f} examples/s with 1 thread, {best[2]:.0f} with 2 "
    f"({core[1]:.0f} and {core[2]:.0f} a second of CPU time)"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=7)
  rounds = parser.parse_args().rounds
  decoders((480, 640), 224, rounds)
  decoders((480, 640), 288, rounds)
  decoders((960, 1280), 224, rounds)

  def config(size: int, batch: int, **data) -> settings.Config:
    model = settings.Model(image=settings.ImageEncoder(size=size, patch=8), text=settings.TextDecoder(length=16))
    return settings.Config(model=model, data=settings.Data(sources={"memory": settings.Source()}, batch=batch, **data))

  rng = np.random.default_rng(1)
  loader("64 px WebP to 48, crop 0.6-1", [drawing(64, rng) for _ in range(500)], config(48, 256, crop=(0.6, 1.0)), 3)
  photos = [simplejpeg.encode_jpeg(photo(480, 640, rng), 85, colorsubsampling="420") for _ in range(20)]
  for label, more in (("", {}), (", RandAugment", {"rand_augment": (2, 5)})):
    loader(f"640x480 JPEG to 224, crop 0.5-1{label}", photos, config(224, 64, crop=(0.5, 1.0), flip=True, **more), 3)


if __name__ == "__main__":
  main()
