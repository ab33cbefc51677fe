"""Limits at which a run ends: too many unusable records, or steps in a row with non-finite gradients."""

import re
from collections.abc import Callable
from pathlib import Path

from coca.config import Config
from coca.storage.workdir import saved_steps

_REASONS = 5  # kept as examples


class TooManySkipped(RuntimeError):
  """More records are unusable than `config.data.max_skipped` allows."""


class Skipped:
  """Ends the run when too many records are unusable. All hosts count the same, so that all stop at the same step.

  Args:
    max_skipped: share of all examples that may be unusable (`config.data.max_skipped`).
    batch: examples a step, all hosts together.
    step: where the run goes on.
    skipped: unusable examples up to there.
  """

  def __init__(self, max_skipped: float, batch: int, step: int = 0, skipped: int = 0):
    self.max_skipped, self.batch = max_skipped, batch
    self.last = step, skipped
    self.reasons: dict[str, str] = {}  # by kind: the first one of it that this host met

  def said(self, skipped: int) -> list[str]:
    """A line for a run's end: how many examples were unusable, and some reasons; none without one."""
    if not skipped:
      return []
    reasons = "".join(f"\n  {reason}" for reason in self.reasons.values())
    return [f"{skipped:,} unusable examples were skipped" + (f", such as:{reasons}" if reasons else "")]

  def add(self, problems: list[str]) -> None:
    """Keeps examples of the reasons that came with a batch."""
    for problem in problems:
      if len(self.reasons) < _REASONS:
        # Of one kind if they differ in the record's name and in numbers only.
        self.reasons.setdefault(re.sub(r"\d+", "#", problem.partition(": ")[2]), problem)

  def check(self, step: int, skipped: int) -> None:
    """Judges the count of unusable examples up to a step, on all hosts.

    Raises:
      TooManySkipped: of all examples so far, if they are enough to judge, more than `max_skipped` were unusable; or
        of those since the check before more than half (a disk gone in the middle of a long run would not show in the
        total).
    """
    recent, recent_skipped = (step - self.last[0]) * self.batch, skipped - self.last[1]
    if recent < max(200, self.batch):
      return
    self.last = step, skipped
    gone = recent_skipped > max(0.5, self.max_skipped) * recent
    count, total = (recent_skipped, recent) if gone else (skipped, step * self.batch)
    if gone or skipped > self.max_skipped * total:
      reasons = list(self.reasons.values()) or ["(the other hosts name them)"]
      raise TooManySkipped(
        f"{count} of {'the latest ' if gone else ''}{total} examples are unusable, more than config.data.max_skipped "
        f"{self.max_skipped} allows, such as:\n  "
        + "\n  ".join(reasons)
        + "\nRepair or remove them, or raise config.data.max_skipped."
      )


class Stop(RuntimeError):
  """The run cannot go on; the message says why and what to do."""


def check(logged, skipped: Skipped, config: Config, workdir: Path, written: Callable) -> None:
  """Raises Stop or TooManySkipped where a run makes no sense. Looks at numbers logged before, so it never waits.

  Args:
    logged: the step and its numbers, or None.
    skipped: of the run.
    config: of the run.
    workdir: of the run.
    written: waits for the checkpoint that is being written.
  """
  if logged is None:
    return
  step, numbers = logged
  skipped.check(step, int(numbers["data/skipped"]))
  if (row := int(numbers["skipped_in_a_row"])) >= config.optim.max_nonfinite:
    written()
    said = (
      f"{row} steps in a row up to step {step} had a non-finite loss or gradient (config.optim.max_nonfinite "
      f"allows {config.optim.max_nonfinite}); they changed no parameter. "
    )
    if steps := saved_steps(workdir):
      raise Stop(
        f"{said}Start a new run from the newest checkpoint (there are those of {', '.join(map(str, steps))}; "
        f"move out of {workdir / 'checkpoints'} what is not to count): another --workdir, "
        f"--config.init_from={workdir}, and a lower config.optim.lr or config.optim.clip set"
      )
    raise Stop(
      f"{said}No checkpoint was written before, so start again, in this workdir if you like, with a lower "
      "config.optim.lr or config.optim.clip set"
    )
