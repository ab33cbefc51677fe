import json
import threading
import time

import pytest

from coca.data import feed


def test_skipped_counts_and_stops():
  skipped = feed.Skipped(0.05, 64)
  for _ in range(30):
    skipped.add(["web a-1: empty caption", "web a-2: empty caption", "web a-3: cut at byte 17"], 64)
  assert (skipped.examples, skipped.skipped) == (1920, 90) and skipped.share == pytest.approx(90 / 1920)
  assert list(skipped.reasons.values()) == ["web a-1: empty caption", "web a-3: cut at byte 17"]
  with pytest.raises(feed.TooManySkipped) as error:
    for k in range(20):
      skipped.add([f"web b-{j}: {'xyzuvw'[(k + j) % 6]}" for j in range(6)], 64)
  message = str(error.value)
  assert "config.data.max_skipped 0.05" in message and "empty caption" in message
  assert message.count("\n  web") == 5 and "raise config.data.max_skipped" in message
  assert f"{skipped.skipped} of {skipped.examples} examples" in message


def test_skipped_waits_for_enough_examples():
  skipped = feed.Skipped(0.05, 16)
  for _ in range(12):
    skipped.add(["w k: bad"] * 8, 16)
  assert skipped.share == 0.5
  with pytest.raises(feed.TooManySkipped, match="100 of 208 examples"):
    skipped.add(["w k: bad"], 16, skipped=4)  # of all hosts; one reason was this host's


def test_skipped_sees_a_source_that_is_lost_in_a_long_run():
  skipped = feed.Skipped(0.05, 100)
  for _ in range(1000):
    skipped.add([], 100)
  with pytest.raises(feed.TooManySkipped, match="200 of the latest 200 examples"):
    for _ in range(2):
      skipped.add(["web: disk gone"] * 100, 100)
  everything = feed.Skipped(1.0, 100)
  for _ in range(10):
    everything.add(["web: disk gone"] * 100, 100)


def test_skipped_goes_on_from_a_checkpoint():
  a, b = feed.Skipped(0.3, 100), feed.Skipped(0.3, 100)
  for _ in range(3):
    a.add(["web k: bad"] * 20, 100)
  b.restore(json.loads(json.dumps(a.state())))
  assert b.state() == a.state() and b.reasons == {"bad": "web k: bad"}
  for s in (a, b):
    with pytest.raises(feed.TooManySkipped):
      for _ in range(9):
        s.add(["web k: bad"] * 49, 100)
  assert a.state() == b.state()


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
    assert first[:2] == (0, ["problem 0"]) and first[2] >= 0
    deadline = time.monotonic() + 10
    while len(put) < 4 and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(0.05)
    assert put == [0, 1, 2, 3]  # three ahead of the one in use, and no more
    assert [b[0] for b in batches] == [10 * i for i in range(1, 10)]
    with pytest.raises(StopIteration):
      next(batches)


def test_device_feed_measures_the_wait():
  gate = threading.Event()
  def late():
    gate.wait(10)
    yield 1, []
  with feed.DeviceFeed(late(), lambda b: b) as batches:
    threading.Timer(0.2, gate.set).start()
    assert next(batches)[2] > 0.1


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
