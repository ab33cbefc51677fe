"""Threads for work on many items."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def threads(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
  """A pool that does not begin what waits in it once the block has failed or was stopped.

  An executor alone does all of it first: on a disk that fails, the waits of a million reads before the first error is
  seen.
  """
  with ThreadPoolExecutor(count) as pool:
    try:
      yield pool
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
