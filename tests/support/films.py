"""Videos for tests, written by PyAV: frames of one grey each, which tells their number."""

import io
from fractions import Fraction

import av
import numpy as np

FIRST, STEP = 12, 9  # grey of the first frame, and between two


def film(count, ext="mp4", codec="libx264", rate=30, times=None, size=32, first=0, key_every=6):
  """An encoded video of `count` frames: frame n is of the grey FIRST + STEP * (first + n). `times` in ms."""
  out = io.BytesIO()
  with av.open(out, "w", format=ext) as container:
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
    stream.options = {"g": str(key_every)}
    if times is not None:
      stream.codec_context.time_base = Fraction(1, 1000)
    for n in range(count):
      grey = np.full((size, size, 3), FIRST + STEP * (first + n), np.uint8)
      frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
      if times is not None:
        frame.pts, frame.time_base = times[n], Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return out.getvalue()


def numbers(frames):
  """Of frames uint8 [n, S, S, 3], which ones of a film they are."""
  return [round((frame.mean() - FIRST) / STEP) for frame in frames]


def middles(total, count):
  """The middle ones of `count` equal parts of `total` frames, by exact fractions."""
  return [int((k + Fraction(1, 2)) * total / count) for k in range(count)]
