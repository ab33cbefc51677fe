"""Between the loader and the step: batches on their way to the device, and the count of unusable records."""

import queue
import re
import threading
import time
from collections.abc import Callable, Iterator

_REASONS = 5  # kept as examples


class TooManySkipped(RuntimeError):
  """More records are unusable than `config.data.max_skipped` allows."""


class Skipped:
  """Counts unusable records, and ends the run when they are too many.

  Args:
    max_skipped: share of all examples that may be unusable (`config.data.max_skipped`).
    batch: examples a step, all hosts together.
  """

  def __init__(self, max_skipped: float, batch: int):
    self.max_skipped, self.enough = max_skipped, max(200, batch)
    self.examples = self.skipped = 0
    self.recent_examples = self.recent_skipped = 0
    self.reasons: dict[str, str] = {}  # by kind: the first one of it

  @property
  def share(self) -> float:
    return self.skipped / max(self.examples, 1)

  def add(self, problems: list[str], examples: int, skipped: int | None = None) -> None:
    """Counts a batch.

    Args:
      problems: the reasons that came with it.
      examples: rows of the batch.
      skipped: unusable ones among them; left out, as many as there are reasons. With several hosts, give the rows and
        the unusable ones of all of them, so that all stop at the same step.

    Raises:
      TooManySkipped: of all examples so far, if they are enough to judge, more than `max_skipped` were unusable; or
        of the latest ones more than half (a disk gone in the middle of a long run would not show in the total).
    """
    skipped = len(problems) if skipped is None else skipped
    self.examples += examples
    self.skipped += skipped
    self.recent_examples += examples
    self.recent_skipped += skipped
    for problem in problems:
      if len(self.reasons) < _REASONS:
        # Of one kind if they differ in the record's name and in numbers only.
        self.reasons.setdefault(re.sub(r"\d+", "#", problem.partition(": ")[2]), problem)
    if self.recent_examples >= self.enough:
      gone = self.recent_skipped > max(0.5, self.max_skipped) * self.recent_examples
      count, total = (self.recent_skipped, self.recent_examples) if gone else (self.skipped, self.examples)
      self.recent_examples = self.recent_skipped = 0
      if gone or self.share > self.max_skipped:
        raise TooManySkipped(
          f"{count} of {'the latest ' if gone else ''}{total} examples are unusable, more than config.data.max_skipped "
          f"{self.max_skipped} allows, such as:\n  " + "\n  ".join(self.reasons.values())
          + "\nRepair or remove them, or raise config.data.max_skipped.")

  def state(self) -> dict:
    """Plain values for JSON: goes into the checkpoint."""
    return {"examples": self.examples, "skipped": self.skipped, "recent_examples": self.recent_examples,
            "recent_skipped": self.recent_skipped, "reasons": self.reasons}

  def restore(self, state: dict) -> None:
    """Goes on counting where `state` was taken."""
    self.examples, self.skipped = int(state["examples"]), int(state["skipped"])
    self.recent_examples, self.recent_skipped = int(state["recent_examples"]), int(state["recent_skipped"])
    self.reasons = dict(state["reasons"])


class DeviceFeed:
  """Puts batches on the device from a thread, ahead of the step: iterate for (device batch, problems, seconds waited).

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
    began = time.perf_counter()
    item, error = self._queue.get()
    if error is not None:
      self._ended = True
      raise error
    return *item, time.perf_counter() - began

  def close(self) -> None:
    """Stops the thread and closes the loader. Batches not asked for are dropped."""
    self._stop.set()
    self._ended = True
    self._thread.join()
    if hasattr(self._batches, "close"):
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
