"""Annotation files as data sets publish them, as rows of a table: {"file_name": ..., "caption": ...}.

    COCO, NoCaps    {"images": [{"id": 9, "file_name": ...}], "annotations": [{"image_id": 9, "caption": ...}]}
    Karpathy        {"images": [{"filename": ..., "filepath": ..., "split": ..., "sentences": [{"raw": ...}]}]}
    VQA v1, v2      {"data_subtype": "val2014", "questions": [{"image_id": 9, "question": ..., "question_id": 90}]},
                    and the answers in a file of their own, {"annotations": [{"question_id": 90, "answers": [...]}]}
    Visual Genome   [{"id": 9, "regions": [{"phrase": ...}]}] and [{"id": 9, "qas": [{"question": ..., "answer": ...}]}]
    Flickr30k       NAME.jpg#0<tab>caption, in results_20130124.token
    SNLI-VE         {"Flickr30K_ID": "9", "sentence2": ..., "gold_label": "neutral", "pairID": "9.jpg#0r1n"}
    NLVR2           {"identifier": "dev-9-0-1", "sentence": ..., "label": "True"}, a line each, in train.json or so
    videos          coca/data/sources/video_tables.py

RSICD, UCM, Sydney and Flickr30k come in Karpathy's layout. His 'restval' of COCO is trained on, as all papers do.
Rows of questions have "question" and "answers" in place of "caption", and their number as "#"; SNLI-VE's, which are
hypotheses about an image, have a "label" beside the "caption", and NLVR2's the "second" image, too. Visual Genome's
answers, such as "Green.", are read as VQA's are written: in lower case and without the full stop. Some layouts name
no files but numbers: "file_name" is a tuple of the names that the image may have, in whatever folder.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence

from coca.data.sources import video_tables

# What such files are called, but for those of questions. tfds has a dataset_info.json.
NAMES = re.compile(
  r"(captions_.*|dataset(_(?!infos?\.).*)?|nocaps_.*captions|region_descriptions|(train_val|test)_videodatainfo|"
  r"MSRVTT_data)\.json|.*\.token(\.txt)?",
  re.IGNORECASE,
)
QUESTIONS = re.compile(
  r"((v2_)?(OpenEnded|MultipleChoice)_.*_questions|question_answers|(train|val|test)_qa)\.json", re.IGNORECASE
)
HYPOTHESES = re.compile(r"snli_ve_(.*)\.jsonl")
LABELS = ("entailment", "neutral", "contradiction")  # SNLI-VE's

Rows = Iterator[tuple[str, dict | str]]


def rows(name: str, values, split: str, beside: Callable[[str], bytes]) -> Rows | None:
  """The rows of an annotation file, each with its place in it, or what is wrong with one; None: it is none of these.

  Args:
    name: of the file.
    values: what it holds.
    split: of Karpathy's and MSR-VTT's, which to take; empty: all.
    beside: reads another file of its folder; raises FileNotFoundError.

  Raises:
    ValueError: there are no captions in it, or none of this split, as rows are taken.
  """
  if isinstance(values, dict) and isinstance(values.get("questions"), list):
    return _vqa(name, values, beside)
  if isinstance(values, dict) and all(isinstance(values.get(key), list) for key in ("videos", "sentences")):
    return video_tables.msrvtt(name, values["videos"], values["sentences"], split)
  if isinstance(values, dict) and isinstance(values.get("images"), list):
    images = [image if isinstance(image, dict) else {} for image in values["images"]]
    if isinstance(values.get("annotations"), list):
      return _coco(name, images, values["annotations"])
    return _karpathy(name, images, split)
  if not isinstance(values, list) or not values or not isinstance(values[0], dict):
    return None
  if video_tables.asks(values):
    return video_tables.questions(name, values, beside)
  listed = [key for key in ("regions", "qas") if isinstance(values[0].get(key), list)]
  return _visual_genome(name, values) if listed else None


def _karpathy(name: str, images: list[dict], split: str) -> Rows:
  if not any("sentences" in image for image in images):
    raise ValueError(f'{name} has "images", but neither "annotations" (COCO) nor "sentences" in them (Karpathy)')
  wanted = {"train": ("train", "restval")}.get(split, (split,))
  found = {str(image.get("split", "")) for image in images}
  if split and not found.intersection(wanted) and found != {""}:
    raise ValueError(f"{name} has no split {split!r}; it has: {', '.join(sorted(found))}")
  for number, image in enumerate(images, 1):
    if split and image.get("split") and image["split"] not in wanted:
      continue
    sentences = image.get("sentences")
    texts = [s.get("raw") for s in sentences if isinstance(s, dict)] if isinstance(sentences, list) else None
    path = image.get("filename", image.get("file_name"))
    if isinstance(path, str) and isinstance(image.get("filepath"), str):
      path = f"{image['filepath']}/{path}"
    yield f"{name}, image {number}", {"file_name": (path,), "caption": texts}


def _coco(name: str, images: list[dict], annotations: list) -> Rows:
  paths = {str(image["id"]): image.get("file_name") for image in images if "id" in image}
  if not any(isinstance(a, dict) and "caption" in a for a in annotations):
    raise ValueError(f'{name}: none of its "annotations" has a "caption"; COCO\'s are in captions_*.json')
  for number, annotation in enumerate(annotations, 1):
    where = f"{name}, annotation {number}"
    image = str(annotation.get("image_id")) if isinstance(annotation, dict) else ""
    if image not in paths:
      yield where, 'its "image_id" is none of the "images"'
    else:
      yield where, {"file_name": (paths[image],), "caption": annotation.get("caption")}


def _vqa(name: str, values: dict, beside: Callable[[str], bytes]) -> Rows:
  other = re.sub("(OpenEnded|MultipleChoice)_", "", name).replace("questions", "annotations")
  try:
    found = json.loads(beside(other)) if other != name else {}
    answers = {str(a.get("question_id")): a for a in found.get("annotations", ()) if isinstance(a, dict)}
  except FileNotFoundError:  # as of the test split
    answers = {}
  except (ValueError, RecursionError, AttributeError, TypeError) as e:
    raise ValueError(f"{other}, the answers to {name}: {e}") from None
  part = values.get("data_subtype") or values.get("data_type")
  for number, asked in enumerate(values["questions"], 1):
    where, image = f"{name}, question {number}", asked.get("image_id") if isinstance(asked, dict) else None
    if not isinstance(image, int):
      yield where, 'it has no "image_id"'
      continue
    given = answers.get(str(asked.get("question_id")), {}).get("answers")
    texts = [a.get("answer") for a in given if isinstance(a, dict)] if isinstance(given, list) else None
    names = f"COCO_{part}_{image:012d}.jpg", f"{image:012d}.jpg", f"{image}.jpg"
    yield (
      where,
      {"file_name": names, "question": asked.get("question"), "answers": texts, "#": asked.get("question_id")},
    )


def _visual_genome(name: str, images: list) -> Rows:
  for number, image in enumerate(images, 1):
    image = image if isinstance(image, dict) else {}
    file, where = f"{image.get('id', image.get('image_id'))}.jpg", f"{name}, image {number}"
    regions, asked_of = (found if isinstance(found := image.get(key), list) else () for key in ("regions", "qas"))
    for region in regions:
      yield where, {"file_name": (file,), "caption": region.get("phrase")} if isinstance(region, dict) else "no object"
    for asked in asked_of:
      if isinstance(asked, dict):
        answer = asked.get("answer")
        answer = answer.lower().rstrip(" .") if isinstance(answer, str) else answer
        row = {"question": asked.get("question"), "answers": answer, "#": asked.get("qa_id")}
        yield where, {"file_name": (file,)} | row
      else:
        yield where, "no object"


def flickr(name: str, text: str) -> Rows:
  """The rows of Flickr8k's and Flickr30k's files of tokens."""
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      image, _, caption = line.partition("\t")
      yield f"{name}, line {number}", {"file_name": (image.partition("#")[0],), "caption": caption}


def of_split(names: Sequence[str], split: str, setting: str, folder: str) -> list[str]:
  """The file of a split, among some of SNLI-VE's, MSR-VTT's or of questions about videos; all names where they are
  others.

  Raises:
    ValueError: none of SNLI-VE's is; the message has the other arguments.
  """
  msrvtt = "test_videodatainfo.json" if split == "test" else "train_val_videodatainfo.json"
  asked = f"{'val' if split == 'validation' else split}_qa.json"
  for name in (msrvtt, asked):
    if name in names:
      return [name]
  found = {match[1]: name for name in names if (match := HYPOTHESES.fullmatch(name))}
  if not found or len(found) < len(names):
    return list(names)
  if split not in found:
    raise ValueError(f"{setting} is {split!r}: {folder!r} has SNLI-VE's files of {', '.join(found)}; name one of these")
  return [found[split]]


def snli_ve(name: str, rows: Rows, notes: list[str]) -> Rows:
  """The rows of one of SNLI-VE's files. Those on which the annotators did not agree, '-', are left out and counted.

  Args:
    name: of the file.
    rows: its lines, read as JSON.
    notes: their number is appended in the end.
  """
  open_ = 0
  for where, row in rows:
    if not isinstance(row, dict):
      yield where, row
      continue
    image, label = row.get("Flickr30K_ID"), row.get("gold_label")
    if label == "-":
      open_ += 1
    elif not isinstance(image, str | int):
      yield where, 'it has no "Flickr30K_ID"'
    elif label not in LABELS:
      yield where, f'its "gold_label" is {label!r}, and none of {", ".join(LABELS)}'
    else:
      number = str(row["pairID"]).rpartition("#")[2] if "pairID" in row else None
      yield where, row | {"file_name": (f"{image}.jpg",), "caption": row.get("sentence2"), "label": label, "#": number}
  if open_:
    notes.append(
      f"{open_} rows of {name} have the gold_label '-', on which annotators did not agree: they are left out"
    )


def nlvr2(rows: Rows) -> Rows:
  """The rows of one of NLVR2's files, statements that are true or false of two images."""
  for where, row in rows:
    if not isinstance(row, dict):
      yield where, row
      continue
    pair, _, number = str(row.get("identifier", "")).rpartition("-")
    if not pair or str(row.get("label")) not in ("True", "False"):
      yield where, f'"identifier" is {row.get("identifier")!r} and "label" {row.get("label")!r}, not True or False'
    else:
      left, right = ((f"{pair}-img{side}.png",) for side in (0, 1))
      more = {"file_name": left, "second": right, "caption": row.get("sentence"), "label": str(row["label"])}
      yield where, row | more | {"#": number}
