"""Reports of a run: `metrics.jsonl` (coca/training/metrics_file.py), TensorBoard, trackers, and a progress line.

`metrics.jsonl` has one JSON object a line: `step` and named numbers such as `train/loss`. NaN and infinity, which JSON
does not have, are null. Values of the training step are fetched by a thread, so that the loop never waits for the
step it has just begun; the loop is held back only where the values logged before are not there yet.

A disk that fails ends the run once several tries have failed: `metrics.jsonl` loses no line. TensorBoard's file may be
lost, since it says the same; the run goes on without it.
"""

import json
import math
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import jax
import numpy as np

from coca.devices.hardware import device_memory, peak_flops
from coca.objectives.terms import LOSSES
from coca.training.metrics_file import FILE, open_lines, read  # noqa: F401  (both are asked for here)
from coca.training.tensorboard import TensorBoard
from coca.training.trackers import Tracker


class Metrics:
  """Writes the numbers of a run; other processes than the first write nothing.

  Args:
    workdir: a folder, or an epath in a bucket.
    resume_step: step that the run goes on from; what was written of later ones is cut. 0: a new run.
    total_steps: of the whole run, for the time left.
    batch: pairs a step, all processes together, for pairs a second.
    flops_per_pair: of a training step, by its number; None: no MFU.
    config: of the run, for the trackers that it asks for; None: without any.
  """

  def __init__(
    self, workdir, resume_step: int = 0, total_steps: int = 0, batch: int = 0, flops_per_pair=None, config=None
  ):
    self._batch, self._flops_per_pair = batch, flops_per_pair
    self._main = jax.process_index() == 0
    self._peak = (peak_flops(jax.devices()[0].device_kind) or 0.0) * jax.device_count()
    self._fetcher = ThreadPoolExecutor(1, "metrics")
    self._pending = None  # (step, future of (values, when they were there), data wait share, pause)
    self._last = None  # (step, time) of the values written last
    self._waited = self._paused = 0.0  # seconds since the last log()
    self._logged = time.perf_counter()
    self._progress = Progress(total_steps, resume_step) if self._main else None
    self._trackers = []
    if self._main:
      if config:
        self._trackers = [Tracker(name, workdir, config, resume_step, self.say) for name in config.trackers]
      self._lines = open_lines(workdir, resume_step)
      self._board = TensorBoard(workdir / "tensorboard", resume_step, self.say)

  def log(self, step: int, scalars: dict) -> None:
    """Takes a training step's numbers, and makes sure that those of the call before are written.

    They are written, with `perf/` beside them, once they are computed: at the end of a `waiting()`, or here. Call it
    for the first step too: that starts the clock, so that compilation is not counted.

    Args:
      step: number of the step, counted from 1.
      scalars: {name: jax.Array of size 1, or number}; they need not be computed yet.

    Raises:
      ValueError: a value is not of size 1 (raised when it is written).
    """
    now = time.perf_counter()
    share = self._waited / max(now - self._logged - self._paused, 1e-9)
    new = step, self._fetcher.submit(_fetch, dict(scalars)), share, self._paused
    self._waited, self._paused, self._logged = 0.0, 0.0, now
    self._finish()
    self._pending = new

  def write(self, step: int, values: dict) -> None:
    """Writes numbers that are there, such as those of an evaluator, after those of the last log()."""
    self._finish()
    self._write(step, _fetch(values)[0])

  def image(self, step: int, path) -> None:
    """Shows an image file to the trackers."""
    for tracker in self._trackers:
      tracker.image(step, path)

  def say(self, text: str) -> None:
    """Prints a line, above the progress bar where there is one."""
    if self._progress:
      self._progress.say(text)

  @contextmanager
  def waiting(self, before=None):
    """Around what fetches the next batch: counted as `perf/data_wait` where the devices ran out of work meanwhile.

    Args:
      before: an array of the step before; if it is still being computed when the batch is there, nothing was lost.
    """
    start = time.perf_counter()
    try:
      yield
    finally:
      if before is None or before.is_ready():
        self._waited += time.perf_counter() - start
    if self._pending and self._pending[1].done():
      self._finish()

  @contextmanager
  def paused(self, after=None):
    """Around what is no training, such as an evaluation: not counted in `perf/`.

    Args:
      after: arrays that are waited for first, so that steps under way count as training.
    """
    jax.block_until_ready(after)
    start = time.perf_counter()
    try:
      yield
    finally:
      self._paused += time.perf_counter() - start

  def flush(self) -> None:
    """Writes everything; waits for the last log()'s values. Call it before a checkpoint: a killed run that goes on
    from there then has every line."""
    self._finish()
    if self._main:
      self._lines.flush()
      self._board.flush()

  def close(self, has_failed: bool = False) -> None:
    try:
      self.flush()
    finally:
      for tracker in self._trackers:
        tracker.close(has_failed)
      self._fetcher.shutdown(wait=False)
      if self._progress:
        self._progress.close()
        self._board.close()
        self._lines.close()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.close(has_failed=kind is not None)
    except Exception:
      if kind is None:  # else the first error is the one to see
        raise

  def _finish(self) -> None:
    if not self._pending:
      return
    (step, future, wait_share, pause), self._pending = self._pending, None
    values, there = future.result()
    if self._last:
      seconds = max(there - self._last[1] - pause, 1e-9)
      rate = (step - self._last[0]) * self._batch / seconds
      values |= {"perf/pairs_per_second": rate, "perf/data_wait": wait_share}
      if self._peak and self._flops_per_pair:
        values["perf/mfu"] = rate * self._flops_per_pair(step) / self._peak
      if memory := device_memory():
        values["perf/peak_memory_gib"] = memory / 2**30
    self._last = step, there
    self._write(step, values)
    if self._progress:
      self._progress.update(step, there, values)

  def _write(self, step: int, values: dict) -> None:
    if not self._main:
      return
    line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
    self._lines.write((json.dumps(line, allow_nan=False) + "\n").encode())
    self._board.write(step, values)
    for tracker in self._trackers:
      tracker.write(step, values)


