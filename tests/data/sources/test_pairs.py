"""SugarCrepe's and Winoground's files, in their own layouts."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coca.config import Source
from coca.data.records import BadRecord
from coca.data.sources import open_source, places_of

CREPE = {
  "add_att": [("000000000001.jpg", "A dog runs.", "A blue dog runs."), ("000000000002.jpg", "A cat\n", "A wet cat.")],
  "swap_obj": [("000000000001.jpg", "A dog by a cat.", "A cat by a dog."), ("000000000003.jpg", "A cow", "A pig")],
}


@pytest.fixture
def crepe(tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "val2017").mkdir()
  for name, rows in CREPE.items():
    made = {
      str(i): {"filename": image, "caption": true, "negative_caption": false}
      for i, (image, true, false) in enumerate(rows)
    }
    (tmp_path / "data" / f"{name}.json").write_text(json.dumps(made, indent=4))
  for n in (1, 2):
    (tmp_path / "val2017" / f"{n:012d}.jpg").write_bytes(bytes([n]))
  return Source(kind="pairs", path=str(tmp_path / "val2017"), texts=str(tmp_path / "data"))


def read(record):
  return record.key, record.image, [text.text for text in record.texts]


def test_sugar_crepe(crepe):
  source = open_source(crepe)
  assert source.label_names == ("add_att", "swap_obj") and source.images_each == 1 and source.parts == [0, 0, 1, 1]
  assert read(source[1]) == ("add_att/1", b"\2", ["A cat", "A wet cat."])
  assert read(source[2]) == ("swap_obj/0", b"\1", ["A dog by a cat.", "A cat by a dog."])
  with pytest.raises(BadRecord, match=r"swap_obj/1: the image .*000000000003\.jpg can't be read"):
    source[3]
  assert places_of(crepe, "x") == {"x.path": crepe.path, "x.texts": crepe.texts}


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("add_att.json", '{"0": {"filename": "a.jpg", "caption": "a"}}', "add_att.json is not one.*negative_caption"),
    ("add_att.json", '{"images": []}', "add_att.json is not one of SugarCrepe's"),
    ("more.json", '{"0": {"filename": "../a.jpg", "caption": "a", "negative_caption": "b"}}', "'../a.jpg'"),
    ("more.json", "{}", "more.json is not one.*empty"),
  ],
)
def test_other_files_are_named(crepe, name, text, message):
  with open(f"{crepe.texts}/{name}", "w") as f:
    f.write(text)
  with pytest.raises(ValueError, match=rf"config\.evals\.x\.source\.texts is .*{message}"):
    open_source(crepe, "config.evals.x.source")


def test_links_that_lead_out_are_not_followed(crepe, tmp_path):
  (tmp_path / "secret").write_bytes(b"key")
  os.symlink(tmp_path / "secret", f"{crepe.path}/000000000003.jpg")
  with pytest.raises(BadRecord, match="leads out of the folder"):
    open_source(crepe)[3]
  with pytest.raises(FileNotFoundError, match="path is '/nowhere'"):
    open_source(Source(kind="pairs", path="/nowhere", texts=crepe.texts))
  with pytest.raises(FileNotFoundError, match=r"texts is '/nowhere': no file matches"):
    open_source(Source(kind="pairs", path=crepe.path, texts="/nowhere"))


ROWS = [
  {"id": 0, "caption_0": "an old man kisses a boy", "caption_1": "a boy kisses an old man", "tag": "Object"},
  {"id": 1, "caption_0": "a cat in a dog", "caption_1": "a dog in a cat", "tag": "Object"},
]


def test_winoground_in_parquet_and_as_its_authors_give_it(tmp_path):
  image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
  columns = {
    f"image_{k}": [{"bytes": bytes([2 * i + k]), "path": f"ex_{i}_img_{k}.png"} for i in (0, 1)] for k in (0, 1)
  }
  table = pa.table(
    {name: pa.array(values, image) for name, values in columns.items()}
    | {name: [row[name] for row in ROWS] for name in ROWS[0]}
  )
  pq.write_table(table, tmp_path / "test-00000-of-00001.parquet")
  (tmp_path / "images").mkdir()
  for i in (0, 1):
    for k in (0, 1):
      (tmp_path / "images" / f"ex_{i}_img_{k}.png").write_bytes(bytes([2 * i + k]))
  lines = [json.dumps(row | {f"image_{k}": f"ex_{row['id']}_img_{k}" for k in (0, 1)}) for row in ROWS]
  (tmp_path / "examples.jsonl").write_text("\n".join(lines) + "\n")
  kinds = {"path": str(tmp_path / "*.parquet")}, {"path": f"{tmp_path}/images", "texts": f"{tmp_path}/examples.jsonl"}
  for settings in kinds:
    source = open_source(Source(kind="pairs", **settings))
    assert source.images_each == 2 and len(source) == len(source.parts) == 4
    for i, row in enumerate(ROWS):
      for k in (0, 1):
        key, image, texts = read(source[2 * i + k])
        assert key.endswith(f"/image_{k}") and image == bytes([2 * i + k])
        assert texts == [row[f"caption_{k}"], row[f"caption_{1 - k}"]]
  assert read(source[3])[0] == "examples/1/image_1"
