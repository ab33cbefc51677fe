"""The objects' drawings in seven styles, cut out, at any size. Their licences are in coca/data/builtin/NOTICE."""

import functools
import math
import pathlib

import cv2
import numpy as np

STYLES = ("noto", "noto-v1", "fluent-3d", "fxemoji")
MORE_STYLES = ("emojione", "fluent-emoji-flat")
"""For training on more; the splits have `STYLES`."""
UNSEEN_STYLE = "twemoji"
FILE = pathlib.Path(__file__).parent / "sprites.parquet"
SIDE = 64  # pixels of a stored drawing


@functools.lru_cache(maxsize=512)
def sprite(name: str, style: str, pixels: int, turn: int = 0) -> np.ndarray:
  """The drawing of an object, `pixels` a side: RGBA with premultiplied alpha, uint8 [pixels, pixels, 4], read-only.

  The object is in the middle, and its longer side is the square's. Turned by `turn` degrees, clockwise, it is as large
  as before, in a square whose side is 23/16 of that: what the diagonal needs.

  Raises:
    ValueError: no such object or style.
  """
  if pixels < 1:
    raise ValueError(f"a sprite of {pixels} pixels; at least 1 is needed")
  stored = _stored(name, style)
  scaled = resize(_turned(stored, turn % 360), max(1, pixels * 23 // 16)) if turn % 360 else resize(stored, pixels)
  scaled.setflags(write=False)
  return scaled


def _turned(image: np.ndarray, degrees: int) -> np.ndarray:
  """Turns a drawing in a larger square, linear between pixels: uint8 [SIDE, SIDE, 4] to [SIDE * 23 / 16, ..., 4]."""
  side, one = SIDE * 23 // 16, 1 << 14
  sine, cosine = (round(one * f(math.radians(degrees))) for f in (math.sin, math.cos))
  at = 2 * np.arange(side) + 1 - side  # half pixels from the middle
  x, y = at[None, :], at[:, None]
  # Where a new pixel comes from, in an image with a ring of empty pixels, in units of 1 / (2 one) pixel.
  limit = 2 * one * (SIDE + 1) - 1
  rows, columns = (np.clip(v + (SIDE + 1) * one, 0, limit) for v in (cosine * y - sine * x, cosine * x + sine * y))
  image = np.pad(image, ((1, 1), (1, 1), (0, 0))).astype(np.int64)
  (i, below), (j, right) = (np.divmod(v[..., None], 2 * one) for v in (rows, columns))
  i, j = i[..., 0], j[..., 0]
  upper = (2 * one - right) * image[i, j] + right * image[i, j + 1]
  lower = (2 * one - right) * image[i + 1, j] + right * image[i + 1, j + 1]
  return (((2 * one - below) * upper + below * lower + 2 * one**2) // (2 * one) ** 2).astype(np.uint8)


def resize(image: np.ndarray, pixels: int) -> np.ndarray:
  """A square image, uint8 [S, S, C], at `pixels` a side: means over areas where it shrinks, linear where it grows.

  Sums of whole numbers, so that the bytes are the same on every machine; those of OpenCV differ with its version.
  """
  index, weights, total = _taps(len(image), pixels)
  for _ in range(2):  # over rows, which become columns
    image = sum(w[:, None, None] * image[i] for i, w in zip(index, weights, strict=True)).swapaxes(0, 1)
  return ((image + total**2 // 2) // total**2).astype(np.uint8)


@functools.lru_cache(maxsize=512)
def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, int]:
  """Old pixels and their weights for each new pixel, both [taps, new], and the sum of a new pixel's weights."""
  at = np.arange(new)
  if new <= old:  # in units of 1 / new of an old pixel: new pixel i covers what is between i * old and (i + 1) * old
    index = at * old // new + np.arange(-(-old // new) + 1)[:, None]
    weights = np.minimum((index + 1) * new, (at + 1) * old) - np.maximum(index * new, at * old)
    total = old
  else:  # in units of 1 / (2 new) of an old pixel, the middle of new pixel i from the middle of old pixel 0
    middle = np.clip((2 * at + 1) * old - new, 0, 2 * new * (old - 1))
    index = middle // (2 * new) + np.arange(2)[:, None]
    weights = 2 * new - abs(middle - 2 * new * index)
    total = 2 * new
  return np.minimum(index, old - 1), np.maximum(weights, 0), total


@functools.cache
def _stored(name: str, style: str) -> np.ndarray:
  """uint8 [SIDE, SIDE, 4], premultiplied."""
  try:
    encoded = _encoded()[name, style]
  except KeyError:
    names, styles = (sorted(set(column)) for column in zip(*_encoded(), strict=True))
    wrong = f"object {name!r}" if name not in names else f"style {style!r}; the styles are {', '.join(styles)}"
    raise ValueError(f"there is no drawing of {wrong}") from None
  bgra = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
  return premultiply(cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA))


def premultiply(rgba: np.ndarray) -> np.ndarray:
  """Straight to premultiplied alpha, uint8 [H, W, 4], rounded."""
  alpha = rgba[..., 3:].astype(np.uint32)
  return np.concatenate([(rgba[..., :3] * alpha + 127) // 255, alpha], axis=-1).astype(np.uint8)


@functools.cache
def _encoded() -> dict[tuple[str, str], bytes]:
  """Lossless WebP by object and style."""
  import pyarrow.parquet as pq  # it starts a thread, which `coca.devices.hardware.keep_memory` must come before

  table = pq.read_table(FILE, columns=["name", "style", "image"])
  return {(row["name"], row["style"]): row["image"] for row in table.to_pylist()}
