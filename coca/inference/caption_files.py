"""Captions of many images: JSON lines, text files beside the images, a page to look at."""

import contextlib
import dataclasses
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from coca.decoding.settings import Decoding, make_decoding
from coca.files.threads import read_ahead
from coca.files.writing import write_atomic
from coca.inference import images as image_files
from coca.inference.identity import identity
from coca.inference.json_lines import JsonLines
from coca.inference.page import MOST, Page

BATCH = 64


def read_all(model, paths: Sequence[Path | str]) -> Iterator[list[tuple[Path | str, object, str]]]:
  """Batches of (path, uint8 [S, S, 3] or None, why not), in order; threads prepare the next batch meanwhile."""

  def read(path):
    try:
      return path, model.prepare(path), ""
    except ValueError as e:
      return path, None, str(e)

  found = read_ahead(read, paths, ahead=2 * BATCH)
  while batch := list(itertools.islice(found, BATCH)):
    yield batch


def expand(images: Sequence[str]) -> list[Path | str]:
  """Files and URLs as they are, folders as the images in them (`coca.inference.images.images_in`); each once."""
  found = [
    path
    for image in images
    for path in (
      image_files.images_in(image)
      if image_files.is_folder(image)
      else [image if image_files.is_url(image) else Path(image)]
    )
  ]
  return list(dict.fromkeys(found))


def captioned(model, paths: Sequence[Path | str], **settings) -> Iterator[list[tuple[dict, object]]]:
  """Batches of (line, uint8 [S, S, 3] or None where it can't be read), in order. `settings` of `model.caption`."""
  for batch in read_all(model, paths):
    usable = [(path, pixels) for path, pixels, _ in batch if pixels is not None]
    # By its path and not by its place, so that an image's samples are the same in any batch.
    ids = [zlib.crc32(os.fsencode(path)) for path, _ in usable]
    texts = iter(model.caption([pixels for _, pixels in usable], ids=ids, **settings) if usable else [])
    made = []
    for path, pixels, error in batch:
      line = {"image": str(path), "error": error}
      if not error:
        captions = next(texts)
        captions = [captions] if isinstance(captions, str) else captions
        line = {"image": str(path), "caption": captions[0]} | ({"captions": captions} if len(captions) > 1 else {})
      made.append((line, pixels))
    yield made


def captions_of(line: dict) -> list[str]:
  """The captions in a line, best first; none where there is an error."""
  return line.get("captions") or ([line["caption"]] if "caption" in line else [])


def caption(
  model, images: Sequence[str], out=None, html=None, txt: bool = False, overwrite: bool = False, **settings
) -> tuple[int, int, int]:
  """Captions images and writes the files.

  Args:
    model: from `coca.load`.
    images: files, folders and URLs.
    out: JSON lines; None: printed. It has its name when it is complete; OUT.partial of a run before is gone on with.
    html: a page; None: none.
    txt: whether NAME.txt beside each image gets the caption.
    overwrite: whether it does where there is one that says something else.
    settings: of `model.caption`.

  Returns:
    how many images were captioned, how many could not be read, and how many texts beside them were left as they were.

  Raises:
    ValueError: OUT.partial is of other settings, another model or other images; files that can't be written where
      they are asked for; or as `model.caption`.
  """
  for name, path in (("out", out), ("html", html)):
    if path and image_files.is_url(path):
      raise ValueError(f"--{name} {path} is a URL; it takes a local path")
  paths = expand(images)
  beside = text_files(paths) if txt else {}
  good = left = 0
  with contextlib.ExitStack() as stack:
    lines, done = None, []
    if out:
      about = {"model": identity(model), **described(settings)}
      lines = JsonLines(out, about, "image", list(map(str, paths)), BATCH)
      stack.callback(lines.close)
      done = list(map(json.loads, lines.done))
    bar = stack.enter_context(tqdm(total=len(paths), initial=len(done), unit=" images", disable=None if out else True))
    page = stack.enter_context(Page(html, f"{len(paths)} captions")) if html else None

    def show(line, pixels):
      nonlocal good, left
      good += "caption" in line
      if page:
        page.add(line["image"], pixels, captions_of(line), line.get("error", ""))
      if txt and "caption" in line:
        left += not write_text(beside[line["image"]], line["caption"], overwrite)

    seen = (
      pixels for batch in read_all(model, paths[: min(len(done), MOST)] if page else ()) for _, pixels, _ in batch
    )
    for line, pixels in zip(done, itertools.chain(seen, itertools.repeat(None)), strict=False):
      show(line, pixels)
    for batch in captioned(model, paths[len(done) :], **settings):
      for line, pixels in batch:
        show(line, pixels)
        for text in () if lines else captions_of(line) or [f"error: {line['error']}"]:
          print(f"{os.fsencode(line['image']).decode('utf-8', 'replace')}\t{text}", flush=True)
      if lines:
        lines.add([line for line, _ in batch])
      bar.update(len(batch))
    if lines:
      lines.finish()
  return good, len(paths) - good, left


def described(settings: dict) -> dict:
  """The settings that decide what is written, without defaults: one that is newer than a run does not change it."""
  default, prompt = Decoding(), {"prompt": settings["prompt"]} if settings.get("prompt") else {}
  decoding = make_decoding(**{name: value for name, value in settings.items() if name != "prompt"})
  return prompt | {
    name: value for name, value in dataclasses.asdict(decoding).items() if value != getattr(default, name)
  }


def text_files(paths: Sequence[Path | str]) -> dict[str, str]:
  """An image's name -> that of the text beside it.

  Raises:
    ValueError: two images would have one, or it lies on the web.
  """
  found, taken = {}, {}
  for name in map(str, paths):
    if name.startswith(image_files.WEB):
      raise ValueError(f"--txt writes beside the images, which {name} does not allow; leave it out")
    found[name] = f"{os.path.splitext(name)[0]}.txt"
    if (other := taken.setdefault(found[name], name)) != name:
      raise ValueError(f"{other} and {name} would both have {found[name]}: rename one of them, or leave --txt out")
  return found


def write_text(name: str, text: str, overwrite: bool) -> bool:
  """Writes a file, all of it or nothing; False if there is one that says something else and is to stay."""
  if not overwrite:
    with contextlib.suppress(FileNotFoundError):
      return image_files.read(name) == text.encode()
  write_atomic(name, text.encode())
  return True
