"""The lines of a run's metrics where they lie: `metrics.jsonl` in a folder; in a bucket `metrics/000000.jsonl`, ...

An object can't be appended to. A flush writes the newest one anew, as a whole, with what has come since; once it has a
megabyte the next one is begun. Nothing that is there is changed by another start: it begins an object of its own with
the line {"resumed": STEP}, which takes back what was written of later steps.
"""

import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from absl import logging
from etils import epath

from coca.config.typed import read_object
from coca.files.retries import again, exists
from coca.files.writing import write_atomic
from coca.storage.bucket import in_bucket, names

FILE = "metrics.jsonl"
PART = 1 << 20  # bytes
SHOWN = 30  # seconds after which what was written is to be seen in a bucket


def open_lines(workdir, resume_step: int):
  """Opens the lines of a start that goes on from `resume_step`; those of later steps are cut. 0: all."""
  return _Parts(workdir, resume_step) if in_bucket(workdir) else _File(workdir, resume_step)


def read(path) -> list[dict]:
  """The lines of `WORKDIR/metrics.jsonl`; what a kill tore off, or is no such line, is left out.

  Args:
    path: of the file; for a workdir in a bucket the same name stands for the objects in `WORKDIR/metrics/`.

  Raises:
    coca.files.retries.Unavailable: it can't be read.
  """
  lines = []
  for part in _parts(path) if in_bucket(path) else [Path(path)]:
    for text in again(part.read_bytes, str(part)).split(b"\n") if exists(part) else []:
      with suppress(ValueError):
        line = read_object(text)
        if type(line.get("step")) is int:
          lines.append(line)
        elif type(line.get("resumed")) is int:
          lines = _until(lines, line["resumed"])
  return lines


def cut(path, last_step: int) -> None:
  """Takes the lines after `last_step` (all, for 0) out of a `metrics.jsonl`, all at once or not at all."""
  path = Path(path)
  if not exists(path):
    return
  lines = read(path)
  kept = _until(lines, last_step)
  if len(kept) < len(lines):
    logging.info("%s: %d lines after step %d are cut", path, len(lines) - len(kept), last_step)
  new = path.with_name(path.name + ".new")
  with open(new, "w", encoding="utf-8") as f:
    f.writelines(json.dumps(line) + "\n" for line in kept)
    f.flush()
    os.fsync(f.fileno())
  os.replace(new, path)


def _until(lines: list[dict], last_step: int) -> list[dict]:
  return [line for line in lines if 0 < line["step"] <= last_step]


def _parts(path) -> list:
  folder = epath.Path(str(path).removesuffix(".jsonl"))
  return [folder / name for name in sorted(names(folder)) if re.fullmatch(r"\d{6,}\.jsonl", name)]


class _File:
  """Lines are in the file when they are written, and on the disk when they are flushed."""

  def __init__(self, folder, resume_step: int):
    self.path = Path(folder) / FILE
    self.path.parent.mkdir(parents=True, exist_ok=True)
    cut(self.path, resume_step)
    self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

  def write(self, line: bytes) -> None:
    rest = line

    def append():
      nonlocal rest
      while rest:  # a full disk takes a part
        rest = rest[self._file.write(rest) :]

    again(append, str(self.path))

  def flush(self) -> None:
    os.fsync(self._file.fileno())  # an error here is not tried again: the system has then dropped the lines

  def close(self) -> None:
    self._file.close()


class _Parts:
  """Lines are in the bucket when they are flushed, or half a minute old when the next one is written."""

  def __init__(self, workdir, resume_step: int):
    self.path = workdir / FILE.removesuffix(".jsonl")
    before = _parts(workdir / FILE)
    self._number = int(before[-1].stem) + 1 if before else 0
    self._data, self._flushed, self._when = json.dumps({"resumed": resume_step}).encode() + b"\n", b"", time.monotonic()

  def write(self, line: bytes) -> None:
    self._data += line
    if time.monotonic() - self._when > SHOWN:
      self.flush()

  def flush(self) -> None:
    self._when = time.monotonic()
    if self._data != self._flushed:
      write_atomic(self.path / f"{self._number:06}.jsonl", self._data)
      self._flushed = self._data
    if len(self._data) >= PART:
      self._number, self._data, self._flushed = self._number + 1, b"", b""

  def close(self) -> None:
    """Nothing is open."""
