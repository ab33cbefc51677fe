"""The places behind a scene's things: drawn by rule, in whole colours and soft shapes, told apart at 64 pixels.

Nothing but sums, products and comparisons of float64 is used, and Python's own random numbers, so that the bytes are
the same on every machine.
"""

import copy
import functools
import random

import numpy as np

VIEWS = 32  # variations of a place


@functools.lru_cache(maxsize=8 * VIEWS)  # 12 kB each at 64 pixels, 150 kB at 224
def background(place: str, view: int, pixels: int) -> np.ndarray:
  """uint8 [pixels, pixels, 3], read-only. The same view at another size is the same image.

  Raises:
    ValueError: there is no such place.
  """
  if place not in _DRAW:
    raise ValueError(f"there is no place {place!r}; the places are {', '.join(_DRAW)}")
  view %= VIEWS
  canvas = Canvas(pixels)
  _DRAW[place](canvas, random.Random(view))
  image = np.floor(np.clip(canvas.image, 0, 255) + 0.5).astype(np.uint8)
  image = image if view % 2 else image[:, ::-1].copy()
  image.setflags(write=False)
  return image


class Canvas:
  """An image to draw on, in float64. Coordinates are image widths from the left and from the top."""

  def __init__(self, pixels: int):
    self.pixels = pixels
    self.x = (np.arange(pixels)[None, :] + 0.5) / pixels
    self.y = (np.arange(pixels)[:, None] + 0.5) / pixels
    self.image = np.zeros((pixels, pixels, 3))

  def part(self, left: float, top: float, right: float, bottom: float) -> "Canvas":
    """The same image between these borders and a pixel around them: what is small is quickly drawn there."""
    rows, columns = (
      slice(max(int(low * self.pixels) - 1, 0), max(int(high * self.pixels) + 2, 0))
      for low, high in ((top, bottom), (left, right))
    )
    part = copy.copy(self)
    part.x, part.y, part.image = self.x[:, columns], self.y[rows], self.image[rows, columns]
    return part

  def blend(self, cover, colour) -> None:
    """Lays a colour on: `cover`, from 0 to 1, broadcasts to [h, w], `colour` to [h, w, 3]."""
    self.image += np.broadcast_to(cover, self.image.shape[:2])[..., None] * (np.asarray(colour) - self.image)

  def above(self, value) -> np.ndarray:
    """1 where `value`, a distance in image widths, is above 0, with an edge one pixel wide."""
    return np.clip(value * self.pixels + 0.5, 0, 1)

  def gradient(self, top, bottom, start=0.0, end=1.0) -> np.ndarray:
    """Colours [h, 1, 3] that go from `top` to `bottom` between two heights."""
    part = np.clip((self.y - start) / (end - start), 0, 1)[..., None]
    return np.asarray(top) * (1 - part) + np.asarray(bottom) * part

  def disk(self, x, y, radius, colour, strength=1.0, flat=1.0) -> None:
    """A disk, or an ellipse `flat` times as high, of at least one pixel's area."""
    radius = max(radius, 0.6 / self.pixels)
    part = self.part(x - radius, y - radius * flat, x + radius, y + radius * flat)
    squared = (part.x - x) ** 2 + ((part.y - y) / flat) ** 2
    # (r^2 - d^2) / 2r is the distance to the edge, near the edge.
    part.blend(strength * part.above((radius**2 - squared) / (2 * radius)), colour)

  def box(self, left, top, right, bottom, colour) -> None:
    part = self.part(left, top, right, bottom)
    inside = np.minimum(np.minimum(part.x - left, right - part.x), np.minimum(part.y - top, bottom - part.y))
    part.blend(part.above(inside), colour)


def wave(t):
  """Smooth hills of period 1 between 0 and 1: a polynomial, since sines differ by machine."""
  t = t - np.floor(t)
  return 16 * (t * (1 - t)) ** 2


def hills(canvas: Canvas, rng: random.Random, height: float, rise: float, length: float):
  """Heights [1, w] of a horizon of hills around `height`, `rise` high, of about `length`."""
  first = wave(canvas.x / length + rng.random())
  second = wave(canvas.x / (0.37 * length) + rng.random())
  return height - rise * (first + 0.3 * second - 0.65)


