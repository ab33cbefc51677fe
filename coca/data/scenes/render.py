"""From a scene to pixels."""

import functools
import math

import numpy as np

from coca.data.scenes.places import background
from coca.data.scenes.scene import Scene
from coca.data.scenes.sprites import sprite


def render(scene: Scene, pixels: int) -> np.ndarray:
  """Draws a scene: uint8 [pixels, pixels, 3], the same bytes on every machine. What is beyond the border is cut off.

  Positions and sizes are rounded to whole pixels, turns to whole degrees.

  Raises:
    ValueError: no such place, object or style.
  """
  image = background(scene.place, scene.view, pixels).copy()
  for thing in scene.things:
    side = max(1, math.floor(thing.size * pixels + 0.5))
    drawing = with_shadow(thing.name, thing.style, side, round(thing.turn) % 360)
    left, top = (math.floor(at * pixels - len(drawing) / 2 + 0.5) for at in (thing.x, thing.y))
    lay(image, drawing, left, top)
  return image


def lay(image: np.ndarray, drawing: np.ndarray, left: int, top: int) -> None:
  """Lays `drawing`, premultiplied RGBA uint8 [h, w, 4], over `image`, uint8 [H, W, 3], in place; what overlaps.

  To the nearest byte, over = drawing + image * (255 - alpha) / 255 (Porter and Duff, Compositing Digital Images, 1984).
  """
  right, bottom = left + drawing.shape[1], top + drawing.shape[0]
  drawing = drawing[max(-top, 0) : image.shape[0] - top, max(-left, 0) : image.shape[1] - left]
  under = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
  # In 16 bits (t + (t >> 8)) >> 8 with t = x + 128 is x / 255, rounded, for all x up to 255 * 255.
  shine = under * (255 - drawing[..., 3:]).astype(np.uint16) + np.uint16(128)
  np.add(drawing[..., :3], (shine + (shine >> 8)) >> 8, out=under, casting="unsafe")


@functools.lru_cache(maxsize=8192)  # about 3 kB each in images of 64 pixels, 30 kB at 224
def with_shadow(name: str, style: str, pixels: int, turn: int) -> np.ndarray:
  """A sprite on its soft shadow, in the middle of a square that has room for both: premultiplied RGBA, read-only."""
  radius = max(1, pixels // 12)
  drawing = np.pad(sprite(name, style, pixels, turn), ((radius, radius), (radius, radius), (0, 0)))
  # A third of black where the shadow is full and the object does not hide it.
  shade = (_shadow(drawing[..., 3], radius) * (255 - drawing[..., 3]) + 382) // 765
  drawing[..., 3] += shade.astype(np.uint8)
  drawing.setflags(write=False)
  return drawing


def _shadow(alpha: np.ndarray, radius: int) -> np.ndarray:
  """Means over squares of 2 * radius + 1 pixels, half of `radius` further down: int64 [h, w]."""
  width, down = 2 * radius + 1, (radius + 1) // 2
  sums = np.pad(alpha.astype(np.int64), ((radius + 1 + down, radius - down), (radius + 1, radius))).cumsum(0).cumsum(1)
  return (sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width]) // width**2
