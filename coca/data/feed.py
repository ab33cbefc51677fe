"""Between the loader and the step: batches on their way to the device, and the count of unusable records."""

import queue
import re
import threading
from collections.abc import Callable, Iterator

from absl import logging

_REASONS = 5  # kept as examples
_PATIENCE = 60  # seconds for the batch under way


class TooManySkipped(RuntimeError):
  """More records are unusable than `config.data.max_skipped` allows."""


class Skipped:
  """Ends the run when too many records are unusable. All hosts count the same, so that all stop at the same step.

  Args:
    max_skipped: share of all examples that may be unusable (`config.data.max_skipped`).
    batch: examples a step, all hosts together.
    step: where the run goes on.
    skipped: unusable examples up to there.
  """

  def __init__(self, max_skipped: float, batch: int, step: int = 0, skipped: int = 0):
    self.max_skipped, self.batch = max_skipped, batch
    self.last = step, skipped
    self.reasons: dict[str, str] = {}  # by kind: the first one of it that this host met

  def add(self, problems: list[str]) -> None:
    """Keeps examples of the reasons that came with a batch."""
    for problem in problems:
      if len(self.reasons) < _REASONS:
        # Of one kind if they differ in the record's name and in numbers only.
        self.reasons.setdefault(re.sub(r"\d+", "#", problem.partition(": ")[2]), problem)

  def check(self, step: int, skipped: int) -> None:
    """Judges the count of unusable examples up to a step, on all hosts.

    Raises:
      TooManySkipped: of all examples so far, if they are enough to judge, more than `max_skipped` were unusable; or
        of those since the check before more than half (a disk gone in the middle of a long run would not show in the
        total).
    """
    recent, recent_skipped = (step - self.last[0]) * self.batch, skipped - self.last[1]
    if recent < max(200, self.batch):
      return
    self.last = step, skipped
    gone = recent_skipped > max(0.5, self.max_skipped) * recent
    count, total = (recent_skipped, recent) if gone else (skipped, step * self.batch)
    if gone or skipped > self.max_skipped * total:
      reasons = list(self.reasons.values()) or ["(the other hosts name them)"]
      raise TooManySkipped(
        f"{count} of {'the latest ' if gone else ''}{total} examples are unusable, more than config.data.max_skipped "
        f"{self.max_skipped} allows, such as:\n  " + "\n  ".join(reasons)
        + "\nRepair or remove them, or raise config.data.max_skipped.")


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
    self._thread = threading.Thread(target=_feed, args=(batches, put, self._queue, self._stop), daemon=True,
                                    name="device-feed")
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
