"""What the file sources share: names to files, byte ranges, texts of any shape, a place for indexes.

Paths are local or fsspec URLs (gs://, s3://, ...). Everything here may be called from several threads.
"""

import contextlib
import errno
import fcntl
import functools
import io
import os
import re
import shlex
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tqdm import tqdm

from coca.config import Source
from coca.data.records import Text
from coca.files import retries
from coca.files.threads import threads

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
DEFAULT_IMAGE_KEY = Source().image_key
DEFAULT_TEXT_KEY = Source().text_key
THREADS = 16  # for opening many files: the time goes into waiting
OPEN_FILES = 256  # local descriptors kept, well below the usual limit of 1,024
SETTING = "config.data.sources.<name>"
UNPACK = {"gz": "gunzip", "tgz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd --rm"}
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
    return _again(lambda: self.fs.cat_file(self.path, start=start, end=start + size), self.url)

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


def _again(read: Callable, url: str):
  """Asks a store, whose client has exceptions of its own."""
  return retries.again(read, url, lambda e: not isinstance(e, (FileNotFoundError, NotADirectoryError,
                                                               IsADirectoryError)))


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
  return _again(lambda: fs.cat_file(path), fs.unstrip_protocol(path))


@functools.lru_cache(maxsize=1024)
def _real(folder: str) -> str:
  return os.path.realpath(folder)


def is_inside(path: str, folder: str) -> bool:
  """Whether a local path in a folder lies there when all links on the way are followed."""
  parent, name = os.path.split(path)
  real = os.path.realpath(path) if os.path.islink(path) else os.path.join(_real(parent), name)
  return os.path.join(real, "").startswith(os.path.join(_real(folder), ""))


def files_below(folder: str, follow_links: bool = False) -> tuple[list[str], list[str]]:
  """The regular files in a local folder and the folders in it.

  Args:
    folder: may itself be a link.
    follow_links: also those that lead out of the folder, and links to folders. Otherwise a link counts only if it leads
      to a file inside: what others have put into a folder can't show files that are none of theirs.

  Returns:
    sorted paths below the folder; and what was left out, a text for each kind of it.

  Raises:
    OSError: the folder can't be read.
  """
  found, left, todo, seen = [], {}, [""], set()
  while todo:
    below = todo.pop()
    here = os.path.join(folder, below)
    if follow_links:  # which may lead in a circle
      real = os.path.realpath(here)
      if real in seen:
        continue
      seen.add(real)
    try:
      with os.scandir(here) as entries:
        entries = list(entries)
    except OSError as e:
      if not below:
        raise
      left.setdefault(f"folders that can't be read ({e.strerror})", []).append(below)
      continue
    for entry in entries:
      path = os.path.join(below, entry.name)
      if entry.is_dir(follow_symlinks=follow_links):
        todo.append(path)
      elif entry.is_symlink() and not follow_links and not is_inside(entry.path, folder):
        left.setdefault("links that lead out of it or nowhere (follow_links=True follows them)", []).append(path)
      elif entry.is_file():
        found.append(path)
      else:
        left.setdefault("entries that are no regular files (pipes, devices, links to folders)", []).append(path)
  return sorted(found), [f"{folder}: {len(paths)} {kind} are left out, such as {min(paths)}"
                         for kind, paths in left.items()]


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
  with threads(THREADS) as pool:
    found = dict(zip(names, pool.map(lambda name: _listing(fs, name, suffix), names), strict=True))
  files = {info["name"]: info for infos in found.values() for info in infos if info["type"] == "file"}
  missing = [f"{name}: no such file" for name, infos in found.items() if not infos]
  missing += [f"{info['name']}: no regular file, but a pipe or a device; it is left out"
              for infos in found.values() for info in infos if info["type"] not in ("file", "directory")]
  if not files:
    if packed := _packed(fs, names, suffix):
      command = UNPACK[packed[0].rpartition(".")[2]]
      raise FileNotFoundError(f"{SETTING}.path is {path!r}: {len(packed)} packed files are there, which can't be "
                              f"read at random. Unpack them where they are: {command} {shlex.quote(packed[0])}"
                              + " ..." * (len(packed) > 1))
    raise FileNotFoundError(f"{SETTING}.path is {path!r}: no file matches. Such files are made by, for example:\n"
                            f"  {make}")
  return [File(fs, name, info["size"], _stamp(info)) for name, info in files.items()], missing


def _packed(fs, names: list[str], suffix: str) -> list[str]:
  """Compressed files where others were looked for."""
  infos = [info for name in names for more in (f"{suffix}.*", ".tgz") for info in _listing(fs, name, more)]
  infos += [info for name in names for info in _listing(fs, f"{name}.*", "")]
  endings = (".tgz", *(f"{suffix}.{packed}" for packed in UNPACK))
  return list(dict.fromkeys(info["name"] for info in infos if info["name"].endswith(endings)))


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
  with threads(THREADS) as pool:
    yield from tqdm(pool.map(function, items), label, len(items), disable=True if len(items) < 8 else None, unit="file")


def as_texts(value, origin: str, answers: bool = False) -> tuple[Text, ...]:
  """A string, bytes, a number, a list of them or None, as texts without empty ones. NaN is empty, as pandas has it.

  Args:
    value: as JSON or Parquet have it.
    origin: of the texts.
    answers: whether these are answers to a question; true and false are then yes and no.

  Raises:
    ValueError: neither of these, or not UTF-8.
  """
  if value is None or value != value:  # NaN
    return ()
  if isinstance(value, (list, tuple)):
    try:
      return tuple(text for v in value for text in as_texts(v, origin, answers))
    except RecursionError:
      raise ValueError("its lists are nested too deeply") from None
  if isinstance(value, bool) and answers:
    value = "yes" if value else "no"
  elif isinstance(value, float) and value.is_integer():
    value = str(int(value))  # a column of integers with a gap is one of floats
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    value = str(value)
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
  path = os.fspath(path)  # "::" in a local name is no chain of URLs
  fs, place = fsspec.core.url_to_fs(path) if "://" in path else (LocalFileSystem(), os.path.expanduser(path))
  if not isinstance(fs, LocalFileSystem):  # an object is there when it is there whole
    with tempfile.NamedTemporaryFile() as scratch:
      yield scratch
      scratch.flush()
      _again(lambda: fs.put_file(scratch.name, place), path)
    return
  path = Path(place)
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


def one(path: str | os.PathLike) -> File:
  """The file at a local path or an fsspec URL.

  Raises:
    OSError: it is not there, or can't be asked for.
  """
  fs, place = fsspec.core.url_to_fs(os.fspath(path))
  fs.invalidate_cache(place)
  info = _again(lambda: fs.info(place), os.fspath(path))
  return File(fs, info["name"], info["size"], _stamp(info))
