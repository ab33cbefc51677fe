"""Being asked to stop: by the platform or `kill` (SIGTERM), or by a person (Ctrl-C, SIGINT)."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
  """`with Preemption() as preempted:` and then `if preempted(step): save and stop`, called at every step.

  With one process, SIGTERM and the first Ctrl-C set a flag; a second Ctrl-C ends the process at once. With several,
  jax's preemption service takes the SIGTERM of any process (or the platform's notice) and makes all of them stop at
  the same step, and Ctrl-C is handed on to it; its handler is then left in place.
  """

  def __init__(self):
    self._asked, self._number = threading.Event(), signal.SIGTERM

  def __enter__(self):
    self._single, self._previous = jax.process_count() == 1, {}
    if self._single:
      self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a script
      self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupted)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def __call__(self, step: int) -> bool:
    """True if it is time to save after `step` and stop: the same answer on every process."""
    return self._asked.is_set() if self._single else multihost_utils.reached_preemption_sync_point(step)

  @property
  def status(self) -> int:
    """The exit status of a process that was asked to stop, as a shell reports it: the job is not done."""
    return 128 + self._number

  def _interrupted(self, *_) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    self._number = signal.SIGINT
    os.write(2, b"\nCtrl-C: saves after this step and stops; once more ends it at once\n")
    if self._single:
      self._asked.set()
    else:
      os.kill(os.getpid(), signal.SIGTERM)
