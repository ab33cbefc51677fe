"""Evaluates a working directory: every number of its config's evaluators, and a contact sheet.

    python -m coca.evaluate --workdir=runs/tiny
    python -m coca.evaluate --workdir=runs/tiny --eval=twemoji

Prints a table, and writes `eval.json` and `contact_sheet.png` into the working directory.
"""

import argparse
import json
import math
from pathlib import Path

import jax

from coca import distributed, evals, inference
from coca.checkpoint import CheckpointError
from coca.commands import one_line
from coca.evals.pictures import write_contact_sheet
from coca.workdir import read_workdir


def evaluate(workdir, names: list[str] | None = None, ema: bool | None = None) -> dict[str, float]:
  """Runs evaluators on the newest checkpoint of a working directory.

  Args:
    workdir: what `python -m coca.train --workdir=...` wrote.
    names: of evaluators in the run's config; None: all.
    ema: as for `coca.inference.load`.

  Returns:
    {'eval/<evaluator>/<name>': number}, as written to `eval.json`.

  Raises:
    ValueError: an unknown evaluator, or a config without any.
    FileNotFoundError: no working directory, no checkpoint, or an evaluator's data is missing.
  """
  config, tokenizer = read_workdir(workdir)
  if not config.evals:
    raise ValueError(f"the config of {workdir} has no evaluators (config.evals is empty)")
  sources = evals.open_sources(config, names)
  model = inference.load(workdir, ema, jax.devices())
  evaluators = evals.make_evaluators(config, model.forward, tokenizer, *sources)
  numbers = {}
  for name, value in evals.run_all(evaluators, model.params):
    numbers[name] = value
    if jax.process_index() == 0:
      print(f"{name:<48} {value:12.4f}", flush=True)
  write_contact_sheet(evaluators, model.params, Path(workdir) / "contact_sheet.png")
  if jax.process_index() == 0:
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}  # JSON has no NaN
    (Path(workdir) / "eval.json").write_text(json.dumps(finite, indent=2) + "\n")
  return numbers


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.evaluate", description="Evaluate a working directory.")
  parser.add_argument("--workdir", required=True, help="what coca.train wrote")
  parser.add_argument("--eval", action="append", metavar="NAME", help="only this evaluator (may be repeated)")
  parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=None,
                      help="the parameters' moving average, or not; left out: where the run kept one")
  parser.add_argument("--coordinator", default="", help="host:port of the first of several processes, where no "
                      "cluster is detected (coca/distributed.py)")
  parser.add_argument("--processes", type=int, help="how many there are")
  parser.add_argument("--process_id", type=int, help="which this one is, from 0")
  parser.add_argument("--timeout", type=int, default=distributed.TIMEOUT,
                      help="seconds that a process waits for another (%(default)s)")
  args = parser.parse_args(argv)
  with (distributed.together(), one_line(CheckpointError, OSError, status=distributed.CRASHED),
        one_line(ValueError, FileNotFoundError, ImportError)):
    if __name__ == "__main__":  # before anything else of jax
      distributed.initialize(args.coordinator, args.processes, args.process_id, args.timeout)
    evaluate(args.workdir, args.eval, args.ema)


if __name__ == "__main__":
  main()
