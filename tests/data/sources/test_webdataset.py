"""Records from WebDataset tars, whole and damaged, local and remote."""

import gzip
import io
import json
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from coca.config import Source
from coca.data.records import BadRecord, Record, Text
from coca.data.sources import open_source, tar_index
from coca.data.sources.webdataset import open_webdataset
from coca.files import finding, reading, retries
from support.tars import clip_benchmark, picture, sample, shard, tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("COCA_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def opened(path, **settings):
  return open_webdataset(Source(kind="webdataset", path=str(path), **settings))


def records(source):
  return [source[i] for i in range(len(source))]


def test_records(tmp_path):
  for s in range(3):
    (tmp_path / f"{s:05d}.tar").write_bytes(shard(10 * s, 10))
  source = open_source(Source(kind="webdataset", path=str(tmp_path / "{00000..00002}.tar")))
  assert records(source) == [Record(f"{n:09d}", picture(n), (Text(f"pair {n}", "web"),)) for n in range(30)]
  assert source.problems == [] and source.label_names == () and source.name.endswith(".tar")
  for other in (tmp_path, tmp_path / "*.tar", tmp_path / "0000{0,1,2}.tar"):
    assert records(opened(other)) == records(source)
  with pytest.raises(IndexError):
    source[30]


def test_linked_shards(tmp_path):
  (tmp_path / "blob").write_bytes(shard(0, 2))
  (tmp_path / "links").mkdir()
  (tmp_path / "links" / "0.tar").symlink_to(tmp_path / "blob")
  assert [r.key for r in records(opened(tmp_path / "links/*.tar"))] == ["000000000", "000000001"]


def test_text_keys(tmp_path):
  members = sample(0) | {"b.webp": picture(1, "WEBP"), "b.json": b'{"caption": "only json"}'}
  (tmp_path / "0.tar").write_bytes(tar(members))
  assert [r.texts for r in records(opened(tmp_path))] == [(Text("pair 0"),), (Text("only json"),)]
  source = opened(tmp_path, text_key="alts")
  assert source[0].texts == (Text("first 0"), Text("second 0"))
  assert source[1].texts == ()
  with pytest.raises(ValueError, match=r"text_key is 'captoin'.*it has: alts, caption, status"):
    opened(tmp_path, text_key="captoin")
  assert opened(tmp_path, image_key="webp")[1].image == members["b.webp"]
  with pytest.raises(ValueError, match=r"image_key is 'gif'.*\.jpg, \.json, \.txt, \.webp"):
    opened(tmp_path, image_key="gif")


def test_several_texts_each_with_its_origin(tmp_path):
  members = sample(0) | {"b.jpg": picture(1), "b.json": b'{"caption": "only json"}', "c.jpg": picture(2)}
  (tmp_path / "0.tar").write_bytes(tar(members | {"c.txt": b"c"}))
  source = opened(tmp_path, text_key="txt, caption:human, alts:synthetic")
  assert [r.texts for r in records(source)] == [
    (Text("pair 0"), Text("json 0", "human"), Text("first 0", "synthetic"), Text("second 0", "synthetic")),
    (Text("only json", "human"),),
    (Text("c"),),
  ]
  assert source.problems == [] and list(source.ids("key")) == ["000000000", "b", "c"]
  with pytest.raises(ValueError, match=r"text_key is 'captoin': 3 records"):
    opened(tmp_path, text_key="txt,captoin")


def test_pairs_lost_to_dots_in_names_are_told(tmp_path):
  members = sample(0) | {"a.mask.png": picture(1), "a.jpg": picture(1), "a.txt": b"a"}
  (tmp_path / "0.tar").write_bytes(tar(members))
  assert opened(tmp_path).problems == []  # a second picture of a record
  for n in range(3):
    members |= {f"img.{n}.jpg": picture(n), f"img.{n}.txt": b"t", f"a.{n}.jpg": picture(n), f"a.{n}.json": b"{}"}
  (tmp_path / "0.tar").write_bytes(tar(members))
  source = opened(tmp_path)
  assert len(source) == 3 and len(source.problems) == 3
  assert source.problems[0].startswith("6 images are not seen, such as 0.tar, a.0.jpg: the first dot of a file's")
  assert source.problems[1].startswith("1 of 3 records have no image: no member .jpg or .jpeg")
  assert source.problems[2] == "1 of 3 records have no text: no member .txt or .json"
  assert len(opened(tmp_path, image_key="0.jpg").problems) == 3


def test_the_first_records_may_lack_the_field(tmp_path):
  members = {}
  for n in range(40):
    members |= {f"{n:02d}.jpg": picture(n), f"{n:02d}.json": b'{"caption": "a"}' if n >= 30 else b'{"url": ""}'}
  (tmp_path / "0.tar").write_bytes(tar(members))
  assert [len(r.texts) for r in records(opened(tmp_path))] == [0] * 30 + [1] * 10
  with pytest.raises(ValueError, match=r"32 records, spread over all, .* it has: caption, url"):
    opened(tmp_path, text_key="title")


@pytest.mark.parametrize("path", ["", "/*.tar", "/{0..1}.tar", "/1.tar"])
def test_packed_tars_are_named(tmp_path, path):
  (tmp_path / "1.tar.gz").write_bytes(gzip.compress(shard(0, 1)))
  with pytest.raises(FileNotFoundError, match=r"1 packed files are there.* Unpack them .*: gunzip .*1.tar.gz"):
    opened(f"{tmp_path}{path}")


def test_numbers_and_truth_values(tmp_path):
  rows = [{"q": "How many?", "a": 2}, {"q": "Is it red?", "a": False}, {"q": 3, "a": [1.0, None, float("nan")]}]
  (tmp_path / "0.tar").write_bytes(
    tar(
      {
        f"{n}.{kind}": body
        for n, row in enumerate(rows)
        for kind, body in (("jpg", picture(n)), ("json", json.dumps(row).encode()))
      }
    )
  )
  source = opened(tmp_path, question_key="q", text_key="a")
  assert [(r.question, [t.text for t in r.texts]) for r in records(source)] == [
    ("How many?", ["2"]),
    ("Is it red?", ["no"]),
    ("3", ["1"]),
  ]
  with pytest.raises(BadRecord, match="a text is a bool"):
    opened(tmp_path, text_key="a")[1]


def test_incomplete_and_broken_samples_are_counted(tmp_path):
  members = sample(0) | {
    "alone.jpg": picture(1),
    "blind.txt": b"a text",
    "latin.jpg": picture(1), "latin.txt": "Käse".encode("latin-1"),
    "blank.jpg": picture(2), "blank.txt": b" \n",
    "empty.jpg": b"", "empty.txt": b"a text",
    "json.jpg": picture(1), "json.json": b"[" * 100_000,
    "lone.jpg": picture(1), "lone.json": b'{"caption": "\\ud83d"}',
    "number.jpg": picture(1), "number.json": b'{"caption": {"en": 3}}',
    "._b.jpg": b"x", "__info__.txt": b"y",
  }  # fmt: skip
  (tmp_path / "0.tar").write_bytes(tar(members))
  source = opened(tmp_path)
  assert len(source) == 9 and source[0].key == "000000000"
  # CapFilt may write texts for them; training has a reason to skip them, `coca.data.texts.choose`.
  assert source[1] == Record("alone", picture(1), ()) and source[4] == Record("blank", picture(2), ())
  reasons = {2: "blind'.*no image", 3: "latin'.*utf-8", 5: "empty'.*image is empty", 6: "json'.*can't be read",
             7: "lone'.*utf-8", 8: "number'.*dict"}  # fmt: skip
  for i, reason in reasons.items():
    with pytest.raises(BadRecord, match=reason):
      source[i]


def test_unsorted_repeated_and_appended(tmp_path):
  apart = tar({"a.jpg": b"1", "b.jpg": b"2", "a.txt": b"3", "b.txt": b"4"})
  (tmp_path / "x.tar").write_bytes(apart + tar({"a.jpg": b"5", "a.txt": b"6"}) + b"no tar" * 200)
  source = opened(tmp_path)
  assert [(r.key, r.image, r.texts[0].text) for r in records(source)] == [
    ("a", b"1", "3"), ("b", b"2", "4"), ("a", b"5", "6")]  # fmt: skip
  assert source.problems == []


def test_damaged_shards_are_problems_not_errors(tmp_path):
  good = shard(0, 4)
  with tarfile.open(fileobj=io.BytesIO(good)) as f:
    third = f.getmembers()[6].offset
  (tmp_path / "0.tar").write_bytes(good)
  (tmp_path / "1.tar").write_bytes(good[:third] + b"\xff" * 512 + good[third + 512 :])
  (tmp_path / "2.tar").write_bytes(b"hello " * 1000)
  (tmp_path / "3.tar").write_bytes(b"")
  (tmp_path / "4.tar").write_bytes(b"\x1f\x8b" + bytes(1000))
  (tmp_path / "5.tar").write_bytes(bytes(10240))
  source = opened(tmp_path / "{0..6}.tar")
  assert len(source) == 6 and len(records(source)) == 6
  for part in ("6.tar: no such file", f"1.tar: damaged header at byte {third}; 2 records", "2.tar: not a tar file",
               "3.tar: the file is empty", "4.tar: a compressed tar", "5.tar: holds no records"):  # fmt: skip
    assert sum(part in problem for problem in source.problems) == 1, part
  assert len(source.problems) == 6
  assert opened(tmp_path / "{0..6}.tar").problems == source.problems  # from the stored indexes
  with pytest.raises(ValueError, match=r"none of the 2 files is a usable tar:\n.*not a tar"):
    opened(tmp_path / "{2..3}.tar")


def test_nothing_there(tmp_path):
  for path in (f"{tmp_path}/*.tar", f"{tmp_path}/{{0..3}}.tar", f"{tmp_path}/none", "", "memory://none/*.tar"):
    with pytest.raises(FileNotFoundError) as e:
      opened(path)
    assert repr(path) in str(e.value) and "config.data.sources.<name>.path" in str(e.value)
    assert "--output_format=webdataset" in str(e.value)


def test_remote(cache, monkeypatch):
  fs = fsspec.filesystem("memory")
  fs.pipe({f"/wds/{s}.tar": shard(10 * s, 10) for s in range(2)})
  fs.pipe("/wds/2.tar", shard(20, 10)[:9000])
  source = opened("memory://wds/*.tar")
  assert [r.image for r in records(source)[:20]] == [picture(n) for n in range(20)]
  assert len(source.problems) == 1 and "2.tar: truncated" in source.problems[0]
  assert sorted(fs.glob("/wds/*.index.npz")) == [f"/wds/{s}.tar.index.npz" for s in range(3)]  # for all hosts
  assert not cache.exists()
  monkeypatch.setattr(tar_index, "scan", None)
  assert records(opened("memory://wds/{0..2}.tar")) == records(source)
  calls, cat = [], type(fs).cat_file
  monkeypatch.setattr(type(fs), "cat_file", lambda self, *a, **k: calls.append(a) or cat(self, *a, **k))
  source[3]
  assert len(calls) == 1  # image and text lie together: one request
  fs.rm("/wds/1.tar")
  with pytest.raises(BadRecord, match=r"1\.tar: record '000000013'"):
    source[13]


def test_the_index_of_a_bucket_that_cannot_be_written_is_kept_here(cache, monkeypatch):
  fs = fsspec.filesystem("memory")
  fs.pipe("/closed/0.tar", shard(0, 2))

  def refuse(*_):
    raise PermissionError("403")

  monkeypatch.setattr(type(fs), "put_file", refuse)
  source = opened("memory://closed/0.tar")
  assert len(list((cache / "tars").iterdir())) == 1 and not source.problems
  monkeypatch.setattr(tar_index, "scan", None)
  assert records(opened("memory://closed/0.tar")) == records(source)


def test_a_link_to_nothing_is_a_broken_file_among_others(tmp_path):
  (tmp_path / "a.tar").write_bytes(shard(0, 2))
  (tmp_path / "b.tar").symlink_to(tmp_path / "gone.tar")
  source = opened(f"{tmp_path}/*.tar")
  assert len(source) == 2 and len(source.problems) == 1 and "b.tar" in source.problems[0]


def test_remote_errors_are_tried_again(monkeypatch):
  fs = fsspec.filesystem("memory")
  fs.pipe("/flaky/0.tar", shard(0, 2))
  source = opened("memory://flaky/0.tar")
  expected, cat, failures = source[0], type(fs).cat_file, [RuntimeError("503"), RuntimeError("503")]

  def flaky(self, *args, **kwargs):
    if failures:
      raise failures.pop()
    return cat(self, *args, **kwargs)

  monkeypatch.setattr(type(fs), "cat_file", flaky)
  monkeypatch.setattr(retries, "PAUSES", (0, 0))
  assert source[0] == expected
  failures += [RuntimeError("503")] * 3
  with pytest.raises(retries.Unavailable, match="503"):  # no bad record: it is sound
    source[0]


def test_many_shards_on_many_threads(tmp_path, monkeypatch):
  """More shards than descriptors are kept, so that they are opened and closed under the readers."""
  monkeypatch.setattr(reading, "_descriptor", finding.functools.lru_cache(3)(reading._descriptor.__wrapped__))
  for s in range(12):
    (tmp_path / f"{s:02d}.tar").write_bytes(shard(5 * s, 5))
  source = opened(tmp_path)
  order = random.Random(1).choices(range(60), k=2000)
  with ThreadPoolExecutor(8) as pool:
    got = list(pool.map(source.__getitem__, order))
  assert got == [Record(f"{n:09d}", picture(n), (Text(f"pair {n}"),)) for n in order]
  assert reading._descriptor.cache_info().currsize == 3


def test_images_alone(tmp_path):
  (tmp_path / "0.tar").write_bytes(tar({"a.jpg": picture(0), "b.jpg": picture(1)}))
  with pytest.raises(ValueError, match=r"text_key is 'caption'.*For images alone set it to ''"):
    opened(tmp_path)
  (tmp_path / "1.tar").write_bytes(tar({"c.jpg": picture(2), "c.txt": b"a text", "d.json": b"no JSON", "d.jpg": b"d"}))
  images = {"a": picture(0), "b": picture(1), "c": picture(2), "d": b"d"}
  assert records(opened(tmp_path, text_key="")) == [Record(key, image, ()) for key, image in images.items()]


def test_clip_benchmark_folders(tmp_path):
  images = [picture(n, "WEBP") for n in range(5)]
  clip_benchmark(tmp_path / "wds_shapes", images, [1, 0, 2, 2, 1], ["circle", "square", "star fish"])
  source = opened(tmp_path / "wds_shapes" / "test")
  names = ["square", "circle", "star fish", "star fish", "square"]
  assert source.label_names == ("circle", "square", "star fish") and source.problems == []
  assert records(source) == [
    Record(f"s{n:07d}", images[n], (Text(name, "label"),), source.label_names.index(name))
    for n, name in enumerate(names)
  ]
  assert [r.label for r in records(opened(tmp_path / "wds_shapes" / "test", text_key=""))] == [1, 0, 2, 2, 1]

  captions = [["a dog", "two dogs", "a  dog runs"], ["a cat"], ["x", "y"]]
  clip_benchmark(tmp_path / "wds_pairs", images[:3], captions=captions)
  assert [[t.text for t in r.texts] for r in records(opened(tmp_path / "wds_pairs" / "test"))] == captions


def test_lines_of_a_text_are_one_text_unless_one_says_so(tmp_path):
  (tmp_path / "0.tar").write_bytes(tar({"a.jpg": picture(0), "a.txt": "\ufeffa dog\r\ntwo dogs\n\n".encode()}))
  assert opened(tmp_path)[0].texts == (Text("a dog\r\ntwo dogs"),)
  assert opened(tmp_path, text_lines=True)[0].texts == (Text("a dog"), Text("two dogs"))


def test_labels_as_people_write_them(tmp_path):
  numpy = io.BytesIO()
  np.save(numpy, np.int64(1))
  members = {"a.jpg": picture(0), "a.cls": b"1\n", "a.npy": numpy.getvalue(), "b.jpg": picture(1), "b.cls": b"cat"}
  (tmp_path / "0.tar").write_bytes(tar(members | {"c.jpg": picture(2), "c.txt": b"a text", "d.jpg": picture(3)}))
  assert [opened(tmp_path)[i].label for i in (0, 2)] == [-1, -1]  # no names
  with pytest.raises(ValueError, match=r"label_key is 'cls', and there is no classnames.txt beside the tars"):
    opened(tmp_path, label_key="cls")
  (tmp_path / "classnames.txt").write_text("dog\ncat\n")
  source = opened(tmp_path)
  assert (source[0].label, source[0].texts) == (1, (Text("cat", "label"),))
  assert (source[2].label, source[2].texts, source[3].texts) == (-1, (Text("a text"),), ())
  with pytest.raises(BadRecord, match=r"record 'b': its .cls is no number of a class.*cat"):
    source[1]
  assert opened(tmp_path, label_key="npy")[0].label == 1
  with pytest.raises(ValueError, match=r"label_key is 'lbl': no record has a member .lbl; the tars hold .*\.npy"):
    opened(tmp_path, label_key="lbl")
  (tmp_path / "dataset_type.txt").write_text("multilabel\n")
  with pytest.raises(ValueError, match="says 'multilabel'"):
    opened(tmp_path)


def test_class_names_that_differ_are_refused(tmp_path):
  for folder, names in (("a", "dog\ncat"), ("b", "cat\ndog")):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "0.tar").write_bytes(tar({"a.jpg": picture(0), "a.cls": b"0"}))
    (tmp_path / folder / "classnames.txt").write_text(names)
  with pytest.raises(ValueError, match=r"a/classnames.txt and .*b/classnames.txt differ"):
    opened(tmp_path / "{a,b}" / "0.tar")
