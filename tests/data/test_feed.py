import threading
import time

import pytest

from coca.data import feed
from coca.training import limits


def test_too_many_skipped_stop_with_examples():
  skipped = limits.Skipped(0.05, 64)
  for k in range(20):
    skipped.add(["web a-1: no caption", "web a-2: no caption", "web a-3: cut at byte 17"])
    skipped.add([f"web b-{j}: {'xyzuvw'[(k + j) % 6]}" for j in range(6)])
  skipped.check(30, 90)  # 4.7 % of 1,920
  assert len(skipped.reasons) == 5
  with pytest.raises(limits.TooManySkipped) as error:
    skipped.check(40, 150)
  message = str(error.value)
  assert "config.data.max_skipped 0.05" in message and message.count("no caption") == 1
  assert message.count("\n  web") == 5 and "raise config.data.max_skipped" in message
  assert "150 of 2560 examples" in message
  (line,) = skipped.said(1150)
  assert line.startswith("1,150 unusable examples were skipped, such as:\n  web a-1: no caption\n")
  assert limits.Skipped(0.05, 64).said(3) == ["3 unusable examples were skipped"] and not skipped.said(0)


def test_skipped_waits_for_enough_examples():
  skipped = limits.Skipped(0.05, 16)
  skipped.check(12, 96)
  with pytest.raises(limits.TooManySkipped, match="100 of 208 examples"):
    skipped.check(13, 100)


def test_skipped_sees_a_source_that_is_lost_in_a_long_run():
  skipped = limits.Skipped(0.05, 100)
  skipped.check(1000, 0)
  with pytest.raises(limits.TooManySkipped, match=r"200 of the latest 200 examples.*\n.*the other hosts"):
    skipped.check(1002, 200)
  limits.Skipped(1.0, 100).check(1000, 100_000)


def test_skipped_goes_on_where_the_run_does():
  going_on = limits.Skipped(0.3, 100, step=1000, skipped=10_000)
  going_on.check(1010, 10_010)
  with pytest.raises(limits.TooManySkipped, match="900 of the latest 1000 examples"):
    going_on.check(1020, 10_910)


def numbered(count, made, error=None):
  for i in range(count):
    made.append(i)
    yield i, [f"problem {i}"]
  if error:
    raise error


def test_device_feed_keeps_order_and_stays_ahead():
  made, put = [], []
  with feed.DeviceFeed(numbered(10, made), lambda b: put.append(b) or b * 10, depth=3) as batches:
    first = next(batches)
    assert first == (0, ["problem 0"])
    deadline = time.monotonic() + 60
    while len(put) < 4 and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(0.05)
    assert put == [0, 1, 2, 3]  # three ahead of the one in use, and no more
    assert [b[0] for b in batches] == [10 * i for i in range(1, 10)]
    with pytest.raises(StopIteration):
      next(batches)


@pytest.mark.parametrize("where", ["loader", "put"])
def test_device_feed_hands_on_exceptions(where):
  def put(batch):
    if where == "put" and batch == 2:
      raise KeyError("no such device")
    return batch

  error = OSError("bucket gone") if where == "loader" else None
  with feed.DeviceFeed(numbered(2 if error else 5, [], error), put) as batches:
    assert [next(batches)[0], next(batches)[0]] == [0, 1]
    with pytest.raises(OSError if error else KeyError):
      next(batches)
    with pytest.raises(StopIteration):
      next(batches)


def test_closing_a_device_feed_stops_thread_and_loader():
  closed = []

  def endless():
    try:
      while True:
        yield 1, []
    finally:
      closed.append(True)

  before = threading.active_count()
  batches = feed.DeviceFeed(endless(), lambda b: b)
  next(batches)
  batches.close()
  assert closed == [True] and threading.active_count() == before
  with pytest.raises(StopIteration):
    next(batches)


def test_a_loader_that_hangs_is_left_behind(monkeypatch):
  monkeypatch.setattr(feed, "_PATIENCE", 0.1)
  answers, closed = threading.Event(), threading.Event()

  def hangs():
    yield 1, []
    answers.wait(120)

  batches = feed.DeviceFeed(hangs(), lambda b: b)
  next(batches)
  threading.Thread(target=lambda: (batches.close(), closed.set()), daemon=True).start()
  assert closed.wait(60)
  answers.set()
