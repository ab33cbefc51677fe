"""Sidecars: bytes, damage, choice; shards of all sources; the manifest against the source."""

import random
import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from coca.config import Source
from coca.config.data import ORIGINS
from coca.data import sidecars
from coca.data.records import Shard, shards_of, split
from coca.data.sidecars import SidecarError
from coca.data.sources import open_source
from support.bootstrap import bootstrap, rows_of, write_rows
from support.tars import picture, shard

ROWS = [
  {"index": 3, "key": "a", "text": "web", "origin": "web", "matching": 0.4, "contrastive": 0.3, "kept": False},
  {
    "index": 3,
    "key": "a",
    "text": "made",
    "origin": "synthetic",
    "matching": 0.9,
    "contrastive": 0.1,
    "kept": True,
    "decoding": "{}",
    "captioner": "c",
    "filter": "f",
    "version": "1",
  },
  {"index": 4, "key": "b", "text": "by hand", "origin": "human", "kept": True},
  {"index": 5, "key": "", "problem": "unreadable", "kept": False},
  {"index": 6, "key": "d", "text": "no score", "origin": "web", "problem": "too long", "kept": False},
]


def columns(rows):
  return {name: [row.get(name) for row in rows] for name in sidecars.SCHEMA.names}


@pytest.mark.parametrize("folder", ["{tmp}/out", "memory://sidecars"])
def test_there_and_back(tmp_path, folder):
  path = sidecars.path_of(folder.format(tmp=tmp_path), "x")
  assert not sidecars.is_complete(path)
  sidecars.write(path, columns(ROWS))
  assert sidecars.is_complete(path)
  table = sidecars.read(path)
  assert table.schema.equals(sidecars.SCHEMA)
  expected = [{name: row.get(name) for name in sidecars.SCHEMA.names} for row in ROWS]
  for row in expected:
    for name in sidecars.SCORES:
      row[name] = None if row[name] is None else float(np.float32(row[name]))
  assert table.to_pylist() == expected
  assert sidecars.read(path, ["text", "index"]).to_pydict() == {
    "text": [row.get("text") for row in ROWS],
    "index": [3, 3, 4, 5, 6],
  }
  sidecars.write(path, {"index": []})
  assert len(sidecars.read(path)) == 0 and sidecars.read(path).schema.equals(sidecars.SCHEMA)


def test_the_same_columns_give_the_same_bytes(tmp_path):
  rows = [{**ROWS[n % len(ROWS)], "index": n, "text": f"text {n}", "origin": ORIGINS[n % 4]} for n in range(500)]
  sidecars.write(tmp_path / "a.parquet", columns(rows))
  arrays = {k: v for k, v in columns(rows).items() if any(x is not None for x in v)}
  arrays["index"] = np.arange(500, dtype=np.int32)
  sidecars.write(tmp_path / "sub" / "b.parquet", dict(reversed(arrays.items())))  # no null columns
  sidecars.write(tmp_path / "c.parquet", sidecars.read(tmp_path / "a.parquet").to_pydict())
  a, b, c = ((tmp_path / name).read_bytes() for name in ("a.parquet", "sub/b.parquet", "c.parquet"))
  assert a == b == c
  rows[250]["matching"] = 0.5
  sidecars.write(tmp_path / "a.parquet", columns(rows))  # over the old one
  assert (tmp_path / "a.parquet").read_bytes() != b
  assert {p.name for p in tmp_path.iterdir()} == {"a.parquet", "sub", "c.parquet"}


