"""Videos to frames: some of them, evenly spread over the time, as images for evaluation.

The frames are those that a player shows in the middle of each of n equal parts of the video's time. At an even pace
that is frame floor((k + 1/2) N / n) of N for part k; where the pace varies, the times decide. The choice depends on
nothing but the file, and a video of fewer than n frames has some more than once.

PyAV (FFmpeg's libraries) decodes. The times of all frames are read from the container, without decoding; then it is
sought to the key frame before each chosen one. If what is decoded there is not the frame of that time, or if a
container has no times, all is decoded in order, twice. Files from which bytes are missing at the end are refused:
FFmpeg would take what is there for a shorter video.
"""

import importlib.util
import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from coca.data.images import decoding, resize_eval, room
from coca.data.records import BadRecord

EVEN = 8  # a pace is even if its gaps differ by an eighth of one at most: WebM's clock ticks in ms, 33, 33, 34, ...
_BYTES = 40  # a pixel while frames are decoded: up to 16 references of 1.5 bytes, and a frame in RGB, twice if turned


class _NotFound(Exception):
  """Seeking does not lead to a frame."""


def check_installed(where: str) -> None:
  """Raises ImportError, which says what installs it, if PyAV is missing."""
  if not importlib.util.find_spec("av"):
    raise ImportError(f"{where}: to read videos takes PyAV: pip install -e '.[video]'")


def decode_eval(
  data: bytes,
  frames: int,
  size: int,
  max_pixels: int = 100_000_000,
  squash: bool = False,
  resize: int = 0,
  filter: str = "bicubic",
) -> np.ndarray:
  """Some frames of a video, each as `coca.data.images.decode_eval` makes an image.

  Args:
    data: an encoded video: MP4, WebM, Matroska, AVI, ...
    frames: how many.
    size, max_pixels, squash, resize, filter: as there.

  Returns:
    uint8 [frames, size, size, 3].

  Raises:
    BadRecord: the bytes are no video, one without frames, a truncated or an oversized one.
  """
  return np.stack(decode(data, frames, lambda pixels: resize_eval(pixels, size, squash, resize, filter), max_pixels))


def decode(data: bytes, frames: int, resized: Callable, max_pixels: int = 100_000_000) -> list[np.ndarray]:
  """Some frames of a video, turned upright as the file says.

  Args:
    data, frames, max_pixels: as in `decode_eval`.
    resized: a frame's pixels, uint8 [H, W, 3] -> what is kept of it.

  Raises:
    BadRecord: as `decode_eval`.
  """
  with decoding() as held:
    if missing := _missing(data):
      raise BadRecord(f"truncated: {missing} bytes are missing at the end of the video")
    out: list[np.ndarray] = []
    with _opened(data) as container:
      context = _video(container).codec_context
      if context.width * context.height > max_pixels:
        raise BadRecord(f"{context.width} x {context.height} pixels are more than config.data.max_pixels {max_pixels}")
      held.enter_context(room.hold(context.width * context.height * _BYTES))
      try:
        for frame in _sought(container, frames):
          out.append(resized(_pixels(frame)))
      except _NotFound:
        out.clear()
    if not out:
      for frame in _in_order(data, frames):
        out.append(resized(_pixels(frame)))
    return out


