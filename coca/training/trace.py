"""A trace of a few early steps for TensorBoard's profiler."""

from collections.abc import Callable, Iterator

import jax

from coca.storage.bucket import local_folder


def traced(steps: range, folder, paused: Callable, say: Callable) -> Iterator[int]:
  """The steps; the sixth to the tenth, or of fewer than ten the last five, are recorded in `folder` for TensorBoard."""
  recorded = steps[5:10] if len(steps) >= 10 else steps[-5:]  # the first would show compilation
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # it slows the threads that decode images
  with local_folder(folder) as written:
    for step in steps:
      if step == recorded[0]:
        with paused():
          jax.profiler.start_trace(written, profiler_options=options)
      yield step
      if step == recorded[-1]:
        with paused():
          jax.profiler.stop_trace()
        say(f"a trace of steps {recorded[0]} to {step}: pip install tensorboard xprof; tensorboard --logdir {folder}")
