"""Random draws that are the same on every machine, in every version of Python and NumPy."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
  """Numbers from a key of any parts.

  Made of `random.Random.random` alone, which Python promises to keep; how its other methods use it has changed before,
  as NumPy's distributions have.
  """

  def __init__(self, *key: object):
    self.random = random.Random(_number(key)).random

  def uniform(self, low: float, high: float) -> float:
    """A number from `low` to `high`."""
    return low + (high - low) * self.random()

  def below(self, count: int) -> int:
    """A whole number from 0 to `count` - 1."""
    return int(self.random() * count)

  def choice(self, items: Sequence[T]) -> T:
    """One of `items`."""
    return items[self.below(len(items))]

  def some(self, items: Sequence[T], count: int) -> list[T]:
    """`count` of `items` in a random order, or all if there are fewer."""
    left = list(items)
    return [left.pop(self.below(len(left))) for _ in range(min(count, len(left)))]


def one_in(count: int, *key: object) -> bool:
  """True for one in `count` keys, always the same ones."""
  return _number(key) % count == 0


def _number(key: tuple) -> int:
  return int.from_bytes(hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest(), "little")
