"""Experiment trackers that a run's numbers go to beside TensorBoard: Weights & Biases and MLflow.

Project, server and key come from a tracker's own environment variables. Each has a thread, so that the loop never waits
for a network; an error ends the tracker and is said, and the run goes on without it.

A tracker's run has its id in the workdir, as `wandb.id` or `mlflow.id`: a start that goes on from a checkpoint goes on
in it, one from the beginning has a run of its own. Of steps that are done again after a kill it gets what it does not
have: Weights & Biases would refuse steps that go back, MLflow would keep both. Weights & Biases offline does not know
what it has, and gets all of them, in a folder of their own.
"""

import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

from PIL import Image

from coca.config import Config, to_dict
from coca.config.differing import flat
from coca.files.retries import exists
from coca.files.writing import write_atomic

PATIENCE = 60  # seconds that the end of a run waits for a tracker
PARAMS = 100  # the most that MLflow takes in a request


def check_installed(names: Sequence[str]) -> None:
  """Raises ImportError, which names the extra, if a tracker is not installed."""
  for name in names:
    # A folder wandb/, which Weights & Biases leaves where a run was started, passes for a module without a file.
    if getattr(find_spec(name), "origin", None) is None:
      raise ImportError(f"config.trackers has {name!r}, which is not installed: pip install -e '.[{name}]'")


class Tracker:
  """Sends the numbers of a run to one tracker.

  Args:
    name: 'wandb' or 'mlflow'.
    workdir: of the run.
    config: of the run.
    resume_step: step that the run goes on from. 0: a new run, of the tracker too.
    say: takes messages.
  """

  def __init__(self, name: str, workdir, config: Config, resume_step: int, say: Callable[[str], None]):
    self._name, self._say, self._queue = name, say, queue.SimpleQueue()
    module = import_module(name)  # here, since modules that two threads import at once may see each other half-made
    args = module, workdir / f"{name}.id", config, resume_step
    self._thread = threading.Thread(target=self._work, args=args, name=name, daemon=True)
    self._thread.start()

  def write(self, step: int, values: dict) -> None:
    """Takes numbers of a step, by name; steps never go back."""
    self._put("write", step, values)

  def image(self, step: int, path) -> None:
    """Takes an image file."""
    self._put("image", step, path)

  def close(self, has_failed: bool) -> None:
    """Waits, for a time, until all is sent."""
    self._put("close", has_failed)
    self._thread.join(PATIENCE)
    if self._thread.is_alive():
      self._say(f"{self._name}: not all is sent after {PATIENCE} seconds; metrics.jsonl has the same numbers")

  def _put(self, *call) -> None:
    if self._thread.is_alive():
      self._queue.put(call)

  def _work(self, module, path, config: Config, resume_step: int) -> None:
    try:
      run_id = path.read_text().strip() if resume_step and exists(path) else None
      run = {"wandb": _Wandb, "mlflow": _MLflow}[self._name](module, run_id, config)
      if run.id != run_id:
        write_atomic(path, run.id.encode())
      what = ""
      while what != "close":
        what, *args = self._queue.get()
        if what == "image":
          step, file = args
          with file.open("rb") as f, Image.open(f) as image:
            image.load()
            args = step, file.name, image
        getattr(run, what)(*args)
    except Exception as e:  # whatever it is, the training is worth more
      error = f"{type(e).__name__}: {e}"
      self._say(f"{self._name}: {error}: the run goes on without it; metrics.jsonl has the same numbers")


class _Wandb:
  def __init__(self, wandb, run_id: str | None, config: Config):
    self._image, self.id = wandb.Image, run_id or uuid.uuid4().hex
    self._run = wandb.init(
      id=self.id,
      resume="allow",
      name=None if run_id else config.name,  # someone may have given it another one
      config=to_dict(config).to_dict(),
      allow_val_change=True,
    )
    self._first = self._run.step  # after those that it has

  def write(self, step: int, values: dict) -> None:
    if step >= self._first:
      self._run.log(values, step=step)

  def image(self, step: int, name: str, image) -> None:
    self.write(step, {name: self._image(image)})

  def close(self, has_failed: bool) -> None:
    self._run.finish(exit_code=int(has_failed))


class _MLflow:
  def __init__(self, mlflow, run_id: str | None, config: Config):
    self._mlflow = mlflow
    run = mlflow.start_run(run_id=run_id, run_name=None if run_id else config.name)
    self.id, histories = run.info.run_id, mlflow.MlflowClient().get_metric_history
    self._seen = {name: max(x.step for x in histories(self.id, name)) for name in run.data.metrics} if run_id else {}
    params = [] if run_id else list(flat(to_dict(config).to_dict()).items())  # of a run that is there they can't change
    for first in range(0, len(params), PARAMS):
      mlflow.log_params(dict(params[first : first + PARAMS]))

  def write(self, step: int, values: dict) -> None:
    if new := {name: value for name, value in values.items() if step > self._seen.get(name, 0)}:
      self._mlflow.log_metrics(new, step=step)

  def image(self, step: int, name: str, image) -> None:
    self._mlflow.log_image(image, name)

  def close(self, has_failed: bool) -> None:
    self._mlflow.end_run("FAILED" if has_failed else "FINISHED")
