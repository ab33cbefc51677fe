"""Tasks on scenes on disk, read as the public data sets are read."""

import csv
import json

import cv2
import numpy as np
import pytest

from coca.config import Source
from coca.data.scenes import export
from coca.data.scenes.compose import World
from coca.data.scenes.dialogs import Dialogs
from coca.data.scenes.entailment import Entailment
from coca.data.scenes.pairs import Pairs
from coca.data.scenes.questions import Questions
from coca.data.scenes.render import render
from coca.data.scenes.videos import ACTIONS, Videos
from coca.data.sources import open_source
from coca.data.sources.scenes import bmp

PIXELS = 48


@pytest.fixture
def written(tmp_path):
  def write(task, *arguments, count=8):
    export.main([f"--task={task}", f"--out={tmp_path}", f"--count={count}", f"--pixels={PIXELS}", *arguments])
    return tmp_path

  return write


def check_image(path, scene, most=0.0):
  """The scene's image; `most` is how far JPEG may be off, on average."""
  image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
  assert image.shape == (PIXELS, PIXELS, 3)
  assert abs(image.astype(float) - render(scene, PIXELS)).mean() <= most, path


def loaded(path):
  return json.loads(path.read_text())


def test_vqa(written):
  folder, made = written("vqa", "--split=scenes_val"), Questions(World("scenes_val"))
  asked = loaded(folder / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
  answers = {a["question_id"]: a for a in loaded(folder / "v2_mscoco_val2014_annotations.json")["annotations"]}
  assert len(asked) == len(answers) == 8
  source = open_source(Source(kind="folder", path=str(folder), split="", question_key="question"))
  for i, row in enumerate(asked):
    check_image(folder / f"val2014/COCO_val2014_{row['image_id']:012d}.jpg", made[i].scene, most=8)
    given = answers[row["question_id"]]
    assert row["question"] == made[i].question and given["multiple_choice_answer"] == made[i].answer
    assert [a["answer"] for a in given["answers"]] == [made[i].answer] * 10 and given["image_id"] == row["image_id"]
    assert given["answer_type"] == made[i].kind.split()[0] or given["answer_type"] == "other"
    assert source[i].question == row["question"] and [t.text for t in source[i].texts] == [made[i].answer] * 10


@pytest.mark.parametrize("split, part", [("scenes", "train"), ("scenes_new_style", "dev")])
def test_nlvr2(written, split, part):
  folder, made = written("nlvr2", f"--split={split}"), Pairs(World(split))
  rows = [json.loads(line) for line in (folder / f"{part}.json").read_text().splitlines()]
  for i, row in enumerate(rows):
    stem, sentence = row["identifier"].rsplit("-", 1)  # as NLVR2's README tells to find the images
    images = folder / "images/train" / str(row["directory"]) if part == "train" else folder / "dev"
    check_image(images / f"{stem}-img0.png", made[i].left)
    check_image(images / f"{stem}-img1.png", made[i].right)
    assert sentence == "0" and stem.split("-")[0] == part and row["sentence"] == made[i].sentence
    assert row["label"] == ("True" if made[i].label else "False")
  source = open_source(Source(kind="folder", path=str(folder), texts=str(folder / f"{part}.json")))
  builtin = open_source(Source(kind="builtin", split=split.replace("scenes", "scenes_statements")))
  assert source.label_names == builtin.label_names
  for i in range(len(rows)):
    assert (source[i].texts, source[i].label) == (builtin[i].texts, builtin[i].label) and builtin.truth(i) == made[i]
    assert source[i].second == (folder / source[i].key.partition("#")[0].replace("img0", "img1")).read_bytes()
    assert builtin[i].second == bmp(made[i].right, 64)
  assert len({row["identifier"] for row in rows}) == 8


def test_snli_ve(written):
  folder, made = written("snli_ve", "--split=scenes_val", count=6), Entailment(World("scenes_val"))
  rows = [json.loads(line) for line in (folder / "snli_ve_dev.jsonl").read_text().splitlines()]
  source = open_source(Source(kind="folder", path=str(folder), split="dev"))
  builtin = open_source(Source(kind="builtin", split="scenes_hypotheses_val"))
  assert source.label_names == builtin.label_names and len(source) == 6
  for i, row in enumerate(rows):
    assert (source[i].texts, source[i].label) == (builtin[i].texts, builtin[i].label)
    assert builtin.label_names[builtin[i].label] == made[i].label and builtin.truth(i) == made[i]
    check_image(folder / "flickr30k_images" / f"{row['Flickr30K_ID']}.jpg", made[i].scene, most=8)
    assert (row["sentence1"], row["sentence2"], row["gold_label"]) == (made[i].caption, made[i].sentence, made[i].label)
    assert row["captionID"].split("#")[0] == f"{row['Flickr30K_ID']}.jpg"
    assert row["pairID"] == f"{row['captionID']}r1{row['gold_label'][0]}" and len(row["annotator_labels"]) == 5


def test_training_and_validation_of_snli_ve_share_a_folder(written):
  written("snli_ve", "--split=scenes", count=2)
  folder = written("snli_ve", "--split=scenes_val", count=2)
  assert len(list((folder / "flickr30k_images").iterdir())) == 4


@pytest.mark.parametrize("split, part", [("scenes", "train"), ("scenes_val", "val")])
def test_visdial(written, split, part):
  folder, made = written("visdial", f"--split={split}", count=3), Dialogs(World(split))
  read = loaded(folder / f"visdial_1.0_{part}.json")
  questions, answers = read["data"]["questions"], read["data"]["answers"]
  kind = "sample" if part == "train" else "annotations"
  dense = {d["image_id"]: d for d in loaded(folder / f"visdial_1.0_{part}_dense_{kind}.json")}
  assert (read["version"], read["split"], len(set(answers))) == ("1.0", part, len(answers))
  for i, dialog in enumerate(read["data"]["dialogs"]):
    number = dialog["image_id"]
    name = f"train2014/COCO_train2014_{number:012d}.jpg"
    check_image(
      folder / (name if part == "train" else f"VisualDialog_val2018/VisualDialog_val2018_{number:012d}.jpg"),
      made[i].scene,
      most=8,
    )
    assert dialog["caption"] == made[i].caption and len(dialog["dialog"]) == 10
    for r, turn in zip(made[i].rounds, dialog["dialog"], strict=True):
      assert questions[turn["question"]] == r.question and answers[turn["answer"]] == r.answer
      assert [answers[n] for n in turn["answer_options"]] == list(r.options)
      assert turn["answer_options"][turn["gt_index"]] == turn["answer"]
    relevance = dense[number]["relevance" if part == "train" else "gt_relevance"]
    assert relevance == list(made[i].rounds[dense[number]["round_id"] - 1].relevance)


def check_video(path, video):
  reader, frames = cv2.VideoCapture(str(path)), []
  while (read := reader.read())[0]:
    frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
  reader.release()
  assert len(frames) == 16 and abs(np.stack(frames).astype(float) - video.frames(PIXELS)).mean() < 10


def test_msrvtt(written):
  folder, made = written("msrvtt", "--split=scenes_val", count=3), Videos(World("scenes_val"))
  info = loaded(folder / "test_videodatainfo.json")
  for i, video in enumerate(info["videos"]):
    check_video(folder / "TestVideo" / f"{video['video_id']}.mp4", made[i])
    said = [s["caption"] for s in info["sentences"] if s["video_id"] == video["video_id"]]
    assert tuple(said) == made[i].captions and video["split"] == "test"
  assert [s["sen_id"] for s in info["sentences"]] == list(range(24))
  with open(folder / "MSRVTT_JSFUSION_test.csv") as file:
    rows = list(csv.DictReader(file))
  assert [(r["video_id"], r["sentence"]) for r in rows] == [(f"video{i}", made[i].captions[0]) for i in range(3)]


def test_kinetics(written):
  folder, made = written("kinetics", count=3), Videos(World("scenes"))
  with open(folder / "train.csv") as file:
    rows = list(csv.DictReader(file))
  for i, row in enumerate(rows):
    name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
    check_video(folder / row["split"] / row["label"] / name, made[i])
    assert row["label"] == ACTIONS[made[i].label]
  assert len(rows) == 3


@pytest.mark.parametrize(
  "task, arguments, message",
  [
    ("nlvr2", ["--count=6"], "--count is 6; each sentence has 4 pairs"),
    ("nlvr2", ["--count=0"], "--count is 0; it takes 1 to"),
    ("msrvtt", ["--pixels=33"], "--pixels is 33; videos take an even number"),
    ("vqa", ["--objects=5"], "--objects is 5; it takes 1 to 4"),
    ("vqa", ["--split=train"], "invalid choice: 'train'"),
    ("okvqa", [], "invalid choice: 'okvqa'"),
    ("visdial", ["--objects=1"], "no scene with two kinds of things to talk of; allow more objects"),
  ],
)
def test_settings_that_make_no_sense(written, capsys, task, arguments, message):
  with pytest.raises(SystemExit) as stopped:
    written(task, *arguments)
  assert message in f"{stopped.value.code} {capsys.readouterr().err}"
