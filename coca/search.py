"""Finds images by a text or by an image: an index of their embeddings, the closest ones, and a page to look at.

    python -m coca.search INDEX --data=photos --model=runs/tiny
    python -m coca.search INDEX "a red car"
    python -m coca.search INDEX "a red car" "a dog" --image=cat.jpg --k=20 --html=found.html

The first embeds images: of a folder, of tars, Parquet files or tfds' folders, 'builtin:SPLIT'. Killed, the same command
goes on; later it embeds only what is new. The others print a line for each image that is found, its cosine and where it
is, the closest first. They take the model that made the index, from where it was, and refuse another.

Of an index of many images the command makes a graph for approximate search, if usearch is there
(pip install -e '.[search]'); without one all images are compared.
"""

import argparse
import functools
import os
import sys

import numpy as np

from coca import inference
from coca.config.command_line import one_line
from coca.config.differing import listed
from coca.evals.folders import open_images, source_of
from coca.inference.images import is_url
from coca.inference.page import Page
from coca.inference.search_index import GRAPH, SearchIndex, has_usearch, make_index, read_found
from coca.storage.checkpoint import CheckpointError
from coca.storage.lock import Locked, locked


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.search", description="Find images by a text or an image.")
  parser.add_argument("index", metavar="INDEX", help="folder of the index")
  parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to look for")
  parser.add_argument("--image", action="append", default=[], help="an image to look for the like of (may be repeated)")
  parser.add_argument("--data", action="append", default=[], metavar="PATH", help="images to add (may be repeated)")
  parser.add_argument("--model", help="working directory, converted model, or hf://org/name; left out: the index's")
  parser.add_argument("--k", type=int, default=10, help="images that are found (%(default)s)")
  parser.add_argument("--html", help="a page with the images")
  parser.add_argument("--exact", action="store_true", help="compare all images, also where there is a graph")
  parser.add_argument(
    "--graph",
    action=argparse.BooleanOptionalAction,
    default=None,
    help=f"make a graph for approximate search, or not; left out: from {GRAPH:,} images on, with usearch",
  )
  parser.add_argument(
    "--allow_urls", action="store_true", help="show images in a bucket or on the web in the page, too"
  )
  args, rest = parser.parse_known_args(argv)
  if unknown := [word for word in rest if word.startswith("-")]:
    parser.error(f"unknown: {' '.join(unknown)}")
  args.texts += rest  # argparse takes none that comes behind a flag, where INDEX comes before it
  if not (args.texts or args.image or args.data):
    parser.error("give a TEXT or --image to look for, or --data to add")
  if args.html and not (args.texts or args.image):
    parser.error("--html shows what is found: give a TEXT or --image, too")
  if args.graph is not None and not args.data:
    parser.error("--graph and --no-graph are said with --data; images that are there are not embedded again")
  if args.k < 1:
    parser.error(f"--k={args.k}: it has to be above 0")
  with one_line(ValueError, ImportError, OSError, CheckpointError, Locked):
    if is_url(args.index):
      raise ValueError(f"{args.index} is a URL; an index is a local folder")
    name = _whole(args.model) if args.model else SearchIndex(args.index).model
    if not args.model and is_url(name):
      raise ValueError(f"{args.index} is of a model that is not on this machine: give it, --model={name}")
    if args.graph and not has_usearch():
      raise ImportError("--graph takes usearch: pip install -e '.[search]'")
    model = inference.load(name)
    if args.data:
      add(args.index, model, name, args.data, args.graph)
    if args.texts or args.image:
      index = SearchIndex(args.index)
      index.check(model, name)
      if not len(index):
        raise ValueError(f"{args.index} has no images yet: add some, --data=PATH")
      search(index, model, args)


def add(folder: str, model, name: str, paths: list[str], graph: bool | None) -> None:
  """Brings an index up to the images at `paths`."""
  # A path that is wrong is said before anything is written.
  for path in paths:
    if source_of(_whole(path)).kind == "folder" and not is_url(path) and not os.path.exists(_whole(path)):
      raise FileNotFoundError(f"{path}: no such file or directory")
  opened = [open_images(_whole(path)) for path in paths]
  with locked(folder):
    index = make_index(folder, model, name)
    for images in opened:
      added, there, broken = index.add(model, images)
      said = f"{images.path}: {added} images embedded, {there} were there"
      print(said + (f", {broken} can't be read" if broken else ""), file=sys.stderr)
      if images.problems:
        print(listed(images.problems), file=sys.stderr)
    if not len(index):
      raise ValueError(f"{folder}: no image could be read")
    if graph or (graph is None and len(index) >= GRAPH and has_usearch()):
      index.build_graph()


def search(index: SearchIndex, model, args) -> None:
  """Prints what is found, and writes the page."""
  names = [*args.texts, *args.image]
  images = list(map(model.prepare, args.image))
  queries = np.concatenate([model.embed_texts(args.texts), model.embed_images(images)])
  found = index.search(queries, args.k, args.exact)
  for name, each in zip(names, found, strict=True):
    if len(names) > 1:
      print(f"{name}:")
    for one in each:
      print(f"{one.cosine:.3f}\t{os.fsencode(one.key).decode('utf-8', 'replace')}")
  if args.html:
    opened = functools.cache(open_images)
    with Page(args.html, names[0] if len(names) == 1 else f"{len(names)} searches") as page:
      for i, (name, each) in enumerate(zip(names, found, strict=True)):
        if i >= len(args.texts):
          page.add(name, images[i - len(args.texts)], ["looked for"])
        for one in each:
          pixels, error = read_found(model, one, opened, args.allow_urls)
          text = f"{one.cosine:.3f}" + (f" {name}" if len(names) > 1 else "")
          page.add(one.key, pixels, [text], f"{text}: {error}" if error else "")


def _whole(path: str) -> str:
  """A path that is right from any folder."""
  return path if is_url(path) or path.startswith("builtin:") else os.path.abspath(path)


if __name__ == "__main__":
  main()
