"""Scenes as a source: records, shards, noise with its truth, and settings that make no sense."""

import dataclasses
import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from coca.config import SceneNoise, Scenes, Source
from coca.data import images
from coca.data.records import Text, split
from coca.data.scenes.compose import MOST
from coca.data.scenes.judge import judge
from coca.data.scenes.objects import OBJECTS
from coca.data.scenes.render import render
from coca.data.scenes.sprites import MORE_STYLES, STYLES, UNSEEN_STYLE
from coca.data.sources import open_source


def opened(split="scenes", source=None, **scenes):
  return open_source(Source(kind="builtin", split=split, scenes=Scenes(**scenes), **source or {}))


def test_records():
  source = opened("scenes_val", count=25, pixels=48)
  assert len(source) == 25 and source.name == "builtin:scenes_val" and source.problems == []
  for i in (0, 7, 24):
    record, truth = source[i], source.truth(i)
    assert record.key == f"scenes_val/{i:06d}" and record == source[i] and truth.scene == source.scene(i)
    assert record.texts == tuple(Text(text, "human") for text in truth.captions) and len(record.texts) == 5
    assert source.without_image(i) == dataclasses.replace(record, image=b"")
    pixels = render(truth.scene, 48)
    for decoded in (
      images.decode_eval(record.image, 48),
      images.decode_train(record.image, 48, np.random.default_rng(0)),
    ):
      assert (decoded == pixels).all()
  # Sidecars hold checksums of images: no machine and no version of Pillow or OpenCV may write other bytes.
  assert hashlib.sha256(record.image).hexdigest()[:16] == "90a87e55cec2c431"
  for outside in (-1, 25):
    with pytest.raises(IndexError, match=f"has 25 scenes, no number {outside}"):
      source[outside]


def test_texts_and_origins():
  first = opened(source={"origin": "web"}, texts=1, count=9)
  assert first[0].texts == (Text(opened()[0].texts[0].text, "web"),)
  assert opened(source={"text_key": ""})[3].texts == ()
  assert len(opened(texts=50)[0].texts) > 5


def test_shards():
  source = opened(count=20_001)
  assert [(s.name, s.start, s.stop) for s in source.shards] == [
    ("scenes-00000", 0, 10_000),
    ("scenes-00001", 10_000, 20_000),
    ("scenes-00002", 20_000, 20_001),
  ]
  assert len(split(source.shards, 1000)) == 21


def test_threads_get_the_same_records():
  one, other = opened(), opened()
  with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(one.__getitem__, range(60))) == [other[i] for i in range(60)]


def test_noise_and_its_truth():
  shares = {"other": 0.2, "wrong": 0.3, "title": 0.05, "file_name": 0.05}
  source, clean = opened(noise=SceneNoise(**shares), count=300), opened(count=300)
  kinds, wrong = Counter(), Counter()
  for i in range(300):
    record, truth = source[i], source.truth(i)
    kinds[truth.noise] += 1
    assert truth.scene == clean.scene(i) and all(judge(text, truth.scene) for text in truth.captions)
    assert {text.origin for text in record.texts} == {"web"}
    found = judge(record.texts[0].text, truth.scene)
    if not truth.noise:
      assert tuple(text.text for text in record.texts) == truth.captions
      continue
    assert len(record.texts) == 1 and not found
    assert (found.verdict == "no sentence") == (truth.noise in ("title", "file_name"))
    if truth.noise == "wrong":
      assert len(found.wrong) == 1
      wrong.update(found.wrong)
  assert all(abs(kinds[kind] / 300 - share) < 0.09 for kind, share in shares.items())
  assert set(wrong) == {"object", "number", "relation"}
  assert {kind for kind in kinds if kind} == set(shares)


@pytest.mark.parametrize("vocabulary", [1, 2, 3])
def test_noise_with_few_objects(vocabulary):
  source = opened(vocabulary=vocabulary, noise=SceneNoise(wrong=0.7, other=0.3), count=60)
  for i in range(60):
    assert judge(source[i].texts[0].text, source.scene(i)).verdict in ("partly", "false")


@pytest.mark.parametrize(
  "split, scenes, message",
  [
    ("scenes_tst", {}, "no split 'scenes_tst' of scenes; there are scenes, scenes_val, "),
    ("scenes", {"objects": 5}, r"scenes\.objects is 5; it takes 1 to 4"),
    ("scenes", {"vocabulary": 101}, r"scenes\.vocabulary is 101; it takes 1 to 100"),
    ("scenes", {"pixels": 8}, r"scenes\.pixels is 8"),
    ("scenes", {"styles": ("noto", "oil")}, r"scenes\.styles: there are no drawings in the style 'oil'; known: noto,"),
    ("scenes", {"noise": SceneNoise(wrong=1.5)}, r"scenes\.noise\.wrong is 1\.5; a share is from 0 to 1"),
    ("scenes", {"noise": SceneNoise(wrong=0.6, other=0.7)}, r"scenes\.noise: other \+ wrong .* is 1\.3; together"),
    ("scenes_new_pairs", {"vocabulary": 1}, "no scene with at most 4 of the first 1 objects; allow more"),
    ("twemoji", {"objects": 2}, r"scenes is set, and the source is split 'twemoji' of kind 'builtin'"),
  ],
)
def test_settings_that_make_no_sense(split, scenes, message):
  with pytest.raises(ValueError, match=message):
    opened(split, **scenes)


def test_other_settings_that_make_no_sense():
  with pytest.raises(ValueError, match="path is 'here': scenes of kind 'builtin' take none"):
    opened(source={"path": "here"})
  with pytest.raises(ValueError, match="question_key is 'name': scenes"):
    opened(source={"question_key": "name"})
  with pytest.raises(ValueError, match=r"config\.data\.sources\.a: there is no split 'scenes_x'"):
    open_source(Source(kind="builtin", split="scenes_x"), "config.data.sources.a")


def test_checks_know_what_there_is():
  """The settings are checked without the world, which they may not import; their limits are its own."""
  for name, most in (("objects", MOST), ("vocabulary", len(OBJECTS))):
    assert getattr(Scenes(), name) == most
    with pytest.raises(ValueError, match=f"it takes 1 to {most}$"):
      opened(**{name: most + 1})
  assert len(opened(styles=(*STYLES, *MORE_STYLES, UNSEEN_STYLE), count=7)) == 7
