"""What the file sources share: names to files, byte ranges, texts of any shape, a place for indexes.

Paths are local or fsspec URLs (gs://, s3://, ...). Everything here may be called from several threads.
"""

import contextlib
import functools
import io
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tqdm import tqdm

from coca.config import Source
from coca.data.records import Text

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
DEFAULT_IMAGE_KEY = Source().image_key
DEFAULT_TEXT_KEY = Source().text_key
THREADS = 16  # for opening many files: the time goes into waiting
OPEN_FILES = 256  # local descriptors kept, well below the usual limit of 1,024
ATTEMPTS = 3  # at a remote read
SETTING = "config.data.sources.<name>"
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
      OSError: the file can't be read.
    """
    size = min(size, self.size - start)
    if size <= 0:
      return b""
    if self.local:
      return _descriptor(self.path, self.stamp).read(start, size)
    return _again(lambda: self.fs.cat_file(self.path, start=start, end=start + size), self.url)


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
    self._number = os.open(path, os.O_RDONLY)

  def read(self, start: int, size: int) -> bytes:
    return os.pread(self._number, size, start)  # `self` keeps the file open meanwhile

  def __del__(self):
    if hasattr(self, "_number"):
      os.close(self._number)


@functools.lru_cache(maxsize=OPEN_FILES)
def _descriptor(path: str, stamp: str) -> _Descriptor:
  del stamp  # a rewritten file gets a new descriptor
  return _Descriptor(path)


def _again(read: Callable[[], bytes], url: str) -> bytes:
  for attempt in range(ATTEMPTS):
    try:
      return read()
    except FileNotFoundError:
      raise
    except Exception as e:  # each store's client has exceptions of its own
      if attempt == ATTEMPTS - 1:
        raise OSError(f"{url}: {e}") from e
      time.sleep(4**attempt / 4)


def read_all(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
  """A whole file.

  Raises:
    OSError: the file can't be read.
  """
  if isinstance(fs, LocalFileSystem):
    return Path(path).read_bytes()
  return _again(lambda: fs.cat_file(path), fs.unstrip_protocol(path))


def find(path: str, suffix: str, make: str) -> tuple[list[File], list[str]]:
  """The files that a setting names, sorted by path within each glob; and the named ones that do not exist.

  Args:
    path: glob, brace range ("{00000..00099}.tar", "{a,b}/*.tar"), a file or a directory; an fsspec URL or a local path.
    suffix: of the files wanted from a directory, e.g. ".tar".
    make: a command that makes such files, for the error.

  Raises:
    FileNotFoundError: nothing there.
  """
  fs, _ = fsspec.core.url_to_fs(path)
  fs.invalidate_cache()
  names = [fsspec.core.url_to_fs(name)[1] for name in braces(path)] if path else []
  with ThreadPoolExecutor(THREADS) as pool:
    found = dict(zip(names, pool.map(lambda name: _listing(fs, name, suffix), names), strict=True))
  files = {info["name"]: info for infos in found.values() for info in infos if info["type"] == "file"}
  missing = [f"{name}: no such file" for name, infos in found.items() if not infos]
  if not files:
    raise FileNotFoundError(f"{SETTING}.path is {path!r}: no file matches. Such files are made by, for example:\n"
                            f"  {make}")
  return [File(fs, name, info["size"], _stamp(info)) for name, info in files.items()], missing


def below(file: File, pattern: str, suffix: str) -> str:
  """A file's path without `suffix`, below the last folder that `pattern`, by which it was found, names for certain."""
  fixed = re.split(r"[*?\[{]", pattern)[0]
  for root in (fixed, fixed.rpartition("/")[0]):
    root = fsspec.core.url_to_fs(root or ".")[1].rstrip("/") + "/"
    if file.path.startswith(root):
      return file.path[len(root) :].removesuffix(suffix)
  return file.name.removesuffix(suffix)


def _listing(fs, name: str, suffix: str) -> list[dict]:
  with contextlib.suppress(FileNotFoundError, NotADirectoryError):
    if not re.search(r"[*?\[]", name):
      info = fs.info(name)
      if info["type"] != "directory":
        return [info]
      name = f"{name.rstrip('/')}/*{suffix}"
    infos = [info for _, info in sorted(fs.glob(name, detail=True).items())]
    return [_target(fs, info) for info in infos]
  return []


