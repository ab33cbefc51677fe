"""A model whose embeddings are known, records in memory, and float64 formulas for ranks."""

import io

import numpy as np
from PIL import Image

from coca.config import Config, ImageEncoder, Model, TextDecoder
from coca.data.records import BadRecord, Record, Text
from coca.decoding.common import Decoded
from coca.devices import sharding
from coca.devices.host import put_batch
from coca.evals import contact_sheet, ranking
from coca.models.outputs import Encoded

NAMES = ("red apple", "green pear", "blue plum", "dark fig", "ripe lemon", "sweet cherry", "wild grape", "old quince")
CONFIG = Config(
  model=Model(image=ImageEncoder(size=8, patch=4, width=16, heads=2), text=TextDecoder(length=32, width=16, heads=2))
)


class Source_:
  """Records in memory; None is one that cannot be read."""

  name, problems = "memory", ()

  def __init__(self, records, label_names=()):
    self.records, self.label_names = records, label_names

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    if self.records[i] is None:
      raise BadRecord(f"record {i} is gone")
    return self.records[i]


def png(colour, mode="RGB", size=8):
  out = io.BytesIO()
  Image.new(mode, (size, size), colour).save(out, "PNG")
  return out.getvalue()


def record(i, *texts, label=-1):
  """A picture of one colour, which tells the fake model its number."""
  return Record(str(i), png((i % 256, i // 256, 7)), tuple(map(Text, texts)), label)


class FakeForward:
  """Embeddings looked up in tables: a picture's by its colour, a text's by what it says."""

  def __init__(self, tokenizer, image_table, text_table=None):
    self.mesh = sharding.make_mesh()
    self.tokenizer, self.image_table, self.text_table = tokenizer, image_table, text_table
    self.calls = []

  def put(self, batch):
    return put_batch(batch, self.mesh)

  def _numbers(self, image):
    pixels = np.asarray(image)[:, 0, 0].astype(int)
    return pixels[:, 0] + 256 * pixels[:, 1]

  def embed_images(self, params, image):
    self.calls.append(("images", image.shape))
    return np.stack([self.image_table[n % len(self.image_table)] for n in self._numbers(image)])

  def embed_texts(self, params, text):
    self.calls.append(("texts", text.shape))
    if self.text_table is None:
      return np.ones((len(text), 1), np.float32)
    return np.stack([self.text_table[self.tokenizer.decode(row)] for row in np.asarray(text)])

  def caption_loss(self, params, batch):
    """A nat for every token but the first, and half of one where the picture is odd."""
    tokens = (np.asarray(batch["text"])[:, 1:] > 0).sum(1) * np.asarray(batch["weight"])
    return np.float32((tokens * (1 + 0.5 * (self._numbers(batch["image"]) % 2))).sum()), np.float32(tokens.sum())

  def writer(self, params):
    return "writer"

  def encode(self, params, image):
    table = np.ones((1, 1), np.float32) if self.image_table is None else self.image_table
    return Encoded(table[self._numbers(image) % len(table)], image)

  def caption(self, writer, encoded, decoding, special, **given):
    self.decoding, self.given, image = decoding, given, encoded.tokens
    assert special == (self.tokenizer.bos, self.tokenizer.eos)
    text = np.stack([self.tokenizer.encode(NAMES[n % len(NAMES)], 32) for n in self._numbers(image)])
    return Decoded(text[:, None], np.zeros((len(text), 1), np.float32))


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def embeddings(seed, *shape):
  return unit(np.random.default_rng(seed).normal(size=shape))


def rank64(scores, right, kind=None):
  """Wrong candidates not below the best right one, one query at a time; of its own `kind` only those before it."""
  ranks = []
  for s, r in zip(scores, right, strict=True):
    k = np.arange(len(s)) if kind is None else np.asarray(kind)
    same = k == k[np.flatnonzero(r)[s[r].argmax()]]
    later = same & (np.arange(len(s)) > np.flatnonzero(same & r)[0])
    ranks.append(np.sum(~r & ~later & (s >= s[r].max() - ranking.TIE)))
  return np.array(ranks)


def recalls64(images, texts, words, owners, equal_texts=True):
  """One query at a time: is one of the right answers among the first K, wrong ones first where scores are equal?

  But for texts that are the same as the best right one: of those a stable sort leaves the first one in front.
  """
  scores = images.astype(np.float64) @ texts.T.astype(np.float64)
  words, n = np.asarray(words), len(images)
  right = np.array(
    [
      [j in np.flatnonzero(owners == i) or (equal_texts and word in words[owners == i]) for j, word in enumerate(words)]
      for i in range(n)
    ]
  )
  asked = right.any(1)
  ranks = {"i2t": rank64(scores[asked], right[asked], words), "t2i": rank64(scores.T, right.T)}
  return {f"{name}_r{k}": np.mean(rank < k) for name, rank in ranks.items() for k in (1, 5, 10)}


def green(image, colour=contact_sheet.RIGHT):
  """Share of pixels in a colour, that of right answers."""
  rgb = tuple(bytes.fromhex(colour[1:]))
  return (np.asarray(image.convert("RGB")) == rgb).all(-1).mean()
