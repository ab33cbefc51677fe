"""Failures of a job of several processes on this machine, and what becomes of it.

    python tests/benchmarks/drills.py --processes=2 --out=OUT [--only=worker,disk]

Each drill is a run of 24 steps of a small CoCa on the built-in corpus, one CPU device a process, joined over gloo and
started by launch/run_worker.sh, that is disturbed once or more. Its parameters are compared with those of a run that
nothing disturbed. `disk` mounts a small tmpfs and needs root.
"""

import argparse
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # as a config it is loaded from elsewhere

import numpy as np
from workers import ROOT, Job, parameters

RUN = [
  f"--config={Path(__file__).resolve()}",
  "--config.steps=24",
  "--config.log_every=2",
  "--config.checkpoint.every=6",
]
TIMEOUT = 90  # seconds that a process waits for another


def get_config():
  """The run: coca_tiny, smaller still. This file is its config too."""
  config = runpy.run_path(str(ROOT / "configs" / "coca_tiny.py"))["get_config"]("runlocal")
  config.model.image.update(size=16, patch=8, layers=1, width=16, mlp=32)
  config.model.text.update(vocab=300, width=16, mlp=32)
  config.data.batch = 16
  zero_shot, config.evals = config.evals.twemoji, {}
  if mark := os.environ.get("DRILL_MARK"):  # a file that is there while an evaluator runs
    zero_shot.update(every="12", limit=32, batch=16, pixel_neighbours="")
    config.evals = {"twemoji": zero_shot}
    from coca.evals.zero_shot import ZeroShot

    run = ZeroShot.run

    def marked(self, params):
      Path(mark).touch()
      yield from run(self, params)
      Path(mark).unlink(missing_ok=True)

    ZeroShot.run = marked
  return config


# --- What happens to the job ---


def saving(job):
  return any((job.workdir / "checkpoints").glob("*tmp*")) and (job.workdir / "checkpoints" / "6").exists()


def kill_worker(job):
  job.until_step(8)
  job.kill(len(job.workers) - 1)


def kill_coordinator(job):
  job.until_step(8)
  job.kill(0)


def kill_saving_coordinator(job):
  job.until(lambda: saving(job))
  job.kill(0)


def kill_saving_worker(job):
  job.until(lambda: saving(job))
  job.kill(1)


def kill_evaluating(job):
  job.until(job.workdir.with_name(job.workdir.name + ".mark").exists)
  job.kill(1)


def kill_compiling(job):
  job.until(lambda: "starting: " in job.logs())
  time.sleep(0.5)
  job.kill(0)


def kill_all(job):
  job.until_step(8)
  for i in range(len(job.workers)):
    job.kill(i)


def preempt(job):
  job.until_step(8)
  job.kill(1, signal.SIGTERM)


def freeze(job):
  job.until_step(8)
  pid = job.kill(1, signal.SIGSTOP)
  job.until(lambda: "gives up" in job.logs())
  os.kill(pid, signal.SIGCONT)


DRILLS = {
  "worker": (kill_worker, "kill -9 of the last process"),
  "coordinator": (kill_coordinator, "kill -9 of process 0, the coordinator"),
  "all": (kill_all, "kill -9 of all processes"),
  "save0": (kill_saving_coordinator, "kill -9 of process 0 during a save"),
  "save1": (kill_saving_worker, "kill -9 of process 1 during a save"),
  "evaluation": (kill_evaluating, "kill -9 of process 1 during an evaluation"),
  "compile": (kill_compiling, "kill -9 of process 0 during the first compilation"),
  "preempted": (preempt, "SIGTERM to process 1 alone"),
  "frozen": (freeze, f"process 1 stops responding (SIGSTOP), time-out {TIMEOUT} s"),
}


