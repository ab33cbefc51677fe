import io
import pathlib
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from coca.config import Source
from coca.data import builtin
from coca.data.builtin import builder, rebuild
from coca.data.records import Text
from coca.data.sources import open_source

COUNTS = {"train": 4924, "unseen_concepts": 482, "twemoji": 1940, "openclipart": 2500}
LICENCES = {
  "noto": "Apache-2.0",
  "noto-v1": "Apache-2.0",
  "fxemoji": "Apache-2.0",
  "fluent-3d": "MIT",
  "twemoji": "CC-BY-4.0",
  "openclipart": "public domain",
}


def opened(split, **settings):
  return open_source(Source(kind="builtin", split=split, **settings))


def decoded(encoded: bytes, size: int = 64) -> np.ndarray:
  image = Image.open(io.BytesIO(encoded))
  assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (64, 64))
  return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def examples(split, corpus=builtin.CORPUS):
  """All fields as tfds itself reads them, but for the pictures, which stay encoded."""
  encoded = {"image": tfds.decode.SkipDecoding()}
  source = tfds.builder_from_directory(corpus).as_data_source(split=split, decoders=encoded)
  return [{k: v.decode() if isinstance(v, bytes) and k != "image" else v for k, v in e.items()} for e in source]


@pytest.fixture(scope="module")
def corpus():
  return {split: examples(split) for split in COUNTS}


@pytest.mark.slow
def test_what_is_in_it(corpus):
  assert {split: len(rows) for split, rows in corpus.items()} == COUNTS
  keys = [row["key"] for rows in corpus.values() for row in rows]
  assert len(set(keys)) == len(keys)
  for split, rows in corpus.items():
    styles = {"twemoji": {"twemoji"}, "openclipart": {"openclipart"}}.get(split, set(builder.STYLES))
    assert {row["source"] for row in rows} == styles
    assert all(row["licence"] == LICENCES[row["source"]] for row in rows)
    assert all(row["caption"].strip() and "skin tone" not in row["caption"].partition(":")[2] for row in rows)
    for row in rows[::20]:
      decoded(row["image"])
  assert sum(f.stat().st_size for f in builtin.CORPUS.iterdir()) < 12e6


@pytest.mark.slow
def test_unseen_concepts(corpus):
  trained = {row["concept"] for row in corpus["train"]}
  assert not any(row["unseen"] for row in corpus["train"])
  assert all(row["unseen"] and row["concept"] not in trained for row in corpus["unseen_concepts"])
  assert all(row["unseen"] == (row["concept"] not in trained) for row in corpus["twemoji"])
  assert sum(row["unseen"] for row in corpus["twemoji"]) == 192


def test_clip_art_is_noisy_and_varied(corpus):
  rows = corpus["openclipart"]
  assert 0.4 < np.mean([row["boilerplate_title"] for row in rows]) < 0.6
  assert max(Counter(row["caption"] for row in rows).values()) <= 100
  assert len({row["image"] for row in rows}) > 0.99 * len(rows)
  assert all(row["file_name"] for row in rows)


def test_notice_names_every_source_and_licence():
  notice = (builtin.CORPUS.parent / "NOTICE").read_text()
  for source in LICENCES:
    assert f"`source` is {source}\n" in notice
  for words in (
    "Twitter, Inc and other contributors",
    "creativecommons.org/licenses/by/4.0",
    "emojibase-data",
    "Unicode, Inc.",
    "Microsoft Corporation",
    "Mozilla",
    "Google",
    "64 x 64 pixels",
  ):
    assert words in notice


@pytest.mark.parametrize("split, origin", [("train", "human"), ("twemoji", "human"), ("openclipart", "web")])
def test_source(corpus, split, origin):
  source = opened(split)
  assert source.label_names == tuple(sorted({row["caption"] for row in corpus[split]}))
  assert len(source) == COUNTS[split]
  for i, row in enumerate(corpus[split]):
    record = source[i]
    assert (record.key, record.image) == (row["key"], row["image"])
    assert record.texts == (Text(row["caption"], origin),)
    assert source.label_names[record.label] == row["caption"]


def test_twemoji_has_a_label_for_each_picture():
  source = opened("twemoji")
  assert sorted(source[i].label for i in range(len(source))) == list(range(1940))


def test_other_texts_and_splits(corpus):
  both = opened("twemoji+openclipart", text_key="tags")
  rows = corpus["twemoji"] + corpus["openclipart"]
  for i in (0, 5, 1940, 2000):
    origin = "human" if i < 1940 else "web"
    assert both[i].texts == tuple(Text(t.decode(), origin) for t in rows[i]["tags"])
  assert opened("twemoji", text="labels")[3].texts == (Text(rows[3]["caption"], "label"),)
  assert len(opened("train+unseen_concepts")) == 5406
  with pytest.raises(ValueError, match=r"'twemoji': 1940.* scenes has the splits scenes, scenes_val,"):
    opened("openmoji")
  with pytest.raises(ValueError, match="'builtin' takes none"):
    opened("train", path="somewhere")


@pytest.mark.slow
def test_pictures_go_with_their_names(corpus):
  """The nearest training picture at 16 x 16 names 39 % of a style never seen, which no mix-up would leave."""
  train, test = ([decoded(row["image"], 16).ravel() for row in corpus[s]] for s in ("train", "twemoji"))
  train, test = np.array(train, np.float32), np.array(test, np.float32)
  nearest = ((train**2).sum(1) - 2 * test @ train.T).argmin(1)
  right = np.mean(
    [row["caption"] == corpus["train"][n]["caption"] for row, n in zip(corpus["twemoji"], nearest, strict=True)]
  )
  assert 0.36 < right < 0.42


