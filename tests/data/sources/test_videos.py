"""Sources whose records are videos: folders, MSR-VTT's files, tars."""

import importlib.util
import json
import re

import pytest

from coca.config import Config, Data, Eval, Source, parse, to_dict
from coca.data.records import BadRecord
from coca.data.sources import open_source
from coca.evals.folders import source_of
from support.tars import picture, tar

TINY = {f"video{n}": f"film {n}".encode() for n in range(4)}  # nothing is decoded here
SAID = [("video2", "a dog runs"), ("video0", "a cat"), ("video2", "a dog on grass"), ("video3", "rain"), ("gone", "x")]


def opened(path, **settings):
  return open_source(Source(kind="folder", path=str(path), videos=True, **settings))


def texts(source):
  return {source[i].key: [t.text for t in source[i].texts] for i in range(len(source))}


@pytest.fixture
def folder(tmp_path):
  """MSR-VTT as it is unpacked: videos in a folder of their own, JSON of train and validation and of the test."""
  (tmp_path / "videos" / "all").mkdir(parents=True)
  for name, data in TINY.items():
    (tmp_path / "videos" / "all" / f"{name}.mp4").write_bytes(data)
  for name, splits in (
    ("train_val", {"video0": "train", "video1": "validate"}),
    ("test", {"video2": "test", "video3": "test"}),
  ):
    listed = [
      {"category": 9, "url": "", "video_id": video, "start time": 1.0, "end time": 11.0, "split": split, "id": n}
      for n, (video, split) in enumerate(splits.items())
    ]
    said = [{"caption": text, "video_id": v, "sen_id": n} for n, (v, text) in enumerate([*SAID, ("video1", "a boat")])]
    said = [
      sentence
      for sentence in said
      if sentence["video_id"] in splits or (name, sentence["video_id"]) == ("test", "gone")
    ]
    table = {"info": {"year": "2016"}, "videos": listed, "sentences": said}
    (tmp_path / f"{name}_videodatainfo.json").write_text(json.dumps(table))
  return tmp_path


def test_msrvtt_json_by_its_splits(folder):
  source = opened(folder, split="test")
  assert len(source) == 3 and source[0].image == TINY["video2"] and source[0].texts[0].origin == "human"
  assert {k: v for k, v in texts_of_two(source)} == {
    "videos/all/video2.mp4": ["a dog runs", "a dog on grass"],
    "videos/all/video3.mp4": ["rain"],
  }
  assert re.search('1 rows can\'t be used.*sentence 4: its "video_id" is none', source.problems[0])
  with pytest.raises(BadRecord, match="none of the"):
    source[2]
  assert texts(opened(folder)) == {"videos/all/video0.mp4": ["a cat"]}  # the split 'train'
  assert texts(opened(folder, split="val")) == {"videos/all/video1.mp4": ["a boat"]}
  with pytest.raises(ValueError, match="has no split 'test'; it has: train, validate"):
    opened(folder, split="test", texts="train_val_videodatainfo.json")
  assert source_of(str(folder), videos=True) == Source(kind="folder", path=str(folder), split="test", videos=True)


def texts_of_two(source):
  return [(source[i].key, [t.text for t in source[i].texts]) for i in range(2)]


def test_msrvtt_1k_a(folder):
  table = folder / "MSRVTT_JSFUSION_test.csv"
  table.write_text(
    "key,vid_key,video_id,sentence\nret0,msr3,video3,rain falls\nret1,msr9,video9,gone\nret2,msr2,video2,a dog\n"
  )
  named = source_of(str(table), videos=True)
  assert named == Source(kind="folder", path=str(folder), texts=table.name, split="test", videos=True)
  source = open_source(named)
  assert [(source[i].key, source[i].texts[0].text) for i in (0, 2)] == [
    ("videos/all/video3.mp4", "rain falls"),
    ("videos/all/video2.mp4", "a dog"),
  ]
  with pytest.raises(BadRecord, match=r"no such file: .*video9 \(named in the table\)"):
    source[1]
  assert opened(folder, split="test")[0].image == TINY["video2"]  # beside it, the JSON is what the folder holds


def test_folders_with_texts_as_those_of_images(tmp_path):
  for name in ("a.mp4", "b.WEBM", "c.jpg"):
    (tmp_path / name).write_bytes(name.encode())
  (tmp_path / "a.txt").write_text("one")
  (tmp_path / "b.txt").write_text("two")
  assert texts(opened(tmp_path)) == {"a.mp4": ["one"], "b.WEBM": ["two"]}
  assert not source_of(str(tmp_path), videos=True).videos  # an image lies there
  (tmp_path / "captions.csv").write_text("file_name,caption\na,three\nb.WEBM,four\na.mp4,five\n")
  assert texts(opened(tmp_path)) == {"a.mp4": ["three", "five"], "b.WEBM": ["four"]}
  (tmp_path / "c.jpg").unlink()
  assert source_of(str(tmp_path), videos=True).videos and not source_of(str(tmp_path)).videos


def test_tars(tmp_path):
  members = {
    "k0.mp4": b"film",
    "k0.txt": b"one",
    "k0.json": b"{}",
    "k1.webm": b"more",
    "k1.json": b'{"caption": "two"}',
  }
  (tmp_path / "0.tar").write_bytes(tar(members))
  named = source_of(str(tmp_path), videos=True)
  assert named == Source(kind="webdataset", path=str(tmp_path), videos=True)
  source = open_source(named)
  assert [(source[i].image, source[i].texts[0].text) for i in range(2)] == [(b"film", "one"), (b"more", "two")]
  (tmp_path / "0.tar").write_bytes(tar({"k0.jpg": picture(1), "k0.txt": b"one", "k0.mp4": b"x"}))
  assert not source_of(str(tmp_path / "0.tar"), videos=True).videos
  with pytest.raises(ValueError, match=r"videos is True: it is for kind 'webdataset' or 'folder', not 'parquet'"):
    open_source(Source(kind="parquet", path=str(tmp_path), videos=True))


def test_settings_and_a_missing_package(tmp_path, monkeypatch):
  def parsed(**settings):
    return parse(to_dict(Config(**settings)))

  films = Source(kind="folder", path=str(tmp_path), videos=True)
  assert parsed(evals={"msrvtt": Eval(kind="retrieval", source=films)}).evals["msrvtt"].frames == 16
  for settings, reason in (
    ({"data": Data(sources={"films": films})}, r"config.data.sources.films.videos: training takes images"),
    (
      {"evals": {"x": Eval(kind="captions", source=films)}},
      r"x.source.videos is for kind 'retrieval'.*not for 'captions'",
    ),
    ({"evals": {"x": Eval(kind="retrieval", source=films, frames=0)}}, r"config.evals.x.frames is 0"),
  ):
    with pytest.raises(ValueError, match=reason):
      parsed(**settings)
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else find(name))
  with pytest.raises(ImportError, match=r"config\.evals\.x\.source: to read videos takes PyAV: .*\[video\]"):
    open_source(films, "config.evals.x.source")
