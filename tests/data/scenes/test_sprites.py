import io
import itertools
import re

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coca.data.scenes import sprites
from coca.data.scenes.objects import OBJECTS, PLACES, article
from coca.data.scenes.sprites import MORE_STYLES, SIDE, STYLES, UNSEEN_STYLE, resize, sprite

ALL = (*STYLES, *MORE_STYLES, UNSEEN_STYLE)
APACHE, MIT = ("noto", "noto-v1", "fxemoji"), ("fluent-3d", "fluent-emoji-flat")
LICENCES = dict.fromkeys(APACHE, "Apache-2.0") | dict.fromkeys(MIT, "MIT")


@pytest.fixture(scope="module")
def drawings():
  """Premultiplied, [700, SIDE, SIDE, 4], in the order of objects, then of styles."""
  return np.stack([sprite(thing.name, style, SIDE) for thing, style in itertools.product(OBJECTS, ALL)])


def test_names():
  assert len(OBJECTS) == 100
  for column in ("name", "plural", "emoji"):
    assert len({getattr(thing, column) for thing in OBJECTS}) == 100, column
  assert not {thing.name for thing in OBJECTS} & {thing.plural for thing in OBJECTS}  # no two sheep
  assert all(re.fullmatch("[a-z]+( [a-z]+)?", text) for thing in OBJECTS for text in (thing.name, thing.plural))
  assert [article(name) for name in ("apple", "ice cream", "dog", "honeybee")] == ["an", "an", "a", "a"]
  # A word of its own for each object: what is left out of a name does not make it another's.
  assert not [(a.name, b.name) for a, b in itertools.permutations(OBJECTS, 2) if a.name in b.name.split()]
  assert not {thing.name for thing in OBJECTS} & set(PLACES)


def test_all_are_there():
  rows = pq.read_table(sprites.FILE).to_pylist()
  assert len(rows) == 700 and sprites.FILE.stat().st_size < 2e6
  assert {(row["name"], row["style"]) for row in rows} == set(itertools.product((o.name for o in OBJECTS), ALL))
  for row in rows:
    assert row["licence"] == LICENCES.get(row["style"], "CC-BY-4.0")
    image = Image.open(io.BytesIO(row["image"]))
    assert (image.format, image.mode, image.size) == ("WEBP", "RGBA", (SIDE, SIDE))


def test_what_is_read_is_the_file(drawings):
  row = pq.read_table(sprites.FILE).to_pylist()[7]
  rgba = np.asarray(Image.open(io.BytesIO(row["image"]))).astype(np.float64)
  wanted = np.rint(np.concatenate([rgba[..., :3] * rgba[..., 3:] / 255, rgba[..., 3:]], -1))
  np.testing.assert_array_equal(sprite(row["name"], row["style"], SIDE), wanted)


def test_an_object_fills_its_square(drawings):
  seen = drawings[..., 3] > 8
  lengths, margins = [], []
  for axis in (1, 2):
    line = seen.any(axis=axis)
    first, last = line.argmax(1), line[:, ::-1].argmax(1)
    lengths.append(SIDE - first - last)
    margins.append(abs(first - last))
  assert np.max(lengths, axis=0).min() >= SIDE - 1
  assert np.max(margins) <= 2  # in the middle
  assert seen.mean((1, 2)).min() > 0.12 and seen.mean((1, 2)).max() < 0.97


def fringe(drawings):
  """The share of half-transparent pixels that are brighter on black than all that is opaque beside them."""
  count = total = 0
  for drawing in drawings:
    bright, alpha = drawing[..., :3].max(-1).astype(int), drawing[..., 3]
    opaque = np.where(alpha >= 250, bright, 0).astype(np.uint8)
    beside = cv2.dilate(opaque, np.ones((3, 3))).astype(int)
    edge = (alpha > 0) & (alpha < 230) & (cv2.dilate((alpha >= 250).astype(np.uint8), np.ones((3, 3))) > 0)
    count += (edge & (bright > beside + 6)).sum()
    total += edge.sum()
  return count / total


def test_edges_are_clean(drawings):
  assert (drawings[..., :3] <= drawings[..., 3:]).all()  # premultiplied
  alpha = drawings[..., 3]
  assert ((alpha == 0) | (alpha == 255)).mean((1, 2)).min() > 0.6  # an outline, no veil
  assert fringe(drawings) < 0.003
  # Cut out of white without taking the white out of the edge, they fail.
  white = drawings.astype(float)
  white[..., :3] = (white[..., :3] + 255 - white[..., 3:]) * white[..., 3:] / 255
  assert fringe(np.rint(white).astype(np.uint8)) > 0.03


@pytest.mark.parametrize("old, new", [(8, 1), (8, 3), (8, 5), (8, 8), (7, 4), (64, 23)])
def test_shrinking_means_areas(old, new):
  image = np.random.default_rng(0).integers(0, 256, (old, old, 1), np.uint8)
  # Each old pixel as new x new small ones, of which old x old make a new one.
  fine = np.repeat(np.repeat(image[..., 0].astype(np.float64), new, 0), new, 1)
  wanted = fine.reshape(new, old, new, old).mean((1, 3))
  np.testing.assert_array_equal(resize(image, new)[..., 0], np.floor(wanted + 0.5 + 1e-9))


@pytest.mark.parametrize("new", [9, 13, 16, 40])
def test_growing_is_linear(new):
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 2), np.uint8)
  at = (np.arange(new) + 0.5) * 8 / new - 0.5

  def grown(rows):
    return np.stack([np.interp(at, np.arange(8), row) for row in rows])

  for channel in range(2):
    wanted = grown(grown(image[..., channel]).T).T
    assert abs(resize(image, new)[..., channel] - wanted).max() < 0.5 + 1e-9


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_exact(quarters):
  upright = np.pad(sprite("key", "noto", SIDE), ((14, 14), (14, 14), (0, 0)))
  turned = sprite("key", "noto", SIDE, 90 * quarters)
  np.testing.assert_array_equal(turned, np.rot90(upright, -quarters))  # rot90 turns anticlockwise


def test_other_turns_are_those_of_pillow():
  upright = np.pad(sprite("key", "noto", SIDE), ((14, 14), (14, 14), (0, 0)))
  turned = sprite("key", "noto", SIDE, 30)
  for channel in range(4):
    plane = Image.fromarray(upright[..., channel].astype(np.float32))
    wanted = np.asarray(plane.rotate(-30, Image.Resampling.BILINEAR))
    assert abs(turned[..., channel] - wanted).max() <= 1
  assert sprite("key", "noto", 32, 30).shape == (46, 46, 4)
  np.testing.assert_array_equal(sprite("key", "noto", SIDE, 390), turned)


def test_nobody_writes_into_the_cache():
  with pytest.raises(ValueError, match="read-only"):
    sprite("dog", "noto", 20)[0, 0, 0] = 1


def test_what_there_is_not():
  with pytest.raises(ValueError, match="no drawing of object 'unicorn'"):
    sprite("unicorn", "noto", 20)
  with pytest.raises(ValueError, match=r"no drawing of style 'openmoji'; the styles are emojione, .*twemoji"):
    sprite("dog", "openmoji", 20)
  with pytest.raises(ValueError, match="at least 1"):
    sprite("dog", "noto", 0)
