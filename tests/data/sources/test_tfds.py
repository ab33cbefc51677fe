import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from coca.config import Source
from coca.data.records import BadRecord, Text
from coca.data.sources import open_source

N = 40
SHARD = "pairs-train.array_record-0000{}-of-00002"


def picture(i: int) -> bytes:
  """A 64 x 48 JPEG of noise, different for each i."""
  pixels = np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "JPEG")
  return out.getvalue()


class Pairs(tfds.core.GeneratorBasedBuilder):
  """A caption, COCO's nested captions, lists of them, one and several class labels."""

  VERSION = tfds.core.Version("1.0.0")
  code_path = None  # see coca/data/builtin/builder.py

  def _info(self):
    text, names = tfds.features.Text, ["cat", "dog", "owl"]
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(),
          "number": tfds.features.Scalar(np.int64),
          "caption": text(),
          "captions": tfds.features.Sequence({"id": tfds.features.Scalar(np.int64), "text": text()}),
          "list": tfds.features.Sequence(text()),
          "label": tfds.features.ClassLabel(names=names),
          "coarse": tfds.features.ClassLabel(names=["pet", "wild"]),
          "classes": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(N), "val": self._generate_examples(3)}

  def _generate_examples(self, n):
    for i in range(n):
      yield (
        i,
        {
          "image": picture(i),
          "number": i,
          "caption": f"picture {i} ü",
          "label": i % 3 if i else -1,
          "coarse": i % 2,
          "captions": [{"id": j, "text": f"text {j} of {i}"} for j in range(i % 3)],
          "list": [f"a{i}", f"b{i}"],
          "classes": list(range(i % 4)),
        },
      )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  Pairs(data_dir=folder, file_format="array_record").download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=2)
  )
  return folder


@pytest.fixture
def copied(data_dir, tmp_path):
  """A copy of the prepared data set that a test may damage: its directory."""
  return shutil.copytree(data_dir / "pairs" / "1.0.0", tmp_path / "copied")


def opened(path, **settings):
  return open_source(Source(kind="tfds", path=str(path), **settings))


def truth(data_dir, split="train"):
  """The records as tfds itself reads and decodes them (its own parser, pixels by OpenCV)."""
  return list(tfds.builder_from_directory(data_dir / "pairs" / "1.0.0").as_data_source(split=split))


def test_records_are_those_that_tfds_reads(data_dir):
  source = opened(data_dir / "pairs" / "1.0.0")
  expected = truth(data_dir)
  assert len(source) == N == len(expected)
  for i, example in enumerate(expected):
    record, n = source[i], example["number"]
    assert record.image == picture(n), "the image has to come out as it went in, encoded"
    np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(record.image))), example["image"], atol=3)
    assert record.texts == (Text(f"picture {n} ü", "web"),)
    assert record.label == example["label"]
  assert {source[i].label for i in range(N)} == {-1, 0, 1, 2}
  assert source.label_names == ("cat", "dog", "owl")
  assert source.problems == []


@pytest.mark.parametrize(
  "key, texts",
  [
    ("captions.text", lambda n: [f"text {j} of {n}" for j in range(n % 3)]),
    ("list", lambda n: [f"a{n}", f"b{n}"]),
  ],
)
def test_several_texts(data_dir, key, texts):
  source = opened(data_dir / "pairs" / "1.0.0", text_key=key)
  for i, example in enumerate(truth(data_dir)):
    assert source[i].texts == tuple(Text(t, "web") for t in texts(example["number"]))


def test_labels_as_texts(data_dir):
  path = data_dir / "pairs" / "1.0.0"
  names = ("cat", "dog", "owl")
  by_rule, missing = opened(path, text="labels"), opened(path, text_key="no_such_feature")
  several, coarse = opened(path, text_key="classes"), opened(path, text_key="coarse")
  both = opened(path, text_key="caption:human,coarse")
  assert coarse.label_names == both.label_names == ("pet", "wild")
  assert [t.origin for t in both[1].texts] == ["human", "label"] and both[1].texts[1].text == "pet"
  assert several.label_names == names
  for i, example in enumerate(truth(data_dir)):
    n = example["number"]
    expected = (Text(names[n % 3], "label"),) if n else ()
    assert by_rule[i].texts == missing[i].texts == expected
    assert several[i].texts == tuple(Text(names[j], "label") for j in range(n % 4))
    assert several[i].label == (n % 3 if n else -1)
    assert coarse[i].texts == (Text(("pet", "wild")[n % 2], "label"),)
    assert coarse[i].label == n % 2


