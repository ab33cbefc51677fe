"""A sick disk: calls of the C library that fail on chosen files, and what becomes of the job.

    python tests/benchmarks/io_drills.py --out=OUT [--only=restore,data]

Each drill is the run of drills.py with one process, started by launch/run_worker.sh, or a CapFilt job that is started
again while its status is 70; faulty_io.c, compiled here with cc, makes some calls fail. Parameters, metrics.jsonl's
numbers and sidecars are compared bit for bit with those of an undisturbed job.
"""

import argparse
import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from drills import RUN
from workers import ROOT, Job, parameters

from coca.training import metrics

# What is read at restore, and not what retention opens to remove it.
STEP = "/checkpoints/[0-9]+/(meta|state)/(metadata|_METADATA|manifest.ocdbt|.*/[0-9a-f]{32}|d/[0-9a-f]{32})$"
FOLDERS, TMP = "/checkpoints(/[0-9]+)?$", "/checkpoints/[0-9]+[.]orbax"
CORPUS = "/corpus/.*array_record"


def kill_saved(job):
  job.until(lambda: (job.workdir / "checkpoints" / "6").exists())
  job.kill(0)


# name: (what fails, paths, calls, error, {settings of faulty_io.c}, what else happens to the job)
DRILLS = {
  "restore": ("reads at restore, 3 times", STEP, "open,read", errno.EIO, {"COUNT": 3}, kill_saved),
  "restore_stale": (
    "every 3rd look for checkpoints, 6 times",
    FOLDERS,
    "stat,list",
    errno.ESTALE,
    {"SKIP": 8, "EVERY": 3, "COUNT": 6},
    kill_saved,
  ),
  "restore_long": ("reads at restore, 12 times", STEP, "open,read", errno.EIO, {"COUNT": 12}, kill_saved),
  "save_write": ("writes of a checkpoint, 3 times", TMP, "write", errno.EIO, {"SKIP": 15, "COUNT": 3}, None),
  "save_sync": ("fsync of a checkpoint, once", TMP, "sync", errno.EIO, {"SKIP": 9, "COUNT": 1}, None),
  "save_rename": ("the rename that completes a checkpoint, once", TMP, "rename", errno.EIO, {"COUNT": 1}, None),
  "data": (
    "every 5th read of the data, 15 times",
    CORPUS,
    "open,read",
    errno.EIO,
    {"SKIP": 50, "EVERY": 5, "COUNT": 15},
    None,
  ),
  "data_long": ("all reads of the data, 25 times", CORPUS, "open,read", errno.EIO, {"SKIP": 300, "COUNT": 25}, None),
  "tensorboard": ("writes of TensorBoard's file, for ever", "/tensorboard/", "write", errno.EIO, {"SKIP": 2}, None),
  "metrics": (
    "writes of metrics.jsonl, 3 times",
    "/metrics[.]jsonl$",
    "write",
    errno.ENOSPC,
    {"SKIP": 3, "COUNT": 3},
    None,
  ),
  "metrics_long": (
    "writes of metrics.jsonl, 12 times",
    "/metrics[.]jsonl$",
    "write",
    errno.ENOSPC,
    {"SKIP": 3, "COUNT": 12},
    None,
  ),
  "all": (
    "every 1,009th call on the workdir, 20 times",
    "/run_all/",
    "stat,list,open,read,write,sync,rename",
    errno.EIO,
    {"SKIP": 100, "EVERY": 1009, "COUNT": 20},
    kill_saved,
  ),
}
CAPFILT = {
  "capfilt": (
    "every 9th call on the data and the sidecars, 30 times",
    f"/capfilt/texts/|{CORPUS}",
    "open,read,write,sync,rename",
    errno.EIO,
    {"SKIP": 60, "EVERY": 9, "COUNT": 30},
  ),
  "capfilt_long": ("all reads of the data, 25 times", CORPUS, "open,read", errno.EIO, {"SKIP": 150, "COUNT": 25}),
}


def compiled(out: Path) -> Path:
  compiler = shutil.which("cc") or shutil.which("gcc")
  if not compiler or sys.platform != "linux":
    sys.exit("this needs a C compiler (cc or gcc) and Linux's LD_PRELOAD: nothing is measured")
  library = out / "faulty_io.so"
  subprocess.run(
    [compiler, "-O1", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("faulty_io.c"), "-ldl"], check=True
  )
  return library


def faults(library: Path, state: Path, paths: str, calls: str, number: int, settings: dict) -> dict[str, str]:
  return {
    "LD_PRELOAD": str(library),
    "FAULTY_STATE": str(state),
    "FAULTY_PATHS": paths,
    "FAULTY_CALLS": calls,
    "FAULTY_ERRNO": str(number),
    **{f"FAULTY_{name}": str(value) for name, value in settings.items()},
  }