def _target(fs, info: dict) -> dict:
  """What a link points at. One that points nowhere counts as a file, which is found broken when it is opened."""
  try:
    return fs.info(info["name"]) if info.get("islink") else info
  except FileNotFoundError:
    return info | {"type": "file"}


def _stamp(info: dict) -> str:
  version = next((info[key] for key in VERSIONS if info.get(key) is not None), "")
  if isinstance(version, datetime):
    version = version.timestamp()  # some give a number in a listing and a date for the single file
  return f"{info['size']} {version}"


def braces(pattern: str) -> list[str]:
  """Expands "{00000..00099}" (the zeros in front are kept) and "{a,b}", as a shell does."""
  match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
  if not match:
    return [pattern]
  first, last, names = match.groups()
  if names is None:
    padded = any(len(number) > 1 and number[0] == "0" for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    values = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
  else:
    values = names.split(",")
  return [expanded for v in values for expanded in braces(pattern[: match.start()] + v + pattern[match.end() :])]


def for_each(function: Callable, items: Iterable, label: str) -> Iterator:
  """`function` of each item, on threads and in order, with a progress bar on a terminal if there are many."""
  items = list(items)
  with ThreadPoolExecutor(THREADS) as pool:
    yield from tqdm(pool.map(function, items), label, len(items), disable=True if len(items) < 8 else None, unit="file")


def as_texts(value, origin: str) -> tuple[Text, ...]:
  """A string, bytes, a list of them or None, as texts without empty ones.

  Raises:
    ValueError: neither of these, or not UTF-8.
  """
  if value is None:
    return ()
  if isinstance(value, (list, tuple)):
    return tuple(text for v in value for text in as_texts(v, origin))
  if isinstance(value, (bytes, bytearray)):
    value = value.decode("utf-8-sig")
  if not isinstance(value, str):
    raise ValueError(f"a text is a {type(value).__name__}")
  value.encode("utf-8")  # lone surrogates: from JSON escapes, or from bytes that were not UTF-8
  value = value.strip()
  return (Text(value, origin),) if value else ()


def as_question(value) -> str:
  """The one question of a record, without white space at its ends.

  Raises:
    ValueError: there is none, or several; or as `as_texts`.
  """
  found = as_texts(value, "")
  if len(found) != 1:
    raise ValueError(f"{len(found)} questions: each takes a record of its own" if found else "no question")
  return found[0].text


def lookup(values: dict, key: str):
  """What a field holds, None if there is no such; a dot leads into objects and lists of them ("answers.answer")."""
  first, _, rest = key.partition(".")
  if key in values or not rest:
    return values.get(key)
  inner = values.get(first)
  if isinstance(inner, (list, tuple)):
    return [lookup(v, rest) for v in inner if isinstance(v, dict)]
  return lookup(inner, rest) if isinstance(inner, dict) else None


def cache_directory() -> Path:
  """Where indexes go that can't lie beside their files: COCA_CACHE, or coca/ in XDG_CACHE_HOME or ~/.cache."""
  own = os.environ.get("COCA_CACHE")
  return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coca"


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """A file to write, which is at `path` (local, or an fsspec URL) when the block ends: as a whole, or not at all.

  Others may write the same one meanwhile. Folders are made.

  Raises:
    OSError: the folder can't be made or written.
  """
  fs, place = fsspec.core.url_to_fs(os.fspath(path))
  if not isinstance(fs, LocalFileSystem):  # an object is there when it is there whole
    with tempfile.NamedTemporaryFile() as scratch:
      yield scratch
      scratch.flush()
      _again(lambda: fs.put_file(scratch.name, place), os.fspath(path))
    return
  path = Path(place)
  path.parent.mkdir(parents=True, exist_ok=True)
  scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  try:
    with scratch.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())  # a name that survives a power cut stands for bytes that did
    os.replace(scratch, path)
  finally:
    scratch.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
  """Writes a file at once, as `writing` does."""
  with writing(path) as file:
    file.write(data)


def one(path: str | os.PathLike) -> File:
  """The file at a local path or an fsspec URL.

  Raises:
    OSError: it is not there, or can't be asked for.
  """
  fs, place = fsspec.core.url_to_fs(os.fspath(path))
  fs.invalidate_cache(place)
  info = _again(lambda: fs.info(place), os.fspath(path))
  return File(fs, info["name"], info["size"], _stamp(info))
