"""TensorBoard's events of a run. They say what the metrics' lines say, so that the run goes on without them.

tensorboardX's SummaryWriter has a thread behind a queue of ten: once an error has ended the thread, the eleventh value
waits for ever. Its events are therefore written here.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

from coca.files.writing import write_atomic
from coca.storage.bucket import in_bucket

FLUSH = 30  # seconds after which TensorBoard sees new values
PART = 1 << 20  # bytes; in a bucket the file that grows is copied anew each time, and a new one begun from here on


class TensorBoard:
  """Writes numbers to events files; an error of the disk or the store ends that, and is said.

  Args:
    folder: for the files; in a bucket, they are written here and copied there at each flush.
    resume_step: step that the run goes on from: what is there of later ones is hidden. 0: a new run.
    say: takes the message.
  """

  def __init__(self, folder, resume_step: int, say: Callable[[str], None]):
    self._folder, self._resume_step, self._say = folder, resume_step, say
    self._scratch = tempfile.TemporaryDirectory() if in_bucket(folder) else None
    self._writer, self._parts = None, 0
    with self._or_none():
      self._begin()
    self.flush()

  def write(self, step: int, values: dict) -> None:
    """Numbers of a step, by name."""
    if self._writer is None:
      return
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.summary import scalar

    with self._or_none():
      for name, value in values.items():
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
    if time.perf_counter() - self._flushed > FLUSH:
      self.flush()

  def flush(self) -> None:
    self._flushed = time.perf_counter()
    with self._or_none():
      if self._writer is not None:
        self._writer.flush()
        self._copy()

  def close(self) -> None:
    self.flush()
    self._end()
    if self._scratch:
      self._scratch.cleanup()

  def _begin(self) -> None:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

    folder = Path(self._scratch.name if self._scratch else self._folder)
    folder.mkdir(exist_ok=True)
    self._writer = EventsWriter(str(folder / "events"), f".{self._parts}" if self._parts else "")
    # What a killed run has shown of this step and later ones is hidden.
    if not self._parts:
      self._writer.write_event(
        Event(
          wall_time=time.time(),
          step=self._resume_step + 1 if self._resume_step else 0,
          session_log=SessionLog(status=SessionLog.START),
        )
      )

  def _copy(self) -> None:
    if not self._scratch:
      return
    path = next(Path(self._scratch.name).iterdir())
    data = path.read_bytes()
    write_atomic(self._folder / path.name, data)
    if len(data) >= PART:
      self._end()
      path.unlink()
      self._parts += 1
      self._begin()

  def _end(self) -> None:
    writer, self._writer = self._writer, None
    if writer:
      with suppress(OSError):
        writer.close()

  @contextmanager
  def _or_none(self):
    try:
      yield
    except OSError as e:
      self._end()
      self._say(f"{self._folder}: {e}: the run goes on without TensorBoard; metrics.jsonl has the same numbers")
