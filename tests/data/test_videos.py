"""Frames of videos: which are chosen, what their pixels are, and files that can't be used."""

import io

import av
import numpy as np
import pytest

from coca.data import videos
from coca.data.records import BadRecord
from support.films import film, middles, numbers


@pytest.mark.parametrize(
  "ext, codec, count",
  [
    ("mp4", "libx264", 25),
    ("mp4", "mpeg4", 5),
    ("webm", "libvpx-vp9", 20),
    ("avi", "libx264", 20),
    ("mp4", "libx264", 1),
  ],
)
def test_the_middle_of_each_of_equal_parts(ext, codec, count):
  data = film(count, ext, codec)  # H.264 has frames that are stored in another order; WebM's times are rounded
  for frames in (1, 2, 4, 8, 16):
    found = videos.decode_eval(data, frames, 8)
    assert found.shape == (frames, 8, 8, 3) and found.dtype == np.uint8
    assert numbers(found) == middles(count, frames)


@pytest.mark.parametrize("ext, codec", [("mp4", "libx264"), ("webm", "libvpx-vp9")])
def test_where_the_pace_varies_times_decide(ext, codec):
  times = [0, 40, 80, 120, 1000, 1100, 2000, 2040, 2080, 2120]  # 2,160 ms in all
  shown = [max(n for n, start in enumerate(times) if start <= (k + 0.5) * 2160 / 6) for k in range(6)]
  assert numbers(videos.decode_eval(film(10, ext, codec, times=times), 6, 8)) == shown == [3, 3, 3, 5, 5, 5]


def test_seeking_and_decoding_in_order_find_the_same(monkeypatch):
  data, sought = film(25), []
  monkeypatch.setattr(videos, "_in_order", lambda *_: pytest.fail("seeking has found them"))
  found = videos.decode_eval(data, 7, 32)
  monkeypatch.undo()
  monkeypatch.setattr(videos, "_sought", lambda container, count: sought.append(count) or _fails())
  assert (videos.decode_eval(data, 7, 32) == found).all() and sought == [7]
  wanted = middles(25, 7)
  with av.open(io.BytesIO(data)) as container:
    each = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  assert (found == np.stack([each[n] for n in wanted])).all()


def _fails():
  raise videos._NotFound
  yield


def test_frames_are_turned_as_the_file_says():
  """A matrix under which, by the format (ISO/IEC 14496-12), x' = -y and y' = x: what is on top comes to the right."""
  out = io.BytesIO()
  with av.open(out, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=30)
    stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:8] = 250
    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    container.mux(stream.encode())
  data = bytearray(out.getvalue())
  matrix = data.index(b"tkhd") + 4 + 40  # version 0: 4 bytes of flags and 36 of other fields before it
  one = 1 << 16
  assert data[matrix : matrix + 36] == b"".join(n.to_bytes(4, "big") for n in (one, 0, 0, 0, one, 0, 0, 0, 1 << 30))
  turned = (0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
  data[matrix : matrix + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in turned)
  (frame,) = videos.decode_eval(bytes(data), 1, 64, squash=True)  # 32 wide and 64 high, squashed
  assert frame[:, 52:].mean() > 240 and frame[:, :44].mean() < 10


def test_videos_that_cannot_be_used():
  whole = film(12)
  assert whole.index(b"mdat") < whole.index(b"moov")
  streamed = film(12, "webm", "libvpx-vp9")
  for data, reason in (
    (whole[:-1], "truncated: 1 bytes are missing"),
    (whole[: whole.index(b"moov") - 4], "not decodable"),
    (streamed[:-40], "truncated: 40 bytes are missing"),
    (film(12, "avi", "mpeg4")[:-9], "truncated: 9 bytes"),
    (film(0), "not decodable"),
    (_silence(), "no video in it"),
    (b"no video", "not decodable"),
    (b"", "not decodable"),
  ):
    with pytest.raises(BadRecord, match=reason):
      videos.decode_eval(data, 4, 8)
  with pytest.raises(BadRecord, match=r"32 x 32 pixels are more than config\.data\.max_pixels 1000"):
    videos.decode_eval(whole, 4, 8, max_pixels=1000)
  damaged = bytearray(whole)
  damaged[whole.index(b"mdat") + 700 : whole.index(b"moov") - 4] = bytes(
    whole.index(b"moov") - 704 - whole.index(b"mdat")
  )
  with pytest.raises(BadRecord):
    videos.decode_eval(bytes(damaged), 4, 8)


def _silence():
  out = io.BytesIO()
  with av.open(out, "w", format="mp4") as container:
    stream = container.add_stream("aac", rate=44100)
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    sound.rate = 44100
    container.mux(stream.encode(sound))
    container.mux(stream.encode())
  return out.getvalue()
