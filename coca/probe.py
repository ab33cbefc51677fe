"""Measures the features of a frozen model by linear classifiers: on all training images, or on a few of each class.

    python -m coca.probe --model=models/clip_b32 --train=wds_cars --test=wds_cars --out=results
    python -m coca.probe --model=models/clip_b32 --train=wds_cars --test=wds_cars --out=results --shots=1,2,4,8,16
    python -m coca.probe --model=runs/tiny --config=configs/finetune_classify.py:init_from=runs/tiny,tiny --limit=4000

It is CLIP's protocol (arXiv 2103.00020, appendix A.3; docs/transfer.md). --train, --val and --test take what
`coca.evaluate` takes as --data; of a data set with splits they take the one of their name. --config takes a labelled
source and the evaluators' data from a config file. OUT gets `linear.json` or `few_shot.json`, and `features/`, with
which another run has no image to embed.
"""

import argparse
import json
import math
import re
import runpy
import zlib
from dataclasses import replace

import numpy as np

from coca import inference
from coca.config import Source, parse
from coca.config.command_line import one_line
from coca.data.embeddings import Embedded, States
from coca.data.sources import open_source
from coca.evals.folders import split_of
from coca.evals.linear import METRICS, Features, few_shot, linear, numbered_as, usable
from coca.evals.stream import View, spread
from coca.evals.suite import aligned
from coca.files.writing import write_atomic
from coca.inference.captioner import ContrastiveCaptioner
from coca.inference.embeddings import fill
from coca.inference.identity import identity
from coca.storage.checkpoint import CheckpointError


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.probe", description="Measure frozen features.")
  parser.add_argument(
    "--model", "--workdir", required=True, help="working directory, converted model, or hf://org/name"
  )
  parser.add_argument("--train", metavar="PATH", help="labelled data to learn from")
  parser.add_argument("--val", metavar="PATH", help="labelled data that choose lambda; left out: a fifth of --train")
  parser.add_argument("--test", action="append", metavar="PATH", help="labelled data to measure (may be repeated)")
  parser.add_argument("--config", help="file whose source and evaluators' data take the place of --train and --test")
  parser.add_argument("--out", help="folder of the results and the features; left out: MODEL/probe")
  parser.add_argument("--shots", help="images of each class to learn from, such as 1,2,4,8,16; left out: all")
  parser.add_argument("--seeds", type=int, default=5, help="of --shots: draws of the images (%(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="of the fifth of --train (%(default)s)")
  parser.add_argument("--metric", choices=METRICS, default=METRICS[0], help="what chooses lambda (%(default)s)")
  parser.add_argument("--lambda", dest="penalty", type=float, default=0.0, help="it is then not looked for")
  parser.add_argument("--batch", type=int, default=256, help="images at once (%(default)s)")
  parser.add_argument("--limit", type=int, default=0, help="images of each data set at most, spread over it; 0: all")
  parser.add_argument(
    "--ema",
    action=argparse.BooleanOptionalAction,
    default=None,
    help="the parameters' moving average, or not; left out: where the run kept one",
  )
  args = parser.parse_args(argv)
  if bool(args.config) == bool(args.train) or bool(args.train) != bool(args.test):
    parser.error("give --train and --test, or --config")
  if args.shots and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", args.shots):
    parser.error(f"--shots={args.shots}: numbers of images with commas between them, such as 1,2,4")
  with one_line(CheckpointError, OSError, ValueError, ImportError):
    probe(args)


def probe(args) -> None:
  """Embeds what is not embedded yet, measures, prints a table and writes the results."""
  if not args.out and "://" in args.model:
    raise ValueError(f"--model={args.model} is not on this machine: say where the results go, --out=FOLDER")
  if args.seeds < 1 or args.batch < 1 or args.limit < 0 or not 0 <= args.penalty < math.inf:
    raise ValueError("--seeds and --batch take 1 or more, --limit and --lambda 0 or more")
  out, sources = args.out or f"{args.model}/probe", named(args)
  model = inference.load(args.model, args.ema)
  opened = {name: _opened(*x, args.limit, f"--{name.split()[0]}") for name, x in sources.items()}
  found = features(model, f"{out}/features", opened, args.batch)
  train = found.pop("train")
  found = {name: numbered_as(train, x, f"--{name}") for name, x in found.items()}
  val, tests = found.pop("val", None), {name.removeprefix("test "): x for name, x in found.items()}
  data = tests, val, args.metric
  if args.shots:
    shots = sorted({int(k) for k in args.shots.split(",")})
    numbers = few_shot(train, *data, shots, args.seeds, args.penalty)
  else:
    numbers = linear(train, *data, args.seed, args.penalty)
  result = {
    "model": {"path": args.model, "identity": identity(model)},
    "train": {"images": len(train.label), "classes": len(np.unique(train.label))},
    "results": numbers,
  }
  name = "few_shot.json" if args.shots else "linear.json"
  write_atomic(f"{out}/{name}", (json.dumps(result, indent=2) + "\n").encode())
  print(f"\n{aligned(table(numbers, tests))}\n\nin {out}: {name}", flush=True)


def named(args) -> dict[str, tuple[Source, int]]:
  """'train', 'test NAME' and, where it is given, 'val': the sources and the most images of each, 0: all."""
  if not args.config:
    sources = {"train": split_of(args.train, "train")} | ({"val": split_of(args.val, "val")} if args.val else {})
    tests = {path.rstrip("/").rpartition("/")[2]: split_of(path, "test") for path in args.test}
    if len(tests) < len(args.test):
      raise ValueError(f"--test: two data sets are called alike; measure them one by one: {', '.join(args.test)}")
    return {name: (x, 0) for name, x in (sources | {f"test {name}": x for name, x in tests.items()}).items()}
  path, _, argument = args.config.partition(":")
  module = runpy.run_path(path)
  if "get_config" not in module:
    raise ValueError(f"--config={path}: it has no function get_config")
  config = parse(module["get_config"](argument or None))
  if len(config.data.sources) != 1 or not config.evals:
    raise ValueError(f"--config={path} needs one training source and evaluators; or give --train and --test")
  (train,) = config.data.sources.values()
  val = {"val": (split_of(args.val, "val"), 0)} if args.val else {}
  return {"train": (train, 0), **val} | {f"test {name}": (e.source, e.limit) for name, e in config.evals.items()}


def _opened(source: Source, most: int, limit: int, where: str) -> View:
  opened = open_source(source, where)
  if not opened.label_names:
    raise ValueError(f"{where}: '{opened.name}' has no labels; docs/own-data.md says what each format takes for them")
  most = min(x for x in (most or len(opened), limit or len(opened)))
  return View(opened, spread(len(opened), most), lambda _, record: record.label)


def features(model: ContrastiveCaptioner, folder: str, sources: dict[str, View], batch: int) -> dict[str, Features]:
  """Features of all images of the sources that can be used, from `folder` where it has them.

  Raises:
    ValueError: the model makes none, or a data set has no image that can be used.
  """
  config = replace(model.config, data=replace(model.config.data, batch=batch))
  states = States("pooled", (model.forward.feature_width,), labelled=True)
  places = {f"{_folder_name(f'{name}-{x.name}')}-{len(x)}": x for name, x in sources.items()}
  for line in fill(folder, "--out", states, config, model.forward, model.params, places):
    print(line, flush=True)
  found = {}
  for name, (place, source) in zip(sources, places.items(), strict=True):
    found[name] = usable(Embedded(folder, place, source, states), source.label_names)
    if not len(found[name].label):
      raise ValueError(f"none of the {len(source)} images of '{source.name}' can be read and has a label")
    if left_out := len(source) - len(found[name].label):
      print(f"{name}: {left_out:,} of {len(source):,} images are left out, broken or without a label", flush=True)
  return found


def _folder_name(name: str) -> str:
  """The name without what folders' names may not have; others that would be called alike differ by a checksum."""
  short = re.sub(r"[^A-Za-z0-9.-]+", "_", name)[-100:]
  same = short == re.sub(r"[/\\:_]+", "_", name)
  return short if same else f"{short}-{zlib.crc32(name.encode('utf-8', 'surrogateescape')):08x}"


def table(numbers: dict, tests: dict[str, Features]) -> list[tuple[str, ...]]:
  """A line of heads, then a line for each data set and number of images to learn from."""
  rows: list[tuple[str, ...]] = [("data set", "images", "learned from", "lambda", *METRICS, "")]
  for name, test in tests.items():
    images = str(len(test.label))
    if "tests" in numbers:
      values = [f"{numbers['tests'][name][m]:.4f}" for m in METRICS]
      rows.append((name, images, "all", f"{numbers['lambda']:.3g}", *values, ""))
      continue
    for k, of_k in numbers.items():
      found = [of_k["tests"][name][m] for m in METRICS]
      values = [f"{x['mean']:.4f} +- {x['half_width']:.4f}" if x["half_width"] else f"{x['mean']:.4f}" for x in found]
      lambdas = sorted(set(of_k["lambda"]))
      said = f"{lambdas[0]:.3g}" + (f" to {lambdas[-1]:.3g}" if len(lambdas) > 1 else "")
      seeds = f"{len(of_k['lambda'])} draws"
      rows.append((name, images, f"{k} a class", said, *values, seeds))
  return rows


if __name__ == "__main__":
  main()
