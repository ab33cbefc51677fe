"""Exports: read back by our own sources, in every shape, after a kill, and refused where they make no sense."""

import dataclasses
import io
import json
import tarfile

import fsspec
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coca.capfilt import export as export_
from coca.capfilt.export import export
from coca.config import Source
from coca.data.sidecars import SidecarError
from coca.data.sources import open_source
from support.bootstrap import bootstrap
from support.tars import picture as tars_picture
from support.tars import shard, tar


def picture(n, kind):
  data = io.BytesIO()
  Image.new("RGB", (8 + n, 8), (n, 2 * n, 3 * n)).save(data, kind)
  return data.getvalue()


KINDS = ("JPEG", "PNG", "WEBP")


def folder(path):
  """Pictures of all formats, whatever their names say, each with texts by people."""
  (path / "a").mkdir(parents=True)
  rows = []
  for n in range(12):
    (path / "a" / f"{n:02d}.x.jpg").write_bytes(picture(n, KINDS[n % 3]))
    rows += [{"file_name": f"a/{n:02d}.x.jpg", "caption": [f"Menschen {n} ü", f"by hand {n}"][: 1 + n % 2]}]
  (path / "captions.json").write_text(json.dumps(rows))
  return Source(kind="folder", path=str(path), split="")


def tars(path):
  path.mkdir()
  for n, count in enumerate((7, 6, 2)):
    (path / f"{n}.tar").write_bytes(shard(100 * n, count))
  return Source(kind="webdataset", path=str(path), split="")


def records(source):
  return [source[i] for i in range(len(source))]


def files_in(path):
  return {p.name: p.read_bytes() for p in path.iterdir() if not p.name.endswith(".index.npz")}


def exported(to, kind):
  return open_source(Source(kind=kind, path=f"{to}", split=""))


def same(found, expected):
  """Images and texts, in order; the origin of a text is told beside it only."""

  def shape(records):
    return [(r.image, [t.text for t in r.texts]) for r in records]

  assert shape(found) == shape(expected) and len(expected) > 0


@pytest.mark.parametrize("make", [folder, tars])
@pytest.mark.parametrize("sample", ["text", "image"])
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_read_back(tmp_path, make, sample, kind):
  settings = make(tmp_path / "in")
  out, to = tmp_path / "out", tmp_path / "to"
  shards = bootstrap(out, settings)
  done = export(str(out), str(to), kind, sample=sample)
  source = exported(to, kind)
  expected = records(open_source(dataclasses.replace(settings, sidecars=str(out), sample=sample)))
  same(records(source), expected)
  assert (done.files, done.samples, done.found, done.problems) == (len(shards), len(expected), 0, [])
  suffix = {"webdataset": ".tar", "parquet": ".parquet"}[kind]
  assert set(files_in(to)) == {f"{s.name}{suffix}" for s in shards} | {"export.json"}
  if make is folder:
    assert {t.origin for r in expected for t in r.texts} == {"human", "synthetic"}
  again = export(out, tmp_path / "again", kind, sample=sample)
  assert again == done and files_in(tmp_path / "again") == files_in(to)


def test_what_stands_in_a_tar(tmp_path):
  out = tmp_path / "out"
  bootstrap(out, folder(tmp_path / "in"), most=100)
  export(out, tmp_path / "to")
  with tarfile.open(tmp_path / "to" / "folder.tar") as f:
    members = {m.name: f.extractfile(m).read() for m in f}
    assert {(m.mtime, m.uid, m.uname, m.mode) for m in f.getmembers()} == {(0, 0, "", 0o644)}
  assert {name.partition(".")[2] for name in members} == {"jpg", "png", "webp", "json", "txt"}
  assert members["000000004_0.png"] == picture(4, "PNG") and members["000000004_0.txt"].decode() == "Menschen 4 ü"
  meta = json.loads(members["000000004_1.json"])
  assert meta == {
    "key": "a/04.x.jpg",
    "index": 4,
    "caption": "synthetic 4 0",
    "origin": "synthetic",
    "matching": pytest.approx(0.7),
    "contrastive": pytest.approx(0.2),
    "decoding": '{"p": 0.9}',
    "captioner": "sha256:c",
    "filter": "sha256:f",
    "version": "1",
  }
  export(out, tmp_path / "images", sample="image")
  with tarfile.open(tmp_path / "images" / "folder.tar") as f:
    members = {m.name: f.extractfile(m).read() for m in f}
  assert sum(name.endswith(".jpg") for name in members) == 4 and not any(name.endswith(".txt") for name in members)
  meta = json.loads(members["000000004.json"])
  assert meta["caption"] == ["Menschen 4 ü", "synthetic 4 0", "synthetic 4 1"] == [t["text"] for t in meta["texts"]]
  assert [t["origin"] for t in meta["texts"]] == ["human", "synthetic", "synthetic"] and meta["key"] == "a/04.x.jpg"