def failed(state: Path) -> str:
  """How many calls have failed, by their kind."""
  lines = state.read_bytes()[16:].decode().split("\n") if state.exists() else []
  kinds = sorted(line.split(" ")[1] for line in lines if line)
  return ", ".join(f"{len(list(group))} {kind}" for kind, group in itertools.groupby(kinds)) or "NONE FAILED"


def numbers(workdir: Path) -> list[dict]:
  """metrics.jsonl without what is measured."""
  return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in metrics.read(workdir / metrics.FILE)]


def same(found: dict, wanted: dict) -> bool:
  return found.keys() == wanted.keys() and all((found[name] == x).all() for name, x in wanted.items())


def complete(found: list[dict], wanted: list[dict]) -> bool:
  """Each line once; a run that goes on has one more, of its first step."""
  steps = [line["step"] for line in found]
  return steps == sorted(set(steps)) and all(line in found for line in wanted)


def outcome(job, statuses, wanted, lines) -> str:
  if any(statuses):
    return f"ENDED WITH {statuses}"
  said = [
    "the same parameters" if same(parameters(job.workdir), wanted) else "OTHER PARAMETERS",
    "the same metrics" if complete(numbers(job.workdir), lines) else "OTHER METRICS",
    f"{len(re.findall('; restart ', job.outputs[0].read_text()))} restarts",
  ]
  if aside := [p.name for p in (job.workdir / "checkpoints").iterdir() if "damaged" in p.name]:
    said.append(f"SET ASIDE: {', '.join(aside)}")
  return ", ".join(said)


def capfilt(workdir: Path, model: Path, environment: dict) -> tuple[dict[str, bytes], int]:
  """The sidecars of a small job, and how often it was started again."""
  command = [
    sys.executable,
    "-m",
    "coca.capfilt",
    f"--config={ROOT}/configs/capfilt.py",
    f"--workdir={workdir}",
    f"--config.captioner={model}",
    f"--config.filter={model}",
    "--config.source.split=openclipart[:240]",
    "--config.shard=60",
    "--config.batch=16",
    "--config.min_matching=-1",
    "--config.min_contrastive=0",
    "--config.rank_by=contrastive",
  ]
  workdir.parent.mkdir()
  log = workdir.with_name(f"{workdir.name}.out")
  environment, status, restarts = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}, 70, -1
  while status == 70 and restarts < 20:
    restarts += 1
    with log.open("a") as out:
      status = subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
  assert status == 0, f"status {status}: {log.read_text()[-2000:]}"
  return {path.name: path.read_bytes() for path in sorted((workdir / "texts").iterdir())}, restarts


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--out", type=Path, required=True, help="a new folder")
  parser.add_argument("--only", help=f"some of {', '.join([*DRILLS, *CAPFILT])}")
  args = parser.parse_args()
  out = args.out.absolute()
  only = args.only.split(",") if args.only else [*DRILLS, *CAPFILT]
  out.mkdir(parents=True)
  library = compiled(out)
  environment = {"JAX_COMPILATION_CACHE_DIR": str(out / "xla_cache"), "COCA_RESTARTS": "20"}
  with Job(out / "undisturbed", 1, *RUN, environment=environment, timeout=300) as job:
    assert job.wait() == [0], job.logs()
  wanted, lines = parameters(job.workdir), numbers(job.workdir)
  print("| what fails | error | calls that failed | outcome | |\n| --- | --- | --- | --- | ---: |", flush=True)

  def say(what, number, state, text, begun):
    print(
      f"| {what} | {errno.errorcode[number]} | {failed(state)} | {text} | {time.monotonic() - begun:.0f} s |",
      flush=True,
    )

  for name, (what, paths, calls, number, settings, disturb) in DRILLS.items():
    if name not in only:
      continue
    begun, state = time.monotonic(), out / f"{name}.state"
    own = environment | faults(library, state, paths, calls, number, settings)
    with Job(out / f"run_{name}", 1, *RUN, environment=own, timeout=300) as job:
      if disturb:
        disturb(job)
      say(what, number, state, outcome(job, job.wait(1800), wanted, lines), begun)
  if not set(only) & set(CAPFILT):
    return
  sidecars, _ = capfilt(out / "sound" / "capfilt", out / "undisturbed", environment)
  for name, (what, paths, calls, number, settings) in CAPFILT.items():
    if name not in only:
      continue
    begun, state = time.monotonic(), out / f"{name}.state"
    found, restarts = capfilt(
      out / name / "capfilt", out / "undisturbed", environment | faults(library, state, paths, calls, number, settings)
    )
    say(
      f"CapFilt: {what}",
      number,
      state,
      f"{'the same sidecars' if found == sidecars else 'OTHER SIDECARS'}, {restarts} restarts",
      begun,
    )


if __name__ == "__main__":
  main()