def test_damaged_or_missing_corpus(tmp_path, monkeypatch):
  monkeypatch.setattr(builtin, "CORPUS", tmp_path / "corpus")
  with pytest.raises(FileNotFoundError, match="install coca again"):
    opened("twemoji")
  shutil.copytree(pathlib.Path(builtin.__file__).parent / "corpus", tmp_path / "corpus")
  shard = tmp_path / "corpus" / "coca_builtin-twemoji.array_record-00000-of-00001"
  shard.write_bytes(shard.read_bytes()[:1_000_000])
  with pytest.raises(ValueError, match=f"damaged, install coca again: {shard.name}__0: "):
    opened("twemoji")
  opened("openclipart")
  shard.unlink()
  with pytest.raises(FileNotFoundError, match=f"{shard.name} is missing"):
    opened("twemoji")


def row(source, name, caption, **other):
  """A row of the Parquet files, with a picture that depends on all of it: 96 px, transparent around a square."""
  pixels = np.zeros((96, 96, 4), np.uint8)
  pixels[24:72, 24:72, :3] = np.random.default_rng([*f"{source}{name}{caption}".encode()]).integers(0, 256, 3)
  pixels[24:72, 24:72, 3] = 255
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "PNG")
  return {
    "key": f"{source}/{name}",
    "image": out.getvalue(),
    "caption": caption,
    "tags": ["a", name],
    "source": source,
    "concept": "" if source == "openclipart" else name,
    "skin_tone": "",
    "licence": LICENCES.get(source, "MIT"),
    "boilerplate_title": None,
    "file_name": None,
  } | other


@pytest.fixture
def parquet(tmp_path):
  """A function that writes a folder of small Parquet files, its rows in reverse order if asked to."""
  emoji = [row(style, f"1F4{i}", f"thing {i}") for style in builder.STYLES for i in range(5)]
  files = {
    "train": [
      *emoji,
      row("noto", "1F40", "thing 0"),
      row("noto", "1F40-1F3FB", "hand", skin_tone="1"),
      row("fluent-emoji", "1F40", "thing 0"),
    ],
    "unseen_concepts": [row("noto", "1F49", "thing 9"), row("fluent-emoji", "1F49", "thing 9")],
    "twemoji": [
      row("twemoji", "1F40", "thing 0"),
      row("twemoji", "1F49", "thing 9"),
      row("twemoji", "1F49-1F3FB", "thing 9", skin_tone="1"),
    ],
    "openclipart": [
      *(row("openclipart", f"star{i}", "star", boilerplate_title=True, file_name=f"s {i}") for i in range(8)),
      row("openclipart", "blank", " "),
      row("openclipart", "cat", "cat"),
    ],
  }

  def write(folder, reverse=False):
    folder = tmp_path / folder
    folder.mkdir()
    for split, rows in files.items():
      pq.write_table(pa.Table.from_pylist(rows[::-1] if reverse else rows), folder / builder.FILES[split])
    return folder

  return write


def test_rebuild(parquet, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(builder, "SAME_TITLE", 3)
  for name, reverse in (("one", False), ("two", True)):
    rebuild.main([f"--parquet={parquet(name, reverse)}", f"--out={tmp_path}/out {name}"])
  assert "train: 20 images" in capsys.readouterr().out
  one, two = ({f.name: f.read_bytes() for f in (tmp_path / f"out {name}").iterdir()} for name in ("one", "two"))
  assert one == two, "the same rows have to give the same bytes"
  assert len(one) == 4 + 2

  rows = {split: examples(split, tmp_path / "out one") for split in COUNTS}
  assert sorted(r["key"] for r in rows["train"]) == sorted(f"{s}/1F4{i}" for s in builder.STYLES for i in range(5))
  assert [r["key"] for r in rows["unseen_concepts"]] == ["noto/1F49"]
  assert {r["key"]: r["unseen"] for r in rows["twemoji"]} == {"twemoji/1F40": False, "twemoji/1F49": True}
  assert Counter(r["caption"] for r in rows["openclipart"]) == {"star": 3, "cat": 1}
  star = next(r for r in rows["openclipart"] if r["caption"] == "star")
  assert (star["boilerplate_title"], star["tags"][0], star["file_name"][:2]) == (True, b"a", "s ")
  pixels = decoded(star["image"]).astype(int)
  original = np.asarray(Image.open(io.BytesIO(row("openclipart", star["tags"][1].decode(), "star")["image"])))
  assert np.abs(pixels[2:14] - 255).max() <= 3, "transparent parts become white"
  assert np.abs(pixels[26:38, 26:38] - original[48, 48, :3]).max() <= 12


def test_rebuild_says_what_it_misses(parquet, tmp_path, capsys):
  folder = parquet("files")

  def fails(with_words, out="out"):
    with pytest.raises(SystemExit) as stop:
      rebuild.main([f"--parquet={folder}", f"--out={tmp_path / out}"])
    message = capsys.readouterr().err
    assert stop.value.code == 1
    assert all(word in message for word in with_words), message

  fails(["is not empty"], out="files")
  path = folder / "emoji_eval_twemoji.parquet"
  pq.write_table(pq.read_table(path).drop_columns(["licence", "tags"]), path)
  fails([f"{path} lacks tags, licence; it needs the columns key, image, caption"])
  path.write_bytes(b"no parquet")
  fails([f"{path} is no Parquet file", "it needs the columns key, image, caption"])
  path.unlink()
  fails([f"{path} is missing; it needs the columns key, image, caption"])
  assert not (tmp_path / "out").exists()
