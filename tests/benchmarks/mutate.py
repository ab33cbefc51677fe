"""Damage for fuzz.py: to the bytes of any file, and files that stay well-formed and have odd contents."""

import copy
import gzip
import io
import json
import random
import struct
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

MAGIC = [
  n.to_bytes(size, order)
  for size in (1, 2, 4, 8)
  for order in ("little", "big")
  for n in (0, 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1)
]
TEXTS = [
  "",
  " ",
  "x",
  "\0",
  "../../outside",
  "/etc/passwd",
  "file:///etc/passwd",
  "a" * 5000,
  "\ud800",
  "\u202e\u0301é😀",
  "nan",
  "1e999",
  "-1",
  "[[[",
  "{}",
  "%s%n",
  "\n",
  ',"\t',
]
VALUES = [
  None,
  True,
  False,
  0,
  1,
  -1,
  0.5,
  2**31,
  2**63,
  -(2**63),
  2**64,
  10**300,
  1e308,
  1e-300,
  float("nan"),
  float("inf"),
  -float("inf"),
  [],
  {},
  [[]],
  [None],
  {"": None},
  [0, 0],
  *TEXTS,
]
DEEP = "@deep@"  # stands for brackets that no parser's stack holds
KINDS = b"\0" + b"0123456789LKSVMDNxgX"  # of a tar's members


