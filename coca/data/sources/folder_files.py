"""The files of a folder of images or videos: where they lie, by names that may be all that a table gives, and reading.

Paths are inside the folder; what leads out of it is refused, and so are links that do without `Source.follow_links`.
"""

import re
import shlex

import fsspec
from fsspec.implementations.local import LocalFileSystem

from coca.config import Source
from coca.files import finding, reading

ARCHIVES = {".zip": "unzip", ".7z": "7z x", ".rar": "unrar x", ".tar": "tar -xf", ".tgz": "tar -xf"} | {
  f".tar.{packed}": "tar -xf" for packed in ("gz", "bz2", "xz", "zst")
}


class Files:
  """A folder, local or at a URL of fsspec.

  Args:
    settings: `path` is the folder.
    endings: that images, or videos, may have.
    where: the source's name in the config, for errors.
    problems: what is left out is appended.

  Attributes:
    names: of the files in the folder itself.

  Raises:
    FileNotFoundError: no such directory.
  """

  def __init__(self, settings: Source, endings: tuple[str, ...], where: str, problems: list[str]):
    self._endings, self._where, self.problems = endings, where, problems
    self._fs, self._root = fsspec.core.url_to_fs(settings.path)
    self._fs.invalidate_cache()
    self._root = self._root.rstrip("/")
    self._local = isinstance(self._fs, LocalFileSystem)
    self._follow_links = settings.follow_links
    if not settings.path or not self._fs.isdir(self._root):
      raise FileNotFoundError(f"{where}.path is {settings.path!r}: no such directory")
    self.names = {
      info["name"].rpartition("/")[2] for info in self._fs.ls(self._root, detail=True) if info["type"] != "directory"
    }
    self._found: dict[str, str] | None = None

  def read_image(self, path: str) -> bytes:
    """An image or a video, whose ending may be left out. Raises FileNotFoundError, OSError, as `read`."""
    for suffix in ("", *(f".{e}" for e in self._endings)):  # a table may name images without it
      try:
        return self.read(f"{path}{suffix}")
      except FileNotFoundError:
        if "." in path.rpartition("/")[2]:
          break
    packed = self.packed()
    raise FileNotFoundError(f"{path} (named in the table)" + (packed and f"; {packed}"))

  def packed(self) -> str:
    """The archives in the folder that may hold the images."""
    name, command = next(
      (
        (name, command)
        for name in sorted(self.names)
        for ending, command in ARCHIVES.items()
        if name.lower().endswith(ending)
      ),
      ("", ""),
    )
    if not name:
      return ""
    shards = f"; shards of WebDataset: gunzip, then {self._where}.kind 'webdataset'" if ".tar." in name else ""
    return f"{name} is not looked into: unpack it there ({command} {shlex.quote(name)}{shards})"

  def read(self, path: str) -> bytes:
    """A file in the folder. Raises FileNotFoundError, and OSError for a link that leads out of it."""
    place = f"{self._root}/{path}"
    if self._local and not self._follow_links and not finding.is_inside(place, self._root):
      raise OSError(f"{path} is a link that leads out of the folder; {self._where}.follow_links=True follows it")
    return reading.read_all(self._fs, place)

  def below(self) -> list[str]:
    """The files in the folder and the ones below, but for hidden ones."""
    if self._local:
      found, left_out = finding.files_below(self._root, self._follow_links)
      self.problems += left_out
    else:
      found = [path[len(self._root) + 1 :] for path in self._fs.find(self._root)]
    return [path for path in found if not any(part.startswith(".") for part in path.split("/"))]

  def placed(self, names: tuple) -> str | None:
    """The path of the image that has one of some names, wherever it lies; None if there is none.

    Where one of the names is no text, the first is handed back.
    """
    if not all(isinstance(name, str) for name in names):
      return names[0]
    if here := next((name for name in names if name in self.names), ""):
      return here
    if self._found is None:
      self._found, paths = {}, self.below()
      for path in paths:
        name = path.rpartition("/")[2]
        self._found[name] = "" if name in self._found else path  # of two, nobody knows which
      self._found |= {path: path for path in paths if "/" in path}
    tried = (*names, *(name.rpartition("/")[2] for name in names))
    return next(filter(None, map(self._found.get, tried)), None)

  def read_table(self, path: str) -> bytes:
    """A table in the folder or, where it isn't there, anywhere."""
    try:
      return self.read(path)
    except FileNotFoundError:
      return reading.read_all(*fsspec.core.url_to_fs(path))

  def inside(self, path) -> str:
    """An image's path as a table gives it, if it stays inside the folder."""
    if not isinstance(path, str) or not path.strip():
      raise ValueError(f"{len(path)} images: a record has one" if isinstance(path, list) else "no image is named")
    path.encode("utf-8")  # no UTF-8 in the file: surrogates
    shown, path = path, path.strip().replace("\\", "/")
    path = path.removeprefix(f"{self._root}/" if self._local else "")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    outside = path.startswith("/") or "://" in path or re.match("[A-Za-z]:", path) or ".." in parts
    if outside or "\0" in path or not parts:
      raise ValueError(f"{shown!r} is refused: a table may only name files inside its folder, by relative paths")
    return "/".join(parts)
