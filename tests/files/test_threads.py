"""Reading ahead on threads."""

import itertools
import threading

import pytest

from coca.files.threads import read_ahead


def test_results_are_in_order_and_items_asked_for_as_they_are_wanted():
  asked = itertools.count()
  first = threading.Event()

  def work(n):
    if n == 0:
      first.wait(60)  # the others are done before
    elif n == 3:
      first.set()
    return n * n

  found = read_ahead(work, asked, 4, ahead=8)
  assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]
  assert next(asked) == 8 + 5
  found.close()
  assert list(read_ahead(work, range(20, 23), ahead=2)) == [400, 441, 484] and list(read_ahead(work, ())) == []


@pytest.mark.parametrize("fails", [True, False])
def test_work_that_waits_is_not_begun_after_an_error_or_the_end(fails):
  begun, go = [], threading.Event()

  def work(n):
    begun.append(n)
    if n == 0 and fails:
      raise OSError("no disk")
    if n:
      go.wait(60)

  found = read_ahead(work, range(1000), 2, ahead=1000)
  threading.Timer(0.2, go.set).start()  # meanwhile all that waits is taken out
  if fails:
    with pytest.raises(OSError, match="no disk"):
      next(found)
  else:
    next(found)
    found.close()
  assert len(begun) < 1000
