"""The organisers' JSON, in which are the ids by which servers of evaluations know images and questions.

    COCO, NoCaps   {"images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}, ...]}; NoCaps' have a "domain":
                   "in-domain", "near-domain" or "out-domain"
    VQA            {"questions": [{"question_id": 42000, "image_id": 42, "question": "What is it?"}, ...]}

The servers take [{"image_id": 42, "caption": "a dog"}, ...] and [{"question_id": 42000, "answer": "yes"}, ...].
An image is found by the name of its file without its ending, whatever folder or tar it lies in, or by its number.
"""

import json
import re
from typing import NamedTuple

import fsspec

from coca.config.typed import entry, read_object
from coca.data.questions import clean
from coca.evals.evaluator import Evaluator
from coca.files import reading
from coca.files.retries import Unavailable
from coca.files.writing import write_atomic


class Image(NamedTuple):
  """An image as its organisers know it."""

  id: int
  domain: str  # 'in', 'near', 'out'; empty: it has none


def read_images(path: str) -> dict[str, Image]:
  """The images of a file, by the names of their files and by their numbers.

  Raises:
    ValueError: it can't be read, or is another file; the message names it.
  """
  names, numbers = {}, {}
  for values in _entries(path, "images"):
    image = Image(entry(values, "id", int, most=2**53), entry(values, "domain", "").removesuffix("-domain"))
    names[_stem(entry(values, "file_name", str))] = numbers[str(image.id)] = image
  return numbers | names  # a file may be called as another image's number


def read_questions(path: str) -> dict[tuple[str, str], list[int]]:
  """The ids of the questions of a file, by the number of the image and the question; a few are there twice.

  Raises:
    ValueError: as `read_images`.
  """
  found: dict[tuple[str, str], list[int]] = {}
  for values in _entries(path, "questions"):
    place = str(entry(values, "image_id", int, most=2**53)), clean(entry(values, "question", str))
    found.setdefault(place, []).append(entry(values, "question_id", int, most=2**53))
  return found


def image_of(images: dict[str, Image], key: str) -> Image:
  """The image of a record, by its key. Raises ValueError if there is none."""
  image = images.get(_stem(key)) or images.get(_number(key))
  if image is None:
    raise ValueError(f"annotations: there is no image called {key!r} in it; take the file of the data's own images")
  return image


def questions_of(questions: dict[tuple[str, str], list[int]], key: str, question: str) -> list[int]:
  """The ids of a record's question. Raises ValueError if there is none."""
  ids = questions.get((_number(key), clean(question)))
  if ids is None:
    raise ValueError(
      f"annotations: there is no question {question!r} about an image {key!r} in it; take the file of the data's own "
      "questions"
    )
  return ids


def write_results(evaluator: Evaluator, path) -> None:
  """Writes what a server takes of an evaluator's last run, if anything."""
  if evaluator.results:
    write_atomic(path, json.dumps(list(evaluator.results)).encode())


def _entries(path: str, name: str) -> list[dict]:
  try:
    return entry(read_object(reading.read_all(*fsspec.core.url_to_fs(path))), name, list)
  except Unavailable:
    raise
  except (OSError, ValueError) as e:
    raise ValueError(
      f"annotations: {path!r} can't be used ({e}); it takes the organisers' JSON file with the list \"{name}\""
    ) from None


def _stem(key: str) -> str:
  return key.rpartition("/")[2].partition("#")[0].partition(".")[0]


def _number(key: str) -> str:
  """The last digits of a name, as in COCO_val2014_000000000042."""
  digits = re.search(r"\d+$", _stem(key))
  return str(int(digits[0])) if digits else ""
