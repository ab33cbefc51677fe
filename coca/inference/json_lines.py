"""A file of JSON lines that a killed run goes on with, and that has its name when it is complete."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from coca.config.differing import differing
from coca.files.writing import no_folder, write_atomic


class JsonLines:
  """Writes PATH.partial, a line for each of some things that are known before; `finish` renames it to PATH.

  What the lines depend on lies beside it meanwhile, in PATH.partial.json. Lines that are there already are kept, but
  for the last one where it is torn, and those of a batch that is not whole: it would be another batch.

  Args:
    path: local.
    about: what the lines depend on, by name; plain JSON.
    key: the field that says of what a line is.
    names: its values, in the order of the lines.
    batch: lines that are made together.

  Attributes:
    done: the lines that were there, without their ends.

  Raises:
    ValueError: what is there is of other settings or of other things.
    OSError: it can't be read or written.
  """

  def __init__(self, path, about: dict, key: str, names: Sequence[str], batch: int):
    self._path = path = Path(path)  # without a slash at its end
    self._partial, self._about = Path(f"{path}.partial"), Path(f"{path}.partial.json")
    no_folder(self._path)
    self.done = self._earlier(about, key, names, batch) if self._partial.exists() and self._about.exists() else []
    if not self.done:
      self._partial.unlink(missing_ok=True)
      write_atomic(self._about, json.dumps(about).encode())
    self._file = open(self._partial, "ab")  # noqa: SIM115
    self._file.truncate(sum(len(line) + 1 for line in self.done))

  def _earlier(self, about: dict, key: str, names: Sequence[str], batch: int) -> list[bytes]:
    anew = f"\nGo on with what it was, or delete {self._partial} to begin anew"
    try:
      before = dict(json.loads(self._about.read_bytes()))
    except (ValueError, TypeError, RecursionError):
      raise ValueError(
        f"{self._about} is damaged, so that nobody can tell of what {self._partial} is: delete both to begin anew"
      ) from None
    if lines := [f"  {name}: {was} before, {is_} now" for name, (was, is_) in differing(before, about).items()]:
      raise ValueError(f"{self._partial} was begun otherwise:\n" + "\n".join(lines) + anew)
    lines = []
    for line, name in zip(self._partial.read_bytes().split(b"\n")[:-1], names, strict=False):
      try:
        found = json.loads(line)[key]
      except (ValueError, KeyError, TypeError, RecursionError):  # a power cut leaves anything
        break
      if found != name:
        raise ValueError(f"{self._partial}: line {len(lines) + 1} is of {found}, which is {name} now" + anew)
      lines.append(line)
    return lines if len(lines) == len(names) else lines[: len(lines) // batch * batch]

  def add(self, lines: Sequence[dict]) -> None:
    """Writes a batch; it is on the disk when this returns."""
    # Names of files need not be UTF-8: escaped in the JSON they are the same when they are read.
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    self._file.write(text.encode("utf-8", "backslashreplace"))
    self._file.flush()
    os.fsync(self._file.fileno())

  def finish(self) -> None:
    """Gives the file its name."""
    self._file.close()
    os.replace(self._partial, self._path)
    self._about.unlink()

  def close(self) -> None:
    """Leaves the file to a later run."""
    self._file.close()
