"""Encoded images to uint8 arrays: a fast path for training, an exact one for evaluation.

Decoders get hostile input here, so the order is fixed: read the size from the header, refuse what is above the pixel
cap, wait until there is memory for it beside what other threads decode, decode, and turn whatever a decoder raises into
a BadRecord. Of animations only the first image is decoded. Truncated files are refused, not filled with grey:
libjpeg only warns of them, which simplejpeg's strict mode makes an error; Pillow raises by itself. JPEG goes through
simplejpeg (the same pixels as Pillow in half the time, and it can decode at 1/2, 1/4 and 1/8), all else through Pillow.
Colour profiles are not applied.

H, W: pixels down, pixels across.
"""

import io
import math
import threading
from contextlib import ExitStack, contextmanager

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageColor, UnidentifiedImageError

from coca.data.records import BadRecord
from coca.devices.hardware import cores

cv2.setNumThreads(0)  # the loader's threads work on different images; OpenCV's would fight them for the cores
Image.init()
# A list of our own, because Pillow would also try formats that start other programs (EPS: Ghostscript).
FORMATS = tuple(f for f in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if f in Image.OPEN)
_ORIENTATION = 0x0112  # the EXIF tag
# Bytes a pixel while an image is decoded and resized, as measured: JPEG through simplejpeg, all else (26 for animated
# WebP with transparency). A file of 0.4 MB may hold 100 million pixels, 2 GB, and each thread gets one.
_JPEG_BYTES, _OTHER_BYTES = 8, 20
_MEMORY = max(2 << 30, cores() * (64 << 20))  # bytes for all threads together; a single image may take more
_MAX_SCANS = 32  # of a JPEG with max_pixels, in proportion more of smaller ones; encoders write about 10


def colour(name: str) -> tuple[int, int, int]:
  """A colour's name ("white") or code ("#ffffff") as red, green, blue of 0 to 255."""
  return ImageColor.getcolor(name, "RGB")


def decode_eval(
  data: bytes,
  size: int,
  background=(255, 255, 255),
  max_pixels: int = 100_000_000,
  squash: bool = False,
  resize: int = 0,
  filter: str = "bicubic",
) -> np.ndarray:
  """Decodes in full and resizes the central square with antialiasing (Pillow's; bicubic, as CLIP evaluates).

  Args:
    data: an encoded image.
    size: pixels a side of the result.
    background: red, green, blue under transparent pixels.
    max_pixels: an image whose header announces more is not decoded.
    squash: resizes all of the image, as BLIP evaluates.
    resize: pixels a side that the square is resized to, of which `size` are cut out in the middle; 0: none are.
    filter: 'bicubic' or 'bilinear'.

  Returns:
    uint8 [size, size, 3].

  Raises:
    BadRecord: the bytes are no image, a truncated or an oversized one.
  """
  with decoding() as held:
    jpeg = _jpeg_header(data, max_pixels)
    if jpeg:
      held.enter_context(room.hold(jpeg[0] * jpeg[1] * _JPEG_BYTES))
    pixels = _orient(_jpeg(data), jpeg[2]) if jpeg else _other(data, background, max_pixels, held)
    return resize_eval(pixels, size, squash, resize, filter)


