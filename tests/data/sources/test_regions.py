"""Regions from Parquet files and from scenes, and the batches that they come in."""

import functools

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coca.config import Scenes, Source, default, parse, to_dict
from coca.config.regions import Regions
from coca.data import regions
from coca.data.pipeline import Wants, eval_batches, train_batches
from coca.data.records import BadRecord, Detected
from coca.data.sources import open_source
from coca.data.texts import captions
from coca.data.tokenizers import wordpiece
from support.common import PAD

WIDTH = 6
FEATURES = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
BOXES = np.array([[0, 0, 0.5, 0.5], [0.25, 0.5, 1, 1], [0, 0, 1, 1]], np.float32)


def row(**changes):
  return {
    "features": FEATURES.tolist(),
    "boxes": BOXES.tolist(),
    "tags": ["cat", "two dogs"],
    "caption": "a cat",
  } | changes


def opened(folder, *rows, schema=None, **settings):
  pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), folder / "0.parquet")
  return open_source(Source(kind="parquet", path=str(folder / "*.parquet"), regions=True, **settings), "config.data.s")


def test_lists_of_lists(tmp_path):
  record = opened(tmp_path, row(), row(features=FEATURES[:1].tolist(), boxes=BOXES[:1].tolist(), tags=None))[0]
  np.testing.assert_array_equal(record.regions.features, FEATURES)
  np.testing.assert_array_equal(record.regions.boxes, BOXES)
  assert record.regions.tags == ("cat", "two dogs") and record.image == b"" and record.texts[0].text == "a cat"
  source = opened(tmp_path, row(tags=None), row(features=FEATURES[:1].tolist(), boxes=BOXES[:1].tolist()))
  assert source[1].regions.features.shape == (1, WIDTH) and source[0].regions.tags == ()


@pytest.mark.parametrize("key", ["answers", "answers.answer"])
def test_questions(key, tmp_path):
  answers = ["cat", "dog", "cat"]
  answers = [{"answer": said, "id": i} for i, said in enumerate(answers)] if "." in key else answers
  settings = {"question_key": "question", "text_key": key}
  record = opened(tmp_path, row(question="what is it?", answers=answers), **settings)[0]
  assert record.question == "what is it?" and [text.text for text in record.texts] == ["cat", "dog", "cat"]
  np.testing.assert_array_equal(record.regions.features, FEATURES)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_bytes_with_a_shape_and_boxes_in_pixels(tmp_path, dtype):
  boxes = (BOXES * [200, 100, 200, 100]).tolist()
  rows = row(x=FEATURES.astype(dtype).tobytes(), shape=[3, WIDTH], boxes=boxes, width=200, height=100)
  record = opened(tmp_path, rows, image_key="x")[0]
  np.testing.assert_array_equal(record.regions.features, FEATURES.astype(dtype))
  np.testing.assert_allclose(record.regions.boxes, BOXES, atol=1e-6)


@pytest.mark.parametrize(
  ("changes", "problem"),
  [
    ({"boxes": BOXES[:2].tolist()}, "3 features and 2 boxes"),
    ({"boxes": [[0, 0, 1]] * 3}, "4 numbers each"),
    ({"boxes": None}, "4 numbers each"),
    ({"boxes": [[0, 0, 30, 40]] * 3}, "columns 'width' and 'height'"),
    ({"boxes": [[-1, 0, 1, 1]] * 3}, "outside of the image"),
    ({"features": [[1.0, 2.0], [1.0], [3.0]]}, "different widths"),
    ({"features": [[float("nan")] * WIDTH] * 3}, "no finite number"),
    ({"features": None}, "no features"),
  ],
)
def test_broken_rows_are_bad_records(tmp_path, changes, problem):
  source = opened(tmp_path, row(), row(**changes))
  assert len(source[0].regions.boxes) == 3
  with pytest.raises(BadRecord, match=rf"^0\.parquet:1.*{problem}"):
    source[1]


def test_bytes_of_another_length(tmp_path):
  source = opened(tmp_path, row(features=b"12345", shape=[3, WIDTH]), row(features=b"1234", shape=None))
  for i, problem in enumerate((r"5 bytes of features are no \[3, 6\]", "need a column 'shape'")):
    with pytest.raises(BadRecord, match=problem):
      source[i]


