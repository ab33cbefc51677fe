"""Damaged files of every format that coca reads: each is read, or refused by an error that names it, and nothing else.

    python tests/benchmarks/fuzz.py --mutants=1000 --out=DIR
    python tests/benchmarks/fuzz.py --formats=png,tar --first=17 --mutants=1 --out=DIR      # one of them again

A mutant is a function of seed, format and number. A process of its own reads them one after the other; it is started
again after one that ends it or takes too long. What is looked for, beside errors that a reader does not document
("foreign") or that do not name the file ("unnamed"): values that are not what was written, where checksums should tell
("changed"), files that are written elsewhere and programs that are started ("outside"), more than 2 GiB ("memory"),
"crash" and "hang". DIR holds such mutants, each with its error.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

GOOD = ("accepted", "refused", "bad records")
FINDINGS = ("foreign", "unnamed", "changed", "outside", "memory", "crash", "hang")
MEMORY = 2 << 30  # bytes above what the process had before
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


# --- The process that reads ---


class Guard:
  """Python's audit events of a mutant: what is written outside of `folder`, and which programs are started."""

  def __init__(self, folder: Path):
    self._inside, self._on, self.seen = (str(folder), "/dev/null", "/proc/"), False, []
    sys.addaudithook(self._event)

  def __call__(self):
    self._on, self.seen = True, []
    return contextlib.closing(self)

  def close(self):
    self._on = False

  def _event(self, event, args):
    if not self._on:
      return
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"):
      self.seen.append(f"{event} {args[0]}")
    elif event == "open" and isinstance(args[0], (str, bytes)) and args[2] & WRITES:
      path = os.path.abspath(os.fsdecode(args[0]))
      if not path.startswith(self._inside):
        self.seen.append(f"writes {path}")


def worker(jobs: list[list], seed: int, out: Path, reports) -> None:
  """Reads the mutants of `jobs` ([format, first, count]); a line of JSON goes to `reports` after each."""
  folder = out / "work"
  os.environ.update(JAX_PLATFORMS="cpu", HOME=str(folder), XDG_CACHE_HOME=str(folder / "cache"), TMPDIR=str(folder))
  from fuzz_formats import FORMATS

  guard, limits = Guard(folder), resource.getrlimit(resource.RLIMIT_AS)
  for name, first, count in jobs:
    sound, mutant, form = folder / name / "sound", folder / name / "mutant", FORMATS[name]
    shutil.rmtree(folder / name, ignore_errors=True)
    mutant.mkdir(parents=True)
    form.make(mutant)  # at the mutants' place, since some files name others by their whole path
    shutil.copytree(mutant, sound)
    targets = sorted(p.relative_to(sound) for p in sound.glob(form.files) if p.is_file())
    written = form.read(mutant, mutant / targets[0])[1]
    for n in range(first, first + count):
      shutil.rmtree(mutant)
      shutil.copytree(sound, mutant)  # with the times of the files
      rng = random.Random(f"{seed} {name} {n}")
      path = mutant / rng.choice(targets)
      data = _damaged(path.read_bytes(), form, rng)
      kept = out / f"{name}-{seed}-{n}-{path.name}"  # stays if this process ends or goes wrong
      for file in (path, kept):
        file.write_bytes(data)
      before, begun = _memory("VmRSS"), time.monotonic()
      Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
      # A bomb is to end this process, not the machine.
      resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 2 * MEMORY, limits[1]))
      with guard():
        kind, said = _outcome(form, mutant, path, written)
      resource.setrlimit(resource.RLIMIT_AS, limits)
      grown = max(_memory("VmHWM") - before, 0)
      if kind in GOOD and guard.seen:
        kind, said = "outside", "; ".join(guard.seen[:3])
      if kind in GOOD and grown > MEMORY:
        kind, said = "memory", f"{grown >> 20} MiB; {kind}: {said}"
      if kind in GOOD:
        kept.unlink()
      print(json.dumps([name, n, kind, said, grown, time.monotonic() - begun]), file=reports, flush=True)
    shutil.rmtree(folder / name)


def _damaged(data: bytes, form, rng: random.Random) -> bytes:
  """By one of the format's ways; by the first, which knows no format, where the file is of another one."""
  try:
    return rng.choice(form.damage)(data, rng)
  except (ValueError, KeyError, IndexError, NotImplementedError):
    return form.damage[0](data, rng)


def _outcome(form, folder: Path, path: Path, written) -> tuple[str, str]:
  try:
    bad, found = form.read(folder, path)
  except form.refusals as e:
    named = not form.named or any(name in str(e) for name in (str(folder), path.name))
    return ("refused" if named else "unnamed"), _where(e)
  except MemoryError as e:
    return "memory", _where(e)
  except (Exception, SystemExit) as e:
    return "foreign", _where(e)
  if found is not None and found != written:
    return "changed", "what was read is not what was written"
  return ("bad records" if bad else "accepted"), ""


