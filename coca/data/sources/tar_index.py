"""The places of the members of a WebDataset tar, so that its records can be read in any order.

Members `dir/KEY.EXT` with the same `dir/KEY` are one sample; KEY ends at the first dot of the file's name. An index
is built by reading the tar's headers, once (in a bucket that is most of the tar, if its members are smaller than what a
request takes): it is kept as NAME.tar.index.npz beside the tar or, where that can't be written, in the cache directory,
and made again when the tar has changed or the index is damaged. It holds checksums of the headers, by which a tar that
was replaced by one of the same size and time is found out.

Both tars and indexes may come from others, so what they make this process hold is bounded by their own size.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np

from coca.files.reading import File, read_all
from coca.files.writing import cache_directory, write_atomic

SUFFIX = ".index.npz"
VERSION = 2
BLOCK = 512
LOCAL_WINDOW = 4 << 10  # a sample's JSON, text and next header in one read
REMOTE_WINDOW = 4 << 20  # a request takes as long as reading this much
MAX_GAP = 64 << 10  # bytes between image and text that are rather read than asked for twice
MAX_NAME = 4096  # bytes, what Linux takes for a path; members with longer names are left out
MAX_EXTENSION = 255
MAX_PAX = 1 << 20  # bytes of a PAX header, which may hold more than the name
MAX_PADDING = 1 << 20  # zeros after the end marker; behind them, another tar may have been appended


class TarError(Exception):
  """The tar can't be read from here on. `key`: of the member that is cut off, if known."""

  def __init__(self, message: str, key: bytes = b""):
    super().__init__(message)
    self.key = key


@dataclass(frozen=True)
class Names:
  """N byte strings, one behind the other: a single long one does not make all others as long."""

  data: np.ndarray  # uint8
  ends: np.ndarray  # int64 [N]

  @classmethod
  def of(cls, names: list[bytes]) -> "Names":
    return cls(np.frombuffer(b"".join(names), np.uint8), np.cumsum([len(name) for name in names], dtype=np.int64))

  def __len__(self) -> int:
    return len(self.ends)

  def __getitem__(self, i: int) -> bytes:
    return self.data[self.ends[i - 1] if i else 0 : self.ends[i]].tobytes()


@dataclass(frozen=True)
class TarIndex:
  """N samples with M members in all. `problem` says what is wrong with the tar; empty: nothing."""

  keys: Names  # N, UTF-8 as a rule
  extensions: np.ndarray  # str [E], lower case, without dot
  sample: np.ndarray  # int32 [M]: which sample a member belongs to
  extension: np.ndarray  # int32 [M]
  offset: np.ndarray  # int64 [M], bytes
  size: np.ndarray  # int64 [M], bytes
  header: np.ndarray  # uint32 [M]: checksum of the block before the offset (`is_header`)
  problem: str = ""

  def members(self, extensions: tuple[str, ...]) -> np.ndarray:
    """int64 [N, 2]: offset and size of each sample's member with the first of `extensions` that it has; -1: none."""
    return self._of(extensions, np.stack([self.offset, self.size], 1), -1)

  def headers(self, extensions: tuple[str, ...]) -> np.ndarray:
    """uint32 [N]: checksum of the header of the same member."""
    return self._of(extensions, self.header, 0)

  def _of(self, extensions: tuple[str, ...], values: np.ndarray, missing: int) -> np.ndarray:
    found = np.full((len(self.keys), *values.shape[1:]), missing, values.dtype)
    known = self.extensions.tolist()
    for extension in reversed([e for e in extensions if e in known]):
      chosen = self.extension == known.index(extension)
      found[self.sample[chosen]] = values[chosen]
    return found


def is_header(block: bytes, checksum: int) -> bool:
  """True if the block before a member's bytes is the one that was indexed."""
  return zlib.crc32(block) == checksum