def decode_train(
  data: bytes,
  size: int,
  rng: np.random.Generator,
  crop=(1.0, 1.0),
  flip: bool = False,
  background=(255, 255, 255),
  max_pixels: int = 100_000_000,
  resize: int = 0,
) -> np.ndarray:
  """Decodes, crops at random, resizes and flips, fast: a JPEG is decoded at the smallest size that the crop allows.

  Where the image grows, the resizing is cubic; where it shrinks, linear up to a factor of 2 and a mean beyond (a mean
  takes ten times as long and is no nearer to `decode_eval` there). It differs from `decode_eval` by a few grey levels.

  Args:
    data: an encoded image.
    size: pixels a side of the result.
    rng: source of the crop and the flip.
    crop: smallest and largest share of the area that is kept (Inception, arXiv 1409.4842); (1, 1) keeps the central
      square as `decode_eval` does.
    flip: mirror left and right half of the time.
    background: red, green, blue under transparent pixels.
    max_pixels: an image whose header announces more is not decoded.
    resize: pixels a side that the central square is resized to, of which `size` are cut out at random; 0: none are.

  Returns:
    uint8 [size, size, 3].

  Raises:
    BadRecord: the bytes are no image, a truncated or an oversized one.
  """
  share = size / resize if resize else 1.0
  with decoding() as held:
    jpeg = _jpeg_header(data, max_pixels)
    if jpeg:
      height, width, orientation = jpeg
      if orientation >= 5:  # lies on its side
        height, width = width, height
      y, x, h, w = random_box(height, width, crop, rng, share)
      shrink = next((k for k in (8, 4, 2) if min(h, w) >= k * size), 1)
      # A progressive one is held as coefficients, in full, whatever it is shrunk to.
      held.enter_context(room.hold(height * width * max(_JPEG_BYTES // shrink**2, 3)))
      pixels = _orient(_jpeg(data, jpeg[0], jpeg[1], shrink), orientation)
      if shrink > 1:
        down, across = pixels.shape[0] / height, pixels.shape[1] / width
        y, x, h, w = round(y * down), round(x * across), round(h * down), round(w * across)
    else:
      pixels = _other(data, background, max_pixels, held)
      y, x, h, w = random_box(*pixels.shape[:2], crop, rng, share)
    return _cut(pixels[y : y + h, x : x + w], size, flip, rng)


def crop_train(
  pixels: np.ndarray, size: int, rng: np.random.Generator, crop=(1.0, 1.0), flip: bool = False, resize: int = 0
) -> np.ndarray:
  """`decode_train` of an image that is decoded, uint8 [H, W, 3]."""
  height, width = pixels.shape[:2]
  y, x, h, w = random_box(height, width, crop, rng, size / resize if resize else 1.0)
  return _cut(pixels[y : y + h, x : x + w], size, flip, rng)


def _cut(pixels: np.ndarray, size: int, flip: bool, rng: np.random.Generator) -> np.ndarray:
  """A crop, resized to [size, size, 3] and flipped half of the time."""
  h, w = pixels.shape[:2]
  if (h, w) != (size, size):
    method = cv2.INTER_CUBIC if min(h, w) < size else cv2.INTER_LINEAR if max(h, w) < 2 * size else cv2.INTER_AREA
    pixels = cv2.resize(np.ascontiguousarray(pixels), (size, size), interpolation=method)
  return pixels[:, ::-1] if flip and rng.random() < 0.5 else pixels


def resize_eval(
  pixels: np.ndarray, size: int, squash: bool = False, resize: int = 0, filter: str = "bicubic"
) -> np.ndarray:
  """The central square of uint8 [H, W, 3], or all of it, resized to uint8 [size, size, 3], antialiased.

  With `resize` it is the middle of that square, as large a part of it as `size` is of `resize`.
  """
  height, width = pixels.shape[:2]
  if height == width == size and resize in (0, size):
    return np.ascontiguousarray(pixels)
  side = min(height, width) * (size / resize if resize else 1)
  left, top = (width - side) / 2, (height - side) / 2
  box = None if squash else (left, top, left + side, top + side)
  image = Image.fromarray(np.ascontiguousarray(pixels))
  return np.asarray(image.resize((size, size), Image.Resampling[filter.upper()], box))


def random_box(height: int, width: int, crop, rng: np.random.Generator, share=1.0) -> tuple[int, int, int, int]:
  """Top, left, height and width of a crop: its area uniform in `crop`, its aspect log-uniform in 3/4 to 4/3.

  With a `share` below 1 it is a square of that share of the central square's side, anywhere in it.
  """
  low, high = crop
  if share < 1:
    whole = min(height, width)
    side = max(1, round(whole * share))
    y, x = rng.integers(whole - side + 1, size=2).tolist()
    return (height - whole) // 2 + y, (width - whole) // 2 + x, side, side
  if low >= 1:
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
  for _ in range(10):
    area = height * width * rng.uniform(low, high)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
  w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))  # a very long or tiny image
  return (height - h) // 2, (width - w) // 2, h, w


def to_rgb(image: Image.Image, background=(255, 255, 255)) -> np.ndarray:
  """Any Pillow image as uint8 [H, W, 3]: upright, on `background` where transparent, 16 bits cut to 8.

  Raises:
    BadRecord: pixels of a kind with no fixed range (32-bit float), or a file that is damaged, as Pillow finds here.
  """
  with decoding():
    return _to_rgb(image, background)


def _to_rgb(image: Image.Image, background) -> np.ndarray:
  image.load()
  orientation = image.getexif().get(_ORIENTATION, 1)
  if image.mode == "F":
    raise BadRecord("32-bit float pixels have no fixed range")
  if image.mode.startswith("I"):  # Pillow's own conversion would clip 16 bits at 255
    grey = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=2)
  elif image.has_transparency_data:
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    canvas = Image.new("RGB", image.size, tuple(background))
    canvas.paste(image, mask=image.getchannel("A"))
    pixels = np.asarray(canvas)
  else:
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
  return _orient(pixels, orientation)


class Room:
  """Memory that threads share: who wants more than is free waits. What is more than all gets all."""

  def __init__(self, size: int):
    self._size, self._free, self._given_back = size, size, threading.Condition()

  @contextmanager
  def hold(self, size: int):
    size = min(size, self._size)
    with self._given_back:
      self._given_back.wait_for(lambda: size <= self._free)
      self._free -= size
    try:
      yield
    finally:
      with self._given_back:
        self._free += size
        self._given_back.notify_all()


room = Room(_MEMORY)


