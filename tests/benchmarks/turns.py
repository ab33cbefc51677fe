"""Two processes that are timed in turns: one works while the other waits.

A worker is a Python process that calls `serve`; the benchmark starts it as a `Worker` and asks it for one step at a
time. Only the standard library is imported here, so that the worker may run on another interpreter.
"""

import json
import os
import subprocess
import sys
import time


def limit_threads(threads: int) -> None:
  """Pins this process to its first cores; to be called before the libraries that start threads are imported."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def peak_memory() -> int:
  """The most bytes of memory that this process ever had resident (Linux' VmHWM)."""
  with open("/proc/self/status") as status:
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def serve(step, **facts) -> None:
  """Says `facts`, then runs `step` whenever the other side asks, and says how long it took.

  Args:
    step: runs one step to its end and returns its loss, a float.
    **facts: numbers about the model.
  """
  print(json.dumps(facts), flush=True)
  for _ in sys.stdin:
    began = time.perf_counter()
    loss = step()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "loss": loss, "peak": peak_memory()}), flush=True)


class Worker:
  """A process that serves; `facts` is what it said when it was ready, `seconds` what its steps took."""

  def __init__(self, name: str, command: list[str]):
    self.name, self.seconds, self.losses, self.peak = name, [], [], 0
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.facts = self._answer()

  def step(self) -> None:
    self.process.stdin.write("step\n")
    self.process.stdin.flush()
    answer = self._answer()
    self.seconds.append(answer["seconds"])
    self.losses.append(answer["loss"])
    self.peak = answer["peak"]

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()

  def _answer(self) -> dict:
    for line in self.process.stdout:
      if line.startswith("{"):
        return json.loads(line)
    sys.exit(f"error: {self.name} ended with status {self.process.wait()}; what it said stands above")
