"""The index of a tar: against Python's tarfile, cut off at any byte, stored, reused and built anew."""

import io
import os
import random
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from coca.config import Source
from coca.data.records import BadRecord
from coca.data.sources import tar_index
from coca.data.sources.webdataset import open_webdataset
from coca.files import finding, reading, writing
from support.tars import shard, tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("COCA_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def opened(path, **settings):
  return open_webdataset(Source(kind="webdataset", path=str(path), **settings))


def scanned(path):
  return tar_index.scan(finding.find(str(path), ".tar", "", "source")[0][0])


def records(source):
  return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_index_agrees_with_tarfile(tmp_path, format):
  names = ["a.jpg", "./b.txt", "d/e/c.JPG", "f" * 90 + "/" + "g" * 80 + ".png"]
  if format != tarfile.USTAR_FORMAT:
    names += ["h" * 300 + ".jpg", "i" * 700 + "/名前.json"]
  path = tmp_path / "x.tar"
  with tarfile.open(path, "w", format=format) as f:
    f.addfile(tarfile.TarInfo("folder"))
    for n, name in enumerate(names):
      info = tarfile.TarInfo(name)
      info.size = 700 * n
      f.addfile(info, io.BytesIO(bytes([n]) * info.size))
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "k" * 150 if format != tarfile.USTAR_FORMAT else "k"
    f.addfile(link)
    tail = tarfile.TarInfo("last.jpg")
    tail.size = 5
    f.addfile(tail, io.BytesIO(b"final"))
  index = scanned(path)
  assert index.problem == ""
  got = {
    (index.keys[int(s)].decode(), index.extensions[e]): (o, n)
    for s, e, o, n in zip(index.sample, index.extension, index.offset, index.size, strict=True)
  }
  expected = {}
  with tarfile.open(path) as f:
    for m in f.getmembers():
      if m.isreg():
        name = m.name.removeprefix("./")
        stem, _, extension = name.rpartition(".") if "." in name else (name, "", "")
        expected[stem, extension.lower()] = (m.offset_data, m.size)
  assert got == expected and len(got) == len(names) + 2


def test_index_reads_headers_only(tmp_path, monkeypatch):
  (tmp_path / "x.tar").write_bytes(tar({f"{n}.jpg": bytes(1 << 20) for n in range(8)}))
  sizes, read = [], reading.File.read

  def counted(self, start, size):
    sizes.append(size)
    return read(self, start, size)

  monkeypatch.setattr(reading.File, "read", counted)
  assert len(scanned(tmp_path / "x.tar").keys) == 8
  assert sum(sizes) < 100_000


def test_member_beyond_8_gib(tmp_path):
  """Sizes and offsets that need base 256 and 64 bits, in a sparse file."""
  big, small = tarfile.TarInfo("a.jpg"), tarfile.TarInfo("b.jpg")
  big.size, small.size = 9 << 30, 3
  path = tmp_path / "x.tar"
  with open(path, "wb") as f:
    f.write(big.tobuf(tarfile.GNU_FORMAT))
    f.seek(big.size, os.SEEK_CUR)
    f.write(small.tobuf(tarfile.GNU_FORMAT) + b"end".ljust(512, b"\0") + bytes(1024))
  index = scanned(path)
  assert index.problem == "" and index.members(("jpg",)).tolist() == [[512, 9 << 30], [1024 + (9 << 30), 3]]


def test_truncation_keeps_the_complete_samples(tmp_path):
  data = shard(0, 8)
  with tarfile.open(fileobj=io.BytesIO(data)) as f:
    ends = [max(m.offset_data + m.size for m in group) for group in zip(*[iter(f.getmembers())] * 3, strict=True)]
    last = f.getmembers()[-1]
  cuts = random.Random(0).sample(range(ends[1], last.offset_data + last.size), 150)
  cuts += [cut // 512 * 512 for cut in cuts if cut // 512 * 512 >= ends[1]]
  path = tmp_path / "x.tar"
  for cut in cuts:
    path.write_bytes(data[:cut])
    index = scanned(path)
    kept = sum(end <= cut for end in ends)
    assert [k.decode() for k in index.keys] == [f"{n:09d}" for n in range(kept)], cut
    assert "truncated at byte" in index.problem and f"{kept} records before it are kept" in index.problem
    assert (index.offset + index.size).max() <= cut and index.sample.max() < kept


def test_index_is_reused_and_rebuilt(tmp_path, monkeypatch, cache):
  path, index = tmp_path / "x.tar", tmp_path / "x.tar.index.npz"
  path.write_bytes(shard(0, 3))
  expected = records(opened(tmp_path))
  assert index.exists() and not cache.exists()
  good, scan, scans = index.read_bytes(), tar_index.scan, []
  monkeypatch.setattr(tar_index, "scan", lambda file: scans.append(file.name) or scan(file))
  assert records(opened(tmp_path)) == expected and scans == []
  wild = dict(np.load(io.BytesIO(good)))
  wild["offset"] = wild["offset"] + 10**9
  with open(tmp_path / "wild.npz", "wb") as f:
    np.savez(f, **wild)
  with zipfile.ZipFile(tmp_path / "wild.npz") as stored, zipfile.ZipFile(tmp_path / "odd.npz", "w") as odd:
    for name in stored.namelist():
      odd.writestr(name, b"no array" if name == "extensions.npy" else stored.read(name))
  flat = dict(np.load(io.BytesIO(good)))
  np.savez(tmp_path / "flat.npz", **flat | {"ends": flat["ends"][::-1]})
  np.savez_compressed(tmp_path / "packed.npz", **flat | {"keys": np.zeros(1 << 22, np.uint8)})
  middle = len(good) // 2
  damaged = [b"", good[:middle], good[:middle] + b"?" * 40 + good[middle + 40 :], b"\x80\x04}.",
             *(path.read_bytes() for path in tmp_path.glob("[wofp]*.npz"))]  # fmt: skip
  for n, data in enumerate(damaged, 1):
    index.write_bytes(data)
    assert records(opened(tmp_path)) == expected
    assert len(scans) == n and index.read_bytes() == good
  path.write_bytes(shard(5, 4))
  assert [r.key for r in records(opened(tmp_path))] == [f"{n:09d}" for n in range(5, 9)]
  assert len(scans) == len(damaged) + 1
  assert sorted(p.name for p in tmp_path.glob("*x.tar*")) == ["x.tar", "x.tar.index.npz"] and len(damaged) == 8


def test_read_only_folder(tmp_path, monkeypatch, cache):
  (tmp_path / "shards").mkdir()
  (tmp_path / "shards" / "x.tar").write_bytes(shard(0, 3))
  write = writing.write_atomic

  def read_only(path, data):
    if Path(path).parent == tmp_path / "shards":
      raise PermissionError(13, "Permission denied", str(path))
    write(path, data)

  monkeypatch.setattr(tar_index, "write_atomic", read_only)
  with monkeypatch.context() as m:
    (tmp_path / "file").write_text("")
    m.setenv("COCA_CACHE", str(tmp_path / "file" / "cache"))
    source = opened(tmp_path / "shards")
    assert len(records(source)) == 3 and len(source.problems) == 1 and "COCA_CACHE" in source.problems[0]
  assert opened(tmp_path / "shards").problems == []
  assert len(list((cache / "tars").iterdir())) == 1 and len(list((tmp_path / "shards").iterdir())) == 1
  monkeypatch.setattr(tar_index, "scan", None)
  assert len(records(opened(tmp_path / "shards"))) == 3


def test_a_tar_replaced_at_the_same_size_and_time(tmp_path):
  """As rsync -t and git may do it: told by the headers, when it is opened and when it is read."""
  path = tmp_path / "x.tar"
  a, b = ({f"{first}{n}.{kind}": bytes([65 + n]) * 9 for n in range(9) for kind in ("jpg", "txt")} for first in "ab")

  def write(members):
    path.write_bytes(tar(members))
    os.utime(path, (1e9, 1e9))

  write(a)
  old = opened(tmp_path)
  assert old[4].key == "a4"
  write({**a, "a4.jpg": b"123456789", "a4.txt": b"other"})  # the same names and places, yet another text
  source = opened(tmp_path)
  assert source[4].image == b"123456789" and source[5].key == "a5"
  stale = (tmp_path / "x.tar.index.npz").read_bytes()
  write(b)
  reading._descriptor.cache_clear()
  with pytest.raises(BadRecord, match=r"record 'a3': the tar has changed .* x\.tar\.index\.npz"):
    old[3]
  source = opened(tmp_path)
  assert [r.key for r in records(source)] == [f"b{n}" for n in range(9)]
  assert (tmp_path / "x.tar.index.npz").read_bytes() != stale


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_bombs_of_names(tmp_path, format):
  """A name of a MiB among short ones made all keys as long: 1 GiB for a thousand samples."""
  names = [f"{n}.jpg" for n in range(1000)]
  long = ["n" * (1 << 20) + ".jpg", "k." + "e" * 300, "d/" * 2000 + "x.jpg"]
  (tmp_path / "x.tar").write_bytes(tar(dict.fromkeys([*names[:500], *long, *names[500:]], b"abc"), format))
  tracemalloc.start()
  index = scanned(tmp_path / "x.tar")
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 20 << 20
  assert [key.decode() for key in index.keys] == [*(str(n) for n in range(500)), "d/" * 2000 + "x",
                                                  *(str(n) for n in range(500, 1000))]  # fmt: skip
  assert "x.tar: 2 members are left out, whose names have more than 4096 bytes" in index.problem
  opened(tmp_path, text_key="")
  assert (tmp_path / "x.tar.index.npz").stat().st_size < 100_000


def test_cache_directory(monkeypatch):
  monkeypatch.delenv("COCA_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", "/x")
  assert str(writing.cache_directory()) == "/x/coca"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", "/home/me")
  assert str(writing.cache_directory()) == "/home/me/.cache/coca"


def test_a_pax_record_of_no_length_is_damage(tmp_path):
  data = bytearray(tar({f"{'d' * 120}.jpg": b"x"}, tarfile.PAX_FORMAT))
  end = data.index(b" path=")
  data[end - 3 : end] = b"000"
  (tmp_path / "x.tar").write_bytes(data)
  assert "damaged header at byte 0" in scanned(tmp_path / "x.tar").problem


def test_braces():
  assert finding.braces("gs://b/{08..11}.tar") == [f"gs://b/{n}.tar" for n in ("08", "09", "10", "11")]
  assert finding.braces("{9..11}") == ["9", "10", "11"] and finding.braces("{0..10}") == [str(n) for n in range(11)]
  assert finding.braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
  assert finding.braces("a{b}[c]") == ["a{b}[c]"]
