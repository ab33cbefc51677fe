"""Records with texts of a table, and some of them, by their keys."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coca.config import Source
from coca.data.records import Shard, Text
from coca.data.sources import open_source, places_of
from support.tars import picture, sample, shard, tar

ROWS = [{"key": f"{n:09d}", "recaption": f"new {n}", "other": [f"a {n}", f"b {n}"]} for n in (11, 3, 12)]
ROWS.append({"key": "000000003", "recaption": "again", "other": None})


@pytest.fixture
def tars(tmp_path, monkeypatch):
  """Records 0 to 3 and 10 to 13 in two tars."""
  monkeypatch.setenv("COCA_CACHE", str(tmp_path / "cache"))
  (tmp_path / "tars").mkdir()
  for n in range(2):
    (tmp_path / "tars" / f"{n}.tar").write_bytes(shard(10 * n, 4))
  return tmp_path


def opened(tars, **settings):
  return open_source(Source(kind="webdataset", path=f"{tars}/tars", **settings), "config.data.sources.x")


def texts(source):
  return {source[i].key[-2:]: [(t.text, t.origin[0]) for t in source[i].texts] for i in range(len(source))}


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet"])
def test_texts_of_a_table(tars, name):
  if name == "x.parquet":
    pq.write_table(pa.Table.from_pylist(ROWS), tars / name)
  else:
    (tars / name).write_text(json.dumps(ROWS) if name == "x.json" else "\n".join(map(json.dumps, ROWS)))
  source = opened(tars, texts=str(tars / name), text_key="recaption:synthetic")
  new = {"03": [("new 3", "s"), ("again", "s")], "11": [("new 11", "s")], "12": [("new 12", "s")]}
  assert texts(source) == new and f"{tars / name}: texts for 3 of 8 records" in source.problems
  assert source[0].image == picture(3) and source.shards == [Shard("0", 0, 1), Shard("1", 1, 3)]
  both = texts(opened(tars, texts=str(tars / name), text_key="txt,other:human"))
  assert both["03"] == [("pair 3", "w"), ("a 3", "h"), ("b 3", "h")] and both["00"] == [("pair 0", "w")]
  with pytest.raises(
    ValueError, match=r"x\.texts: x\.\w+ needs a column key .*text_key 'title'; it has: (key|.*recap)"
  ):
    opened(tars, texts=str(tars / name), text_key="title")


def test_tables_that_do_not_fit(tars):
  for rows, why in (([{"key": "7", "caption": "x"}], "none of its 1 texts has the 'key' of a record, such as '00"),
                    ([{"key": "7", "caption": ""}], "there are no texts in it"),
                    ([{"key": "7", "caption": {"en": "x"}}], "a text is a dict")):  # fmt: skip
    (tars / "x.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=why):
      opened(tars, texts=str(tars / "x.json"))
  with pytest.raises(FileNotFoundError, match=r"config\.data\.sources\.x\.texts is .*: no such file"):
    opened(tars, texts=str(tars / "gone.jsonl"))
  settings = Source(kind="webdataset", path="a", texts="b", subset="c")
  assert places_of(settings, "x") == {"x.path": "a", "x.texts": "b", "x.subset": "c"}
  with pytest.raises(ValueError, match=r"x\.subset is 'a'.*'folder', not 'builtin'"):
    open_source(Source(kind="builtin", subset="a"), "x")


def test_rows_of_a_table_may_have_columns_of_their_own(tars):
  keys = [f"{n:09d}" for n in range(4)]
  (tars / "texts").mkdir()
  rows = [{"key": keys[0], "short": "a"}, {"key": keys[1], "short": "b", "long": "c"}, {"short": "of none"}]
  (tars / "texts" / "0.jsonl").write_text("\n".join(map(json.dumps, rows)))
  (tars / "texts" / "1.csv").write_text(f"long,file_name\nd,{keys[2]}\ne, too,{keys[3]}\n")
  source = opened(tars, texts=f"{tars}/texts/*", text_key="short,long:synthetic")
  assert texts(source) == {"00": [("a", "w")], "01": [("b", "w"), ("c", "s")], "02": [("d", "s")]}
  assert any("0.jsonl: 1 rows have no key or" in problem for problem in source.problems)
  assert any("1 rows can't be used; the first: 1.csv, line 3: more fields" in problem for problem in source.problems)
  (tars / "texts" / "2.jsonl").write_text(json.dumps({"uid": "x", "short": "y"}))
  with pytest.raises(ValueError, match=r"x\.texts is .*some rows name records by 'uid', others by their keys"):
    opened(tars, texts=f"{tars}/texts/*", text_key="short")


def test_subset(tars):
  wanted = ["000000011", "000000002", "gone"]
  (tars / "keys.txt").write_text("\n".join(wanted) + "\n")
  np.save(tars / "keys.npy", np.array(wanted))
  np.save(tars / "bytes.npy", np.array(wanted, "S"))
  (tars / "keys.csv").write_text("key,score\n" + "".join(f"{key},1\n" for key in wanted))
  for name in ("keys.txt", "keys.npy", "bytes.npy", "keys.csv"):
    source = opened(tars, subset=str(tars / name))
    assert list(texts(source)) == ["02", "11"] and source.problems == [f"{tars / name}: 2 of 8 records are kept"]
  assert source.shards == [Shard("0", 0, 1), Shard("1", 1, 2)]
  (tars / "x.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
  both = opened(tars, subset=str(tars / "keys.csv"), texts=str(tars / "x.jsonl"), text_key="recaption")
  assert texts(both) == {"11": [("new 11", "w")]}
  np.save(tars / "numbers.npy", np.arange(3))
  for name, why in (("numbers.npy", r"numbers\.npy holds int64; it takes keys"), ("x.parquet", "x.parquet")):
    (tars / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=why):
      opened(tars, subset=str(tars / name))
  (tars / "keys.txt").write_text("\n")
  with pytest.raises(ValueError, match=r"x\.subset is .*: there is no key in it"):
    opened(tars, subset=str(tars / "keys.txt"))
  (tars / "keys.txt").write_text("7")
  with pytest.raises(ValueError, match=r"none of its 1 keys, such as '7', is one of the records', such as '000000000'"):
    opened(tars, subset=str(tars / "keys.txt"))


@pytest.mark.parametrize("beside", [True, False])
def test_datacomps_uids(tars, beside):
  """Halves of 64 bits, of the uids that img2dataset writes into NAME.parquet and the .json."""
  uids = [f"{n:016x}{n * 2**60 + 1:016x}" for n in range(4)]
  members = {}
  for n, uid in enumerate(uids):
    members |= sample(n) | {f"{n:09d}.json": json.dumps({"uid": "" if beside else uid}).encode()}
  (tars / "tars" / "0.tar").write_bytes(tar(members))
  (tars / "tars" / "1.tar").unlink()
  if beside:  # with a download that failed, and is not in the tar
    keys = [f"{n:09d}" for n in (0, 7, 1, 2, 3)]
    pq.write_table(pa.table({"key": keys, "uid": [uids[0], "f" * 32, *uids[1:]]}), tars / "tars" / "0.parquet")
  halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in (uids[3], uids[1])]
  np.save(tars / "subset.npy", np.array(halves, np.dtype("u8,u8")))
  (tars / "uids.txt").write_text("\n".join((uids[3], uids[1])))
  for name in ("subset.npy", "uids.txt"):
    assert list(texts(opened(tars, subset=str(tars / name)))) == ["01", "03"]


def test_other_kinds(tmp_path):
  for n in range(2):
    (tmp_path / f"no {n}.jpg").write_bytes(picture(n))
    (tmp_path / f"no {n}.txt").write_text(str(n))
  (tmp_path / "keep.lst.txt").write_text("no 1.jpg\r\n")
  folder = open_source(Source(kind="folder", path=str(tmp_path), subset=str(tmp_path / "keep.lst.txt")))
  assert [t.text for t in folder[0].texts] == ["1"] and len(folder) == 1
  rows = [{"image": picture(n), "caption": str(n), "key": f"k{n}", "uid": f"{n:032x}"} for n in range(2)]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
  (tmp_path / "x.csv").write_text(f"uid,caption\n{1:032x},new\n")
  settings = Source(kind="parquet", path=str(tmp_path / "x.parquet"), texts=str(tmp_path / "x.csv"))
  source = open_source(settings)
  assert len(source) == 1 and source[0].key == "k1" and source[0].texts == (Text("new"),)
