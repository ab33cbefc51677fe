"""RandAugment (arXiv 1909.13719) as BLIP trains with it, in pre-training and in every fine-tune: RandomAugment(2, 5).

The constants are those of its code: the operations, N = 2 and M = 5 of data/__init__.py; the chance of 1/2, what a
magnitude means to each operation, translations of so many pixels at any size and the grey of 128 of
transform/randaugment.py (read in a fork of BLIP and, the same, in LAVIS by the same authors).

- Magnitude 5 makes brightness and sharpness 1, which changes nothing: with identity, 3 of the 10 operations are idle.
- Shears hold the top or the left edge in place, not the centre.
- Sharpness is held between 0 and 255, where theirs wraps around, and reaches the outermost pixels, which theirs leaves
  alone; at magnitude 5 this makes no difference.
"""

import cv2
import numpy as np
from PIL import Image, ImageOps

OPERATIONS = (
  "identity",
  "autocontrast",
  "brightness",
  "sharpness",
  "equalize",
  "shear_x",
  "shear_y",
  "translate_x",
  "translate_y",
  "rotate",
)
_SMOOTH = np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # Pillow's SMOOTH, which its sharpness goes by
_GREY = (128, 128, 128)  # beyond the image's edges


def rand_augment(pixels: np.ndarray, rng: np.random.Generator, count: int, magnitude: int) -> np.ndarray:
  """`count` operations, drawn with replacement, each done with a chance of 1/2 and turned around in half of the cases.

  Args:
    pixels: uint8 [H, W, 3]; it is left as it is.
    rng: source of the draws; with a `count` of 0 there are none.
    count: N of RandAugment.
    magnitude: M of RandAugment, 0 to 10.

  Returns:
    uint8 [H, W, 3].
  """
  for _ in range(count):
    name = OPERATIONS[rng.integers(len(OPERATIONS))]
    done, sign = rng.random() < 0.5, rng.choice((-1, 1))
    if done:
      pixels = operate(name, pixels, magnitude / 10, sign)
  return pixels


def operate(name: str, pixels: np.ndarray, level: float, sign: int = 1) -> np.ndarray:
  """One of `OPERATIONS` on uint8 [H, W, 3].

  Args:
    name: which one.
    pixels: the image.
    level: 0 to 1. Brightness and sharpness go from 0.1 to 1.9 times the image's, shears to 0.3, translations to 10
      pixels, rotations to 30 degrees; the others know no level.
    sign: -1 turns shears, translations and rotations around.

  Returns:
    uint8 [H, W, 3].
  """
  pixels = np.ascontiguousarray(pixels)
  height, width = pixels.shape[:2]
  factor, shear, shift = 0.1 + 1.8 * level, 0.3 * level * sign, 10 * level * sign
  match name:
    case "identity":
      return pixels
    case "autocontrast":
      return np.asarray(ImageOps.autocontrast(Image.fromarray(pixels)))
    case "equalize":
      return np.asarray(ImageOps.equalize(Image.fromarray(pixels)))
    case "brightness":
      return cv2.LUT(pixels, np.clip(np.arange(256) * factor, 0, 255).astype(np.uint8))
    case "sharpness":
      return cv2.addWeighted(pixels, factor, cv2.filter2D(pixels, -1, _SMOOTH), 1 - factor, 0)
    case "shear_x":
      moved = [[1, shear, 0], [0, 1, 0]]
    case "shear_y":
      moved = [[1, 0, 0], [shear, 1, 0]]
    case "translate_x":
      moved = [[1, 0, shift], [0, 1, 0]]
    case "translate_y":
      moved = [[1, 0, 0], [0, 1, shift]]
    case "rotate":
      moved = cv2.getRotationMatrix2D((width / 2, height / 2), 30 * level * sign, 1)
    case _:
      raise ValueError(f"{name!r} is no operation; there are {', '.join(OPERATIONS)}")
  return cv2.warpAffine(pixels, np.float32(moved), (width, height), borderValue=_GREY)  # bilinear
