"""Records that say which they are, and the streams of a pipeline as digests of their rows."""

import hashlib
import io

import numpy as np
from PIL import Image

from coca import config as settings
from coca.data import pipeline
from coca.data.records import BadRecord, Record, Text
from coca.data.tokenizers import sentencepiece

SIZE, LENGTH = 16, 24


class Records:
  """A source in memory whose pictures and texts say which record they are."""

  problems = ()

  def __init__(self, name, count, bad=(), labels=()):
    self.name, self.count, self.bad, self.label_names = name, count, dict(bad), labels
    self.reads = 0

  def __len__(self):
    return self.count

  def __getitem__(self, i):
    self.reads += 1
    kind = self.bad.get(i)
    if kind == "unreadable":
      raise BadRecord(f"shard 7: record {i} is cut off")
    y, x = np.mgrid[0:24, 0:24]
    pixels = np.stack([np.full_like(x, i % 256), 10 * x + i, 10 * y], -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    image = out.getvalue()[:60] if kind == "truncated" else out.getvalue()
    words = (f"{self.name} {i}", f"{self.name} number {i}", f"the {i} of {self.name}")
    if kind == "empty":
      words = (" ", "\n")
    return Record(f"{self.name}-{i}", image, tuple(Text(w) for w in words), i % 3 if self.label_names else -1)


def texts_of(name, count):
  return [f"{word} {i}" for word in (name, f"{name} number", "the", f"of {name}") for i in range(count)]


def trained_words():
  return sentencepiece.train(texts_of("web", 200) + texts_of("label", 200), 300)


def make_config(batch=8, threads=2, seed=0, weights=None, **data):
  sources = {name: settings.Source(weight=w) for name, w in (weights or {"web": 1.0, "label": 1.0}).items()}
  return settings.Config(
    seed=seed,
    model=settings.Model(image=settings.ImageEncoder(size=SIZE, patch=8), text=settings.TextDecoder(length=LENGTH)),
    data=settings.Data(sources=sources, batch=batch, threads=threads, **{"crop": (0.3, 1.0), "flip": True, **data}),
  )


SOURCES = {"web": (67, {3: "unreadable", 5: "truncated"}), "label": (40, {1: "empty"})}


def open_sources(names=("web", "label")):
  return {name: Records(name, *SOURCES[name]) for name in names}


def take(batches, steps):
  try:
    return [next(batches) for _ in range(steps)]
  finally:
    batches.close()


def digests(taken):
  """Of every row of every batch: one text that changes with any of its bytes."""
  return [
    [
      hashlib.sha256(b["image"][i].tobytes() + b["text"][i].tobytes() + b["weight"][i].tobytes()).hexdigest()
      for i in range(len(b["weight"]))
    ]
    for b, _ in taken
  ]


def flat(lists):
  return [item for items in lists for item in items]


def global_digests(config, words, rows, start=0, steps=6):
  return digests(take(pipeline.train_batches(config, open_sources(), words, rows, start), steps))