@contextmanager
def decoding():
  """Whatever decoders raise becomes a BadRecord. Yields a stack for what is held until the image is done."""
  try:
    with ExitStack() as held:
      yield held
  except BadRecord:
    raise
  except UnidentifiedImageError:
    raise BadRecord("not decodable: no image, or of a format that is not read") from None
  except Exception as e:  # decoders raise nearly anything on damaged input, MemoryError too
    raise BadRecord(f"not decodable: {type(e).__name__}: {e}") from e


def _check_size(width: int, height: int, max_pixels: int) -> None:
  if width * height > max_pixels:
    raise BadRecord(f"{width} x {height} pixels are more than config.data.max_pixels {max_pixels}")


def _check_scans(data: bytes, width: int, height: int, max_pixels: int) -> None:
  """A scan that holds nothing takes a few bytes, and a pass over all blocks: 1 MB may keep a thread for an hour."""
  scans = data.count(b"\xff\xda")
  if scans * width * height > _MAX_SCANS * max_pixels:
    raise BadRecord(f"a JPEG of {width} x {height} pixels with {scans} scans")


def _jpeg_header(data: bytes, max_pixels: int) -> tuple[int, int, int] | None:
  """Height and width as stored, EXIF orientation; None where simplejpeg does not apply."""
  if data[:3] != b"\xff\xd8\xff":
    return None
  try:
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
  except ValueError:  # rare but valid chroma subsampling: Pillow has to judge
    return None
  _check_size(width, height, max_pixels)
  _check_scans(data, width, height, max_pixels)
  return None if space in ("CMYK", "YCCK") else (height, width, jpeg_orientation(data))


def _jpeg(data: bytes, height: int = 0, width: int = 0, shrink: int = 1) -> np.ndarray:
  # Only powers of two: 7/8, 5/8 and 3/8 have no fast code and take longer than decoding in full.
  scale = {} if shrink == 1 else {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
  try:
    return simplejpeg.decode_jpeg(data, **scale)
  except ValueError as e:
    # Stray bytes before the end marker, after all pixels have been decoded, are common on the web and harmless.
    if "extraneous bytes before marker 0xd9" not in str(e):
      raise
    return simplejpeg.decode_jpeg(data, strict=False, **scale)


def _other(data: bytes, background, max_pixels: int, held: ExitStack) -> np.ndarray:
  formats = FORMATS
  if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
    formats = ("WEBP",)
    width, height = _webp_size(data)
    _check_size(width, height, max_pixels)
    held.enter_context(room.hold(width * height * _OTHER_BYTES))  # Pillow makes two canvases when it opens the file
    if data[12:16] == b"VP8 ":  # no transparency, no EXIF, one frame: OpenCV gives the same pixels with less ado
      pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
      if pixels is None:
        raise BadRecord("not decodable: a truncated or damaged WebP")
      return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
  with Image.open(io.BytesIO(data), formats=formats) as image:
    _check_size(*image.size, max_pixels)
    if image.format != "WEBP":
      held.enter_context(room.hold(image.width * image.height * _OTHER_BYTES))
    if image.format in ("JPEG", "MPO"):
      _check_scans(data, *image.size, max_pixels)
    return _to_rgb(image, background)


def _webp_size(data: bytes) -> tuple[int, int]:
  """Width and height from a WebP header (RFC 9649)."""

  def number(at, length):
    return int.from_bytes(data[at : at + length], "little")

  kind = data[12:16]
  if kind == b"VP8X":
    return number(24, 3) + 1, number(27, 3) + 1
  if kind == b"VP8L":
    return (number(21, 4) & 0x3FFF) + 1, (number(21, 4) >> 14 & 0x3FFF) + 1
  return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF


def jpeg_orientation(data: bytes) -> int:
  """The EXIF orientation, 1 to 8, of a JPEG; 1 where there is none."""
  at = 2
  while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", b"\xda", b"\xd9"):
    if data[at + 1] == 0xFF:  # padding
      at += 1
      continue
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
      return _tiff_orientation(data[at + 10 : at + 2 + length])
    at += 2 + length
  return 1


def _tiff_orientation(tiff: bytes) -> int:
  order = "little" if tiff[:2] == b"II" else "big"
  directory = int.from_bytes(tiff[4:8], order)
  count = int.from_bytes(tiff[directory : directory + 2], order)
  for k in range(count):
    entry = tiff[directory + 2 + 12 * k : directory + 14 + 12 * k]
    if len(entry) < 12:
      break
    if int.from_bytes(entry[:2], order) == _ORIENTATION:
      return int.from_bytes(entry[8:10], order)
  return 1


def _orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """Turns an image upright: EXIF orientations 2 to 8; others leave it alone."""
  if orientation in (5, 6, 7, 8):
    pixels = pixels.transpose(1, 0, 2)
  if orientation in (3, 4, 7, 8):
    pixels = pixels[::-1]
  if orientation in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  return pixels
