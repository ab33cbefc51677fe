"""The built-in world in the layouts of public sets (tests/benchmarks/suites.py): read as they are, and true."""

import sys
from pathlib import Path

import pytest

from coca.config import parse
from coca.data.scenes.compose import World
from coca.data.scenes.judge import judge
from coca.evals import build, folders
from coca.recipes import blip
from coca.recipes.tiny import OBJECTS

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import suite_config
import suite_sets
import suites

COUNT = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  out = tmp_path_factory.mktemp("suites")
  for suite in suite_sets.SUITES:
    suite(out / suite.__name__, COUNT)
  return out


def test_the_evaluators_open_what_was_written(data):
  asked = suite_config.get_config(f"data={data},questions")
  blip.model(asked)
  asked.answering.weight, asked.captioning.weight = 1.0, 0.0
  configs = [parse(config.to_dict()) for config in (suite_config.get_config(f"data={data}"), asked)]
  opened = {name: source for config in configs for name, source in build.open_sources(config)[0].items()}
  for name, source in opened.items():
    assert len(source) >= COUNT and not source.problems, name
    records = [source[i] for i in range(len(source))]
    assert all(record.image and record.texts for record in records), name
    suites._row(name, *range(len(suites.HEAD) - 2))  # it has a layout
  parts = opened["sugar_crepe"].label_names
  assert set(parts) <= {f"{way}_{part}" for way in ("add", "replace", "swap") for part in ("att", "obj", "rel")}
  world = World("scenes_val", vocabulary=OBJECTS)
  for i in range(len(opened["sugar_crepe"])):
    crepe = opened["sugar_crepe"]
    scene = world[int(crepe._entries[i].image.partition(".")[0])]
    true, false = (judge(text.text, scene) for text in crepe[i].texts)
    assert true and not false and false.verdict != "no sentence"
  pairs, parquet = opened["winoground"], opened["winoground_parquet"]
  assert len(pairs) == len(parquet) == COUNT
  for i in range(COUNT):
    own, other = (text.text for text in pairs[i].texts)
    assert (pairs[i].image, own, other) == (parquet[i].image, *(text.text for text in parquet[i].texts))
    assert own != other and sorted(own.split()) == sorted(other.split())


def test_folders_are_benchmarks_and_imagenets(data):
  config = parse(suite_config.get_config(f"data={data}").to_dict())
  found, skipped = folders.data_sets(config, [str(data / "clip_benchmark"), str(data / "imagenet_r")])
  assert list(found) == [*sorted(suite_sets.WDS), "imagenet_r"] and not skipped
  assert [len(one.source) for one in found.values()] == [COUNT] * 6
  assert found["wds_scenes"].settings.kind == "retrieval" and found["wds_objects"].settings.kind == "zero_shot"
  assert found["imagenet_r"].settings.kind == "zero_shot" and len(found["imagenet_r"].settings.templates) == 80
