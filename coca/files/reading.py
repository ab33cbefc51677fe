"""Reading files by ranges of bytes or whole, local or at fsspec URLs.

Everything here may be called from several threads.
"""

import functools
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from coca.files import retries

OPEN_FILES = 256  # local descriptors kept, well below the usual limit of 1,024
# Object stores tell a file's version by different names.
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class File:
  """One file; `stamp` changes with its content (size and version, as far as the file system tells)."""

  fs: fsspec.AbstractFileSystem
  path: str
  size: int
  stamp: str

  @property
  def name(self) -> str:
    return self.path.rsplit("/", 1)[-1]

  @property
  def local(self) -> bool:
    return isinstance(self.fs, LocalFileSystem)

  @property
  def url(self) -> str:
    return self.path if self.local else self.fs.unstrip_protocol(self.path)

  def read(self, start: int, size: int) -> bytes:
    """Bytes [start, start + size), fewer at the end of the file.

    Raises:
      FileNotFoundError: it is gone.
      coca.files.retries.Unavailable: it can't be read, in several tries.
    """
    size = min(size, self.size - start)
    if size <= 0:
      return b""
    if self.local:
      return retries.again(lambda: self._read_local(start, size), self.path)
    return ask_store(lambda: self.fs.cat_file(self.path, start=start, end=start + size), self.url)

  def _read_local(self, start: int, size: int) -> bytes:
    try:
      return _descriptor(self.path, self.stamp).read(start, size)
    except OSError:
      _descriptor.cache_clear()  # a stale handle stays so until the file is opened anew; and too many may be open
      raise


class RangeFile(io.RawIOBase):
  """A `File` as a seekable object of its own position, for libraries that want one."""

  def __init__(self, file: File):
    self._file, self._at = file, 0

  def readable(self):
    return True

  def seekable(self):
    return True

  def seek(self, offset, whence=os.SEEK_SET):
    self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
    return self._at

  def tell(self):
    return self._at

  def readinto(self, buffer):
    data = self._file.read(self._at, len(buffer))
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)


class _Descriptor:
  """An open file that closes with its last user: dropping it from the cache can't pull it from under a reader."""

  def __init__(self, path: str):
    self._number = open_regular(path)

  def read(self, start: int, size: int) -> bytes:
    return os.pread(self._number, size, start)  # `self` keeps the file open meanwhile

  def __del__(self):
    if hasattr(self, "_number"):
      os.close(self._number)


@functools.lru_cache(maxsize=OPEN_FILES)
def _descriptor(path: str, stamp: str) -> _Descriptor:
  del stamp  # a rewritten file gets a new descriptor
  return _Descriptor(path)


def ask_store(read: Callable, url: str) -> Any:
  """Asks a store, whose client has exceptions of its own."""
  return retries.again(
    read, url, lambda e: not isinstance(e, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
  )


def open_regular(path: str | os.PathLike) -> int:
  """A descriptor to read a file. What is none, such as a pipe that nobody writes to, does not make the process wait.

  Raises:
    OSError: no regular file, or it can't be opened.
  """
  number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  mode = os.fstat(number).st_mode
  if stat.S_ISREG(mode):
    return number
  os.close(number)
  kind = IsADirectoryError if stat.S_ISDIR(mode) else OSError
  raise kind(f"{os.fspath(path)}: no regular file, but a folder, a pipe or a device")


def read_all(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
  """A whole file.

  Raises:
    OSError: there is none, or a folder in its place.
    coca.files.retries.Unavailable: it can't be read, in several tries.
  """
  if isinstance(fs, LocalFileSystem):

    def read():
      with open(open_regular(path), "rb") as file:
        return file.read()

    return retries.again(read, os.fspath(path))
  return ask_store(lambda: fs.cat_file(path), fs.unstrip_protocol(path))


def stamp_of(info: dict) -> str:
  version = next((info[key] for key in VERSIONS if info.get(key) is not None), "")
  if isinstance(version, datetime):
    version = version.timestamp()  # some give a number in a listing and a date for the single file
  return f"{info['size']} {version}"


def one(path: str | os.PathLike) -> File:
  """The file at a local path or an fsspec URL.

  Raises:
    OSError: it is not there, or can't be asked for.
  """
  fs, place = fsspec.core.url_to_fs(os.fspath(path))
  fs.invalidate_cache(place)
  info = ask_store(lambda: fs.info(place), os.fspath(path))
  return File(fs, info["name"], info["size"], stamp_of(info))
