"""Sources whose records are videos: folders, MSR-VTT's files, tars."""

import importlib.util
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from coca.config import Config, Data, Eval, Source, parse, to_dict
from coca.data.images import decode_eval
from coca.data.inputs import eval_input
from coca.data.records import BadRecord
from coca.data.scenes.videos import ACTIONS
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
  with pytest.raises(ValueError, match=r"it is for kind 'webdataset' or 'folder' or 'builtin', not 'parquet'"):
    open_source(Source(kind="parquet", path=str(tmp_path), videos=True))


def test_frames_in_tars(tmp_path):
  """They are in the order of their numbers, whatever the order in the tar, beside videos and records without any."""
  frames = {n: picture(n) for n in (10, 2, 0, 1)}
  members = {"k0.txt": b"one"} | {f"k0.{n:0{1 + n % 2}d}.png": data for n, data in frames.items()}
  members |= {"k1.mp4": b"film", "k1.txt": b"two", "k2.txt": b"three"}
  (tmp_path / "0.tar").write_bytes(tar(members))
  (tmp_path / "1.tar").write_bytes(tar({"k3.000.jpg": b"a", "k3.001.jpg": b"b", "k3.txt": b"four"}))
  source = open_source(Source(kind="webdataset", path=str(tmp_path), videos=True))
  first = source[0]
  assert list(first.frames) == [frames[n] for n in (0, 1, 2, 10)] and not first.image
  assert source[1].image == b"film" and not source[1].frames
  assert list(source[3].frames) == [b"a", b"b"] and source[3].texts[0].text == "four"
  with pytest.raises(BadRecord, match="record 'k2': no image"):
    source[2]
  assert any("1 of 4 records have no image" in problem for problem in source.problems)
  assert source_of(str(tmp_path / "1.tar"), videos=True).videos
  film, config = eval_input(first, Config(), 2), Config()
  assert (film == [decode_eval(frames[n], config.model.image.size) for n in (1, 10)]).all()
  (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:600])
  with pytest.raises(BadRecord, match=r"0.tar: record 'k0': frame 3: the tar has"):
    first.frames[3]


KINETICS = """label,youtube_id,time_start,time_end,split
"riding or walking with horse",-aB_c,5,15,train
juggling,Zz9,0,10.0,train
juggling,gone,7,17,train
juggling,bad,x,17,train
"""
MOMENTS = """blocking/a_4.mp4,blocking,3,0
juggling/a_4.mp4,juggling,5,1
blocking/b.mp4,blocked,3,0
running/c.mp4,running,1,0
"""


def labelled(source):
  """Of the records that can be read, by their keys."""
  read = [source[i] for i in range(len(source) - 1)]
  return {record.key: (record.image, source.label_names[record.label]) for record in read}


def test_kinetics_by_its_table(tmp_path):
  """Videos that are no longer there are left out and counted; one may lie in a folder of its class."""
  (tmp_path / "train" / "juggling").mkdir(parents=True)
  (tmp_path / "train" / "-aB_c_000005_000015.mp4").write_bytes(b"one")
  (tmp_path / "train" / "juggling" / "Zz9_000000_000010.mkv").write_bytes(b"two")
  (tmp_path / "train.csv").write_text(KINETICS)
  source = opened(tmp_path)
  assert source.label_names == ("juggling", "riding or walking with horse") and len(source) == 3
  assert labelled(source) == {
    "train/-aB_c_000005_000015.mp4": (b"one", "riding or walking with horse"),
    "train/juggling/Zz9_000000_000010.mkv": (b"two", "juggling"),
  }
  with pytest.raises(BadRecord, match=r"train.csv, line 5: time_start 'x' and time_end '17' are no seconds"):
    source[2]
  said = "1 videos of train.csv are not there, such as gone_000007_000017: their rows are left out"
  assert any(said in problem for problem in source.problems)
  (tmp_path / "val.csv").write_text(KINETICS.replace("Zz9", "Zz8").replace("-aB_c", "x"))
  with pytest.raises(ValueError, match=r"none of the 3 videos of val.csv, such as x_000005_000015.mp4, is in it"):
    opened(tmp_path, texts="val.csv")
  folders = opened(tmp_path / "train", text_key="label")
  assert [folders[i].texts for i in range(2)][1][0].text == "juggling"


