"""Writes captions for pictures: JSON lines, and a page to look at.

    python -m coca.caption photos/ cat.jpg --model=runs/tiny --out=captions.jsonl --html=captions.html

A line for each picture, in the order given: {"image": "photos/cat.jpg", "caption": "a cat"}; with --n above 1
"captions" lists all, best first; a picture that can't be read has "error" instead. Without --out, path and caption are
printed.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from coca import inference
from coca.checkpoint import CheckpointError
from coca.commands import one_line
from coca.decoding.settings import Decoding, unknown
from coca.page import Page

BATCH = 64


def read_all(model, paths: Sequence[Path]) -> Iterator[list[tuple[Path, object, str]]]:
  """Batches of (path, uint8 [S, S, 3] or None, why not), in order; threads prepare the next batch meanwhile."""
  def read(path):
    try:
      return path, model.prepare(path), ""
    except ValueError as e:
      return path, None, str(e)

  with ThreadPoolExecutor() as pool:
    ahead = []
    for start in range(0, len(paths) + BATCH, BATCH):
      ahead.append([pool.submit(read, path) for path in paths[start:start + BATCH]])
      if start:
        yield [future.result() for future in ahead.pop(0)]


def expand(images: Sequence[str]) -> list[Path]:
  """Files as they are, folders as the pictures in them (`inference.images_in`); each once."""
  found = [path for image in images
           for path in (inference.images_in(image) if os.path.isdir(image) else [Path(image)])]
  return list(dict.fromkeys(found))


def caption(model, images: Sequence[str], out=None, html=None, **settings) -> tuple[int, int]:
  """Captions pictures and writes the files.

  Args:
    model: from `coca.load`.
    images: files and folders.
    out: JSON lines; None: printed. It has its name when it is complete.
    html: a page; None: none.
    settings: of `model.caption`.

  Returns:
    how many pictures were captioned, and how many could not be read.
  """
  paths = expand(images)
  good = 0
  with contextlib.ExitStack() as stack:
    page = stack.enter_context(Page(html, f"{len(paths)} captions")) if html else None
    partial = Path(f"{out}.partial")
    # Names need not be UTF-8: escaped in the JSON they are the same when they are read.
    lines = stack.enter_context(open(partial, "w", encoding="utf-8", errors="backslashreplace")) if out else None
    bar = stack.enter_context(tqdm(total=len(paths), unit=" pictures", disable=None if out else True))
    for batch in read_all(model, paths):
      usable = [(path, pixels) for path, pixels, _ in batch if pixels is not None]
      # By its path and not by its place, so that a picture's samples are the same in any batch.
      ids = [zlib.crc32(os.fsencode(path)) for path, _ in usable]
      texts = iter(model.caption([pixels for _, pixels in usable], ids=ids, **settings) if usable else [])
      for path, pixels, error in batch:
        captions = [] if error else next(texts)
        captions = [captions] if isinstance(captions, str) else captions
        good += not error
        if page:
          page.add(str(path), pixels, captions, error)
        if not lines:
          for text in captions or [f"error: {error}"]:
            print(f"{os.fsencode(path).decode('utf-8', 'replace')}\t{text}", flush=True)
          continue
        line = {"image": str(path)} | ({"error": error} if error else {"caption": captions[0]})
        if len(captions) > 1:
          line["captions"] = captions
        lines.write(json.dumps(line, ensure_ascii=False) + "\n")
      bar.update(len(batch))
  if out:
    os.replace(partial, out)
  return good, len(paths) - good


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.caption", description="Write captions for pictures.")
  parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture, or folder of pictures")
  parser.add_argument("--model", required=True, help="working directory, converted model, or hf://org/name")
  parser.add_argument("--out", help="JSON lines, one a picture; left out: printed")
  parser.add_argument("--html", help="a page with the pictures")
  parser.add_argument("--prompt", help="what every caption begins with")
  how = parser.add_argument_group("how captions are written", "see coca/decoding/settings.py")
  for field in dataclasses.fields(Decoding):
    if field.type is bool:
      how.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, default=field.default)
    else:
      how.add_argument(f"--{field.name}", type=field.type, default=field.default, metavar=str(field.default))
  args, rest = parser.parse_known_args(argv)
  if rest:
    parser.error(unknown(rest[0].split("=")[0].removeprefix("--")))
  args = vars(args)
  with one_line(ValueError, ImportError, OSError, CheckpointError):
    good, bad = caption(inference.load(args.pop("model")), **args)
  if bad:
    print(f"{bad} of {good + bad} pictures could not be read; each has an error in its line", file=sys.stderr)
  if not good:
    sys.exit(1)


if __name__ == "__main__":
  main()