def test_files_without_the_columns(tmp_path):
  with pytest.raises(ValueError, match=r"0\.parquet: config\.data\.sources\.\*\.regions wants columns 'features'"):
    opened(tmp_path, {"caption": "a", "boxes": BOXES.tolist()})
  with pytest.raises(ValueError, match=r"'features' .* and 'boxes'"):
    opened(tmp_path, {"caption": "a", "features": FEATURES.tolist()})


def config(**source):
  c = default()
  c.model.update(kind="lemon")
  c.model.text.update(unimodal_layers=0, vocab=100, length=8)
  c.model.med.update(cls=2, mask=4)
  c.model.regions.update(width=WIDTH, count=2, tags=4)
  c.contrastive.weight, c.captioning.weight, c.masked.weight = 0.0, 0.0, 1.0
  c.data.update(batch=4, threads=1)
  c.data.sources.mine = to_dict(Source(kind="parquet", path="mine", regions=True))
  c.data.sources.mine.update(source)
  return c


@functools.cache
def tokens():
  return wordpiece.train(["a cat and two dogs"] * 3, 60)


def test_batches(tmp_path):
  """The first regions and no more, zeros in the other places, tags up to EOS; what is broken has weight 0."""
  c, tokenizer = parse(config()), tokens()
  short = row(features=FEATURES[:1].tolist(), boxes=BOXES[:1].tolist(), tags=["cat"], caption="dogs")
  source = opened(tmp_path, row(), short, row(boxes=None))
  batch, problems = next(train_batches(c, {"mine": source}, tokenizer, range(4)))
  image = batch["image"]
  assert isinstance(image, Regions) and len(problems) == (batch["weight"] == 0).sum() == 1
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), image)
  assert shapes == (((4, 2, 6), np.float32), ((4, 2, 4), np.float32), ((4, 2), bool), ((4, 4), np.int32))
  batch, _ = next(eval_batches(c, source, Wants(captions), tokenizer, range(4), 4))
  image = batch["image"]
  np.testing.assert_array_equal(image.features[0], FEATURES[:2])
  np.testing.assert_array_equal(image.mask, [[True, True], [True, False], [False, False], [False, False]])
  assert not image.features[1, 1].any() and batch["weight"].tolist() == [1, 1, 0, 0]
  assert tokenizer.decode(image.tags[1]) == "cat" and image.tags[1].tolist()[1:] == [tokenizer.eos, PAD, PAD]
  assert image.tags[0, -1] == tokenizer.eos


def test_another_width_is_an_error_that_names_file_and_setting(tmp_path):
  c = config()
  c.model.regions.width = 8
  source = opened(tmp_path, row())
  with pytest.raises(ValueError, match=r"0\.parquet:0: .* 6 wide, and config\.model\.regions\.width is 8"):
    next(train_batches(parse(c), {"mine": source}, tokens(), range(4)))


def test_what_goes_together():
  c = config(regions=False)
  with pytest.raises(ValueError, match=r"config\.data\.sources\.mine\.regions is False .* reads regions: say"):
    parse(c)
  c = config()
  c.captioning.weight = 1.0
  with pytest.raises(ValueError, match=r"'lemon' is trained by hidden words alone: .* config\.captioning\.weight"):
    parse(c)
  for changes in ({"kind": "folder"}, {"sidecars": "runs/capfilt"}):
    with pytest.raises(ValueError, match=r"mine\.regions is for kind 'parquet'"):
      parse(config(**changes))


def test_scenes_have_the_regions_of_their_things():
  """The last one drawn is in front, so its feature is its own square of the image."""
  source = open_source(Source(kind="builtin", split="scenes_val", regions=True, scenes=Scenes(pixels=60)))
  plain = open_source(Source(kind="builtin", split="scenes_val", scenes=Scenes(pixels=60)))
  for i in range(20):
    record, things = source[i], source.scene(i).things
    found = record.regions
    assert isinstance(found, Detected) and found.tags == tuple(thing.name for thing in reversed(things))
    assert found.features.shape == (len(things), 192) and np.abs(found.features).max() <= 1
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    inside = [0.5 - abs(np.array([t.x, t.y]) - 0.5) >= t.size / 2 for t in reversed(things)]
    np.testing.assert_allclose(centres[inside], np.array([[t.x, t.y] for t in reversed(things)])[inside], atol=1e-6)
    assert (plain[i].image, plain[i].texts, plain[i].regions) == (record.image, record.texts, None)
  with pytest.raises(BadRecord, match="no regions"):
    regions.padded(plain[0].regions, parse(config()).model, tokens())