def read_some(file: File, places: Sequence[tuple[int, int]], headers: Sequence[int]) -> list[bytes | None]:
  """Members by offset and size (None where the offset is -1), in one read if they lie close. Their headers, which lie
  before them, are read with them, and have to be the indexed ones."""
  there = [(at, size) for at, size in places if at >= 0]
  start, end = min((at for at, _ in there), default=0) - BLOCK, max((at + size for at, size in there), default=0)
  together = len(there) > 1 and end - start <= sum(size for _, size in set(there)) + MAX_GAP
  data = file.read(start, end - start) if together else b""
  parts: list[bytes | None] = []
  for (at, size), header in zip(places, headers, strict=True):
    if at < 0:
      parts.append(None)
      continue
    if not together:
      start, data = at - BLOCK, file.read(at - BLOCK, BLOCK + size)
    begin = at - start
    part = data[begin : begin + size]
    if len(part) != size:
      raise OSError("the tar has become shorter since it was indexed")
    if not is_header(data[begin - BLOCK : begin], header):
      raise OSError(
        "the tar has changed since it was indexed, though not in size and time; start again, or delete "
        f"{file.name}{SUFFIX} beside it"
      )
    parts.append(part)
  return parts


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
  arrays = {name: value for name, value in vars(index).items() if name != "keys"}
  np.savez(data, version=VERSION, stamp=file.stamp, keys=index.keys.data, ends=index.keys.ends, **arrays)
  reason = ""
  for place in places:
    try:
      write_atomic(place, data.getvalue())
      return index, ""
    except OSError as e:
      reason = f"{file.name}: the index can't be stored ({e}) and is built anew each time; set COCA_CACHE to a folder"
  return index, reason


# Kind and bytes of a number of each array; 0: of a string, as many as it takes.
_ARRAYS = {
  "keys": ("u", 1),
  "ends": ("i", 8),
  "extensions": ("U", 0),
  "sample": ("i", 4),
  "extension": ("i", 4),
  "offset": ("i", 8),
  "size": ("i", 8),
  "header": ("u", 4),
}


def _load(place: str, file: File) -> TarIndex | None:
  try:
    data = io.BytesIO(read_all(*fsspec.core.url_to_fs(place)))
    if any(member.compress_type != zipfile.ZIP_STORED for member in zipfile.ZipFile(data).infolist()):
      return None  # never written so: it may be small and hold gigabytes
    with np.load(data, allow_pickle=False) as stored:
      if stored["version"] != VERSION or stored["stamp"] != file.stamp:
        return None
      arrays = {name: stored[name] for name in _ARRAYS}
      problem = str(stored["problem"])
    kinds = {name: (a.dtype.kind, a.dtype.itemsize if a.dtype.kind != "U" else 0) for name, a in arrays.items()}
  except Exception:  # a damaged file may fail anywhere in zip, zlib or NumPy
    return None
  if kinds != _ARRAYS or any(array.ndim != 1 for array in arrays.values()):
    return None
  keys = Names(arrays.pop("keys"), arrays.pop("ends"))
  index = TarIndex(keys, **arrays, problem=problem)
  members = [index.sample, index.extension, index.offset, index.size]
  if len({len(array) for array in (*members, index.header)}) != 1:
    return None
  bounds = (len(keys) - 1, len(index.extensions) - 1, file.size, file.size)
  inside = all(((array >= 0) & (array <= bound)).all() for array, bound in zip(members, bounds, strict=True))
  if not inside or (np.diff(keys.ends, prepend=0, append=len(keys.data)) < 0).any():
    return None
  return index if _fresh(index, file) else None


