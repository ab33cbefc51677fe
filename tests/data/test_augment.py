"""RandAugment: every operation against its formula in float64, and what is drawn."""

import numpy as np
import pytest

from coca.data.augment import GOOGLE, OPERATIONS, operate, operate_google, rand_augment

SHIFTS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def picture(height=60, width=80):
  """Smooth, of no symmetry, 20 to 220: uint8 [H, W, 3]."""
  y, x = np.mgrid[0:height, 0:width]
  waves = np.stack([np.sin(x / 9), np.cos(y / 7) * np.cos(x / 23), np.sin((x + 2 * y) / 13)], -1)
  return (120 + 100 * waves).astype(np.uint8)


def source(name, level, sign, x, y, width, height):
  """Where what is at x, y after an operation was before: BLIP's constants."""
  if name == "shear_x":
    return x - 0.3 * level * sign * y, y
  if name == "shear_y":
    return x, y - 0.3 * level * sign * x
  if name == "translate_x":
    return x - 10 * level * sign, y
  if name == "translate_y":
    return x, y - 10 * level * sign
  angle = np.deg2rad(30 * level * sign)  # counter-clockwise, about the middle
  x, y = x - width / 2, y - height / 2
  return np.cos(angle) * x - np.sin(angle) * y + width / 2, np.sin(angle) * x + np.cos(angle) * y + height / 2


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_moves_pixels_is_bilinear_on_grey(name, level, sign):
  pixels = picture()
  height, width = pixels.shape[:2]
  padded = np.pad(pixels.astype(np.float64), ((50, 50), (50, 50), (0, 0)), constant_values=128)
  y, x = np.mgrid[0:height, 0:width].astype(np.float64)
  x, y = (v + 50 for v in source(name, level, sign, x, y, width, height))
  left, top = np.floor(x).astype(int), np.floor(y).astype(int)
  a, b = (x - left)[..., None], (y - top)[..., None]
  expected = (1 - b) * ((1 - a) * padded[top, left] + a * padded[top, left + 1]) + b * (
    (1 - a) * padded[top + 1, left] + a * padded[top + 1, left + 1]
  )
  off = np.abs(operate(name, pixels, level, sign) - expected)
  assert off.max() < 4 and off.mean() < 0.5  # OpenCV may round places to 1/32 of a pixel; the grey is up to 108 away
  if level == 0:
    np.testing.assert_array_equal(operate(name, pixels, level, sign), pixels)


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 1.0])
def test_brightness_and_sharpness(level):
  pixels, factor = picture(), 0.1 + 1.8 * level
  values = pixels.astype(np.float64)
  bright = operate("brightness", pixels, level)
  assert np.abs(bright - np.floor(np.clip(values * factor, 0, 255))).max() <= (level not in (0.5, 1.0))
  edges = np.pad(values, ((1, 1), (1, 1), (0, 0)), "reflect")
  smooth = sum(edges[i : i + 60, j : j + 80] for i in range(3) for j in range(3)) / 13 + values * 4 / 13
  sharp = np.clip(smooth + factor * (values - smooth), 0, 255)
  assert np.abs(operate("sharpness", pixels, level) - sharp).max() <= 1.0
  if level == 0.5:
    assert (bright == pixels).all() and (operate("sharpness", pixels, level) == pixels).all()


