"""Durations are text, wherever they appear: "10000" or "10000 steps", "1e6 examples", "2%" (of the run)."""

import math
import re

Duration = str
DURATION = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(%|steps?|examples?)?")


def in_steps(duration: Duration, batch: int, total: int | None = None) -> int:
  """A duration in steps, at least 1 unless it is written as 0; an empty one is 0 (never).

  Args:
    duration: "100", "100 steps", "1e6 examples" or "2%".
    batch: examples a step.
    total: steps of the run, for percent.

  Raises:
    ValueError: not a duration, or percent where it means nothing.
  """
  if not duration:
    return 0
  found = DURATION.fullmatch(duration.strip())
  value, unit = (float(found[1]), found[2]) if found else (math.inf, None)
  if value == math.inf:
    raise ValueError(f"{duration!r} is no duration; write '100', '100 steps', '1e6 examples' or '2%'")
  if unit == "%":
    if total is None:
      raise ValueError(f"{duration!r}: percent of what? Write steps or examples")
    value *= total / 100
  elif unit and unit.startswith("example"):
    value /= batch
  return max(round(value), 1 if value > 0 else 0)
