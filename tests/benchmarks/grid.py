"""Grids of runs: cells in folders of their own that are done once each, and tables of what is finished.

A cell is a run of `python -m coca.train` or `python -m coca.capfilt`. In its folder are command.json, log.txt, run/,
which is the workdir, and, once it is finished, done.json with what tables show. Stopped at any moment, the same command
goes on where it was. With --kept the figures of finished cells are in a second folder, too, small enough to be
committed: what it has is not run again on another machine, where no workdir is left.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from intervals import t_interval, wilson

from coca.devices.processes import LOCKED

ROOT = Path(__file__).resolve().parents[2]
OUT = "{OUT}"  # in flags: the grid's folder
WAIT = 20  # seconds until a cell is looked at again on which another process works


@dataclass(frozen=True)
class Cell:
  """A command of the project, `python -m module *flags --workdir=...`, which needs other cells to be done before."""

  name: str  # of its folder in that of the grid
  module: str
  flags: tuple[str, ...]
  needs: tuple["Cell", ...] = ()

  @property
  def workdir(self) -> str:
    """As flags of other cells name it."""
    return f"{OUT}/{self.name}/run"


class Grid:
  """The cells in a folder.

  Args:
    out: that folder.
    results: what done.json holds of a finished workdir, by the command's module.
    kept: a folder of finished cells' figures, a file each; None: none.
  """

  def __init__(self, out: Path, results: Mapping[str, Callable[[Path], dict]], kept: Path | None = None):
    self.out, self._results, self._kept = out, results, kept

  def done(self, cell: Cell) -> dict | None:
    """A finished cell's figures. SystemExit: the cell was run with other settings."""
    return self._done(cell) or self._done_elsewhere(cell)

  def _done_elsewhere(self, cell: Cell) -> dict | None:
    """From the folder of kept figures; those of other settings count as none."""
    if self._kept is None or not (path := self._kept / f"{cell.name}.json").exists():
      return None
    figures = json.loads(path.read_text())
    return figures if figures.pop("command") == [cell.module, *cell.flags] else None

  def _done(self, cell: Cell) -> dict | None:
    """From the cell's folder, where its workdir is, too."""
    folder, command = self.out / cell.name, [cell.module, *cell.flags]
    if (folder / "command.json").exists() and (old := json.loads((folder / "command.json").read_text())) != command:
      changed = [f"  {was}" for was in old if was not in command] + [
        f"  {now}  (now)" for now in command if now not in old
      ]
      sys.exit(
        f"error: {folder} was run with other settings:\n" + "\n".join(changed) + "\nGo on with those, take another "
        "--out, or delete the folder and those of the cells that used it"
      )
    path = folder / "done.json"
    return json.loads(path.read_text()) if path.exists() else None

  def run(self, cells: Sequence[Cell]) -> dict[str, str]:
    """Runs what is not done of `cells` and what they need, one after the other.

    Returns:
      the names of cells that failed, or whose needs did, and why. The others are done all the same.
    """
    done = [cell for cell in in_order(cells) if self.done(cell)]
    say(f"{len(done)} of {len(in_order(cells))} cells are done")
    # What these need has to have a workdir here.
    wanted = in_order([cell for cell in cells if cell not in done])
    todo, failed = [cell for cell in wanted if not self._done(cell)], {}
    for n, cell in enumerate(todo, 1):
      missing = [need.name for need in cell.needs if need.name in failed]
      began = time.monotonic()
      problem = f"needs {', '.join(missing)}" if missing else self._run(cell)
      if problem:
        failed[cell.name] = problem
      say(f"{n}/{len(todo)} {cell.name}: {problem or f'{time.monotonic() - began:.0f} s'}")
    return failed

  def _run(self, cell: Cell) -> str:
    """Runs a cell; returns what went wrong, or ''."""
    folder = self.out / cell.name
    has_begun = (folder / "command.json").exists()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "command.json", [cell.module, *cell.flags])
    flags = [flag.replace(OUT, str(self.out)) for flag in cell.flags]
    began, code = time.monotonic(), LOCKED
    while code == LOCKED:
      with open(folder / "log.txt", "a") as log:
        code = subprocess.run(
          [sys.executable, "-m", cell.module, *flags, f"--workdir={folder / 'run'}"],
          stdout=log,
          stderr=log,
          cwd=ROOT,
          env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self.out / "compiled")},
          check=False,
        ).returncode
      if code == LOCKED:  # the process of a grid that was killed, or of one beside this one
        has_begun = True
        time.sleep(WAIT)
    seconds = time.monotonic() - began
    if code:
      tail = "\n".join((folder / "log.txt").read_text(errors="replace").splitlines()[-5:])
      return f"ended with status {code}; the end of {folder}/log.txt:\n{tail}"
    try:
      found = self._results[cell.module](folder / "run")
    except (OSError, ValueError) as e:
      return f"{folder}/run: {e}"
    # The time of a part says nothing.
    found |= {"seconds": None if has_begun else round(seconds, 1), "commit": commit()}
    write_json(folder / "done.json", found)
    if self._kept:
      path = self._kept / f"{cell.name}.json"
      path.parent.mkdir(parents=True, exist_ok=True)
      write_json(path, {"command": [cell.module, *cell.flags]} | found)
    return ""


def in_order(cells: Sequence[Cell]) -> list[Cell]:
  """All cells that these need and themselves, each once and behind its needs."""
  found: dict[str, Cell] = {}
  for cell in cells:
    for each in (*in_order(cell.needs), cell):
      if found.setdefault(each.name, each) != each:
        raise ValueError(f"two cells are called {each.name}")
  return list(found.values())


