"""A trace of a few early steps for TensorBoard's profiler."""

from collections.abc import Sequence
from contextlib import ExitStack

import jax

from coca.storage.bucket import local_folder
from coca.training.metrics import Metrics
from coca.training.state import TrainState


class Trace:
  """Records the sixth to the tenth of the steps, or of fewer than ten the last five; of no steps nothing.

  Args:
    steps: of the run.
    folder: for the trace.
    metrics: says where it is.
  """

  def __init__(self, steps: Sequence[int], folder, metrics: Metrics):
    self._recorded = steps[5:10] if len(steps) >= 10 else steps[-5:]  # the first would show compilation
    self._folder, self._metrics, self._stack = folder, metrics, ExitStack()

  def __enter__(self):
    if self._recorded:
      self._written = self._stack.enter_context(local_folder(self._folder))
    return self

  def __exit__(self, *error):
    return self._stack.__exit__(*error)

  def before(self, step: int, state: TrainState) -> None:
    if self._recorded and step == self._recorded[0]:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # it slows the threads that decode images
      with self._metrics.paused(state):
        jax.profiler.start_trace(self._written, profiler_options=options)

  def after(self, step: int, state: TrainState) -> None:
    if self._recorded and step == self._recorded[-1]:
      with self._metrics.paused(state):
        jax.profiler.stop_trace()
      self._metrics.say(
        f"a trace of steps {self._recorded[0]} to {step}: pip install tensorboard xprof; tensorboard "
        f"--logdir {self._folder}"
      )