def test_what_stands_in_parquet(tmp_path, monkeypatch):
  monkeypatch.setattr(export_, "ROW_GROUP", 5)
  monkeypatch.setattr(export_, "BLOCK", 3)
  out = tmp_path / "out"
  bootstrap(out, folder(tmp_path / "in"), most=100)
  done = export(out, tmp_path / "to", "parquet")
  file = pq.ParquetFile(tmp_path / "to" / "folder.parquet")
  assert max(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)) == 5
  rows = file.read().to_pylist()
  assert len(rows) == done.samples and list(rows[0]) == ["key", "jpg", "index", "caption", *export_.FIELDS]
  row = next(row for row in rows if row["caption"] == "synthetic 4 0")
  assert row["jpg"] == picture(4, "PNG") and row["origin"] == "synthetic" and row["captioner"] == "sha256:c"
  export(out, tmp_path / "images", "parquet", sample="image")
  row = pq.read_table(tmp_path / "images" / "folder.parquet").to_pylist()[4]
  assert row["origin"] == ["human", "synthetic", "synthetic"] and row["key"] == "a/04.x.jpg"
  assert row["matching"] == pytest.approx([0.6, 0.7, 0.8]) and row["captioner"] == [None, "sha256:c", "sha256:c"]


def test_thresholds_and_origins(tmp_path):
  settings, out = folder(tmp_path / "in"), tmp_path / "out"
  shards = bootstrap(out, settings, most=2)
  choice = {"min_matching": 0.8, "min_contrastive": 0.4, "sample": "image", "origins": {"human": 1.0, "synthetic": 1.0}}
  export(out, tmp_path / "to", **choice)
  expected = records(open_source(dataclasses.replace(settings, sidecars=str(out), **choice)))
  same(records(exported(tmp_path / "to", "webdataset")), expected)
  assert len(expected) == 12  # people's texts stay
  done = export(out, tmp_path / "synthetic", min_matching=1.0, origins={"synthetic": 1.0})
  assert (len(shards), done.files, len(files_in(tmp_path / "synthetic"))) == (6, 3, 4)  # no kept text, no file


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_it_goes_on(tmp_path, monkeypatch, kind):
  """Killed in the middle of a file, it ends with the same bytes; what is finished is not read again."""
  out, to = tmp_path / "out", tmp_path / "to"
  bootstrap(out, tars(tmp_path / "in"))
  whole = export(out, tmp_path / "whole", kind)
  read, reads = export_._read, []

  def dies(source, number):
    reads.append(number)
    if number >= 9:
      raise KeyboardInterrupt
    return read(source, number)

  monkeypatch.setattr(export_, "_read", dies)
  with pytest.raises(KeyboardInterrupt):
    export(out, to, kind)
  suffix = {"webdataset": ".tar", "parquet": ".parquet"}[kind]
  assert set(files_in(to)) == {f"0-00000{suffix}", f"0-00001{suffix}", "export.json"}
  (to / f".1-00000{suffix}.{'0' * 32}").write_bytes(b"what a SIGKILL leaves")
  (to / f".mine{suffix}.gz").write_bytes(b"what somebody else has put there")
  reads.clear()
  monkeypatch.setattr(export_, "_read", lambda source, number: reads.append(number) or read(source, number))
  done = export(out, to, kind)
  assert min(reads) == 7 and (done.found, done.files + done.found) == (2, whole.files)
  assert files_in(to).pop(f".mine{suffix}.gz") and not list(to.glob(".1*"))
  (to / f".mine{suffix}.gz").unlink()
  assert files_in(to) == files_in(tmp_path / "whole")
  assert export(out, to, kind).found == whole.files