class Progress:
  """A bar with the time left on a terminal, plain lines elsewhere."""

  def __init__(self, total_steps: int, first_step: int = 0):
    self._total, self._first, self._bar = total_steps, None, None
    if sys.stdout.isatty() and shutil.get_terminal_size((0, 0)).lines:  # tqdm shows nothing where no size is set
      from tqdm import tqdm

      self._bar = tqdm(
        total=total_steps,
        initial=first_step,
        file=sys.stdout,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}%|{bar:10}| {desc}",
      )

  def update(self, step: int, when: float, values: dict) -> None:
    """Shows that `step` was done at `when` (seconds of any clock)."""
    if self._first is None:
      self._first = step, when
    done = step - self._first[0]
    left = (self._total - step) * (when - self._first[1]) / done if done else None  # with evaluations, as it was so far
    line = describe(step, self._total, values, left)
    if self._bar is None:
      print(line, flush=True)
    else:
      self._bar.n = step
      self._bar.set_description_str(line)

  def say(self, text: str) -> None:
    if self._bar is None:
      print(text, flush=True)
    else:
      self._bar.write(text, file=sys.stdout)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def describe(step: int, total: int, values: dict, seconds_left: float | None = None) -> str:
  """E.g. `step 1200/5000  eta 3m12s  loss 5.123  contrastive 3.1  captioning 1.012  412 pairs/s  mfu 43%  wait 1%`.

  What a narrow terminal cuts off is last.
  """
  parts = [f"step {step}/{total}" if total else f"step {step}"]
  if seconds_left is not None:
    minutes, seconds = divmod(round(seconds_left), 60)
    parts += [f"eta {minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"eta {minutes}m{seconds:02}s"]
  losses = ("loss", *(loss.name for loss in LOSSES))
  parts += [f"{name} {values[key]:.4g}" for name in losses if (key := f"train/{name}") in values]
  if "perf/pairs_per_second" in values:
    parts += [f"{values['perf/pairs_per_second']:.4g} pairs/s"]
    parts += [f"mfu {values['perf/mfu']:.0%}"] if "perf/mfu" in values else []
    parts += [f"wait {values['perf/data_wait']:.0%}"]
  return "  ".join(parts)


def _fetch(scalars: dict) -> tuple[dict, float]:
  """({name: number}, when all were there); waits for the device."""
  values = {}
  for name, value in scalars.items():
    array = np.asarray(value)
    if array.size != 1:
      raise ValueError(f"metric '{name}' has shape {array.shape}; a number is wanted")
    x = array.reshape(())[()]
    # The shortest decimal that gives the same float32 or bfloat16, instead of its double.
    values[name] = float(str(x)) if array.dtype.kind not in "iub" else int(x)
  return values, time.perf_counter()
