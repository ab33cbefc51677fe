"""The time of each instruction by the finished schedule of a TPU's compiler.

What libtpu says in a program's text (`coca.planning.expected`) it expects before it schedules anything. Behind that it
knows what each instruction's own program does in each cycle: bundles, in loops whose iterations are constants. Of
products, above all of those with element-wise work fused to them, the first is up to twice the second.
"""

import contextlib
import dataclasses
import os
import re
import tempfile
from pathlib import Path

# What libtpu writes of each program: where, and of which of its passes.
_DUMP = "--xla_jf_dump_to={} --xla_jf_dump_llo_pass_label_regex=final_bundles"
_FILE = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt")
# A bundle, with "LB" the first of a loop; the test of a loop's end, somewhere in it: a predicate, and how often it
# runs where that is a constant; a branch by a predicate.
_MARK = re.compile(
  r"^ *(?:0x[0-9a-f]+|0) +(LB)?[A-Z ,]*:"
  r"|(%p\w+) = scmp\S* \S+ (\d+)? ?[^;]*?/\* loop exit test"
  r"|sbr\.rel \(!?(%p\w+)\)",
  re.MULTILINE,
)


@contextlib.contextmanager
def written():
  """Within it libtpu, which must not have started yet, writes its schedules to the folder that this gives."""
  with tempfile.TemporaryDirectory(prefix="coca_plan_") as folder:
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"{given} {_DUMP.format(folder)}".strip()
    try:
      yield Path(folder)
    finally:
      os.environ["LIBTPU_INIT_ARGS"] = given


def clear(folder: Path) -> None:
  """Removes those of earlier programs, whose instructions have the same names."""
  for path in folder.iterdir():
    path.unlink()


def read(folder: Path) -> dict[str, int]:
  """Cycles by the names of the instructions that a schedule was written of. Raises ValueError where there is none."""
  found = {path: match[1] for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))}
  if not found:
    raise ValueError("this libtpu writes no schedules as 0.0.52 does: leave out --schedule")
  return {name: cycles(path.read_text()) for path, name in found.items()}


def cycles(text: str) -> int:
  """Those of a schedule: its bundles, each as often as the loops run that it is in."""
  loops = [_Loop()]  # the whole, and the loops that are open, innermost last
  for first, test, times, branch in (mark.groups() for mark in _MARK.finditer(text)):
    if test:
      loops[-1].test, loops[-1].times = test, int(times or 1)
    elif branch:
      if branch == loops[-1].test:  # back to its first bundle
        inner = loops.pop()
        loops[-1].cycles += inner.cycles * inner.times
    else:
      loops += [_Loop()] * bool(first)
      loops[-1].cycles += 1
  return sum(loop.cycles for loop in loops)


@dataclasses.dataclass
class _Loop:
  cycles: int = 0  # of one iteration
  times: int = 1
  test: str = ""