def test_autocontrast_and_equalize():
  pixels = picture() // 2 + 30
  low, high = (f(pixels, axis=(0, 1)).astype(np.float64) for f in (np.min, np.max))
  stretched = (pixels - low) * 255 / (high - low)
  assert np.abs(operate("autocontrast", pixels, 0.5) - stretched).max() <= 1
  for c in range(3):
    counts = np.bincount(pixels[..., c].ravel(), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    table = (step // 2 + np.cumsum(counts) - counts) // step
    np.testing.assert_array_equal(operate("equalize", pixels, 0.5)[..., c], np.minimum(table, 255)[pixels[..., c]])
  flat = np.full((5, 5, 3), 90, np.uint8)
  assert (operate("autocontrast", flat, 0.5) == 90).all() and (operate("equalize", flat, 0.5) == 90).all()


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_picture_goes_in_and_stays_as_it_is(name):
  pixels = picture()
  views = {"plain": pixels, "mirrored": pixels[:, ::-1], "turned": pixels.transpose(1, 0, 2), "dot": pixels[:1, :1]}
  for kind, view in views.items():
    copy = view.copy()
    out = operate(name, view, 1.0, -1)
    assert out.shape == view.shape and out.dtype == np.uint8, kind
    np.testing.assert_array_equal(out, operate(name, copy, 1.0, -1))
    np.testing.assert_array_equal(view, copy)
  assert (operate("identity", pixels, 1.0) == pixels).all()
  with pytest.raises(ValueError, match="'colour' is no operation; there are identity, autocontrast"):
    operate("colour", pixels, 0.5)


def test_each_operation_comes_half_of_the_time_and_either_way_round():
  pixels = picture() // 2 + 30
  pixels[0, 0] = 0  # else the corner is no sign of what moved
  done = {
    operate(name, pixels, 0.7, sign).tobytes(): (name, sign if name in SHIFTS else 1)
    for name in OPERATIONS
    for sign in (1, -1)
  }
  assert len(done) == 15
  rng = np.random.default_rng(0)
  drawn = [done[rand_augment(pixels, rng, 1, 7).tobytes()] for _ in range(4000)]
  share = {which: drawn.count(which) / 4000 for which in done.values()}
  assert share.pop(("identity", 1)) == pytest.approx(0.55, abs=0.03)  # half, and a tenth of the other half
  for (name, _), found in share.items():
    assert found == pytest.approx(0.025 if name in SHIFTS else 0.05, abs=0.01), name


def test_operations_follow_each_other():
  pixels = picture()
  once = {operate(name, pixels, 0.7, sign).tobytes() for name in OPERATIONS for sign in (1, -1)}
  twice = [rand_augment(pixels, np.random.default_rng(seed), 2, 7).tobytes() for seed in range(200)]
  assert 20 < sum(out not in once for out in twice) < 60  # a quarter, less those with an identity
  again = [rand_augment(pixels, np.random.default_rng(seed), 2, 7).tobytes() for seed in range(200)]
  assert again == twice


def test_none_draws_nothing():
  pixels, rng = picture(), np.random.default_rng(3)
  assert rand_augment(pixels, rng, 0, 5) is pixels
  assert rng.random() == np.random.default_rng(3).random()


@pytest.mark.parametrize("level", [0.5, 1.0, 1.5, 2.0])
def test_googles_operations(level):
  """By the formulas of their code, in float64."""
  pixels, factor, rng = picture(), 0.1 + 1.8 * level, np.random.default_rng(0)
  values = pixels.astype(np.float64)
  grey = values @ [0.2989, 0.587, 0.114]
  expected = {
    "invert": 255 - values,
    "posterize": pixels // 2 ** (8 - int(4 * level)) * 2 ** (8 - int(4 * level)),
    "solarize": np.where(values < 256 * level, values, 255 - values),
    "solarize_add": np.where(values < 128, np.minimum(values + int(110 * level), 255), values),
    "color": np.clip(grey[..., None] + factor * (values - grey[..., None]), 0, 255),
    "contrast": np.clip(4800 // 256 + factor * (values - 4800 // 256), 0, 255),  # as many pixels, by 256
    "brightness": np.clip(factor * values, 0, 255),
  }
  for name, wanted in expected.items():
    off = np.abs(operate_google(name, pixels, level, 1, rng) - wanted)
    assert off.max() <= (1 + factor if name == "color" else 1), name  # whose grey is a whole number
  assert (operate_google("posterize", pixels, 2.0, 1, rng) == pixels).all()
  assert (operate_google("solarize", pixels, level, 1, rng) == pixels).all() == (level >= 1)


def test_googles_operations_that_move_take_the_nearest_pixel():
  pixels = picture()
  right = operate_google("translate_x", pixels, 0.2, 1, None)
  np.testing.assert_array_equal(right[:, 20:], pixels[:, :-20])
  assert (right[:, :20] == 128).all()
  for name in SHIFTS:
    moved = operate_google(name, pixels, 2.0, -1, None)
    colours = {tuple(c) for c in pixels.reshape(-1, 3)} | {(128, 128, 128)}
    assert {tuple(c) for c in moved.reshape(-1, 3)} <= colours, name


def test_cutout_is_a_square_about_a_place_in_the_image():
  pixels, seen = np.zeros((60, 80, 3), np.uint8), set()
  for seed in range(40):
    grey = (operate_google("cutout", pixels, 0.25, 1, np.random.default_rng(seed)) == 128).all(axis=2)
    y, x = np.flatnonzero(grey.any(axis=1)), np.flatnonzero(grey.any(axis=0))
    assert grey.sum() == len(y) * len(x) and min(len(y), len(x)) >= 10 and max(len(y), len(x)) <= 20
    seen.add((y[0], x[0]))
  assert len(seen) > 30 and not pixels.any()


def test_each_of_googles_operations_is_drawn_and_done():
  pixels = picture() // 2 + 30
  pixels[0, 0] = 0
  rng, done = np.random.default_rng(0), {}
  for name in set(GOOGLE) - {"cutout"}:
    for sign in (1, -1):
      done[operate_google(name, pixels, 0.4, sign, None).tobytes()] = name
  assert len(done) == 20  # five of them either way round
  drawn = [done.get(rand_augment(pixels, rng, 1, 4, "google").tobytes(), "cutout") for _ in range(3200)]
  for name in GOOGLE:
    assert drawn.count(name) / 3200 == pytest.approx(1 / 16, abs=0.02), name