def test_found_by_name_version_or_folder(data_dir, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  exact = opened(data_dir / "pairs" / "1.0.0")
  for path in ("pairs", "pairs:1.0.0", data_dir / "pairs"):
    source = opened(path)
    assert [source[i].key for i in range(N)] == [exact[i].key for i in range(N)]


def test_newest_version_is_taken(data_dir, tmp_path):
  for version in ("1.9.0", "1.10.0"):
    folder = shutil.copytree(data_dir / "pairs" / "1.0.0", tmp_path / "pairs" / version)
    info = json.loads((folder / "dataset_info.json").read_text())
    if version == "1.9.0":
      info["splits"] = info["splits"][1:]
    (folder / "dataset_info.json").write_text(json.dumps(info | {"version": version}))
  assert len(opened(tmp_path / "pairs", split="train")) == N


def test_keys_name_the_same_record_in_every_slice(data_dir):
  path = data_dir / "pairs" / "1.0.0"
  whole, tail = opened(path), opened(path, split="train[70%:]")
  both = opened(path, split="train+val")
  assert len({both[i].key for i in range(len(both))}) == N + 3
  assert [both[i].image for i in range(N)] == [whole[i].image for i in range(N)]
  assert len(tail) == 12
  for i in range(12):
    assert tail[i] == whole[28 + i]
  assert whole[0].key == SHARD.format(0) + "__0"


def test_index_out_of_range(data_dir):
  source = opened(data_dir / "pairs" / "1.0.0")
  for i in (N, -1):
    with pytest.raises(IndexError, match="40 records"):
      source[i]


def test_threads_read_what_one_thread_reads(data_dir):
  path = data_dir / "pairs" / "1.0.0"
  expected = [opened(path)[i] for i in range(N)]
  order = np.random.default_rng(0).integers(0, N, 4_000).tolist()
  shared = opened(path)  # not read from yet: the threads open its files, too
  with ThreadPoolExecutor(4) as pool:
    records = list(pool.map(shared.__getitem__, order))
  assert records == [expected[i] for i in order]


def test_tfds_is_imported_only_when_it_is_used():
  code = "import sys, coca.data.sources; sys.exit('tensorflow_datasets' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)


def test_not_prepared(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"(?s)tfds.builder\('coco_captions', file_format='array_record'\)"):
    opened("coco_captions")
  for path in (tmp_path / "nothing", ""):
    with pytest.raises(FileNotFoundError, match="no prepared tfds data set"):
      opened(path)
  with pytest.raises(ValueError, match="local folders and gs://"):
    opened("s3://bucket/coco_captions")


def test_wrong_format(copied):
  info = json.loads((copied / "dataset_info.json").read_text())
  (copied / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
  with pytest.raises(ValueError, match=r"tfrecord format.*builder\('pairs', file_format='array_record'\).*convert"):
    opened(copied)


def test_wrong_split_or_feature(data_dir):
  path = data_dir / "pairs" / "1.0.0"
  for split in ("test", "train[", "train[:0]"):
    with pytest.raises(ValueError, match="'train': 40, 'val': 3"):
      opened(path, split=split)
  # A sequence of pictures, and a feature of another type; a text that is not there would be the label's name.
  for settings in ({"image_key": "captions.text"}, {"image_key": "number"}, {"image_key": "nothing"}):
    with pytest.raises(ValueError, match=f"image_key '{settings['image_key']}'.*no such feature"):
      opened(path, **settings)


def test_wrong_text_feature(copied):
  features = json.loads((copied / "features.json").read_text())
  known = features["featuresDict"]["features"]
  del known["label"]
  known["lists"] = {
    "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
    "sequence": {"feature": known["list"], "length": "-1"},
  }
  (copied / "features.json").write_text(json.dumps(features))
  assert opened(copied)[0].label == -1
  for key in ("nothing", "number", "captions", "captions.nothing", "image", "lists"):
    with pytest.raises(ValueError, match=f"text_key '{key}'.*no such feature"):
      opened(copied, text_key=key)


def test_missing_shard(copied):
  (copied / SHARD.format(1)).unlink()
  with pytest.raises(FileNotFoundError, match=f"{SHARD.format(1)} is missing"):
    opened(copied)
  opened(copied, split="val")  # its files are all there


def read_all(source):
  """({index: record}, {index: message}) of the readable and the bad records."""
  good, bad = {}, {}
  for i in range(len(source)):
    try:
      good[i] = source[i]
    except BadRecord as e:
      bad[i] = str(e)
  return good, bad


def shorter(data: bytes) -> bytes:
  return data[: len(data) // 2]


@pytest.mark.parametrize("damage", [shorter, lambda data: b"", lambda data: data[:-1], lambda data: bytes(len(data))])
def test_damaged_shard(copied, damage):
  whole = read_all(opened(copied))[0]
  file = copied / SHARD.format(1)
  file.write_bytes(damage(file.read_bytes()))
  good, bad = read_all(opened(copied))
  assert good == {i: whole[i] for i in range(N // 2)}, "the other shard stays readable"
  assert all(f"{SHARD.format(1)}__{i - N // 2}: " in message for i, message in bad.items())


def test_flipped_byte(copied):
  whole = read_all(opened(copied))[0]
  file = copied / SHARD.format(0)
  data = bytearray(file.read_bytes())
  data[data.index(whole[7].image[-200:])] ^= 1
  file.write_bytes(data)
  good, bad = read_all(opened(copied))
  assert list(bad) == [7]
  assert f"{SHARD.format(0)}__7: " in bad[7]
  assert good == {i: record for i, record in whole.items() if i != 7}


def test_shard_with_fewer_records_or_foreign_ones(copied):
  whole = read_all(opened(copied))[0]
  writer = ArrayRecordWriter(str(copied / SHARD.format(1)), "group_size:1")
  for record in (b"\xff\xff\xff", b""):  # no protobuf; one without fields
    writer.write(record)
  writer.close()
  good, bad = read_all(opened(copied))
  assert good == {i: whole[i] for i in range(N // 2)}
  assert len(bad) == N // 2
  assert bad[N // 2 + 1] == f"{SHARD.format(1)}__1: no image"


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_description(copied, file):
  (copied / file).write_text("{")
  with pytest.raises(ValueError, match=f"{copied} is no readable tfds data set"):
    opened(copied)


@pytest.mark.parametrize("form", ["today", "snake", "old", "in a string", "escaped"])
def test_code_that_a_data_set_names_is_not_run(copied, tmp_path, monkeypatch, form):
  """tfds imports the modules of the classes that features.json names."""
  marker = tmp_path / "was_run"
  (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
  monkeypatch.syspath_prepend(tmp_path)
  path = copied / "features.json"
  features = json.loads(path.read_text())
  bad = {"today": {"pythonClassName": "evil.Feature", "text": {}},
         "snake": {"python_class_name": "evil.Feature", "text": {}},
         "old": {"type": "evil.Feature", "content": {}},
         "in a string": {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text",
                         "jsonFeature": {"json": json.dumps({"type": "evil.Feature", "content": {}})}},
         "escaped": {"@": "evil.Feature", "text": {}}}[form]  # fmt: skip
  features["featuresDict"]["features"]["deep"] = {
    "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
    "sequence": {"feature": bad},
  }
  path.write_text(json.dumps(features).replace('"@"', r'"\u0070ythonClassName"'))
  with pytest.raises(ValueError, match=r"is no readable tfds data set.*names the class 'evil\.Feature'"):
    opened(copied)
  assert not marker.exists()