def bytes_(data: bytes, rng: random.Random) -> bytes:
  """One to four wounds, a third of them in the first bytes and a sixth in the last, where formats have their sizes."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    n = len(data)
    near = min(n, rng.choice((16, 64, 512)))
    at = rng.choice(
      (
        rng.randrange(n + 1),
        rng.randrange(n + 1),
        rng.randrange(n + 1),
        rng.randrange(near + 1),
        rng.randrange(near + 1),
        n - rng.randrange(near + 1),
      )
    )
    length = min(rng.choice((1, 2, 4, 8, 64, 1024, max(n // 3, 1))), n - at)
    block = data[at : at + length]
    match rng.randrange(9):
      case 0 | 1 if at < n:
        data[at] ^= 1 << rng.randrange(8)
      case 2 if at < n:
        data[at] = rng.randrange(256)
      case 3:
        del data[at:]
      case 4:
        data[at:at] = rng.randbytes(max(length, 1))
      case 5:
        data[at:at] = block * rng.choice((1, 1, 2, 100 if length <= 64 else 3))
      case 6:
        data[at : at + length] = bytes(length)
      case 7:
        data[at : at + length] = b""
      case _:
        magic = rng.choice(MAGIC)
        data[at : at + len(magic)] = magic
  return bytes(data)


def json_(data: bytes, rng: random.Random) -> bytes:
  """One to three values of other types or sizes, entries lost, doubled or nested too deeply."""
  tree = [json.loads(data)]
  for _ in range(rng.choice((1, 1, 2, 3))):
    places = list(_places(tree))
    inside, key = rng.choice(places)
    match rng.randrange(8):
      case 0 if isinstance(inside, dict):
        del inside[key]
      case 1 if isinstance(inside, dict):
        inside[rng.choice(TEXTS)] = inside.pop(key)
      case 2 if isinstance(inside, list) and inside is not tree:
        inside[:] = inside * rng.choice((0, 2, 50)) + [_value(rng)]
      case 3:
        other, name = rng.choice(places)
        inside[key] = json.loads(json.dumps(other[name]))
      case 4:
        inside[key] = DEEP
      case _:
        inside[key] = _value(rng)
  text = json.dumps(tree[0])
  if rng.random() < 0.1 and ":" in text:  # an entry twice
    text = text.replace("{", f"{{{json.dumps(rng.choice(TEXTS))}: {json.dumps(rng.choice(VALUES))}, ", 1)
  return text.replace(json.dumps(DEEP), rng.choice(("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000))).encode()


def _value(rng: random.Random):
  return copy.deepcopy(rng.choice(VALUES))


def _places(tree):
  for key in tree if isinstance(tree, dict) else range(len(tree)):
    yield tree, key
    if isinstance(tree[key], (dict, list)):
      yield from _places(tree[key])


def lines(data: bytes, rng: random.Random) -> bytes:
  """Of JSON lines one or two."""
  found = data.splitlines()
  for i in rng.sample(range(len(found)), rng.choice((1, 2))):
    found[i] = json_(found[i], rng)
  return b"\n".join(found) + b"\n"


def table(data: bytes, rng: random.Random) -> bytes:
  """Of CSV or TSV: a field is something else, or there are quotation marks, other separators, more fields."""
  found = data.decode().splitlines()
  for i in rng.sample(range(len(found)), rng.choice((1, 2))):
    mark = "\t" if "\t" in found[i] else ","
    fields = found[i].split(mark)
    k = rng.randrange(len(fields))
    fields[k] = rng.choice((*TEXTS, f'"{fields[k]}', f'{fields[k]}"', fields[k] + mark, fields[k] * 50_000))
    found[i] = mark.join(fields) if rng.random() < 0.8 else rng.choice((";", "\t", "|")).join(fields)
  coding = rng.choice(("utf-8", "utf-8", "utf-16"))
  return rng.choice(("\n", "\n", "\r\n", "\r")).join(found).encode(coding, "surrogatepass")


def tar(data: bytes, rng: random.Random) -> bytes:
  """Headers with other kinds, sizes and names, their checksums right."""
  data = bytearray(data)
  with tarfile.open(fileobj=io.BytesIO(data)) as opened:
    at = rng.choice([member.offset for member in opened])
  head = data[at : at + 512]
  match rng.randrange(5):
    case 0:
      head[156] = rng.choice(KINDS)
    case 1:
      head[124:136] = rng.choice(
        (
          b"%011o\0" % rng.choice((0, 1, 511, 513, 2**20, 2**33 - 1)),
          b"\x80" + b"\xff" * 11,
          b"\xff" * 12,
          b"-0000000001\0",
          b"\x80" + bytes(6) + b"\x10" + bytes(4),
          b" " * 12,
        )
      )
    case 2:
      head[:100] = rng.choice(
        (
          b"../../outside.jpg",
          b"/abs.jpg",
          b"\xff\xfe.jpg",
          b"",
          b"." * 100,
          b"a" * 100,
          b"000000000.jpg",
          b"a/b/c.d.e.txt",
        )
      ).ljust(100, b"\0")
    case 3:  # a long name, or what says so
      kind, size = rng.choice(b"LKxg"), rng.choice((0, 5, 3000, 2**21))
      body = b"a" * size if kind in b"LK" else (b"%d path=%b\n" % (rng.choice((0, 5, size + 9, 10**9)), b"x" * size))
      extra = bytearray(head)
      extra[156], extra[124:136] = kind, b"%011o\0" % len(body)
      data[at:at] = _summed(extra) + body.ljust(-(-len(body) // 512) * 512, b"\0")
      return bytes(data)
    case _:
      head[157:257], head[156] = b"../../outside".ljust(100, b"\0"), rng.choice(b"12")
  data[at : at + 512] = _summed(head)
  return bytes(data)


def _summed(head: bytearray) -> bytes:
  head[148:156] = b" " * 8
  head[148:156] = b"%06o\0 " % sum(head)
  return bytes(head)


def png(data: bytes, rng: random.Random) -> bytes:
  """A chunk with other contents and the right checksum; huge sizes, texts that unpack to far more than they are."""
  chunks, at = [], 8
  while at < len(data):
    length = int.from_bytes(data[at : at + 4], "big")
    chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
    at += 12 + length
  chunk = rng.choice(chunks)
  if rng.random() < 0.3:
    sizes = [rng.choice((0, 1, 2**16, 20_000, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
    chunks[0][1] = struct.pack(">2I5B", *sizes, rng.choice((1, 8, 16, 3)), rng.randrange(8), 0, 0, rng.randrange(3))
  elif rng.random() < 0.3:
    body = rng.choice((zlib.compress(bytes(64 << 20)), b"", b"\xff" * 9))
    chunks.insert(1, [rng.choice((b"zTXt", b"iCCP", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"PLTE")), b"a\0\0" + body])
  elif rng.random() < 0.2:
    chunks.insert(rng.randrange(len(chunks)), chunk)
  else:
    chunk[1] = bytes_(chunk[1], rng)
  return data[:8] + b"".join(
    struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
  )


def safetensors(data: bytes, rng: random.Random) -> bytes:
  """Another header, whose length is right; types that there are and are not."""
  length = int.from_bytes(data[:8], "little")
  header = data[8 : 8 + length]
  if rng.random() < 0.5:
    found = json.loads(header)
    name = rng.choice([name for name in found if name != "__metadata__"])
    old, start = found[name], rng.choice((0, 8))
    kind, size = rng.choice(
      (
        ("F8_E4M3", 1),
        ("F8_E5M2", 1),
        ("BF16", 2),
        ("F16", 2),
        ("I8", 1),
        ("U8", 1),
        ("BOOL", 1),
        ("F64", 8),
        ("C64", 8),
        ("F4", 1),
        ("F6_E2M3", 1),
        ("F32", 4),
        ("X", 4),
      )
    )
    shape = rng.choice((old["shape"], old["shape"][::-1], [], [0], [2**40, 2**40], [1, *old["shape"]]))
    values = int(np.prod(old["shape"]))  # the last tensor may change its size
    found[name] = {
      "dtype": kind,
      "shape": shape,
      "data_offsets": rng.choice(
        (old["data_offsets"], [old["data_offsets"][0], old["data_offsets"][0] + size * values], [start, 2**62], [8, 0])
      ),
    }
    header = json.dumps(found).encode()
  else:
    header = json_(header, rng)
  return len(header).to_bytes(8, "little") + header + data[8 + length :]


def parquet(data: bytes, rng: random.Random) -> bytes:
  """A column of another type, twice, under another name, or away; other row groups."""
  table = pq.read_table(io.BytesIO(data))
  n, i = len(table), rng.randrange(table.num_columns)
  invalid = pc.cast(pa.array([b"\xff\xfe"] * n), options=pc.CastOptions(pa.string(), allow_invalid_utf8=True))
  odd = rng.choice(
    (
      pa.nulls(n),
      pa.nulls(n, pa.list_(pa.string())),
      pa.nulls(n, pa.string()),
      pa.nulls(n, pa.binary()),
      invalid,
      pa.array([2**62] * n, pa.timestamp("us")),
      pa.array([-(2**60)] * n, pa.timestamp("s", "Nowhere/Town")),
      pa.array([2**60] * n, pa.duration("s")),
      pa.array([2**30] * n, pa.date32()),
      pa.array([2**62] * n, pa.date64()),
      pa.array([2**63] * n, pa.uint64()),
      pa.array([-1] * n),
      pa.array([float("nan")] * n),
      pa.array([True] * n),
      pa.array([[None, "a", None]] * n),
      pa.array([[]] * n, pa.list_(pa.binary())),
      pa.array([[b"a", b"b"]] * n),
      pa.array([{"bytes": None, "path": "../../outside"}] * n),
      pa.array([{"bytes": b"x", "path": None}] * n),
      pa.array([{"bytes": b""}] * n),
      pa.array([{"bytes": [b"x"]}] * n),
      pa.array([[{"a": [["b"]]}]] * n),
      pa.array([[("a", "b")]] * n, pa.map_(pa.string(), pa.string())),
      pa.array(["a" * 100_000] * n),
      pa.array(["a"] * n).dictionary_encode(),
      pa.array(["a"] * n, pa.large_string()),
      pa.array([b"a"] * n, pa.binary(1)),
      pa.array([10**30] * n, pa.decimal256(60, 3)),
      pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32(), 2)),
    )
  )
  name = table.column_names[i]
  match rng.randrange(6):
    case 0:
      table = table.append_column(name, table[i])
    case 1:
      table = table.append_column(name, odd)
    case 2:
      table = table.remove_column(i)
    case 3:
      table = table.rename_columns(
        [
          rng.choice(TEXTS[:-5]).encode("utf-8", "replace").decode() if k == i else column
          for k, column in enumerate(table.column_names)
        ]
      )
    case _:
      table = table.set_column(i, name, odd)
  out = io.BytesIO()
  pq.write_table(
    table[: rng.choice((0, 1, n, n, n, n))],
    out,
    row_group_size=rng.choice((1, 2, 1000)),
    use_dictionary=rng.random() < 0.5,
    write_statistics=rng.random() < 0.5,
  )
  return bytes_(out.getvalue(), rng) if rng.random() < 0.1 else out.getvalue()


def frames(data: bytes, rng: random.Random) -> bytes:
  """As many frames or pages as the format takes, or a canvas as large."""
  image = Image.open(io.BytesIO(data))
  many = [Image.new(image.mode, image.size, color=n) for n in range(rng.choice((2, 200)))]
  if rng.random() < 0.3:
    many = [Image.new("L", rng.choice(((60_000, 1), (1, 60_000), (9_000, 9_000))))]
  out = io.BytesIO()
  try:
    many[0].save(out, image.format, save_all=True, append_images=many[1:])
  except (OSError, ValueError):  # WebP ends at 16,383 pixels
    return bytes_(data, rng)
  return bytes_(out.getvalue(), rng) if rng.random() < 0.3 else out.getvalue()


def gz(data: bytes, rng: random.Random) -> bytes:
  """Other contents, well compressed; or far more of them than there are bytes."""
  inside = gzip.decompress(data)
  return gzip.compress(b"\n" * (256 << 20) if rng.random() < 0.02 else bytes_(inside, rng), 1)
