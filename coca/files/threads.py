"""Threads that read ahead."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
  function: Callable[[Item], Result], items: Iterable[Item], count: int | None = None, ahead: int = 256
) -> Generator[Result, None, None]:
  """`function` of each item, in their order, while threads are at work on those that come next.

  What waits is not begun once one has failed or the iterator is closed. An executor alone does all of it first: on a
  disk that fails, the waits of a million reads before the first error is seen.

  Args:
    function: of one item.
    items: asked for as they are wanted, so that there may be more than memory holds.
    count: threads; None: as `ThreadPoolExecutor` has it.
    ahead: the most results that are made before they are asked for.
  """
  items = iter(items)
  with ThreadPoolExecutor(count) as pool:
    try:
      waiting = deque(pool.submit(function, item) for item in itertools.islice(items, ahead))
      while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
        yield result
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
