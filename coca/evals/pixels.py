"""The pixel baseline: the text of the nearest training image, taken over."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from coca.data import images
from coca.data.records import BadRecord, Records
from coca.evals.stream import spread
from coca.files.threads import read_ahead

THUMB = 16  # pixels a side of what is compared
SOME = 20_000  # training images that stand for an endless source, or a very large one


class Neighbour(NamedTuple):
  """An image and what the nearest training image says of it."""

  index: int  # of the image in its source
  text: str  # its own first text
  taken_over: str  # the first text of the nearest training image


def nearest(source: Records, neighbours: Records, most: int = 0) -> Iterator[Neighbour]:
  """The nearest training image of each image: the least Euclidean distance of 16x16 RGB pixels.

  Those are of the central square, on white, antialiased. Images that can't be read or have no text are left out.

  Args:
    source: the images.
    neighbours: the training images. Those of the last call are kept, 0.8 kB each, for evaluators that have the same.
    most: that many of them, evenly spread; 0: all.

  Raises:
    ValueError: one of the two has no image with a text.
  """
  train, test = _neighbours(neighbours, most), _thumbnails(source, range(len(source)))
  for where, found in ((neighbours, train), (source, test)):
    if not found.texts:
      raise ValueError(f"pixel baseline: '{where.name}' has no readable image with a text")
  pixels = _centred(train.pixels)
  half_squares = 0.5 * np.square(pixels).sum(axis=1)
  for start in range(0, len(test.texts), 1024):
    products = _centred(test.pixels[start : start + 1024]) @ pixels.T
    for i, n in enumerate(np.argmax(products - half_squares, axis=1), start):
      yield Neighbour(test.index[i], test.texts[i], train.texts[n])


class _Thumbnails(NamedTuple):
  index: list[int]
  pixels: np.ndarray  # uint8 [N, 16 * 16 * 3]
  texts: list[str]


@functools.lru_cache(maxsize=1)
def _neighbours(source: Records, most: int) -> _Thumbnails:
  return _thumbnails(source, spread(len(source), most))


def _thumbnails(source: Records, indices) -> _Thumbnails:
  def load(i):
    try:
      record = source[int(i)]
      return int(i), images.decode_eval(record.image, THUMB).reshape(-1), record.texts[0].text
    except (BadRecord, IndexError) as e:
      logging.log_first_n(logging.WARNING, "pixel baseline leaves out record %d of %s: %s", 3, i, source.name, e)
      return None

  loaded = tqdm(read_ahead(load, indices), f"{source.name}, 16x16", len(indices), leave=False, delay=2, disable=None)
  found = [x for x in loaded if x is not None]
  index, pixels, texts = ([x[k] for x in found] for k in range(3))
  return _Thumbnails(index, np.array(pixels, np.uint8).reshape(len(index), THUMB * THUMB * 3), texts)


def _centred(pixels: np.ndarray) -> np.ndarray:
  """-1 to 1, float32: products of numbers around 0 are rounded less."""
  return pixels.astype(np.float32) / 127.5 - 1