def clouds(canvas: Canvas, rng: random.Random, colour, below: float) -> None:
  for _ in range(rng.randrange(3)):
    x, y, size = rng.uniform(0.1, 0.9), rng.uniform(0.06, below), rng.uniform(0.05, 0.08)
    for dx, dy, part in ((-1.1, 0.25, 0.7), (1.1, 0.3, 0.65), (0.1, 0, 1)):
      canvas.disk(x + dx * size, y + dy * size, part * size, colour, 0.85, flat=0.6)


def beach(canvas, rng):
  horizon, shore = rng.uniform(0.3, 0.38), rng.uniform(0.5, 0.6)
  canvas.blend(1, canvas.gradient((96, 184, 240), (196, 232, 250), 0, horizon))
  clouds(canvas, rng, (255, 255, 255), horizon - 0.12)
  canvas.blend(canvas.above(canvas.y - horizon), canvas.gradient((18, 122, 180), (72, 206, 210), horizon, shore))
  edge = canvas.y - hills(canvas, rng, shore, 0.05, rng.uniform(0.6, 1))
  canvas.blend(canvas.above(edge + 0.03), (236, 250, 248))
  canvas.blend(canvas.above(edge), canvas.gradient((226, 196, 140), (248, 226, 172), shore, shore + 0.2))
  for _ in range(14):
    canvas.disk(rng.random(), rng.uniform(shore + 0.1, 1), 0.008, (214, 184, 130), flat=0.6)


def snow(canvas, rng):
  horizon = rng.uniform(0.4, 0.5)
  canvas.blend(1, canvas.gradient((150, 172, 198), (206, 219, 232), 0, horizon))
  far = canvas.y - hills(canvas, rng, horizon - 0.05, 0.16, rng.uniform(0.35, 0.5))
  canvas.blend(canvas.above(far), canvas.gradient((226, 234, 243), (182, 200, 220), horizon - 0.2, horizon + 0.1))
  near = canvas.y - hills(canvas, rng, horizon + 0.08, 0.08, rng.uniform(0.8, 1.2))
  canvas.blend(canvas.above(near), canvas.gradient((248, 251, 255), (222, 232, 244), horizon, 1))
  for _ in range(36):
    canvas.disk(rng.random(), rng.random(), rng.uniform(0.006, 0.012), (255, 255, 255), 0.9)


def grass(canvas, rng):
  horizon = rng.uniform(0.36, 0.46)
  canvas.blend(1, canvas.gradient((120, 196, 248), (214, 240, 255), 0, horizon))
  clouds(canvas, rng, (255, 255, 255), horizon - 0.15)
  far = canvas.y - hills(canvas, rng, horizon - 0.03, 0.1, rng.uniform(0.6, 0.9))
  canvas.blend(canvas.above(far), (124, 186, 92))
  near = canvas.y - hills(canvas, rng, horizon + 0.08, 0.06, rng.uniform(0.8, 1.2))
  canvas.blend(canvas.above(near), canvas.gradient((120, 196, 76), (72, 150, 56), horizon, 1))
  for _ in range(30):
    x, y = rng.random(), rng.uniform(horizon + 0.14, 1)
    tuft = canvas.part(x - 0.02, y - 0.05, x + 0.02, y)
    height = np.clip((y - tuft.y) / 0.05, 0, 1)
    for lean in (-0.3, 0.3):
      blade = 0.008 * (1 - height) - abs(tuft.x - x - lean * (y - tuft.y))
      tuft.blend(0.8 * tuft.above(np.where((tuft.y < y) & (height < 1), blade, -1)), (50, 122, 44))


def desert(canvas, rng):
  horizon = rng.uniform(0.42, 0.52)
  canvas.blend(1, canvas.gradient((250, 170, 92), (255, 226, 160), 0, horizon))
  canvas.disk(rng.uniform(0.15, 0.85), rng.uniform(0.1, 0.24), 0.07, (255, 244, 206))
  far = canvas.y - hills(canvas, rng, horizon - 0.02, 0.1, rng.uniform(0.5, 0.7))
  canvas.blend(canvas.above(far), canvas.gradient((222, 146, 82), (206, 126, 66), horizon - 0.1, horizon + 0.1))
  near = canvas.y - hills(canvas, rng, horizon + 0.12, 0.12, rng.uniform(0.8, 1.2))
  canvas.blend(canvas.above(near), canvas.gradient((236, 166, 94), (206, 128, 62), horizon, 1))
  ripple = wave((canvas.y - hills(canvas, rng, 0, 0.06, 0.5)) / 0.11)
  canvas.blend(canvas.above(near) * np.clip(ripple - 0.6, 0, 1) * 0.5, (188, 110, 50))