def chosen(times: Sequence[int], last: int, count: int) -> list[int]:
  """The numbers of the frames that are shown in the middle of each of `count` equal parts of a video's time.

  Args:
    times: when each frame begins, ascending, in any unit.
    last: how long the last one is shown.
    count: how many.
  """
  gaps = np.diff(np.asarray(times, np.int64))
  if not len(gaps) or np.ptp(gaps) <= gaps.min() / EVEN:
    times, last = range(len(times)), 1
  total = times[-1] + last - times[0]
  return [bisect_right(times, times[0] + (2 * k + 1) * total // (2 * count)) - 1 for k in range(count)]


def _opened(data: bytes) -> Any:
  """PyAV's container: an `av.container.InputContainer`."""
  import av

  return av.open(io.BytesIO(data))


def _video(container) -> Any:
  """The stream of moving images."""
  stream = container.streams.best("video")
  if stream is None:
    raise BadRecord("no video in it")
  stream.codec_context.thread_count = 1  # the loader's threads work on different videos
  return stream


def _sought(container, count: int) -> Iterator:
  """The chosen frames, by seeking. Raises _NotFound where that does not find them."""
  stream, keys, lasts = _video(container), [], {}
  for packet in container.demux(stream):
    if packet.size and not packet.is_discard:
      if packet.pts is None:
        raise _NotFound("a packet without a time")
      lasts[packet.pts] = packet.duration
      if packet.is_keyframe:
        keys.append(packet.pts)
  if not lasts:
    raise BadRecord("a video without frames")
  times = sorted(lasts)
  last = lasts[times[-1]] or int(np.median(np.diff(times)) if len(times) > 1 else 1)
  keys.sort()
  frames: Iterator = iter(())
  frame = None
  for time in (times[n] for n in chosen(times, last, count)):
    key = keys[bisect_right(keys, time) - 1] if keys and keys[0] <= time else times[0]
    if frame is None or key > frame.pts:
      container.seek(key, stream=stream)
      frames, frame = container.decode(stream), None
    while frame is None or frame.pts < time:
      frame = next(frames, None)
      if frame is None or frame.pts is None:
        raise _NotFound("no frame of that time")
    if frame.pts != time or frame.is_corrupt:
      raise _NotFound("another frame than that of the time, or a damaged one")
    yield frame


def _in_order(data: bytes, count: int) -> Iterator:
  """The chosen frames, by decoding all of them: once for their times and once more for their pixels."""
  with _opened(data) as container:
    times: Sequence = [frame.pts for frame in container.decode(_video(container))]
  if not times:
    raise BadRecord("a video without frames")
  if None in times or np.any(np.diff(times) <= 0):
    times = range(len(times))
  wanted = chosen(times, int(np.median(np.diff(times))) if len(times) > 1 else 1, count)
  with _opened(data) as container:
    for n, frame in enumerate(container.decode(_video(container))):
      if n in wanted and frame.is_corrupt:
        raise BadRecord(f"damaged: frame {n} can't be decoded whole")
      yield from [frame] * wanted.count(n)


def _pixels(frame) -> np.ndarray:
  """uint8 [H, W, 3], turned by the quarters that the file says: counterclockwise, as NumPy does."""
  return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _missing(data: bytes) -> int:
  """The bytes that a container announces beyond those that are there: MP4 and QuickTime, WebM and Matroska, AVI."""
  if data[4:8] == b"ftyp":
    end = 0
    while end + 8 <= len(data):
      size = int.from_bytes(data[end : end + 4], "big")
      if size == 1:  # 64 bits of it follow
        size = int.from_bytes(data[end + 8 : end + 16], "big")
      if size < 8:  # 0: up to the end
        return 0
      end += size
    return max(end - len(data), 0)
  if data[:4] == b"\x1a\x45\xdf\xa3":  # EBML (RFC 8794): a header, then the segment
    start, size = _ebml_size(data, 4)
    start, size = _ebml_size(data, start + (size or 0) + 4)
    return 0 if size is None else max(start + size - len(data), 0)
  if data[:4] == b"RIFF":
    return max(8 + int.from_bytes(data[4:8], "little") - len(data), 0)
  return 0


def _ebml_size(data: bytes, at: int) -> tuple[int, int | None]:
  """The start of an element's content, and its size; None: unknown, as of a stream."""
  if at >= len(data):
    return at, None
  length = 9 - data[at].bit_length()
  mask = (1 << 7 * length) - 1
  size = int.from_bytes(data[at : at + length], "big") & mask
  return at + length, None if size == mask else size
