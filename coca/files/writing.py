"""Files that appear as a whole or not at all, local or at fsspec URLs; and a place for indexes."""

import contextlib
import errno
import fcntl
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from coca.files.reading import ask_store


def cache_directory() -> Path:
  """The folder of indexes that can't lie beside their files: COCA_CACHE, or coca/ in XDG_CACHE_HOME or ~/.cache."""
  own = os.environ.get("COCA_CACHE")
  return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coca"


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
  """A file to write, which is at `path` (local, or an fsspec URL) when the block ends: as a whole, or not at all.

  Others may write the same one meanwhile. Folders are made.

  Raises:
    OSError: the folder can't be made or written, or `path` is one.
  """
  path = os.fspath(path)  # "::" in a local name is no chain of URLs
  fs, place = fsspec.core.url_to_fs(path) if "://" in path else (LocalFileSystem(), os.path.expanduser(path))
  if not isinstance(fs, LocalFileSystem):  # an object is there when it is there whole
    with tempfile.NamedTemporaryFile() as scratch:
      yield scratch
      scratch.flush()
      ask_store(lambda: fs.put_file(scratch.name, place), path)
    return
  path = Path(place)
  no_folder(path)  # which the name could not be given to in the end
  path.parent.mkdir(parents=True, exist_ok=True)
  scratch, number = _scratch(path)
  with open(number, "wb") as file:  # which is locked until the end of this block
    try:
      yield file
      file.flush()
      os.fsync(number)  # a name that survives a power cut stands for bytes that did
      os.replace(scratch, path)
    except BaseException:
      scratch.unlink(missing_ok=True)
      raise


def no_folder(path: Path) -> None:
  """Raises IsADirectoryError if it is one: of a file that is to be written."""
  if path.is_dir():
    raise IsADirectoryError(f"{path} is a folder: name a file, such as {path / 'NAME'}")


def _scratch(path: Path) -> tuple[Path, int]:
  """A new file beside `path`, and its descriptor.

  Its name is always the same, so that what a killed writer left is written over by the next one and not left for good.
  A lock, which ends with the process, tells whether another still writes it; then, and where there are no locks, the
  name is a new one.
  """
  scratch = path.with_name(f".{path.name}.partial")
  with contextlib.suppress(OSError):
    number = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
      fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if os.path.samestat(os.fstat(number), os.stat(scratch)):  # and not what its writer has meanwhile given its name
        os.ftruncate(number, 0)
        return scratch, number
    except OSError as e:
      if e.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        scratch.unlink(missing_ok=True)
    os.close(number)
  scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  return scratch, os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
  """Writes a file at once, as `writing` does."""
  with writing(path) as file:
    file.write(data)