@pytest.mark.parametrize(("change", "message"), [
  ({"colour": [1] * 5}, "no such column: colour; a sidecar has index, key"),
  ({"index": [3, 3, 4, 5]}, "columns"),
  ({"index": [3, 3, 5, 4, 6]}, "'index' .* goes down"),
  ({"index": [3, 3, None, 5, 6]}, "'index' has nulls"),
  ({"text": [None, "made", "by hand", None, "no score"]}, "each text needs an origin"),
  ({"origin": ["web", "martian", "human", None, "web"]}, "unknown origin 'martian'; known: web, synthetic, human"),
  ({"matching": [float("nan"), 0.9, None, None, None]}, "'matching' is not finite"),
  ({"matching": ["high", 0.9, None, None, None]}, r"x\.parquet: "),
  ({"text": ["\ud800", "made", "by hand", None, "no score"]}, r"x\.parquet: "),
])  # fmt: skip
def test_wrong_columns_are_refused(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    sidecars.write(tmp_path / "x.parquet", columns(ROWS) | change)
  assert not list(tmp_path.iterdir())


def test_keys_that_are_no_unicode(tmp_path):
  sidecars.write(tmp_path / "x.parquet", {"index": [0, 1], "key": ["sch\udcf6n.jpg", None]})
  assert sidecars.read(tmp_path / "x.parquet")["key"].to_pylist() == ["sch?n.jpg", ""]


def test_damage_is_one_clear_error(tmp_path):
  path = tmp_path / "x.parquet"
  rows = [{**ROWS[0], "index": n, "text": f"{random.Random(n).random()}"} for n in range(300)]
  sidecars.write(path, columns(rows))
  data, whole = path.read_bytes(), sidecars.read(path)
  rng = random.Random(0)
  damaged = 0
  for trial in range(300):
    broken = bytearray(data)
    if trial % 3 == 0:
      broken = broken[: rng.randrange(len(data))]
    else:
      broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(broken)
    if trial % 3 == 0:
      assert not sidecars.is_complete(path)
    try:
      found = sidecars.read(path)
    except SidecarError as e:
      damaged += 1
      assert str(path) in str(e) and "delete it, and the stage writes it again" in str(e)
    else:  # a bit that means nothing (who wrote the file, a statistic); the texts and scores are right all the same
      assert found.equals(whole)
  assert damaged > 200
  for table, message in (
    (pa.table({"a": [1]}), "column 'index' is missing"),
    (whole.set_column(0, "index", whole["index"].cast(pa.int32())), "column 'index' is int32"),
  ):
    pq.write_table(table, path)
    assert not sidecars.is_complete(path)
    with pytest.raises(SidecarError, match=message):
      sidecars.read(path)
  path.unlink()
  path.mkdir()
  with pytest.raises(IsADirectoryError):  # can't be read: nothing to delete
    sidecars.read(path)
  with pytest.raises(FileNotFoundError, match=r"none\.parquet: no such sidecar; the shard is not finished"):
    sidecars.read(tmp_path / "none.parquet")


def with_column(table, name, values):
  return table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.append_column("text", t["text"]), "column 'text' is missing, or there twice"),
    (lambda t: t.append_column("image", t["image"]), "column 'image' is missing, or there twice"),
    (lambda t: with_column(t, "text", pa.nulls(len(t), pa.string())), "each text needs an origin"),
    (
      lambda t: with_column(t, "index", pa.array([3, 3, 2, 5, 6])),
      "'index' has nulls or negative numbers, or goes down",
    ),
    (
      lambda t: with_column(
        t, "key", pc.cast(pa.array([b"\xff"] * 5), options=pc.CastOptions(pa.string(), allow_invalid_utf8=True))
      ),
      "UTF8",
    ),
  ],
)
def test_what_no_stage_has_written(tmp_path, change, message):
  """A whole Parquet file of the right types, whose rows are not what `write` lets through."""
  path = sidecars.path_of(tmp_path, "x")
  sidecars.write(path, columns(ROWS))
  pq.write_table(change(pq.read_table(path)), path)
  with pytest.raises(SidecarError, match=f"x.parquet is damaged or no sidecar .*{message}"):
    sidecars.read(path)


def kept(rows, **settings):
  table = pa.table({k: pa.array(v, sidecars.SCHEMA.field(k).type) for k, v in columns(rows).items()})
  return np.flatnonzero(sidecars.keep(table, Source(**settings))).tolist()


def test_keep():
  assert kept(ROWS) == [1, 2]
  assert kept(ROWS, min_matching=0.0) == [0, 1, 2]  # no score, no keeping; human ones always
  assert kept(ROWS, min_matching=0.4) == [0, 1, 2]  # as float32, in which 0.4 is stored
  assert kept(ROWS, min_matching=0.41) == [1, 2]
  assert kept(ROWS, min_matching=1.0) == [2]
  assert kept(ROWS, min_contrastive=0.2) == [0, 2]
  assert kept(ROWS, min_contrastive=0.2, min_matching=0.5) == [2]
  assert kept(ROWS, origins={"web": 1.0, "synthetic": 1.0}) == [1]
  assert kept(ROWS, origins={"human": 0.0, "web": 1.0}, min_matching=0.1) == [0]
  undecided = [{**row, "kept": None} for row in ROWS]
  with pytest.raises(SidecarError, match="3 of 5 texts are not decided on yet"):
    kept(undecided)
  assert kept(undecided, min_matching=0.5) == [1, 2]
  assert kept([{**ROWS[2], "kept": None}, {**ROWS[2], "kept": False}, ROWS[3]]) == [0, 1]


