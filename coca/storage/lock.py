"""One run at a time in a workdir: two by mistake would write over each other's metrics and checkpoints.

WORKDIR/.lock says who is there, and the first process of the run holds an flock on it. The kernel lets go of that when
the process ends, however it ends: after kill -9 the next one starts at once. Over NFS it holds between hosts too, and
that of a host which is gone ends with its lease (90 seconds on Linux). Elsewhere (gcsfuse, containers that share a
folder) the holder's signs of life count: one every `BEAT` seconds, and who sees none for `PATIENCE` takes over. A
holder that was frozen for so long, and finds its lock taken, ends at once.

In a bucket signs of life are all there is, and the store decides between two: each write asks that the object be as its
writer has seen it (`coca.storage.bucket.Object`).
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from coca.devices import processes
from coca.devices.host import from_first
from coca.storage.bucket import Object, in_bucket

FILE = ".lock"
BEAT, PATIENCE = 5.0, 30.0  # seconds
SHOWN = 500  # bytes of the message that all processes hear
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_UNKNOWN = {"host": "an unknown host", "place": "", "pid": 0, "started": "", "since": "an unknown time", "beat": -1}


class Locked(RuntimeError):
  """Another run is in the workdir; the message says which."""


@contextlib.contextmanager
def locked(workdir):
  """Around all that a run writes in `workdir`, a folder, which is made when missing, or in a bucket.

  All processes call this.

  Raises:
    Locked: another run is there; on every process.
  """
  lock, problem = None, b""
  if jax.process_index() == 0:
    try:
      lock = _ObjectLock(workdir) if in_bucket(workdir) else _FileLock(Path(workdir))
    except Locked as e:
      problem = str(e).encode()[:SHOWN]
  heard = from_first(np.frombuffer(problem.ljust(SHOWN, b"\0"), np.uint8))
  if problem := bytes(heard.tolist()).rstrip(b"\0"):
    raise Locked(problem.decode(errors="replace"))
  try:
    yield
  finally:
    if lock:
      lock.release()


class _Lock:
  """The common part of a folder's lock and a bucket's. Raises Locked."""

  _bytes: Callable[[], Any]  # what the file holds; None: it is not there
  _write: Callable[[], Any]

  def __init__(self, workdir):
    self._workdir, self._path = workdir, f"{workdir}/{FILE}"
    self._me = {
      "host": socket.gethostname(),
      "place": _place(),
      "pid": os.getpid(),
      "started": _started(os.getpid()),
      "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
      "beat": 0,
    }
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._live, name="lock", daemon=True)

  def _held_by(self, other: dict) -> Locked:
    return Locked(
      f"another run is in {self._workdir}: process {other['pid']} on {other['host']}, since "
      f"{other['since']}. Wait for its end or stop it, or take another workdir"
    )

  def _is_gone(self, other: dict) -> bool:
    """True if the process that the file names, and whose flock is not to be seen from here, has ended."""
    if other["place"] == _place():
      return not other["started"] or _started(other["pid"]) != other["started"]
    print(
      f"{self._path}: process {other['pid']} on {other['host']} was in this workdir; waiting up to "
      f"{PATIENCE:.0f} s for a sign of its life",
      file=sys.stderr,
      flush=True,
    )
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
      time.sleep(PATIENCE / 30)
      if (now := self._read()) != other:
        return now is None
    return True

  def _live(self) -> None:
    while not self._over.wait(BEAT):
      with contextlib.suppress(OSError):  # the next one may come through
        found = self._read()
        if found and not self._is_mine(found):
          print(
            f"error: {self._path} was taken by process {found['pid']} on {found['host']}, which saw no sign of "
            f"this run's life for {PATIENCE:.0f} s. This run ends",
            file=sys.stderr,
            flush=True,
          )
          os._exit(processes.LOCKED)
        self._me["beat"] += 1
        self._write()

  def _is_mine(self, found: dict | None) -> bool:
    return found is not None and found | {"beat": 0} == self._me | {"beat": 0}

  def _read(self) -> dict | None:
    """The process that the file names; None: there is none."""
    data = self._bytes()
    try:
      found = json.loads(data or b"null")
      return found and {name: found[name] for name in _UNKNOWN}
    except (ValueError, KeyError, TypeError):  # half of what somebody has written
      return _UNKNOWN | {"beat": data.hex()}


class _FileLock(_Lock):
  def __init__(self, folder: Path):
    super().__init__(folder)
    self._file_path, self._made = folder / FILE, not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    self._file, reaches = _open(self._file_path)
    try:
      other = self._read()
      if reaches is False or (other and not self._is_gone(other)):
        raise self._held_by(other or _UNKNOWN)
      self._write()
    except BaseException:
      os.close(self._file)
      raise
    self._thread.start()

  def release(self) -> None:
    """Removes the file, and a folder that was made for it if nothing else has come into it."""
    self._over.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      if self._is_mine(self._read()):
        self._file_path.unlink()
      if self._made:
        self._file_path.parent.rmdir()
    os.close(self._file)

  def _bytes(self) -> bytes | None:
    """The file's contents. It is opened anew: over NFS that shows what other hosts have written."""
    try:
      return self._file_path.read_bytes()
    except FileNotFoundError:
      return None

  def _write(self) -> None:
    data = json.dumps(self._me).encode()
    os.pwrite(self._file, data, 0)
    os.ftruncate(self._file, len(data))
    os.fsync(self._file)


class _ObjectLock(_Lock):
  """A bucket's. Of two that find nobody, or nobody alive, the store lets one write: the other's condition fails."""

  def __init__(self, workdir):
    super().__init__(workdir)
    self._object = Object(self._path)
    other = self._read()
    if (other and not self._is_gone(other)) or not self._write():
      raise self._held_by(self._read() or _UNKNOWN)
    self._thread.start()

  def release(self) -> None:
    """Removes the object."""
    self._over.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      if self._is_mine(self._read()):
        self._object.write(None)

  def _bytes(self) -> bytes | None:
    return self._object.read()

  def _write(self) -> bool:
    return self._object.write(json.dumps(self._me).encode())


def _open(path: Path) -> tuple[int, bool | None]:
  """An open lock file, and whether its flock is this process' (None: there are none here)."""
  while True:
    file, mine = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), True
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      if e.errno not in (*_HELD, *_UNSUPPORTED):
        os.close(file)
        raise
      mine = False if e.errno in _HELD else None
    with contextlib.suppress(FileNotFoundError):
      if mine is not True or os.path.samestat(os.fstat(file), os.stat(path)):
        return file, mine
    os.close(file)  # of a run that ended, and removed it, just now


def _place() -> str:
  """The scope of a process' number: this start of this machine, this container. Empty: it can't be told."""
  try:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
  except OSError:
    return ""


def _started(pid: int) -> str:
  """The start of the process with this number, in the kernel's ticks; empty: there is none."""
  try:
    return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[19]
  except (OSError, ValueError, IndexError):
    return ""
