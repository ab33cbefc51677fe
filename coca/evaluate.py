"""Evaluates a model: on data sets that are named, or with the evaluators of its own config or of another.

    python -m coca.evaluate --workdir=runs/tiny
    python -m coca.evaluate --model=models/clip_b32 --data=benchmarks --out=results
    python -m coca.evaluate --model=hf://org/name --data=coco --kind=retrieval --kind=captions --out=results
    python -m coca.evaluate --model=models/clip_b32 --config=my_evaluators.py --out=results
    python -m coca.evaluate --images=images.npy --texts=texts.npy

The first runs the evaluators of the run's config, prints their numbers, and writes `eval.json` and `contact_sheet.png`
into the working directory. With --data (a folder of CLIP_benchmark's, a tree of them, or any data that a source reads)
or --config, a table is printed, and OUT gets `results.json`, `results.html` and, of tasks in DataComp's list,
`eval_results.jsonl`. Data sets that are there already, of the same model and data, are not measured again. The last
ranks embeddings.
"""

import argparse
import runpy
import sys
from pathlib import Path

import jax

from coca import inference
from coca.config import Config, Eval, parse, to_dict
from coca.config.command_line import one_line
from coca.config.data_checks import check_prompts
from coca.data.prompts import CLIP_IMAGENET
from coca.devices import processes
from coca.evals import build, suite
from coca.evals.embeddings import retrieval
from coca.evals.evaluate import evaluate
from coca.evals.folders import DataSet, as_templates, data_sets
from coca.storage.checkpoint import CheckpointError


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.evaluate", description="Evaluate a model.")
  parser.add_argument("--model", "--workdir", help="working directory, converted model, or hf://org/name")
  parser.add_argument("--data", action="append", metavar="PATH", help="data set, or tree of them (may be repeated)")
  parser.add_argument("--config", help="file whose evaluators take the place of the model's own")
  parser.add_argument("--out", help="folder of the results; left out: MODEL/evaluation")
  parser.add_argument("--eval", action="append", metavar="NAME", help="only this evaluator (may be repeated)")
  parser.add_argument(
    "--kind", action="append", choices=list(build.KINDS), help="only this on --data (may be repeated)"
  )
  parser.add_argument("--templates", help="of --kind=zero_shot: a file with one a line, or 'imagenet': CLIP's 80")
  parser.add_argument("--batch", type=int, default=256, help="examples at once, or frames (%(default)s)")
  parser.add_argument("--limit", type=int, default=0, help="examples of each data set at most, spread over it; 0: all")
  parser.add_argument(
    "--frames",
    type=int,
    default=0,
    help="frames of each video; left out: as many as a class head has learned from, else 16, CoCa's (BLIP: 8)",
  )
  parser.add_argument(
    "--ema",
    action=argparse.BooleanOptionalAction,
    default=None,
    help="the parameters' moving average, or not; left out: where the run kept one",
  )
  parser.add_argument("--images", help="embeddings of images, a NumPy file, in place of a model")
  parser.add_argument("--texts", help="embeddings of texts")
  parser.add_argument("--owners", help="the image of each text, from 0; left out: as many texts for each, in order")
  parser.add_argument(
    "--allow_urls", action="store_true", help="open data in a bucket or on the web, too, that the workdir names"
  )
  parser.add_argument(
    "--coordinator",
    default="",
    help="host:port of the first of several processes, where no cluster is detected (coca/devices/processes.py)",
  )
  parser.add_argument("--processes", type=int, help="how many there are")
  parser.add_argument("--process_id", type=int, help="which this one is, from 0")
  parser.add_argument(
    "--timeout", type=int, default=processes.TIMEOUT, help="seconds that a process waits for another (%(default)s)"
  )
  args = parser.parse_args(argv)
  if bool(args.model) == bool(args.images) or bool(args.images) != bool(args.texts):
    parser.error("give --model (or --workdir); or --images and --texts, embeddings")
  for name, least in (("batch", 1), ("limit", 0), ("frames", 0)):
    if getattr(args, name) < least:
      parser.error(f"--{name}={getattr(args, name)}: it takes {least} or more")
  wrong = {}
  with (
    processes.together(),
    one_line(CheckpointError, OSError, status=processes.CRASHED),
    one_line(ValueError, FileNotFoundError, ImportError),
  ):
    if __name__ == "__main__":  # before anything else of jax
      processes.initialize(args.coordinator, args.processes, args.process_id, args.timeout)
    if args.images:
      for name, value in retrieval(args.images, args.texts, args.owners):
        print(f"{name:<48} {value:12.4f}")
    elif args.data or args.config:
      wrong = on_data(args)
    else:
      evaluate(args.model, args.eval, args.ema, args.allow_urls)
  if wrong:
    sys.exit("\n".join(f"error: {name}: {reason}" for name, reason in wrong.items()))


def on_data(args) -> dict[str, str]:
  """Measures a model on --data and the evaluators of --config; returns why data sets could not be, by their names."""
  if not args.out and "://" in args.model:
    raise ValueError(f"--model={args.model} is not on this machine: say where the results go, --out=FOLDER")
  model = inference.load(args.model, args.ema, jax.devices())
  config, train_sources, skipped = model.config, {}, {}
  sets: dict[str, DataSet] = {}
  if args.config:
    config = with_evaluators(config, args.config)
    sources, train_sources = build.open_sources(config, args.eval)
    sets = {name: DataSet(config.evals[name], source) for name, source in sources.items()}
  if args.data:
    templates = CLIP_IMAGENET if args.templates == "imagenet" else ()
    if args.templates and not templates:
      try:
        templates = as_templates(Path(args.templates).read_text(encoding="utf-8"))
      except UnicodeDecodeError as e:
        raise ValueError(f"--templates={args.templates} is no UTF-8 text: {e}") from None
      check_prompts(templates or ("",), args.templates)
    frames = args.frames or config.classification.frames or Eval().frames
    each = {"batch": args.batch, "limit": args.limit, "frames": frames}
    found, skipped = data_sets(config, args.data, args.kind or (), templates, **each)
    if twice := sorted(sets.keys() & found):
      raise ValueError(f"--config has an evaluator that is called as a data set of --data, {twice[0]}: rename it")
    sets |= found
  if jax.process_index() == 0:
    for name, reason in skipped.items():
      print(f"{name} is left out: it {reason}", flush=True)
  out = args.out or f"{args.model}/evaluation"
  results, wrong = suite.run(model, args.model, sets, out, train_sources, config)
  if jax.process_index() == 0 and results:
    print(f"\n{suite.aligned(suite.table(results))}\n\nin {out}: results.json, results.html", flush=True)
  return wrong


def with_evaluators(config: Config, text: str) -> Config:
  """A model's settings with the evaluators of a config file, as configs/coca_tiny.py:runlocal, and its sources.

  Raises:
    ValueError, FileNotFoundError: no such file, it makes no config, or an evaluator that the model lacks the parts for.
  """
  path, _, argument = text.partition(":")
  module = runpy.run_path(path)
  if "get_config" not in module:
    raise ValueError(f"--config={path}: it has no function get_config")
  theirs, whole = module["get_config"](argument or None).to_dict(), to_dict(config).to_dict()
  return parse(whole | {"evals": theirs["evals"], "data": whole["data"] | {"sources": theirs["data"]["sources"]}})


if __name__ == "__main__":
  main()