def _where(error: BaseException) -> str:
  """The error, and the last lines of coca and of all that it came through."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = [f for f in frames if "/coca/" in f.filename] or frames
  places = dict.fromkeys(f"{Path(f.filename).name}:{f.lineno}" for f in (ours[-1], frames[-1]))
  return f"{type(error).__name__} ({', '.join(places)}): {str(error)[:400]}"


def _memory(name: str) -> int:
  return next(
    int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
  )


# --- The process that counts ---


def run(jobs: list[list], seed: int, out: Path, limit: float):
  """Yields (format, number, outcome, what was said, bytes, seconds) of each mutant of `jobs`, which it uses up."""
  log = out / "log"
  while jobs:
    reading, writing = os.pipe()
    command = [
      sys.executable,
      sys.argv[0],
      f"--worker={json.dumps(jobs)}",
      f"--seed={seed}",
      f"--out={out}",
      f"--reports={writing}",
    ]
    with open(log, "wb") as file:
      process = subprocess.Popen(command, stdout=file, stderr=file, pass_fds=[writing], start_new_session=True)
    os.close(writing)
    rest, hangs = b"", True
    try:
      while select.select([reading], [], [], limit)[0]:
        if not (data := os.read(reading, 1 << 16)):
          hangs = False
          break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
          yield json.loads(line)
          _done(jobs)
    finally:
      os.close(reading)
      if hangs:
        with contextlib.suppress(ProcessLookupError):
          os.killpg(process.pid, signal.SIGKILL)
      status = process.wait()
    said = log.read_bytes()[-2000:].decode(errors="replace").strip()
    if status > 0:
      raise RuntimeError(f"the process that reads failed by itself:\n{said}")
    if jobs:
      yield [*jobs[0][:2], "hang" if hangs else "crash", f"status {status}: {said}", 0, limit]
      _done(jobs)
  log.unlink(missing_ok=True)


def _done(jobs: list[list]) -> None:
  jobs[0][1:] = [jobs[0][1] + 1, jobs[0][2] - 1]
  if not jobs[0][2]:
    del jobs[0]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--formats", default="", help="with commas; empty: all")
  parser.add_argument("--mutants", type=int, default=1000, help="of each format")
  parser.add_argument("--first", type=int, default=0, help="number of the first")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--limit", type=float, default=60, help="seconds for one")
  parser.add_argument("--out", type=Path, required=True, help="a folder for what went wrong")
  parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
  parser.add_argument("--reports", type=int, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    with os.fdopen(args.reports, "w") as reports:
      return worker(args.worker, args.seed, args.out, reports)

  from fuzz_formats import FORMATS
  from tqdm import tqdm

  names = args.formats.split(",") if args.formats else list(FORMATS)
  out = args.out.absolute()
  (out / "work").mkdir(parents=True, exist_ok=True)
  counts = {name: Counter() for name in names}
  peak, seconds, said = Counter(), Counter(), {}
  jobs = [[name, args.first, args.mutants] for name in names]
  try:
    for name, n, kind, what, grown, took in tqdm(
      run(jobs, args.seed, out, args.limit), total=len(names) * args.mutants, unit=" mutants", disable=None
    ):
      counts[name][kind] += 1
      peak[name], seconds[name] = max(peak[name], grown), seconds[name] + took
      if kind in FINDINGS:
        place = (name, kind, what.partition(":")[0] if kind not in ("crash", "hang") else "")
        said.setdefault(place, []).append((n, what))
  finally:  # what a fault of this program, or Ctrl-C, leaves is worth something
    shutil.rmtree(out / "work")
    show(counts, peak, seconds, said)
  sys.exit(bool(said))


def show(counts: dict[str, Counter], peak: Counter, seconds: Counter, said: dict) -> None:
  columns = (*GOOD, *FINDINGS)
  print(f"| format | mutants | {' | '.join(columns)} | peak MiB | s |")
  print("| --- |" + " ---: |" * (len(columns) + 3))
  for name in counts:
    print(
      f"| {name} | {counts[name].total()} | "
      + " | ".join(str(counts[name][kind]) for kind in columns)
      + f" | {peak[name] >> 20} | {seconds[name]:.0f} |"
    )
  for (name, kind, _), cases in said.items():
    print(f"\n{name}: {kind}, {len(cases)} times, numbers {', '.join(str(n) for n, _ in cases[:10])}\n  {cases[0][1]}")


if __name__ == "__main__":
  main()
