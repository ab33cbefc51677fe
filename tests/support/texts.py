"""Sentences by chance, and a source of given captions."""

import random

from coca.data.records import BadRecord, Record, Text

WORDS = [
  "a",
  "the",
  "cat",
  "dog",
  "bird",
  "red",
  "blue",
  "green",
  "small",
  "large",
  "old",
  "new",
  "house",
  "tree",
  "car",
  "boat",
  "sitting",
  "running",
  "on",
  "in",
  "under",
  "with",
  "and",
  "photo",
  "Paris",
  "Ørsted",
  "café",
]


def sentences(n, seed=0):
  draw = random.Random(seed)
  return [" ".join(draw.choices(WORDS, k=draw.randint(2, 12))) for _ in range(n)]


class Records:
  """A source in memory; a text of None is a record that cannot be read."""

  name, problems, label_names = "memory", (), ()

  def __init__(self, captions, origin="web"):
    self.captions, self.origin = captions, origin

  def __len__(self):
    return len(self.captions)

  def __getitem__(self, i):
    if self.captions[i] is None:
      raise BadRecord(f"memory {i}: unreadable")
    return Record(str(i), b"", tuple(Text(t, self.origin) for t in self.captions[i]))