def say(text: str) -> None:
  print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def write_json(path: Path, value) -> None:
  new = path.with_suffix(".new")
  new.write_text(json.dumps(value, indent=1) + "\n")
  new.replace(path)


def commit() -> str:
  """The code's, where it is a checkout."""
  found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
  return found.stdout.strip()


# --- Tables ---


@dataclass(frozen=True)
class Measure:
  """A column: a share that done.json has under `key`, and the paper's figure of each row, in percent."""

  key: str
  title: str
  paper: Mapping[str, float]
  paper_title: str


def percent(value: float | None) -> str:
  return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def share(values: Sequence[float], images: float) -> str:
  """Mean and 95 % interval in percent, of a single value Wilson's over images."""
  mean, half = t_interval(values)
  if math.isnan(half):
    low, high = wilson(mean, images)
    return f"{percent(mean)} ({percent(low)} to {percent(high)})"
  return f"{percent(mean)} ± {percent(half)}"


def mean(values: Sequence[float]) -> str:
  """Mean and 95 % interval in percent."""
  found, half = t_interval(values)
  return percent(found) + ("" if math.isnan(half) else f" ± {percent(half)}")


def direction(mean: float, half: float, paper: float) -> str:
  """A word for a gain of ours (mean and half of its interval) beside the paper's."""
  if math.isnan(half):
    return "one seed"
  if abs(mean) <= half:
    return "unclear"
  return "as the paper" if mean * paper > 0 else "AGAINST THE PAPER" if mean * paper < 0 else "the paper has no gain"


def head(measures: Sequence[Measure], first: str = "", extra: str = "") -> list[str]:
  columns = [first, extra] if extra else [first]
  for m in measures:
    columns += [f"{m.title}, %", "gain", m.paper_title, "gain there", "direction"]
  return ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]


def rows(
  found: Mapping[str, Mapping[int, dict]],
  base: str,
  measures: Sequence[Measure],
  extra: Callable[[dict], float] | None = None,
) -> list[str]:
  """Lines of Markdown. A gain is on `base`, seed by seed, with the interval of the differences.

  Args:
    found: of each row the results of its finished cells by seed; a row without any is left out.
    base: the row that others are compared with.
    measures: the columns.
    extra: a number of a result for the second column, of which the mean is shown.
  """
  lines = []
  for name, of_seed in found.items():
    if not of_seed:
      continue
    columns = [name]
    if extra:
      columns.append(f"{sum(map(extra, of_seed.values())) / len(of_seed):,.0f}")
    for m in measures:
      values = {seed: cell[m.key] for seed, cell in of_seed.items() if cell.get(m.key) is not None}
      if not values:
        columns += ["-", "", f"{m.paper[name]:g}" if name in m.paper else "", "", ""]
        continue
      images = next(iter(of_seed.values()))[m.key.rpartition("/")[0] + "/examples"]
      columns.append(share(list(values.values()), images))
      gains = [
        value - found[base][seed][m.key]
        for seed, value in values.items()
        if found[base].get(seed, {}).get(m.key) is not None
      ]
      mean, half = t_interval(gains) if gains and name != base else (math.nan, math.nan)
      columns.append(
        "" if math.isnan(mean) else f"{100 * mean:+.1f}" + ("" if math.isnan(half) else f" ± {percent(half)}")
      )
      columns.append(f"{m.paper[name]:g}" if name in m.paper else "")
      if name in m.paper and base in m.paper and name != base:
        there = round(m.paper[name] - m.paper[base], 2)
        columns += [f"{there:+.1f}", "" if math.isnan(mean) else direction(mean, half, there)]
      else:
        columns += ["", ""]
    lines.append("| " + " | ".join(columns) + " |")
  return lines


def cost(results: Sequence[dict]) -> str:
  """A line about the cells behind a table."""
  seconds = [cell["seconds"] for cell in results if cell.get("seconds")]
  minutes = f", {sum(seconds) / len(seconds) / 60:.1f} minutes each" if seconds else ""
  commits = sorted({cell["commit"] for cell in results if cell.get("commit")})
  return f"{len(results)} cells are done{minutes}" + f", at {', '.join(commits)}" * bool(commits) + "."


# --- Commands ---


def numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(",")]


def flags(tables: Sequence[str]) -> argparse.ArgumentParser:
  """A parent for parsers: the flags that all grids have."""

  def some(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(tables):
      raise argparse.ArgumentTypeError(f"there is no table {', '.join(sorted(unknown))}; there are {', '.join(tables)}")
    return text.split(",")

  made = argparse.ArgumentParser(add_help=False)
  made.add_argument("--out", type=lambda p: Path(p).resolve(), required=True, help="folder of the cells")
  made.add_argument("--kept", type=Path, help="folder of finished cells' figures, read and written")
  made.add_argument("--tables", type=some, default=list(tables), help=f"of {','.join(tables)}; all")
  made.add_argument("--seeds", type=numbers, default=[0, 1, 2])
  made.add_argument("--limit", type=int, default=1000, help="scenes that a model is measured on")
  made.add_argument("--table", action="store_true", help="print what is finished, and run nothing")
  return made


def main(args, grid: Grid, cells: Sequence[Cell], tables: Callable[[], str]) -> None:
  """Runs the cells, unless --table is there, and prints the tables; the status is 1 where a cell failed."""
  if set(",=") & set(str(args.out)):
    sys.exit("error: --out: no ',' and '=' in the path, please: it becomes a config argument")
  try:
    failed = {} if args.table else grid.run(cells)
  except KeyboardInterrupt:
    sys.exit("stopped; the same command goes on")
  print(tables())
  if failed:
    sys.exit("error: not finished:\n" + "\n".join(f"{name}: {problem}" for name, problem in failed.items()))