def test_names_of_shards():
  assert shards_of(["a", "b", "c"], [2, 0, 3]) == [Shard("a", 0, 2), Shard("c", 2, 5)]
  names = ["x/0", "x_0", "y/0", "X/0", "0", "0", "../e", "ü ü", "z" * 300, "a." + "z" * 119, ""]
  shards = shards_of(names, [1] * len(names))
  assert len({s.name.lower() for s in shards}) == len(names)
  assert all(
    set(s.name) <= set("abcdefghijklmnopqrstuvwxyzXABCDEF0123456789._-") and 0 < len(s.name) < 140 and s.name[0] != "."
    for s in shards
  )
  assert [s.name for s in shards if s.name in ("y_0", "0", "x_0")] == ["y_0", "0"]
  alone = shards_of(["y/0", "x_0", "x/0"], [1] * 3)
  assert {s.name for s in alone} < {s.name for s in shards} | {"x_0-" + s.name[-8:] for s in alone}


def test_split():
  shards = [Shard("a", 0, 10), Shard("a-00000", 10, 11), Shard("b", 11, 15), Shard("c", 15, 18)]
  parts = split(shards, 4)
  assert [p.name for p in parts] == ["a--00000", "a--00001", "a--00002", "a-00000", "b", "c"]
  assert [p.stop for p in parts] == [3, 6, 10, 11, 15, 18] and [p.start for p in parts] == [0, 3, 6, 10, 11, 15]
  assert split(shards, 100) == shards
  assert [p.name for p in split([Shard("c", 2, 5)], 1)] == ["c-00000", "c-00001", "c-00002"]
  with pytest.raises(ValueError, match="has to be above 0"):
    split(shards, 0)


def tars(folder, **names):
  for name, (first, count) in names.items():
    path = folder / f"{name.replace('__', '/')}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(shard(first, count))
  return Source(kind="webdataset", path=f"{folder}/*/*.tar", split="")


def test_shards_of_sources(tmp_path):
  web = tars(tmp_path / "t", a__00000=(0, 3), a__00001=(3, 4), b__00000=(7, 2))
  (tmp_path / "t" / "a" / "00002.tar").write_bytes(b"")
  expected = [Shard("a_00000", 0, 3), Shard("a_00001", 3, 7), Shard("b_00000", 7, 9)]
  assert open_source(web).shards == expected
  fsspec.filesystem("memory").pipe({f"/shards/{n}.tar": shard(n, 2) for n in range(2)})
  assert [s.name for s in open_source(Source(kind="webdataset", path="memory://shards")).shards] == ["0", "1"]
  (tmp_path / "t" / "a" / "00000.tar").unlink()  # the others keep their names
  assert open_source(web).shards == [Shard("a_00001", 0, 4), Shard("b_00000", 4, 6)]
  moved = shutil.move(tmp_path / "t", tmp_path / "moved")
  assert [s.name for s in open_source(Source(kind="webdataset", path=f"{moved}/*/*.tar")).shards] == [
    "a_00001",
    "b_00000",
  ]
  assert [s.name for s in open_source(Source(kind="webdataset", path=f"{moved}/a")).shards] == ["00001"]
  for n in range(2):
    pq.write_table(
      pa.table({"image": [picture(n)] * 5, "caption": ["x"] * 5}), tmp_path / f"{n}.parquet", row_group_size=2
    )
  assert open_source(Source(kind="parquet", path=str(tmp_path))).shards == [Shard("0", 0, 5), Shard("1", 5, 10)]
  (tmp_path / "f").mkdir()
  (tmp_path / "f" / "a.jpg").write_bytes(picture(1))
  (tmp_path / "f" / "a.txt").write_text("a text")
  assert open_source(Source(kind="folder", path=f"{tmp_path}/f")).shards == [Shard("folder", 0, 1)]


def test_shards_of_a_split():
  train = "coca_builtin-train.array_record-00000-of-00001"
  unseen = "coca_builtin-unseen_concepts.array_record-00000-of-00001"

  def shards(split):
    return open_source(Source(kind="builtin", split=split)).shards

  assert shards("train+unseen_concepts") == [Shard(train, 0, 4924), Shard(unseen, 4924, 5406)]
  assert shards("train[:10%]+train[20%:30%]") == [Shard(train, 0, 492), Shard(f"{train}-from-985", 492, 984)]
  assert len({s.name for s in shards("train+train")}) == 2


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet", "builtin"])
def test_origin_of_a_source(tmp_path, kind):
  if kind == "webdataset":
    (tmp_path / "0.tar").write_bytes(shard(0, 1))
  elif kind == "parquet":
    pq.write_table(pa.table({"image": [picture(0)], "caption": ["x"]}), tmp_path / "0.parquet")
  elif kind == "folder":
    (tmp_path / "a.jpg").write_bytes(picture(1))
    (tmp_path / "a.txt").write_text("a text")
  settings = {"kind": kind, "path": "" if kind == "builtin" else str(tmp_path)}
  default = {"webdataset": "web", "parquet": "web"}.get(kind, "human")
  for given in ("", *ORIGINS):
    assert {t.origin for t in open_source(Source(**settings, origin=given))[0].texts} == {given or default}


