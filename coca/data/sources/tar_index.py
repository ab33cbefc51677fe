"""Where the members of a WebDataset tar lie, so that its records can be read in any order.

Members `dir/KEY.EXT` with the same `dir/KEY` are one sample; KEY ends at the first dot of the file's name. An index
is built by reading the tar's headers, once (in a bucket that is most of the tar, if its members are smaller than what a
request takes): it is kept as NAME.tar.index.npz beside the tar or, where that can't be written, in the cache directory,
and made again when the tar has changed or the index is damaged.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
import numpy as np

from coca.data.sources.files import File, cache_directory, read_all, write_atomic

SUFFIX = ".index.npz"
VERSION = 1
BLOCK = 512
LOCAL_WINDOW = 4 << 10  # a sample's JSON, text and next header in one read
REMOTE_WINDOW = 4 << 20  # a request takes as long as reading this much
MAX_LONG_NAME = 1 << 20
MAX_PADDING = 1 << 20  # zeros after the end marker; behind them, another tar may have been appended


class TarError(Exception):
  """The tar can't be read from here on. `key`: of the member that is cut off, if known."""

  def __init__(self, message: str, key: bytes = b""):
    super().__init__(message)
    self.key = key


@dataclass(frozen=True)
class TarIndex:
  """N samples with M members in all. `problem` says what is wrong with the tar; empty: nothing."""

  keys: np.ndarray  # bytes [N], UTF-8 as a rule
  extensions: np.ndarray  # str [E], lower case, without dot
  sample: np.ndarray  # int32 [M]: which sample a member belongs to
  extension: np.ndarray  # int32 [M]
  offset: np.ndarray  # int64 [M], bytes
  size: np.ndarray  # int64 [M], bytes
  problem: str = ""

  def members(self, extensions: tuple[str, ...]) -> np.ndarray:
    """int64 [N, 2]: offset and size of each sample's member with the first of `extensions` that it has; -1: none."""
    place = np.full((len(self.keys), 2), -1, np.int64)
    known = self.extensions.tolist()
    for extension in reversed([e for e in extensions if e in known]):
      chosen = self.extension == known.index(extension)
      place[self.sample[chosen]] = np.stack([self.offset[chosen], self.size[chosen]], 1)
    return place


def read_index(file: File) -> tuple[TarIndex, str]:
  """The index of `file`, from disk or built now; and why it could not be stored, if so.

  Raises:
    OSError: the tar can't be read.
  """
  name = hashlib.sha256(file.url.encode()).hexdigest()[:32]
  places = [file.url + SUFFIX, str(cache_directory() / "tars" / f"{name}.npz")]
  for place in places:
    index = _load(place, file)
    if index is not None:
      return index, ""
  index = scan(file)
  data = io.BytesIO()
  np.savez(data, version=VERSION, stamp=file.stamp, **vars(index))
  reason = ""
  for place in places:
    try:
      write_atomic(place, data.getvalue())
      return index, ""
    except OSError as e:
      reason = f"{file.name}: the index can't be stored ({e}) and is built anew each time; set COCA_CACHE to a folder"
  return index, reason


def _load(place: str, file: File) -> TarIndex | None:
  try:
    with np.load(io.BytesIO(read_all(*fsspec.core.url_to_fs(place))), allow_pickle=False) as data:
      if data["version"] != VERSION or data["stamp"] != file.stamp:
        return None
      arrays = {k: data[k] for k in ("keys", "extensions", "sample", "extension", "offset", "size")}
      index = TarIndex(**arrays, problem=str(data["problem"]))
  except Exception:  # a damaged file may fail anywhere in zip, zlib or NumPy
    return None
  kinds = {name: array.dtype.kind for name, array in arrays.items()}
  if kinds != {"keys": "S", "extensions": "U", "sample": "i", "extension": "i", "offset": "i", "size": "i"}:
    return None
  members = [arrays[name] for name in ("sample", "extension", "offset", "size")]
  if len({len(array) for array in members}) != 1:
    return None
  bounds = (len(index.keys) - 1, len(index.extensions) - 1, file.size, file.size)
  inside = all(((array >= 0) & (array <= bound)).all() for array, bound in zip(members, bounds, strict=True))
  return index if inside else None


