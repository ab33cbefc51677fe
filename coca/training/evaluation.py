"""The evaluations of a run that goes on, of which some are done already."""

from pathlib import Path

import numpy as np

from coca.devices.host import from_first
from coca.training.metrics import read as read_metrics


def evaluated(evaluators: dict, workdir: Path, step: int) -> list[str]:
  """The evaluators that a run that goes on from `step` ran there; all processes go by what the first finds."""
  if not evaluators:
    return []
  keys = {key for line in read_metrics(workdir / "metrics.jsonl") if line["step"] == step for key in line}
  done = from_first(np.array([any(key.startswith(f"eval/{name}/") for key in keys) for name in evaluators]))
  return [name for name, is_done in zip(evaluators, done, strict=True) if is_done]
