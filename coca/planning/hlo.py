"""The text of a compiled program: its computations, how often each of them runs, and the lines of code behind it."""

import math
import re

# An instruction: its name, its result, its operation, and what is behind the bracket.
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
BITS = {
  "pred": 8,
  "c64": 64,
  "c128": 128,
  "token": 0,
  "opaque": 0,
}  # others have it in their names: bf16, s32, u4, f8e4m3fn

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LIMIT = re.compile(r" = s(?:32|64)\[\]\S* constant\((\d+)\)")

Array = tuple[str, tuple[int, ...]]  # dtype and shape


def computations(text: str) -> tuple[dict[str, list[str]], str]:
  """The lines of each computation by its name, and the name of the one that runs."""
  found, entry, lines = {}, "", []
  for line in text.splitlines():
    if not line.startswith(" ") and (match := _COMPUTATION.match(line)):
      lines = found[match[2]] = []
      entry = match[2] if match[1] else entry
    else:
      lines.append(line)
  return found, entry


def runs(found: dict[str, list[str]], entry: str) -> dict[str, tuple[int, bool]]:
  """The number of times that each computation runs that is reached from the entry, and if that is known."""
  times_of = {}

  def visit(name, times, counted):
    if name in found and times > times_of.get(name, (0, True))[0]:
      times_of[name] = times, counted
      for line in found[name]:
        called = dict(_CALLED.findall(line))
        trips = _trips(line, found.get(called["condition"].lstrip("%"), [])) if "condition" in called else 1
        for names in called.values():
          for callee in re.findall(r"[\w.-]+", names):
            visit(callee, times * (trips or 1), counted and trips is not None)

  visit(entry, 1, True)
  return times_of


def _trips(line: str, condition: list[str]) -> int | None:
  """The number of a loop's iterations: as it says, or the one number that its condition compares the counter with."""
  if known := _TRIPS.search(line):
    return int(known[1])
  limits = [found[1] for found in map(_LIMIT.search, condition) if found]
  below = any(" compare(" in line and "direction=LT" in line for line in condition)
  return int(limits[0]) if below and len(limits) == 1 else None


def arrays(text: str) -> list[Array]:
  """Those that a part of a line names."""
  return [(dtype, tuple(int(x) for x in shape.split(",") if x)) for dtype, shape in _ARRAY.findall(text)]


def nbytes(array: Array) -> int:
  dtype, shape = array
  bits = BITS[dtype] if dtype in BITS else int(re.search(r"\d+", dtype)[0])  # pyright: ignore[reportOptionalSubscript]
  return math.prod(shape) * bits // 8


def held(line: str) -> list[str]:
  """Computations that a fusion or a reduction holds; those of loops are programs of their own."""
  return re.findall(r"\b(?:calls|to_apply)=%?([\w.-]+)", line)


class Sources:
  """The lines of Python that instructions come from, as the module's tables have them.

  Args:
    text: the module. Where it has no tables, each instruction names its file itself.
  """

  def __init__(self, text: str):
    def table(name):
      rows = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
      return dict(row.split(" ", 1) for row in rows[1].splitlines()) if rows else {}

    def ids(row):
      return dict(re.findall(r"(\w+)=(\d+)", row))

    files, functions = ({k: v.strip('"') for k, v in table(name).items()} for name in ("FileNames", "FunctionNames"))
    places = {k: ids(row) for k, row in table("FileLocations").items()}
    self._frames = {}  # by number: file, line, function, and the number of the caller's
    for k, row in table("StackFrames").items():
      frame = ids(row)
      place = places[frame["file_location_id"]]
      caller = str(int(frame.get("parent_frame_id", 1)) - 1)  # 1: none
      name = functions.get(place["function_name_id"], "").replace("<locals>.", "")
      self._frames[k] = files[place["file_name_id"]], place["line"], name, caller

  def of(self, line: str, deep: int = 2) -> str:
    """'linear.py:58 Linear.__call__ < attention.py:120 Attention.__call__': an instruction's lines, innermost first.

    One of each file; those of installed packages are left out, unless there are no others.
    """
    if file := re.search(r'source_file="([^"]*)" source_line=(\d+)', line):
      return f"{_short(file[1])}:{file[2]}"
    found = re.search(r"stack_frame_id=(\d+)", line)
    k, lines = found[1] if found else "0", {}  # by file: the innermost
    while k in self._frames:
      file, number, function, k = self._frames[k]
      lines.setdefault(file, f"{_short(file)}:{number} {function}")
    own = [name for file, name in lines.items() if "site-packages" not in file] or list(lines.values())
    return " < ".join(own[:deep])


def _short(file: str) -> str:
  return file.rpartition("/")[2]
