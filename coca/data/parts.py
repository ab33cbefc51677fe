"""Batches that threads make, a part at a time, by Grain."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from coca.config import Config
from coca.devices.hardware import cores

Batch = dict[str, Any]  # of arrays; 'image' may be a `Regions` of them
Rows = Sequence[int] | np.ndarray  # of a global batch
_PART = 32  # rows that a thread works on at a time


class _Parts:
  """Random access to parts of batches, one after the other: what a thread makes at a time.

  Args:
    example: position in the stream -> (example, reason why it is unusable or "").
    rows: this host's rows of a batch.
    batch: rows of a global batch.
    steps: batches there are.
  """

  def __init__(self, example: Callable[[int], tuple[Batch, str]], rows: Rows, batch: int, steps: int):
    self.example, self.batch, self.steps = example, batch, steps
    self.parts = [part.tolist() for part in np.array_split(np.asarray(rows), -(-len(rows) // _PART))]

  def __len__(self) -> int:
    return self.steps * len(self.parts)

  def __getitem__(self, i: int) -> tuple[Batch, list[str]]:
    step, part = divmod(i, len(self.parts))
    made = [self.example(step * self.batch + row) for row in self.parts[part]]
    arrays = jax.tree.map(lambda *x: np.stack(x), *(example for example, _ in made))
    return arrays, [problem for _, problem in made if problem]


def read(example, rows, batch: int, start: int, steps: int, config: Config) -> Iterator[tuple[Batch, list[str]]]:
  """This host's rows of the batches from `start` up to `steps`, and the reasons of unusable ones.

  Args:
    example: position in the stream -> (example, reason why it is unusable or ""). Decoders release the GIL.
    rows: row numbers of the global batch.
    batch: rows of a global batch.
    start: the first batch.
    steps: batches there are.
    config: the run; `config.data.threads` and `prefetch`.
  """
  if not len(rows) or rows[-1] >= batch:
    raise ValueError(f"this process holds rows {list(rows)[:3]}... of a batch of {batch}: none, or more than there are")
  parts = _Parts(example, rows, batch, steps)
  threads = config.data.threads or cores()
  buffer = max(config.data.prefetch * len(parts.parts), threads)
  # Grain cannot slice off everything.
  dataset = grain.MapDataset.source(parts)[start * len(parts.parts) :] if start < steps else None
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)

  def batches():
    if dataset is None:
      return
    reader = iter(dataset.to_iter_dataset(options))
    try:
      for _ in range(start, steps):
        made = [next(reader) for _ in parts.parts]
        arrays = jax.tree.map(lambda *x: np.concatenate(x) if len(x) > 1 else x[0], *(part for part, _ in made))
        yield arrays, [problem for _, problems in made for problem in problems]
    finally:
      reader.close()

  return batches()