def test_manifest_against_the_source(tmp_path):
  names = {"a__0": (0, 5), "a__1": (5, 6), "b__0": (11, 3)}
  settings = tars(tmp_path / "t", **names)
  shards = bootstrap(tmp_path / "out", settings, most=4)
  assert [s.name for s in shards] == ["a_0-00000", "a_0-00001", "a_1-00000", "a_1-00001", "b_0"]
  manifest = sidecars.read_manifest(tmp_path / "out")
  assert manifest["shards"] == shards and manifest["threshold"] == {"matching": 0.5}

  def difference(**names):
    shutil.rmtree(tmp_path / "t")
    with pytest.raises(SidecarError) as e:
      sidecars.check_source(shards, open_source(tars(tmp_path / "t", **names)), tmp_path / "out")
    assert "is not the source that" in str(e.value) and "run CapFilt on it as it is in another workdir" in str(e.value)
    return str(e.value).partition("since: ")[2].partition(". Restore")[0]

  assert difference(**names | {"a__1": (5, 5)}) == "'a_1' was records 5 to 11 and is now 5 to 10"
  assert difference(**names | {"a__1": (5, 7)}) == "'a_1' was records 5 to 11 and is now 5 to 12"
  assert difference(**names, c__0=(20, 1)) == "'c_0' is new, or in another place"
  assert difference(**names, a__00=(0, 2)) == "'a_00' is new, or in another place"
  assert difference(a__0=(0, 5), b__0=(11, 3)) == "'a_1-00000' is gone"
  assert difference(a__0=(0, 5), a__1=(5, 6)) == "'b_0' is gone"
  shutil.rmtree(tmp_path / "t")
  source = open_source(tars(tmp_path / "t", **names))
  for parts in (shards, source.shards, split(source.shards, 1)):
    sidecars.check_source(parts, source, tmp_path / "out")


def test_unfinished_and_damaged_workdirs(tmp_path):
  settings = tars(tmp_path / "t", a__0=(0, 5))
  shards = bootstrap(tmp_path / "out", settings, most=2)
  sidecars.check_finished(shards, tmp_path / "out")
  (tmp_path / "out" / "texts" / "a_0-00001.parquet").unlink()
  with pytest.raises(SidecarError, match=r"1 of 3 shards are not finished, such as 'a_0-00001'.*coca\.capfilt"):
    sidecars.check_finished(shards, tmp_path / "out")
  shutil.rmtree(tmp_path / "out" / "texts")
  with pytest.raises(SidecarError, match="3 of 3 shards"):
    sidecars.check_finished(shards, str(tmp_path / "out"))
  shards = '{"shards": [["a", 0, 1]], '
  for damaged in ("", "[]", '{"shards": [["a", 1]]}', '{"shards": 3}', "\xff", "[" * 100_000, "{}", '{"shards": [{}]}',
                  '{"shards": [["../../outside", 0, 1]]}', '{"shards": [[".x", 0, 1]]}', '{"shards": [["a", 2, 1]]}',
                  '{"shards": [["a", 0, 1e99]]}', shards + '"source": [1]}', shards + '"source": -1}',
                  shards + '"settings": 1180591620717411303424}', shards + '"captioner": {}}',
                  shards + '"version": 0.5}', shards + '"preview": "x"}'):  # fmt: skip
    (tmp_path / "out" / "manifest.json").write_text(damaged, "latin-1")
    with pytest.raises(SidecarError, match=r"manifest\.json can't be read"):
      sidecars.read_manifest(tmp_path / "out")
  with pytest.raises(SidecarError, match="is no CapFilt workdir: it has no manifest"):
    sidecars.read_manifest(tmp_path / "none")


def test_rows_of_the_fixture_cover_all_cases(tmp_path):
  """What the tests of training and export lean on: kept and dropped texts of both origins, and images without any."""
  source = open_source(tars(tmp_path, a__0=(0, 30)))
  rows = rows_of(source, Shard("a_0", 0, 30))
  write_rows(tmp_path / "x.parquet", rows)
  assert {(row["origin"], row["kept"]) for row in rows} == {(o, k) for o in ("web", "synthetic") for k in (True, False)}
  assert {row["index"] for row in rows} > {row["index"] for row in rows if row["kept"]}
