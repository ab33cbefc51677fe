"""The evaluations of a run."""

from pathlib import Path

import jax
import numpy as np

from coca.config import Config
from coca.config.durations import in_steps
from coca.devices import processes
from coca.devices.host import from_first
from coca.training.metrics import Metrics
from coca.training.metrics import read as read_metrics
from coca.training.state import TrainState


class Evaluation:
  """Runs each evaluator every `config.evals.NAME.every`, and at the end.

  Args:
    config: of the run.
    evaluators: by their names in `config.evals`.
    metrics: takes their numbers.
  """

  def __init__(self, config: Config, evaluators: dict, metrics: Metrics):
    self._evaluators, self._metrics, self._total = evaluators, metrics, config.total_steps
    self._every = {name: in_steps(config.evals[name].every, config.data.batch, self._total) for name in evaluators}

  def due(self, step: int) -> list[str]:
    """The names of the evaluators whose turn it is."""
    return [
      name for name, every in self._every.items() if step == self._total or (every and step and step % every == 0)
    ]

  def run(self, step: int, state: TrainState, done=()) -> None:
    """Runs those that are due and not done."""
    for name in self.due(step):
      if name in done:
        continue
      with processes.waiting(f"step {step}"):
        jax.block_until_ready(state)
      with self._metrics.paused(state):
        found = self._evaluators[name].run(state.best_params)
        values = {f"eval/{name}/{key}": float(value) for key, value in found}
      self._metrics.write(step, values)
      self._metrics.say(
        f"step {step}/{self._total}  " + "  ".join(f"{key[5:]} {value:.4g}" for key, value in values.items())
      )


def evaluated(evaluators: dict, workdir: Path, step: int) -> list[str]:
  """The evaluators that a run that goes on from `step` ran there; all processes go by what the first finds."""
  if not evaluators:
    return []
  keys = {key for line in read_metrics(workdir / "metrics.jsonl") if line["step"] == step for key in line}
  done = from_first(np.array([any(key.startswith(f"eval/{name}/") for key in keys) for name in evaluators]))
  return [name for name, is_done in zip(evaluators, done, strict=True) if is_done]
