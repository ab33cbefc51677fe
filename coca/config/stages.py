"""A run in stages, each with images of its own size and its own learning rate."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from coca.config.durations import Duration, in_steps


@dataclass(frozen=True, kw_only=True)
class Stage:
  """A stage before the last one, which has `config.model.image.size` and `config.optim.lr` until the end of the run.

  The parameters are those of the last stage: for images of another size the grid of position embeddings is resampled
  within the step, bilinearly. Evaluations are those of the last stage, too. Each stage warms up and decays by itself.
  """

  # Pixels a side of the images, a multiple of the patch where there are patches.
  size: int = 224
  # Its end, and the next one's begin, counted from the begin of the run. Stages come in the order of their ends.
  until: Duration = "90%"
  # The highest learning rate. 0: `config.optim.lr`.
  lr: float = 0.0
  # Time in which the rate grows to it; percent are of the stage. Empty: `config.optim.warmup`.
  warmup: Duration = ""


class Span(NamedTuple):
  """A stage in steps: first + 1 to last, as steps are counted from 1."""

  first: int
  last: int
  config: Any  # the run as it is in this stage, a `Config`; its parameters are those of the whole run all the same


def spans(config, total: int | None = None) -> list[Span]:
  """The stages of a run of `total` steps (`config.total_steps`), the last one included; most runs have no other."""
  total = config.total_steps if total is None else total
  ends = [(in_steps(stage.until, config.data.batch, total), stage) for stage in config.stages.values()]
  found, first, last = [], 0, replace(config, stages={})
  for end, stage in sorted(ends, key=lambda x: x[0]):
    image = replace(config.model.image, size=stage.size)
    optim = replace(config.optim, lr=stage.lr or config.optim.lr, warmup=stage.warmup or config.optim.warmup)
    found.append(Span(first, end, replace(last, model=replace(config.model, image=image), optim=optim)))
    first = end
  return [*found, Span(first, total, last)]
