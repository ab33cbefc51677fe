import contextlib
import io
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from coca.data import images
from coca.data.records import BadRecord


def picture(height, width, seed=0):
  """Smooth colours with an edge: uint8 [H, W, 3], no symmetry; the same at every size."""
  y, x = np.mgrid[0:height, 0:width] * (96 / min(height, width))
  waves = np.stack([np.sin(x / 9 + seed), np.cos(y / 7), np.sin((x + 2 * y) / 13)], -1)
  out = 128 + 90 * waves
  out[: height // 3, : width // 4] = (250, 20, 60)
  return np.clip(out, 0, 255).astype(np.uint8)


def encode(pixels, kind, **options):
  out = io.BytesIO()
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  image.save(out, kind, **options)
  return out.getvalue()


def bicubic(pixels, size):
  """Keys' cubic (a = -1/2), widened where it shrinks, in float64: what `resize_eval` promises."""

  def weights(n):
    scale = n / size
    support = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    t = np.abs((np.arange(n) + 0.5 - centres[:, None]) / support)
    w = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))
    return w / w.sum(1, keepdims=True)

  h, w = pixels.shape[:2]
  return np.einsum("yh,hwc,xw->yxc", weights(h), pixels.astype(np.float64), weights(w))


def near(a, b):
  return float(np.abs(a.astype(np.float64) - b).mean())


@pytest.mark.parametrize(("height", "width", "size"), [(90, 90, 32), (64, 64, 48), (30, 30, 48), (120, 90, 40)])
def test_eval_resizes_the_central_square_by_antialiased_bicubic(height, width, size):
  pixels = picture(height, width)
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  expected = np.clip(bicubic(pixels[top : top + side, left : left + side], size), 0, 255)
  out = images.decode_eval(encode(pixels, "PNG"), size)
  assert out.shape == (size, size, 3) and out.dtype == np.uint8
  if height == width:
    assert np.abs(out - expected).max() <= 2  # two passes, each rounded to whole levels
  else:
    assert near(out, expected) < 1  # Pillow sees beyond the crop's edge


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_lossless_formats_come_out_as_they_went_in(kind):
  pixels = np.repeat(picture(40, 40)[..., :1], 3, axis=2)  # grey: fits a GIF's palette
  out = images.decode_eval(encode(pixels, kind, **({"lossless": True} if kind == "WEBP" else {})), 40)
  np.testing.assert_array_equal(out, pixels)


