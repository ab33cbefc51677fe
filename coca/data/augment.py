"""RandAugment (arXiv 1909.13719) as BLIP trains with it, in pre-training and in every fine-tune: RandomAugment(2, 5);
and as Google's vision models do.

BLIP's constants are those of its code: the operations, N = 2 and M = 5 of data/__init__.py; the chance of 1/2, what a
magnitude means to each operation, translations of so many pixels at any size and the grey of 128 of
transform/randaugment.py (read in a fork of BLIP and, the same, in LAVIS by the same authors).

- Magnitude 5 makes brightness and sharpness 1, which changes nothing: with identity, 3 of the 10 operations are idle.
- Shears hold the top or the left edge in place, not the centre.
- Sharpness is held between 0 and 255, where theirs wraps around, and reaches the outermost pixels, which theirs leaves
  alone; at magnitude 5 this makes no difference.

Google's are those of tensorflow/tpu's models/official/efficientnet/autoaugment.py, the same in big_vision and
tensorflow/models: 16 operations, each that is drawn is done, and a magnitude of 10 is no limit. What CoCa's authors
trained with is not public; their magnitude of 20 is on this scale.

- Contrast blends with a grey of pixels / 256, 255 at most, which is no mean, as their code has it.
- At magnitude 20 posterize keeps all bits. So does solarize, above whose threshold nothing is; theirs, where 8 bits do
  not hold the threshold, overflows from magnitude 10 on.
- Sharpness reaches the outermost pixels.
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
GOOGLE = (
  *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast", "brightness"),
  *("sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "cutout", "solarize_add"),
)
_SMOOTH = np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # Pillow's SMOOTH, which its sharpness goes by
_GREY = (128, 128, 128)  # beyond the image's edges


def rand_augment(
  pixels: np.ndarray, rng: np.random.Generator, count: int, magnitude: int, kind: str = "blip"
) -> np.ndarray:
  """`count` operations, drawn with replacement, turned around in half of the cases; BLIP's are done in half of them.

  Args:
    pixels: uint8 [H, W, 3]; it is left as it is.
    rng: source of the draws; with a `count` of 0 there are none.
    count: N of RandAugment.
    magnitude: M of RandAugment, 0 to 10; of Google's more.
    kind: 'blip' or 'google'.

  Returns:
    uint8 [H, W, 3].
  """
  for _ in range(count):
    if kind == "google":
      name, sign = GOOGLE[rng.integers(len(GOOGLE))], rng.choice((-1, 1))
      pixels = operate_google(name, pixels, magnitude / 10, sign, rng)
      continue
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
  pixels, factor = np.ascontiguousarray(pixels), 0.1 + 1.8 * level
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
    case _ if name in OPERATIONS:
      return _moved(name, pixels, level * sign, 10, cv2.INTER_LINEAR)
  raise ValueError(f"{name!r} is no operation; there are {', '.join(OPERATIONS)}")


def operate_google(name: str, pixels: np.ndarray, level: float, sign: int, rng: np.random.Generator) -> np.ndarray:
  """One of `GOOGLE` on uint8 [H, W, 3].

  Args:
    name: which one.
    pixels: the image.
    level: 1 is a magnitude of 10, and 2 one of 20. Those that BLIP has too are as strong as its at 1, but translations
      go to 100 pixels. Color and contrast go from 0.1 to 1.9 times the image's, cutout to 40 pixels to each side,
      solarize_add to 110, posterize to 4 bits and solarize to a threshold of 256, which change less, the higher.
    sign: -1 turns shears, translations and rotations around.
    rng: of cutout's place.

  Returns:
    uint8 [H, W, 3].
  """
  pixels, factor, value = np.ascontiguousarray(pixels), 0.1 + 1.8 * level, np.arange(256)
  height, width = pixels.shape[:2]
  match name:
    case "invert":
      return 255 - pixels
    case "posterize":
      shift = 8 - int(4 * level)
      table = value >> shift << shift
    case "solarize":
      table = np.where(value < int(256 * level), value, 255 - value)
    case "solarize_add":
      table = np.where(value < 128, value + int(110 * level), value)
    case "contrast":
      grey = min(height * width // 256, 255)
      table = grey + factor * (value - grey)
    case "color":
      grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
      return np.clip(grey + np.float32(factor) * (pixels - grey), 0, 255).astype(np.uint8)
    case "cutout":
      half, (y, x) = int(40 * level), (int(rng.integers(n)) for n in (height, width))
      pixels = pixels.copy()
      pixels[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = _GREY
      return pixels
    case "shear_x" | "shear_y" | "translate_x" | "translate_y" | "rotate":
      return _moved(name, pixels, level * sign, 100, cv2.INTER_NEAREST)
    case _:
      return operate(name, pixels, level, sign)
  return cv2.LUT(pixels, np.clip(table, 0, 255).astype(np.uint8))


def _moved(name: str, pixels: np.ndarray, level: float, farthest: int, method: int) -> np.ndarray:
  """Sheared, translated by up to `farthest` pixels, or rotated; grey comes in at the edges."""
  height, width = pixels.shape[:2]
  shear, shift = 0.3 * level, farthest * level
  matrix = {
    "shear_x": [[1, shear, 0], [0, 1, 0]],
    "shear_y": [[1, 0, 0], [shear, 1, 0]],
    "translate_x": [[1, 0, shift], [0, 1, 0]],
    "translate_y": [[1, 0, 0], [0, 1, shift]],
  }.get(name)
  if matrix is None:
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 30 * level, 1)
  return cv2.warpAffine(pixels, np.float32(matrix), (width, height), flags=method, borderValue=_GREY)