def test_other_exports_and_other_data_are_not_mixed(tmp_path):
  out, to = tmp_path / "out", tmp_path / "to"
  settings = tars(tmp_path / "in")
  bootstrap(out, settings)
  export(out, to)
  for changes in ({"sample": "image"}, {"min_matching": 0.7}, {"format": "parquet"}, {"origins": {"web": 1.0}}):
    with pytest.raises(ValueError, match="holds an export with other settings or of another workdir"):
      export(out, to, **changes)
  bootstrap(out, settings, most=2)
  with pytest.raises(ValueError, match="of another workdir"):
    export(out, to)
  with pytest.raises(ValueError, match="holds other data"):
    export(out, tmp_path / "in")


def test_what_cannot_be_exported(tmp_path):
  out, to = tmp_path / "out", tmp_path / "to"
  settings = tars(tmp_path / "in")
  bootstrap(out, settings)
  for changes, message in (
    ({"format": "tfds"}, "export format 'tfds'; it may be 'webdataset', 'parquet'"),
    ({"sample": "both"}, "export sample 'both'"),
    ({"origins": {"nobody": 1.0}}, r"export\.origins\.nobody: no such origin"),
  ):
    with pytest.raises(ValueError, match=message):
      export(out, to, **changes)
  (out / "texts" / "0-00000.parquet").unlink()
  with pytest.raises(SidecarError, match="1 of 5 shards are not finished"):
    export(out, to)
  bootstrap(out, settings, change=lambda rows: [{**row, "kept": None} for row in rows])
  with pytest.raises(SidecarError, match=r"0-00000\.parquet: 9 of 9 texts are not decided"):
    export(out, to)
  (tmp_path / "in" / "1.tar").unlink()
  with pytest.raises(SidecarError, match="'1-00000' is gone"):
    export(out, to)
  with pytest.raises(SidecarError, match="is no CapFilt workdir"):
    export(tmp_path / "in", to)


def test_images_that_changed_or_broke_are_told(tmp_path):
  out = tmp_path / "out"
  bootstrap(out, tars(tmp_path / "in"))
  whole = export(out, tmp_path / "whole", sample="image")
  members = {
    name: data
    for n in (100, 101, 999, 103, 104, 105)
    for name, data in {f"{n:09d}.jpg": tars_picture(n), f"{n:09d}.txt": b"x"}.items()
    if name != "000000103.jpg"
  }
  (tmp_path / "in" / "1.tar").write_bytes(tar(members))
  done = export(out, tmp_path / "to", sample="image")
  assert (
    len(done.problems) == 2 and done.samples == whole.samples - 2 and done.incomplete == ["1-00000.tar", "1-00001.tar"]
  )
  with pytest.raises(ValueError, match=r"1-00000\.tar is a file; export to an empty folder"):
    export(out, tmp_path / "to" / "1-00000.tar")
  assert "record 9 is '000000999' and was '000000102'" in done.problems[0] and "no image" in done.problems[1]


def test_moved_images_and_a_bucket(tmp_path):
  out = tmp_path / "out"
  settings = tars(tmp_path / "in")
  bootstrap(out, settings)
  export(out, tmp_path / "to")
  moved = dataclasses.replace(settings, path=str((tmp_path / "in").rename(tmp_path / "moved")))
  with pytest.raises(FileNotFoundError):
    export(out, tmp_path / "to2")
  export(out, "memory://exported/x", source=moved)
  fs = fsspec.filesystem("memory")
  found = {path.rpartition("/")[2]: fs.cat_file(path) for path in fs.ls("/exported/x", detail=False)}
  assert found == files_in(tmp_path / "to")
  assert export(out, "memory://exported/x", source=moved).found == len(found) - 1


@pytest.mark.parametrize("old", [False, True])
def test_what_is_no_picture_is_never_exported(tmp_path, old):
  """A file that somebody put among the pictures, by whatever name: texts by people are kept, decodable or not."""
  settings = folder(tmp_path / "in")
  (tmp_path / "in" / "a" / "03.x.jpg").write_bytes(b"-----BEGIN PRIVATE KEY-----")
  bootstrap(tmp_path / "out", settings, change=lambda rows: [{**row, "image": None} if row["index"] == 3 else row
                                                             for row in rows])  # fmt: skip
  if old:
    for path in (tmp_path / "out" / "texts").iterdir():
      pq.write_table(pq.read_table(path).drop_columns("image"), path)
  for kind in ("webdataset", "parquet"):
    done = export(tmp_path / "out", tmp_path / kind, kind, sample="image")
    assert done.samples == 11 and len(done.problems) == 1 and "'a/03.x.jpg': not decodable" in done.problems[0]
    assert not any(b"PRIVATE" in data for data in files_in(tmp_path / kind).values())
