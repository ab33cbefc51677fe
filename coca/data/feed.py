"""Between the loader and the step: batches on their way to the device."""

import queue
import threading
from collections.abc import Callable, Iterator

from absl import logging

_PATIENCE = 60  # seconds for the batch under way


class DeviceFeed:
  """Puts batches on the device from a thread, ahead of the step: iterate for (device batch, problems).

  An exception of the loader or of `put` is raised where the batch was asked for. Close it, or use it as a context
  manager, to stop the thread and the loader.

  Args:
    batches: iterator of (batch, problems).
    put: makes a batch's device arrays.
    depth: batches that are on the device ahead of the one in use, at least 1.
  """

  def __init__(self, batches: Iterator, put: Callable, depth: int = 2):
    self._queue = queue.Queue(max(depth - 1, 1))  # and one more in the thread's hands
    self._stop = threading.Event()
    self._batches, self._ended = batches, False
    self._thread = threading.Thread(
      target=_feed, args=(batches, put, self._queue, self._stop), daemon=True, name="device-feed"
    )
    self._thread.start()

  def __iter__(self):
    return self

  def __next__(self):
    if self._ended:
      raise StopIteration
    item, error = self._queue.get()
    if error is not None:
      self._ended = True
      raise error
    return item

  def close(self) -> None:
    """Stops the thread and closes the loader. Batches not asked for are dropped.

    A loader that hangs, as on a disk that does not answer, is left behind: the program has to come to its end.
    """
    self._stop.set()
    self._ended = True
    self._thread.join(_PATIENCE)
    if self._thread.is_alive():
      logging.warning("the loader has not come back in %d s and is left behind", _PATIENCE)
    elif hasattr(self._batches, "close"):
      self._batches.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def __del__(self):
    self._stop.set()


def _feed(batches, put, out: queue.Queue, stop: threading.Event) -> None:
  def hand_over(item) -> None:
    while not stop.is_set():
      try:
        return out.put(item, timeout=0.1)
      except queue.Full:
        continue

  try:
    for batch, problems in batches:
      if stop.is_set():
        return
      hand_over(((put(batch), problems), None))
    hand_over((None, StopIteration()))
  except BaseException as e:  # of whatever kind: it belongs to whoever waits for the batch
    hand_over((None, e))
