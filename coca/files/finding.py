"""The files that a name means: globs, brace ranges, folders.

Paths are local or fsspec URLs (gs://, s3://, ...). Everything here may be called from several threads.
"""

import contextlib
import functools
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator

import fsspec
from tqdm import tqdm

from coca.files.reading import File, stamp_of
from coca.files.threads import read_ahead

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "avi", "mov", "m4v", "mpg", "mpeg")
THREADS = 16  # for opening many files: the time goes into waiting
SETTING = "config.data.sources.<name>"
UNPACK = {"gz": "gunzip", "tgz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd --rm"}


@functools.lru_cache(maxsize=1024)
def _real(folder: str) -> str:
  return os.path.realpath(folder)


def is_inside(path: str, folder: str) -> bool:
  """True if a local path in a folder lies there when all links on the way are followed."""
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
  return sorted(found), [
    f"{folder}: {len(paths)} {kind} are left out, such as {min(paths)}" for kind, paths in left.items()
  ]


def find(path: str, suffix: str, make: str, where: str) -> tuple[list[File], list[str]]:
  """The files that a setting names, sorted by path within each glob; and the named ones that do not exist.

  Args:
    path: glob, brace range ("{00000..00099}.tar", "{a,b}/*.tar"), a file or a directory; an fsspec URL or a local path.
    suffix: of the files wanted from a directory, e.g. ".tar".
    make: a command that makes such files, for the error.
    where: the name of the source's settings, for the error.

  Raises:
    FileNotFoundError: nothing there.
    OSError: the store does not answer, or wants credentials.
  """
  fs, _ = fsspec.core.url_to_fs(path)
  fs.invalidate_cache()
  names = [fsspec.core.url_to_fs(name)[1] for name in braces(path)] if path else []
  try:
    found = dict(zip(names, read_ahead(lambda name: _listing(fs, name, suffix), names, THREADS), strict=True))
  except OSError:
    raise
  except Exception as e:  # a store's client has exceptions of its own, for want of credentials among others
    raise OSError(f"{where}.path is {path!r}, which can't be listed: {type(e).__name__}: {e}") from e
  files = {info["name"]: info for infos in found.values() for info in infos if info["type"] == "file"}
  missing = [f"{name}: no such file" for name, infos in found.items() if not infos]
  missing += [
    f"{info['name']}: no regular file, but a pipe or a device; it is left out"
    for infos in found.values()
    for info in infos
    if info["type"] not in ("file", "directory")
  ]
  if not files:
    if packed := _packed(fs, names, suffix):
      command = UNPACK[packed[0].rpartition(".")[2]]
      raise FileNotFoundError(
        f"{where}.path is {path!r}: {len(packed)} packed files are there, which can't be "
        f"read at random. Unpack them where they are: {command} {shlex.quote(packed[0])}" + " ..." * (len(packed) > 1)
      )
    raise FileNotFoundError(
      f"{where}.path is {path!r}: no file matches. Such files are made by, for example:\n  {make}"
    )
  return [File(fs, name, info["size"], stamp_of(info)) for name, info in files.items()], missing


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
  """The target of a link. One that points nowhere counts as a file, which is found broken when it is opened."""
  try:
    return fs.info(info["name"]) if info.get("islink") else info
  except FileNotFoundError:
    return info | {"type": "file"}


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
  found = read_ahead(function, items, THREADS)
  yield from tqdm(found, label, len(items), disable=True if len(items) < 8 else None, unit="file")