def test_jpeg_has_the_pixels_of_pillow():
  for options in ({"quality": 90}, {"quality": 70, "progressive": True}, {"subsampling": 0}):
    data = encode(picture(64, 64), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(images.decode_eval(data, 64).astype(int) - expected).max() <= 1


def test_lossy_webp_has_the_pixels_of_pillow():
  data = encode(picture(50, 50), "WEBP", quality=75)
  assert data[12:16] == b"VP8 "
  np.testing.assert_array_equal(images.decode_eval(data, 50), np.asarray(Image.open(io.BytesIO(data))))


def test_grey_cmyk_and_unusual_subsampling():
  grey = picture(48, 48)[..., 0]
  assert near(images.decode_eval(encode(grey, "JPEG", quality=95), 48), grey[..., None]) < 2
  cmyk = Image.fromarray(picture(48, 48)).convert("CMYK")
  assert near(images.decode_eval(encode(cmyk, "JPEG", quality=95), 48), np.asarray(cmyk.convert("RGB"))) < 4
  rng = np.random.default_rng(0)
  assert near(images.decode_train(encode(cmyk, "JPEG", quality=95), 48, rng), np.asarray(cmyk.convert("RGB"))) < 4


def test_16_bits_keep_their_range():
  wide = (picture(32, 32)[..., 0].astype(np.uint16) << 8) + 77
  out = images.decode_eval(encode(Image.fromarray(wide), "PNG"), 32)
  np.testing.assert_array_equal(out, np.repeat((wide >> 8)[..., None], 3, axis=2))


def test_float_pixels_are_refused():
  with pytest.raises(BadRecord, match="no fixed range"):
    images.decode_eval(encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_lies_on_the_background(kind):
  rgba = np.dstack([picture(20, 20), np.full((20, 20), 255, np.uint8)])
  rgba[:10, :, 3] = 0
  rgba[10:14, :, 3] = 128
  options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
  out = images.decode_eval(encode(rgba, kind, **options), 20, background=images.colour("#10a0ff"))
  assert (out[:10] == (0x10, 0xA0, 0xFF)).all()
  np.testing.assert_array_equal(out[14:], rgba[14:, :, :3])
  mixed = rgba[10:14, :, :3] * (128 / 255) + np.array((0x10, 0xA0, 0xFF)) * (127 / 255)
  assert np.abs(out[10:14] - mixed).max() <= 1


def test_transparency_of_palettes_and_grey():
  index = np.zeros((12, 12), np.uint8)
  index[6:] = 1
  palette = Image.fromarray(index, "P")
  palette.putpalette([255, 0, 0, 0, 0, 255])
  for kind in ("PNG", "GIF"):
    out = images.decode_eval(encode(palette, kind, transparency=0), 12, background=(9, 8, 7))
    assert (out[:6] == (9, 8, 7)).all() and (out[6:] == (0, 0, 255)).all(), kind
  grey = Image.fromarray(np.dstack([np.full((12, 12), 50, np.uint8), np.full((12, 12), 0, np.uint8)]), "LA")
  assert (images.decode_eval(encode(grey, "PNG"), 12, background=(9, 8, 7)) == (9, 8, 7)).all()


def test_first_frame_of_an_animation():
  frames = [Image.new("RGB", (16, 16), c) for c in ((200, 0, 0), (0, 200, 0))]
  for kind in ("GIF", "WEBP", "PNG", "TIFF"):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (images.decode_eval(data, 16) == (200, 0, 0)).all(), kind


def test_a_background_by_name_and_code():
  assert images.colour("white") == images.colour("#ffffff") == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation, kind):
  exif = Image.Exif()
  exif[0x010F] = "a maker"
  exif[0x0112] = orientation
  data = encode(picture(64, 96), kind, exif=exif, **({"quality": 95} if kind != "PNG" else {}))
  upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
  expected = images.resize_eval(upright, 24)
  assert near(images.decode_eval(data, 24), expected) < 1
  assert near(images.decode_train(data, 24, np.random.default_rng(0)), expected) < 6
  if kind == "JPEG":
    assert images.jpeg_orientation(data) == orientation


def test_exif_of_either_byte_order_and_damaged():
  def with_exif(tiff):
    plain = encode(picture(8, 8), "JPEG")
    body = b"Exif\0\0" + tiff
    return plain[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + plain[2:]

  little = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
  big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
  assert images.jpeg_orientation(with_exif(little)) == images.jpeg_orientation(with_exif(big)) == 6
  for tiff in (b"", b"II", little[:9], little[:12], b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"):
    assert images.jpeg_orientation(with_exif(tiff)) == 1
    assert images.decode_eval(with_exif(tiff), 8).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_truncated_files_are_refused(kind, share):
  data = encode(picture(96, 128), kind)
  data = data[: int(len(data) * share)]
  with pytest.raises(BadRecord):
    images.decode_eval(data, 32)
  with pytest.raises(BadRecord):
    images.decode_train(data, 32, np.random.default_rng(0))


def test_jpeg_whose_end_was_put_back_after_truncation_is_refused():
  data = encode(picture(480, 640), "JPEG")
  data = data[: len(data) // 2] + b"\xff\xd9"
  with pytest.raises(BadRecord, match="premature end"):
    images.decode_eval(data, 32)
  with pytest.raises(BadRecord, match="premature end"):
    images.decode_train(data, 32, np.random.default_rng(0))


def test_stray_bytes_before_the_end_of_a_jpeg_are_harmless():
  data = encode(picture(64, 64), "JPEG")
  padded = data[:-2] + bytes(40) + data[-2:]
  with pytest.raises(ValueError, match="extraneous"):
    simplejpeg.decode_jpeg(padded)
  np.testing.assert_array_equal(images.decode_eval(padded, 64), images.decode_eval(data, 64))


def test_noise_is_refused():
  rng = np.random.default_rng(0)
  heads = (b"", b"BM", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 ", b"GIF89a", b"%!PS-Adobe-3.0")
  for head in heads:
    with pytest.raises(BadRecord):
      images.decode_eval(head + rng.bytes(200), 32)


def test_no_flipped_bit_raises_anything_but_bad_record():
  rng = np.random.default_rng(0)
  outcomes = set()
  for kind in ("JPEG", "PNG", "WEBP", "GIF"):
    data = encode(picture(24, 24), kind)
    for at in rng.integers(0, len(data), 150):
      bad = bytearray(data)
      bad[at] ^= 1 << int(rng.integers(8))
      try:
        outcomes.add(images.decode_train(bytes(bad), 16, rng, max_pixels=10**6).shape)
      except BadRecord:
        outcomes.add("refused")
  assert outcomes == {(16, 16, 3), "refused"}


def huge_headers():
  side = 65500
  jpeg = bytearray(encode(picture(16, 16), "JPEG"))
  at = jpeg.index(b"\xff\xc0")
  jpeg[at + 5 : at + 9] = side.to_bytes(2, "big") * 2
  yield "JPEG", bytes(jpeg), side
  png = bytearray(encode(picture(16, 16), "PNG"))
  png[16:24] = side.to_bytes(4, "big") * 2
  png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
  yield "PNG", bytes(png), side
  gif = bytearray(encode(picture(16, 16), "GIF"))
  gif[6:10] = side.to_bytes(2, "little") * 2
  yield "GIF", bytes(gif), side
  bmp = bytearray(encode(picture(16, 16), "BMP"))
  bmp[18:26] = side.to_bytes(4, "little") * 2
  yield "BMP", bytes(bmp), side
  side = 16383  # the largest a WebP can say
  lossy = bytearray(encode(picture(16, 16), "WEBP"))
  assert lossy[12:16] == b"VP8 "
  lossy[26:30] = side.to_bytes(2, "little") * 2
  yield "VP8", bytes(lossy), side
  lossless = bytearray(encode(picture(16, 16), "WEBP", lossless=True))
  assert lossless[12:16] == b"VP8L"
  lossless[21:25] = ((side - 1) | (side - 1) << 14).to_bytes(4, "little")
  yield "VP8L", bytes(lossless), side
  extended = bytearray(encode(np.zeros((16, 16, 4), np.uint8), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"))
  assert extended[12:16] == b"VP8X"
  extended[24:30] = (side - 1).to_bytes(3, "little") * 2
  yield "VP8X", bytes(extended), side


@pytest.mark.parametrize(("kind", "data", "side"), [pytest.param(*h, id=h[0]) for h in huge_headers()])
def test_a_huge_header_is_refused_before_anything_is_allocated(kind, data, side, monkeypatch):
  def load(*args, **kwargs):
    raise AssertionError("decoded")

  monkeypatch.setattr(images.simplejpeg, "decode_jpeg", load)
  monkeypatch.setattr(Image.Image, "load", load)
  if kind.startswith("VP8"):
    monkeypatch.setattr(images.Image, "open", load)
  for decode in (lambda: images.decode_eval(data, 32), lambda: images.decode_train(data, 32, np.random.default_rng(0))):
    with pytest.raises(BadRecord, match=f"{side} x {side} pixels|exceeds limit"):
      decode()


def test_threads_wait_for_memory(monkeypatch):
  """As many pictures at a time as there is room for; one that takes more than all of it goes alone."""
  small, large = encode(picture(20, 20), "PNG"), encode(picture(90, 90), "PNG")
  monkeypatch.setattr(images, "room", images.Room(2 * 20 * 20 * images._OTHER_BYTES + 1))
  lock, inside, most, decode = threading.Lock(), [], [], images._to_rgb

  def counted(image, background):
    with lock:
      inside.append(image.size)
      most.append(list(inside))
    time.sleep(0.01)
    with lock:
      inside.remove(image.size)
    return decode(image, background)

  monkeypatch.setattr(images, "_to_rgb", counted)
  broken = small[:-40] + small[-20:]
  with ThreadPoolExecutor(8) as pool:
    for future in [pool.submit(images.decode_eval, data, 8) for data in [small, large, broken] * 8]:
      with contextlib.suppress(BadRecord):
        future.result()
  assert max(map(len, most)) == 2 and [(90, 90)] in most
  assert all(together == [(90, 90)] for together in most if (90, 90) in together)
  assert images.room._free == images.room._size


def test_a_jpeg_of_a_thousand_scans():
  """Each is a pass over the whole picture, and takes a few bytes."""
  data = encode(picture(64, 64), "JPEG", progressive=True)
  last = data.rindex(b"\xff\xda")
  bomb = data[:-2] + data[last:-2] * 1000 + b"\xff\xd9"
  for decode in (images.decode_eval, lambda *a, **k: images.decode_train(*a, np.random.default_rng(0), **k)):
    assert decode(data, 16, max_pixels=64 * 64).shape == (16, 16, 3)
    with pytest.raises(BadRecord, match=r"64 x 64 pixels with 10\d\d scans"):
      decode(bomb, 16, max_pixels=64 * 64)
  grey = encode(Image.new("CMYK", (64, 64)), "JPEG", progressive=True)  # Pillow's
  grey = grey[:-2] + grey[grey.rindex(b"\xff\xda") : -2] * 1000 + b"\xff\xd9"
  with pytest.raises(BadRecord, match="scans"):
    images.decode_eval(grey, 16, max_pixels=64 * 64)


def test_damage_that_pillow_finds_late():
  """A picture that a user opened is decoded here; Pillow raises of many types then."""
  data = encode(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8), "PNG")
  second = data.index(b"IDAT", data.index(b"IDAT") + 1)
  with pytest.raises(BadRecord, match="not decodable: SyntaxError: broken PNG file"):
    images.to_rgb(Image.open(io.BytesIO(data[:second] + b"\xd6\xab\x84o" + data[second + 4 :])))


def test_pixel_cap_is_inclusive():
  data = encode(picture(10, 20), "PNG")
  assert images.decode_eval(data, 8, max_pixels=200).shape == (8, 8, 3)
  with pytest.raises(BadRecord, match=r"20 x 10 pixels are more than config\.data\.max_pixels 199"):
    images.decode_eval(data, 8, max_pixels=199)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (481, 643), (960, 1280), (300, 200), (64, 64), (40, 30)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_training_without_crop_sees_what_evaluation_sees(height, width, kind):
  data = encode(picture(height, width), kind)
  for size in (48, 96, 224):
    fast = images.decode_train(data, size, np.random.default_rng(0))
    assert fast.shape == (size, size, 3) and fast.dtype == np.uint8
    assert near(fast, images.decode_eval(data, size)) < 6  # a JPEG decoded small may lie half a pixel off


def test_large_jpegs_are_decoded_small_but_never_below_the_target(monkeypatch):
  seen, decode = [], simplejpeg.decode_jpeg

  def spy(*args, **kwargs):
    seen.append(decode(*args, **kwargs).shape[:2])
    return decode(*args, **kwargs)

  monkeypatch.setattr(images.simplejpeg, "decode_jpeg", spy)
  data = encode(picture(480, 640), "JPEG")
  for size in (224, 120, 60, 30, 241):
    images.decode_train(data, size, np.random.default_rng(0))
  assert seen == [(240, 320), (120, 160), (60, 80), (60, 80), (480, 640)]


def test_growing_is_cubic_and_shrinking_by_two_a_mean():
  pixels = np.zeros((32, 32, 3), np.uint8)
  pixels[:, 16:] = 200
  grown = images.decode_train(encode(pixels, "PNG"), 96, np.random.default_rng(0))
  assert grown.max() > 200  # a cubic overshoots at an edge, a linear one does not
  shrunk = images.decode_train(encode(picture(64, 64), "PNG"), 32, np.random.default_rng(0))
  mean = picture(64, 64).reshape(32, 2, 32, 2, 3).astype(np.float64).mean((1, 3))
  assert np.abs(shrunk - mean).max() <= 0.5 + 1e-9


def test_crops_have_the_asked_area_and_aspect():
  rng = np.random.default_rng(0)
  boxes = np.array([images.random_box(300, 400, (0.2, 0.8), rng) for _ in range(2000)], float)
  y, x, h, w = boxes.T
  assert (y >= 0).all() and (x >= 0).all() and (y + h <= 300).all() and (x + w <= 400).all()
  assert (h * w / 120_000 > 0.19).all() and (h * w / 120_000 < 0.81).all()
  assert (w / h > 0.74).all() and (w / h < 1.35).all()
  assert h.std() > 20 and x.std() > 20 and (w / h).std() > 0.1
  assert images.random_box(300, 400, (1.0, 1.0), rng) == (0, 50, 300, 300)
  assert images.random_box(1, 500, (0.9, 1.0), rng)[2:] == (1, 1)


def test_the_crop_shows_that_part_of_the_picture():
  y, x = np.mgrid[0:256, 0:256]
  ramp = np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)
  for kind in ("PNG", "JPEG"):
    data = encode(ramp, kind, **({"quality": 98} if kind == "JPEG" else {}))
    for seed in range(20):
      top, left, h, w = images.random_box(256, 256, (0.1, 0.9), np.random.default_rng(seed))
      out = images.decode_train(data, 32, np.random.default_rng(seed), crop=(0.1, 0.9)).astype(float)
      centres = (np.arange(32) + 0.5) / 32
      assert np.abs(out[16, :, 0] - (left + centres * w - 0.5)).max() < 5
      assert np.abs(out[:, 16, 1] - (top + centres * h - 0.5)).max() < 5


def test_flip_mirrors_half_of_the_time():
  data = encode(picture(32, 32), "PNG")
  rng = np.random.default_rng(0)
  plain = images.decode_train(data, 32, rng)
  outs = [images.decode_train(data, 32, rng, flip=True) for _ in range(200)]
  flipped = [np.array_equal(o, plain[:, ::-1]) for o in outs]
  assert all(f or np.array_equal(o, plain) for f, o in zip(flipped, outs, strict=True))
  assert 60 < sum(flipped) < 140


def test_same_numbers_same_picture():
  data = encode(picture(200, 300), "JPEG")
  a, b = (images.decode_train(data, 48, np.random.default_rng(7), (0.3, 1.0), True) for _ in range(2))
  np.testing.assert_array_equal(a, b)


def test_a_part_of_the_resized_square_is_cut_out():
  """Of a square of 40 in the middle, resized to 20, 15: each pixel says where it comes from."""
  column, row = np.meshgrid(np.arange(60), np.arange(40))
  pixels = np.stack([row, column, 0 * row], axis=-1).astype(np.uint8)
  whole = np.asarray(Image.fromarray(pixels[:, 10:50]).resize((20, 20), Image.Resampling.BICUBIC))
  seen = images.resize_eval(pixels, 16, resize=20).astype(int)
  np.testing.assert_allclose(seen, whole[2:18, 2:18], atol=1)
  png = encode(pixels, "PNG")
  corners = []
  for seed in range(30):
    made = images.decode_train(png, 16, np.random.default_rng(seed), resize=20).astype(int)
    assert made.shape == (16, 16, 3)
    top, left = made[0, 0, :2]
    np.testing.assert_allclose(made[-1, -1, :2] - made[0, 0, :2], [30, 30], atol=2)  # a window of 32 of 40
    corners.append((top, left))
  tops, lefts = (np.unique(x) for x in zip(*corners, strict=True))
  assert tops.min() < 3 and tops.max() >= 7 and len(tops) > 4
  assert 10 <= lefts.min() < 13 and 16 < lefts.max() <= 19
