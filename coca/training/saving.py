"""The checkpoints of a run: where it begins, and when it saves."""

import contextlib
from collections.abc import Iterator

from coca.config import to_dict
from coca.config.durations import in_steps
from coca.devices import processes
from coca.storage.checkpoint import Checkpoints
from coca.training.init_from import start_from
from coca.training.metrics import Metrics
from coca.training.state import Setup, TrainState


class Saving:
  """Saves the state every `config.checkpoint.every`, and at the end.

  Args:
    setup: of the run.
    workdir: of the run.
    tokenizer_sha256: of its tokenizer.
  """

  def __init__(self, setup: Setup, workdir, tokenizer_sha256: str):
    config = setup.config
    self._setup, self._tokenizer_sha256, self._total = setup, tokenizer_sha256, config.total_steps
    self._every, keep_every = (
      in_steps(x, config.data.batch, self._total) for x in (config.checkpoint.every, config.checkpoint.keep_every)
    )
    self._checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep, keep_every)
    self.wait = self._checkpoints.wait

  def first_state(self) -> tuple[TrainState, int, list[str]]:
    """The state that the run goes on from or begins with, its step, and what is to be said of it."""
    setup, config = self._setup, self._setup.config
    with processes.waiting("all processes to read the checkpoint"):
      restored = self._checkpoints.restore(setup.planned)
    if restored:
      state, _, step = restored
      return state, step, []
    state = setup.init_state()
    if not config.init_from:
      return state, 0, []
    state, loaded = start_from(config.init_from, config, state, setup.mesh)
    return state, 0, [loaded]

  def due(self, step: int) -> bool:
    return step == self._total or (self._every > 0 and step % self._every == 0)

  def save(self, step: int, state: TrainState, metrics: Metrics) -> None:
    """Begins to write; the numbers up to this step are in their file before."""
    config = self._setup.config
    meta = {
      "config": to_dict(config).to_dict(),
      "tokenizer_sha256": self._tokenizer_sha256,
      "data": {"seed": config.seed, "step": step},
    }
    with processes.waiting(f"all processes to save step {step}"):
      metrics.flush()
      self._checkpoints.save(step, state, meta)

  def close(self) -> None:
    """Waits until all is written."""
    with processes.waiting("the last checkpoint to be written"):
      self._checkpoints.close()

  @contextlib.contextmanager
  def finished(self) -> Iterator[None]:
    """Saves to the end what is being saved, should an error end the run; the error is what is told."""
    try:
      yield
    except Exception:
      with contextlib.suppress(Exception):
        self.close()
      raise
