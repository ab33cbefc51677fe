"""Many items in batches of few sizes: threads prepare the next ones while the devices work."""

import contextlib
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from tqdm import tqdm

from coca.devices.host import Lagged
from coca.files.threads import read_ahead


def in_batches(
  items: Sequence, prepare: Callable, function: Callable, sizes: Sequence[int], unit: str, shape: tuple
) -> np.ndarray:
  """`function` over padded batches of what `prepare` makes of the items, while threads prepare the next ones.

  Args:
    items: anything.
    prepare: one item -> dict of arrays, its row of the batch.
    function: dict of arrays [rows, ...] -> [rows, *shape].
    sizes: rows of a batch, ascending: the smallest that holds what is left is taken.
    unit: of the progress bar.
    shape: of a row of the result.

  Returns:
    [len(items), *shape].
  """
  if not len(items):
    return np.zeros((0, *shape), np.float32)
  largest = sizes[-1]
  out = Lagged()
  with (
    contextlib.closing(read_ahead(prepare, items, ahead=2 * largest)) as prepared,
    tqdm(total=len(items), unit=f" {unit}", disable=None if len(items) > largest else True) as bar,
  ):
    while rows := list(itertools.islice(prepared, largest)):
      size = next(b for b in sizes if b >= len(rows))
      batch = jax.tree.map(lambda *x: np.stack(x), *rows, *rows[:1] * (size - len(rows)))
      out.append(function(batch)[: len(rows)])
      bar.update(len(rows))
  return out.concatenate()