def outcome(job, statuses, wanted, tolerance=0.0):
  if any(statuses):
    return f"statuses {statuses}"
  found = parameters(job.workdir)
  worst = max(float(np.abs(found[name] - x).max()) for name, x in wanted.items())
  same = "the same parameters" if worst == 0 else f"parameters within {worst:.1e}"
  log = job.outputs[0].read_text()
  waits = re.findall(r"error: waited (\d+) s for ([^,]+)", job.logs())
  return (
    f"{same if worst <= tolerance else 'OTHER PARAMETERS: ' + same}; "
    f"restarts of process 0: {len(re.findall(r'; restart ', log))}"
    + "".join(f"; after {s} s of waiting for {what}" for s, what in waits[:1])
  )


def disk(out, processes, wanted, environment, size):
  """The workdir has room for some of the checkpoints; then for all of them."""
  workdir = out / "disk"
  workdir.mkdir()
  subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", workdir], check=True)
  try:
    with Job(workdir, processes, *RUN, environment=environment | {"COCA_RESTARTS": "2"}, timeout=TIMEOUT) as job:
      statuses, said = job.wait(), job.logs()
      found = (re.search(pattern, said, re.M) for pattern in (r"^error: .*", r"ended with status .* gives up"))
      first = f"statuses {statuses}: {' ... '.join(repr(x and x[0]) for x in found)}"
    subprocess.run(["mount", "-o", "remount,size=64m", workdir], check=True)
    with Job(workdir, processes, *RUN, environment=environment, timeout=TIMEOUT) as job:
      return f"{first}; with room again: {outcome(job, job.wait(), wanted).split(';')[0]}"
  finally:
    subprocess.run(["umount", workdir], check=True)


def resize(out, processes, wanted, environment, others):
  """A SIGTERM for all; then the same command on another number of processes."""
  with Job(out / f"to_{others}", processes, *RUN, environment=environment, timeout=TIMEOUT) as job:
    job.until_step(8)
    for worker in job.workers:
      worker.terminate()
    statuses = job.wait()
  with Job(out / f"to_{others}", others, *RUN, environment=environment, timeout=TIMEOUT) as job:
    return f"statuses {statuses}; on {others}: {outcome(job, job.wait(), wanted, 1e-3)}"


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--out", type=Path, required=True, help="a new folder")
  parser.add_argument("--only", help=f"some of {', '.join([*DRILLS, 'disk', 'resize'])}")
  args = parser.parse_args()
  out, n = args.out.absolute(), args.processes
  only = args.only.split(",") if args.only else [*DRILLS, "disk", "resize"]
  out.mkdir(parents=True)
  environment = {"JAX_COMPILATION_CACHE_DIR": str(out / "xla_cache")}

  def say(name, text, begun):
    print(f"| {name} | {text} | {time.monotonic() - begun:.0f} s |", flush=True)

  begun = time.monotonic()
  with Job(out / "undisturbed", n, *RUN, environment=environment, timeout=300) as job:
    assert job.wait() == [0] * n, job.logs()
  wanted = parameters(job.workdir)
  say("nothing", f"{n} processes", begun)
  for name, (disturb, what) in DRILLS.items():
    if name not in only:
      continue
    begun = time.monotonic()
    own = {
      "compile": {"JAX_COMPILATION_CACHE_DIR": str(out / "no_cache")},
      "evaluation": {"DRILL_MARK": str(out / "evaluation.mark")},
    }.get(name, {})
    with Job(out / name, n, *RUN, environment=environment | own, timeout=TIMEOUT) as job:
      disturb(job)
      say(what, outcome(job, job.wait(), wanted), begun)
  if "disk" in only:
    begun = time.monotonic()
    kib = sum(p.stat().st_blocks for p in (out / "undisturbed").rglob("*")) // 2
    say("the workdir's disk is full", disk(out, n, wanted, environment, int(kib * 0.7)), begun)
  if "resize" in only:
    begun = time.monotonic()
    others = 4 if n == 2 else 2
    say(f"SIGTERM to all; goes on with {others}", resize(out, n, wanted, environment, others), begun)


if __name__ == "__main__":
  main()