def test_moments_in_time_by_its_table(tmp_path):
  """The same name lies in two folders, and in both splits."""
  for n, name in enumerate(("training/blocking/a_4", "training/juggling/a_4", "validation/x/a_4")):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / f"{name}.mp4").write_bytes(b"%d" % n)
  (tmp_path / "trainingSet.csv").write_text(MOMENTS)
  (tmp_path / "moments_categories.txt").write_text("blocking,0\njuggling,1\nrunning,2\n")
  source = opened(tmp_path, texts="trainingSet.csv")
  assert labelled(source) == {
    "training/blocking/a_4.mp4": (b"0", "blocking"),
    "training/juggling/a_4.mp4": (b"1", "juggling"),
  }
  with pytest.raises(BadRecord, match=r"line 3: the label 'blocked' is none of those in moments_categories\.txt"):
    source[2]
  assert any("1 videos of trainingSet.csv are not there" in problem for problem in source.problems)


def test_questions_about_videos(folder):
  """MSRVTT-QA's numbers are MSR-VTT's; MSVD-QA's are in youtube_mapping.txt."""
  rows = [
    {"category_id": 1, "video_id": 2, "question": "what runs?", "answer": "dog", "id": 70},
    {"category_id": 1, "video_id": 2, "question": "what is it on?", "answer": "grass", "id": 71},
    {"category_id": 1, "video_id": 9, "question": "who?", "answer": "man", "id": 72},
    {"question": "who?", "answer": "man", "id": 73},
  ]
  (folder / "test_qa.json").write_text(json.dumps(rows))
  (folder / "train_qa.json").write_text(json.dumps(rows[:1]))
  source = opened(folder, split="test", question_key="question")
  assert len(source) == 4
  assert [(r.key, r.question, [t.text for t in r.texts]) for r in (source[0], source[1])] == [
    ("videos/all/video2.mp4#70", "what runs?", ["dog"]),
    ("videos/all/video2.mp4#71", "what is it on?", ["grass"]),
  ]
  for n, reason in ((2, r"no such file: .*video9"), (3, 'entry 4: it has no "video_id"')):
    with pytest.raises(BadRecord, match=reason):
      source[n]
  (folder / "youtube_mapping.txt").write_text("-4ws Pc_5_15 vid1\n-xY_5_15 vid2\n")
  (folder / "videos" / "-xY_5_15.avi").write_bytes(b"msvd")
  assert opened(folder, split="test", question_key="question")[1].image == b"msvd"


def test_scenes_are_videos_of_drawn_frames():
  source = open_source(Source(kind="builtin", split="scenes_videos_val", videos=True))
  record, truth = source[3], source.truth(3)
  assert source.label_names[record.label] == ACTIONS[truth.label] and len(record.frames) == 16 and not record.image
  assert [text.text for text in record.texts] == list(truth.captions)
  drawn = cv2.cvtColor(cv2.imdecode(np.frombuffer(record.frames[9], np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
  assert (drawn == truth.frames(64)[9]).all()
  with pytest.raises(ValueError, match=r"the split 'scenes_videos' is one of videos: say .*videos=True"):
    open_source(Source(kind="builtin", split="scenes_videos"))


def test_settings_and_a_missing_package(tmp_path, monkeypatch):
  def parsed(**settings):
    return parse(to_dict(Config(**settings)))

  films = Source(kind="folder", path=str(tmp_path), videos=True)
  assert parsed(evals={"msrvtt": Eval(kind="retrieval", source=films)}).evals["msrvtt"].frames == 16
  for settings, reason in (
    ({"data": Data(sources={"films": films})}, r"config.data.sources.films.videos: a class head alone is trained on"),
    (
      {"evals": {"x": Eval(kind="captions", source=replace(films, kind="builtin"))}},
      r"x.source.videos is True: of kind 'builtin', the splits 'scenes_videos...' are videos",
    ),
    ({"evals": {"x": Eval(kind="retrieval", source=films, frames=0)}}, r"config.evals.x.frames is 0"),
  ):
    with pytest.raises(ValueError, match=reason):
      parsed(**settings)
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else find(name))
  with pytest.raises(ImportError, match=r"config\.evals\.x\.source: to read videos takes PyAV: .*\[video\]"):
    open_source(films, "config.evals.x.source")
