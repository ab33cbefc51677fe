"""Writes a task on scenes as the public data set has it on disk, so that the same reader serves both.

    python -m coca.data.scenes.export --task=nlvr2 --out=data/nlvr2 --count=10000
    python -m coca.data.scenes.export --task=nlvr2 --out=data/nlvr2 --count=1000 --split=scenes_val

The split 'scenes' is written as the set's training data, all others as what it is validated on (MSR-VTT: its test).
"""

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from coca.config.command_line import one_line
from coca.data.scenes.compose import MOST, World
from coca.data.scenes.dialogs import Dialogs
from coca.data.scenes.entailment import Entailment
from coca.data.scenes.held_out import SPLITS
from coca.data.scenes.objects import OBJECTS
from coca.data.scenes.pairs import PAIRS, Pairs
from coca.data.scenes.questions import Questions
from coca.data.scenes.render import render
from coca.data.scenes.videos import ACTIONS, FRAMES, Videos
from coca.files.writing import write_atomic

_FPS = 8  # of videos: two seconds


class Folder:
  """A data set on disk: images and videos as they come, the tables in the end, so that where they are all is there."""

  def __init__(self, out: Path, pixels: int, count: int):
    self.out, self.pixels, self.count = out, pixels, count

  def numbers(self) -> Iterable[int]:
    """The examples, with a bar that shows how many are done."""
    return tqdm(range(self.count), unit=" examples", desc=str(self.out), disable=None, delay=2)

  def image(self, path: str, scene) -> None:
    """Draws a scene; by the ending of `path` as PNG, or as JPEG (of quality 95)."""
    _, encoded = cv2.imencode(Path(path).suffix, _bgr(render(scene, self.pixels)))
    self._place(path).write_bytes(encoded.tobytes())

  def video(self, path: str, frames: np.ndarray) -> None:
    """Writes frames, uint8 [n, H, W, 3], as MP4 (MPEG-4 part 2, the one that every build of OpenCV writes)."""
    size = frames.shape[2], frames.shape[1]
    writer = cv2.VideoWriter(str(self._place(path)), cv2.VideoWriter.fourcc(*"mp4v"), _FPS, size)
    if not writer.isOpened():
      raise OSError(f"{self.out / path}: OpenCV can't write it; is the folder writable, and OpenCV built with FFmpeg?")
    for frame in frames:
      writer.write(_bgr(frame))
    writer.release()

  def _place(self, path: str) -> Path:
    """The path in full; its folder is made."""
    (self.out / path).parent.mkdir(parents=True, exist_ok=True)
    return self.out / path

  def json(self, path: str, content: object) -> None:
    """Writes a JSON file."""
    write_atomic(self.out / path, json.dumps(content).encode())

  def lines(self, path: str, rows: list[dict]) -> None:
    """Writes JSON lines."""
    write_atomic(self.out / path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

  def csv(self, path: str, header: str, rows: list[tuple]) -> None:
    """Writes a table with commas."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header.split(","), *rows])
    write_atomic(self.out / path, text.getvalue().encode())


def _bgr(image: np.ndarray) -> np.ndarray:
  return cv2.cvtColor(image, cv2.COLOR_RGB2BGR)


def vqa(world: World, to: Folder, train: bool) -> None:
  """VQA v2: questions, annotations, and COCO's images."""
  made, year, questions, annotations = Questions(world), "train2014" if train else "val2014", [], []
  for i in to.numbers():
    asked, image = made[i], f"{year}/COCO_{year}_{i:012d}.jpg"
    to.image(image, asked.scene)
    key = {"image_id": i, "question_id": 1000 * i}
    answers = [{"answer": asked.answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
    questions.append({**key, "question": asked.question})
    annotations.append(
      {
        **key,
        "question_type": " ".join(asked.question.split()[:2]),
        "answer_type": {"yes/no": "yes/no", "number": "number"}.get(asked.kind.split()[0], "other"),
        "multiple_choice_answer": asked.answer,
        "answers": answers,
      }
    )
  about = {"data_type": "mscoco", "data_subtype": year}
  to.json(f"v2_OpenEnded_mscoco_{year}_questions.json", {**about, "task_type": "Open-Ended", "questions": questions})
  to.json(f"v2_mscoco_{year}_annotations.json", {**about, "annotations": annotations})


def nlvr2(world: World, to: Folder, train: bool) -> None:
  """NLVR2: JSON lines, and the images where its own script puts them."""
  made, part, rows = Pairs(world), "train" if train else "dev", []
  for i in to.numbers():
    pair = made[i]
    folder = f"images/train/{pair.number % 100}" if train else "dev"
    name = f"{part}-{pair.number}-{pair.pair}"
    for side, scene in enumerate((pair.left, pair.right)):
      to.image(f"{folder}/{name}-img{side}.png", scene)
    row = {
      "identifier": f"{name}-0",
      "sentence": pair.sentence,
      "label": str(pair.label),
      "left_url": f"{folder}/{name}-img0.png",
      "right_url": f"{folder}/{name}-img1.png",
    }
    rows.append(row | ({"directory": pair.number % 100} if train else {}))
  to.lines(f"{part}.json", rows)


def snli_ve(world: World, to: Folder, train: bool) -> None:
  """SNLI-VE: JSON lines, and Flickr30k's images."""
  made, rows = Entailment(world), []
  for i in to.numbers():
    hypothesis, image = made[i], f"{i + (0 if train else 10**9):010d}"  # training and validation share the folder
    to.image(f"flickr30k_images/{image}.jpg", hypothesis.scene)
    rows.append(
      {
        "Flickr30K_ID": image,
        "annotator_labels": [hypothesis.label] * (1 if train else 5),
        "captionID": f"{image}.jpg#0",
        "gold_label": hypothesis.label,
        "pairID": f"{image}.jpg#0r1{hypothesis.label[0]}",
        "sentence1": hypothesis.caption,
        "sentence2": hypothesis.sentence,
      }
    )
  to.lines(f"snli_ve_{'train' if train else 'dev'}.jsonl", rows)


def visdial(world: World, to: Folder, train: bool) -> None:
  """VisDial v1.0: dialogs with lists of all questions and answers, and the dense annotation of a round of each."""
  made, part = Dialogs(world), "train" if train else "val"
  prefix = "train2014/COCO_train2014" if train else "VisualDialog_val2018/VisualDialog_val2018"
  questions, answers, dialogs, dense = {}, {}, [], []

  def number(known: dict[str, int], text: str) -> int:
    return known.setdefault(text, len(known))

  for i in to.numbers():
    dialog = made[i]
    to.image(f"{prefix}_{i:012d}.jpg", dialog.scene)
    rounds = [
      {
        "question": number(questions, r.question),
        "answer": number(answers, r.answer),
        "answer_options": [number(answers, option) for option in r.options],
        "gt_index": r.gt_index,
      }
      for r in dialog.rounds
    ]
    dialogs.append({"image_id": i, "caption": dialog.caption, "dialog": rounds})
    n = i % len(rounds)
    relevance = list(dialog.rounds[n].relevance)
    dense.append({"image_id": i, "round_id": n + 1, "relevance" if train else "gt_relevance": relevance})
  data = {"questions": list(questions), "answers": list(answers), "dialogs": dialogs}
  to.json(f"visdial_1.0_{part}_dense_{'sample' if train else 'annotations'}.json", dense)
  to.json(f"visdial_1.0_{part}.json", {"version": "1.0", "split": part, "data": data})


def msrvtt(world: World, to: Folder, train: bool) -> None:
  """MSR-VTT: videos and sentences; of its test the table of 1k-A, too, with the first caption of each."""
  made, videos, sentences, first = Videos(world), [], [], []
  for i in to.numbers():
    video, name = made[i], f"video{i}"
    to.video(f"{'TrainValVideo' if train else 'TestVideo'}/{name}.mp4", video.frames(to.pixels))
    videos.append(
      {
        "video_id": name,
        "category": video.label,
        "url": "",
        "start time": 0.0,
        "end time": FRAMES / _FPS,
        "split": "train" if train else "test",
        "id": i,
      }
    )
    captions = enumerate(video.captions, len(sentences))
    sentences += [{"caption": text, "video_id": name, "sen_id": n} for n, text in captions]
    first.append((f"ret{i}", f"msr{i}", name, video.captions[0]))
  if not train:
    to.csv("MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence", first)
  name = f"{'train_val' if train else 'test'}_videodatainfo.json"
  to.json(name, {"info": {"description": "scenes"}, "videos": videos, "sentences": sentences})


def kinetics(world: World, to: Folder, train: bool) -> None:
  """Kinetics: a table of videos with their actions, and a folder of videos for each action."""
  made, part, rows = Videos(world), "train" if train else "val", []
  for i in to.numbers():
    video, name = made[i], f"scene{i:06d}"
    action = ACTIONS[video.label]
    to.video(f"{part}/{action}/{name}_000000_000010.mp4", video.frames(to.pixels))
    rows.append((action, name, 0, 10, part))
  to.csv(f"{part}.csv", "label,youtube_id,time_start,time_end,split", rows)


TASKS: dict[str, Callable[[World, Folder, bool], None]] = {
  task.__name__: task for task in (vqa, nlvr2, snli_ve, visdial, msrvtt, kinetics)
}


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(
    prog="python -m coca.data.scenes.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--task", required=True, choices=TASKS)
  parser.add_argument("--out", required=True, type=Path, help="folder")
  parser.add_argument("--count", required=True, type=int, help="examples")
  parser.add_argument("--split", default="scenes", choices=SPLITS)
  parser.add_argument("--seed", type=int, default=0, help="other scenes of the same kind")
  parser.add_argument("--pixels", type=int, default=224, help="a side")
  parser.add_argument("--objects", type=int, default=MOST, help="in a scene at most")
  parser.add_argument("--vocabulary", type=int, default=len(OBJECTS), help="objects that there are")
  args = parser.parse_args(argv)
  for name, least, most in (
    ("count", 1, 10**9),
    ("seed", 0, 2**53),
    ("pixels", 16, 4096),
    ("objects", 1, MOST),
    ("vocabulary", 1, len(OBJECTS)),
  ):
    if not least <= getattr(args, name) <= most:
      parser.error(f"--{name} is {getattr(args, name)}; it takes {least} to {most}")
  if args.pixels % 2 and args.task in ("msrvtt", "kinetics"):
    parser.error(f"--pixels is {args.pixels}; videos take an even number")
  if args.count % PAIRS and args.task == "nlvr2":
    parser.error(f"--count is {args.count}; each sentence has {PAIRS} pairs of images, say a multiple of {PAIRS}")
  with one_line(ValueError, OSError):
    world = World(args.split, args.seed, args.objects, args.vocabulary)
    TASKS[args.task](world, Folder(args.out, args.pixels, args.count), args.split == "scenes")


if __name__ == "__main__":
  main()