def scan(file: File) -> TarIndex:
  """Builds the index of a tar (ustar, GNU or PAX) from its headers.

  A tar that is cut off or damaged gives the samples before that place, and the reason as `problem`.

  Raises:
    OSError: the tar can't be read.
  """
  keys, extensions, rows = [], {}, []  # rows: sample, extension, offset, size
  newest, taken, problem = {}, set(), ""  # newest: the sample of a key; taken: its members
  try:
    for name, offset, size in _members(file):
      key, extension = _split(name)
      if not key:
        continue
      kind = extensions.setdefault(extension.decode("utf-8", "replace").lower(), len(extensions))
      if key not in newest or (newest[key], kind) in taken:
        newest[key] = len(keys)
        keys.append(key)
      taken.add((newest[key], kind))
      rows.append((newest[key], kind, offset, size))
  except TarError as e:
    last = [kind for sample, kind, _, _ in rows if sample == len(keys) - 1]
    before = [kind for sample, kind, _, _ in rows if sample == len(keys) - 2]
    if keys and (e.key == keys[-1] or (before and set(last) != set(before))):  # the cut took members of the last sample
      keys.pop()
      rows = [row for row in rows if row[0] < len(keys)]
    problem = f"{file.name}: {e}; {len(keys)} records before it are kept" if keys else f"{file.name}: {e}; no records"
  if not keys and not problem:
    problem = f"{file.name}: holds no records"
  table = np.array(rows, np.int64).reshape(-1, 4)
  return TarIndex(np.array(keys, "S"), np.array(list(extensions), "U"), table[:, 0].astype(np.int32),
                  table[:, 1].astype(np.int32), table[:, 2], table[:, 3], problem)


def _split(name: bytes) -> tuple[bytes, bytes]:
  """Key and extension; the key is empty for files that are no part of a sample (._x of macOS, __info__ and such)."""
  folder, slash, base = name.removeprefix(b"./").rpartition(b"/")
  stem, _, extension = base.partition(b".")
  return (b"" if base.startswith(b"__") or not stem else folder + slash + stem), extension


def _members(file: File) -> Iterator[tuple[bytes, int, int]]:
  """Name, offset and size of each regular file in the tar.

  Raises:
    TarError: no tar, damaged, or cut off.
  """
  window, start = b"", 0

  def read(at: int, size: int) -> bytes:
    nonlocal window, start
    if not start <= at <= at + size <= start + len(window):
      window, start = file.read(at, max(size, LOCAL_WINDOW if file.local else REMOTE_WINDOW)), at
    return window[at - start : at - start + size]

  at, zeros, long_name, long_size = 0, 0, None, None
  while True:
    header = read(at, BLOCK)
    if len(header) < BLOCK:
      if zeros:
        return
      raise TarError(f"truncated at byte {file.size} (no end marker)" if file.size else "the file is empty")
    if not any(header):
      zeros, at = zeros + BLOCK, at + BLOCK
      if zeros > MAX_PADDING:
        return
      continue
    kind = header[156:157]
    try:
      size = _number(header[124:136]) if kind not in b"123456" else 0  # links, devices and folders have no body
      sound = sum(header) - sum(header[148:156]) + 8 * ord(" ") == _number(header[148:156])
    except ValueError:
      sound = False
    if not sound:
      if zeros:
        return  # whatever follows the end marker, it is no tar
      raise TarError(_no_tar(header) if at == 0 else f"damaged header at byte {at}")
    zeros, body = 0, at + BLOCK
    if kind in b"Lx" and size <= MAX_LONG_NAME and body + size <= file.size:  # name of the next member: GNU, PAX
      data = read(body, size)
      if kind == b"L":
        long_name = data.rstrip(b"\0")
      else:
        try:
          pax = _pax(data)
          long_name, long_size = pax.get(b"path", long_name), int(pax[b"size"]) if b"size" in pax else None
        except ValueError:
          raise TarError(f"damaged header at byte {at}") from None
    else:
      name = long_name
      if name is None:
        name = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and header[345]:
          name = header[345:500].partition(b"\0")[0] + b"/" + name
      if long_size is not None and kind not in b"Kg":
        size = long_size
      if size < 0 or body + size > file.size:
        shown = name.decode("utf-8", "replace")
        raise TarError(f"truncated at byte {file.size}, in '{shown}' (byte {at})", _split(name)[0])
      if kind in b"0\x007":
        yield name, body, size
      if kind not in b"Kg":  # these stand between a long name and its member
        long_name = long_size = None
    at = body + -(-size // BLOCK) * BLOCK


def _number(field: bytes) -> int:
  if field[0] & 0x80:  # GNU: base 256
    return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
  return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _pax(data: bytes) -> dict[bytes, bytes]:
  values = {}
  while data:
    digits = data.partition(b" ")[0]
    length = int(digits)
    key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
    if not equals or not len(digits) < length <= len(data):
      raise ValueError("no PAX record")
    values[key], data = value, data[length:]
  return values


def _no_tar(start: bytes) -> str:
  if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
    return "a compressed tar can't be read at random; unpack it (gunzip, unzstd, ...)"
  return "not a tar file"