def night(canvas, rng):
  horizon = rng.uniform(0.72, 0.82)
  canvas.blend(1, canvas.gradient((20, 26, 74), (92, 78, 148), 0, horizon))
  for _ in range(40):
    radius = rng.uniform(0.004, 0.01)
    canvas.disk(rng.random(), rng.uniform(0, horizon), radius, (255, 250, 214), rng.uniform(0.5, 1))
  ground = canvas.y - hills(canvas, rng, horizon, 0.1, rng.uniform(0.6, 1))
  canvas.blend(canvas.above(ground), canvas.gradient((44, 52, 92), (26, 32, 62), horizon, 1))


def water(canvas, rng):
  horizon = rng.uniform(0.2, 0.28)
  canvas.blend(1, canvas.gradient((150, 208, 240), (228, 244, 250), 0, horizon))
  clouds(canvas, rng, (255, 255, 255), horizon - 0.1)
  canvas.blend(canvas.above(canvas.y - horizon), canvas.gradient((58, 148, 204), (14, 76, 148), horizon, 1))
  for row in range(7):
    depth = horizon + 0.05 + 0.11 * row + rng.uniform(-0.01, 0.01)
    rise, length = 0.012 + 0.003 * row, 0.1 + 0.025 * row
    band = canvas.part(0, depth - 0.05, 1, depth + 0.02)
    line = depth - rise * wave(band.x / length + rng.random()) - band.y
    band.blend(0.55 * band.above(0.006 + 0.001 * row - abs(line)), (158, 212, 238))


def street(canvas, rng):
  road = rng.uniform(0.62, 0.68)
  canvas.blend(1, canvas.gradient((170, 190, 206), (222, 226, 226), 0, road))
  left = -rng.uniform(0, 0.1)
  while left < 1:
    width, top = rng.uniform(0.14, 0.24), rng.uniform(0.12, 0.38)
    wall = rng.choice(((196, 166, 154), (172, 172, 182), (204, 190, 168), (164, 180, 188)))
    canvas.box(left, top, left + width - 0.01, road, wall)
    for row in range(int((road - top - 0.06) / 0.09)):
      for column in range(int((width - 0.03) / 0.055)):
        x, y = left + 0.025 + 0.055 * column, top + 0.03 + 0.09 * row
        canvas.box(x, y, x + 0.03, y + 0.05, [0.84 * c for c in wall] if rng.random() < 0.8 else (246, 232, 180))
    left += width
  canvas.blend(canvas.above(canvas.y - road), (188, 186, 182))
  canvas.blend(canvas.above(canvas.y - road - 0.06), canvas.gradient((94, 96, 104), (74, 76, 84), road, 1))
  start = rng.random()
  for dash in range(-1, 5):
    canvas.box(0.26 * (dash + start), 0.86, 0.26 * (dash + start) + 0.15, 0.885, (238, 230, 196))


def room(canvas, rng):
  floor = rng.uniform(0.64, 0.72)
  wall = rng.choice(((244, 214, 196), (206, 222, 204), (238, 226, 190), (214, 208, 230)))
  canvas.blend(1, canvas.gradient(wall, [0.93 * c for c in wall], 0, floor))
  stripe = 0.125
  canvas.blend(0.3 * canvas.above(stripe / 4 - abs(canvas.x % stripe - stripe / 2)), (255, 255, 255))
  canvas.blend(canvas.above(canvas.y - floor), canvas.gradient((176, 122, 78), (204, 150, 100), floor, 1))
  for board in range(1, 5):
    canvas.blend(0.5 * canvas.above(0.004 - abs(canvas.y - floor - 0.02 * board * (board + 1))), (134, 88, 54))
  canvas.box(-1, floor - 0.035, 2, floor, (250, 246, 240))


_DRAW = {
  "beach": beach,
  "snow": snow,
  "grass": grass,
  "desert": desert,
  "night": night,
  "water": water,
  "street": street,
  "room": room,
}