def _fresh(index: TarIndex, file: File) -> bool:
  """True if some members lie where they did; a bucket's version is evidence enough."""
  count = len(index.offset)
  return not file.local or all(
    is_header(file.read(int(index.offset[m]) - BLOCK, BLOCK), int(index.header[m]))
    for m in {0, count // 2, count - 1}
    if count
  )


def scan(file: File) -> TarIndex:
  """Builds the index of a tar (ustar, GNU or PAX) from its headers.

  A tar that is cut off or damaged gives the samples before that place, and the reason as `problem`.

  Raises:
    OSError: the tar can't be read.
  """
  keys, extensions, rows = [], {}, []  # rows: sample, extension, offset, size, header
  newest, taken, problem = {}, set(), ""  # newest: the sample of a key; taken: its members
  too_long = 0
  try:
    for name, offset, size, header in _members(file):
      key, extension = _split(name)
      if len(name) > MAX_NAME or len(extension) > MAX_EXTENSION:
        too_long += 1
        continue
      if not key:
        continue
      kind = extensions.setdefault(extension.decode("utf-8", "replace").lower(), len(extensions))
      if key not in newest or (newest[key], kind) in taken:
        newest[key] = len(keys)
        keys.append(key)
      taken.add((newest[key], kind))
      rows.append((newest[key], kind, offset, size, header))
  except TarError as e:
    last, before = ([row[1] for row in rows if row[0] == len(keys) - n] for n in (1, 2))
    if keys and (e.key == keys[-1] or (before and set(last) != set(before))):  # the cut took members of the last sample
      keys.pop()
      rows = [row for row in rows if row[0] < len(keys)]
    problem = f"{file.name}: {e}; {len(keys)} records before it are kept" if keys else f"{file.name}: {e}; no records"
  if not keys and not problem:
    problem = f"{file.name}: holds no records"
  if too_long:
    problem = (f"{problem}; " if problem else f"{file.name}: ") + (
      f"{too_long} members are left out, whose names have more than {MAX_NAME} bytes, or {MAX_EXTENSION} behind the "
      "first dot"
    )
  table = np.array(rows, np.int64).reshape(-1, 5)
  sample, extension, offset, size, header = table.T
  return TarIndex(
    Names.of(keys),
    np.array(list(extensions), "U"),
    sample.astype(np.int32),
    extension.astype(np.int32),
    offset.copy(),
    size.copy(),
    header.astype(np.uint32),
    problem,
  )


def _split(name: bytes) -> tuple[bytes, bytes]:
  """Key and extension; the key is empty for files that are no part of a sample (._x of macOS, __info__ and such)."""
  folder, slash, base = name.removeprefix(b"./").rpartition(b"/")
  stem, _, extension = base.partition(b".")
  return (b"" if base.startswith(b"__") or not stem else folder + slash + stem), extension


def _members(file: File) -> Iterator[tuple[bytes, int, int, int]]:
  """Name (cut off behind `MAX_NAME` bytes), offset, size and header's checksum of each regular file in the tar.

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
    if kind in b"Lx" and body + size <= file.size:  # name of the next member: GNU, PAX
      if kind == b"L":
        long_name = read(body, min(size, MAX_NAME + 1)).rstrip(b"\0")
      elif size > MAX_PAX:
        long_name = b"." * (MAX_NAME + 1)  # whatever it is
      else:
        try:
          pax = _pax(read(body, size))
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
        yield name[: MAX_NAME + 1], body, size, zlib.crc32(header)
      if kind not in b"Kg":  # these stand between a long name and its member
        long_name = long_size = None
    at = body + -(-size // BLOCK) * BLOCK


def _number(field: bytes) -> int:
  if field[0] & 0x80:  # GNU: base 256
    return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
  return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _pax(data: bytes) -> dict[bytes, bytes]:
  """The records of a PAX header. Raises ValueError."""
  values, at = {}, 0
  while at < len(data):
    space = data.index(b" ", at, at + 20)
    end = at + int(data[at:space])
    key, equals, value = data[space + 1 : end - 1].partition(b"=")
    if not equals or not space < end <= len(data):
      raise ValueError("no PAX record")
    values[key], at = value, end
  return values


def _no_tar(start: bytes) -> str:
  if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
    return "a compressed tar can't be read at random; unpack it (gunzip, unzstd, ...)"
  return "not a tar file"
