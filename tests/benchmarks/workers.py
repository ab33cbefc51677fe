"""Jobs of several processes on this machine, each started by launch/run_worker.sh, to be disturbed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coca.training import metrics

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))
import conftest  # noqa: E402, F401  # sets XLA_FLAGS


class Job:
  """Processes of one run, as a context manager; in the end none is left.

  Args:
    workdir: of the run.
    processes: how many, with a device each.
    arguments: of coca.train; a short run of coca_tiny unless they say otherwise.
    environment: on top of this process' own.
    timeout: seconds that a process waits for another.
  """

  def __init__(self, workdir: Path, processes: int, *arguments: str, environment=None, timeout: int = 60):
    with socket.socket() as s:
      s.bind(("127.0.0.1", 0))
      port = s.getsockname()[1]
    self.workdir = workdir
    environment = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
      "COCA_PYTHON": sys.executable,
      "COCA_EXTRA": "cpu",
      "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "COCA_BACKOFF": "1",
      **(environment or {}),
    }
    command = [
      "bash",
      str(ROOT / "launch" / "run_worker.sh"),
      f"--workdir={workdir}",
      f"--timeout={timeout}",
      *arguments,
    ]
    if processes > 1:
      command += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
    self.outputs = [workdir.with_name(f"{workdir.name}-{i}.out") for i in range(processes)]
    self.workers = []
    for i, output in enumerate(self.outputs):
      own = [f"--process_id={i}"] * (processes > 1)
      with output.open("a") as out:
        self.workers.append(
          subprocess.Popen(command + own, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for worker in self.workers:
      try:
        os.killpg(worker.pid, signal.SIGKILL)
      except ProcessLookupError:
        continue
      worker.wait()

  def kill(self, i: int, number: int = signal.SIGKILL) -> int:
    """Sends a signal to the Python process of worker i, and returns its pid."""
    while True:
      children = Path(f"/proc/{self.workers[i].pid}/task/{self.workers[i].pid}/children").read_text().split()
      for pid in children:
        if b"coca.train" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
          os.kill(int(pid), number)
          return int(pid)
      time.sleep(0.05)

  def until(self, happened: Callable[[], bool], seconds: float = 300) -> None:
    """Waits for something; an AssertionError with the logs if all have ended before."""
    deadline = time.monotonic() + seconds
    while not happened():
      assert time.monotonic() < deadline and any(w.poll() is None for w in self.workers), self.logs()
      time.sleep(0.005)

  def until_step(self, step: int) -> None:
    """Waits until a step is in metrics.jsonl."""
    self.until(lambda: any(line["step"] >= step for line in metrics.read(self.workdir / "metrics.jsonl")))

  def wait(self, seconds: float = 600) -> list[int]:
    """The exit statuses of run_worker.sh."""
    return [worker.wait(seconds) for worker in self.workers]

  def logs(self) -> str:
    """What all have said, beside the workdir: that may be full."""
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in self.outputs)


def parameters(workdir) -> dict[str, np.ndarray]:
  import jax

  import coca

  model = coca.load(workdir)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(model.params)}
