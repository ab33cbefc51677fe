"""Many items in batches of few sizes: threads prepare the next ones while the devices work. Images may be broken."""

import contextlib
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from coca.devices.host import Lagged
from coca.files.threads import read_ahead

SAID = 20  # broken images that are named


def seen(images: Sequence, read: Callable, empty, skip_broken: bool, prepare: Callable, run: Callable):
  """`run` over images that may be broken.

  Args:
    images: as people name them.
    read: one of them -> its pixels. ValueError: it can't be read.
    empty: the pixels in the place of one that can't.
    skip_broken: goes on without these.
    prepare: the number of an image -> what stands beside it in a row, a dict of arrays.
    run: (numbers, number -> row) -> an array of results.

  Returns:
    that array, NaN for broken images where it is one of floats; and the reasons by their numbers.

  Raises:
    ValueError: an image can't be read, and none may be skipped.
  """
  broken = {}

  def row(i):
    try:
      image = read(images[i])
    except ValueError as e:
      if not skip_broken:
        raise ValueError(f"{e}" + "; skip_broken=True goes on without it" * (len(images) > 1)) from e
      image, broken[i] = empty, str(e)
    return {"image": image} | prepare(i)

  out = run(range(len(images)), row)
  for i in sorted(broken)[:SAID]:
    logging.warning("%s", broken[i])
  if len(broken) > SAID:
    logging.warning("and %d more of %d images can't be read", len(broken) - SAID, len(images))
  if broken and np.issubdtype(out.dtype, np.floating):
    out = np.array(out)
    out[list(broken)] = np.nan
  return out, broken


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
