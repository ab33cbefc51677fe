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

from coca import evals, inference
from coca.config.command_line import one_line
from coca.data.sources import check_places
from coca.devices import processes
from coca.evals.contact_sheet import write_contact_sheet
from coca.files.finding import write_atomic
from coca.storage.checkpoint import CheckpointError
from coca.storage.workdir import read_workdir


def evaluate(workdir, names: list[str] | None = None, ema: bool | None = None,
             allow_urls: bool = False) -> dict[str, float]:
  """Runs evaluators on the newest checkpoint of a working directory.

  Args:
    workdir: what `python -m coca.train --workdir=...` wrote.
    names: of evaluators in the run's config; None: all.
    ema: as for `coca.inference.load`.
    allow_urls: whether data in a bucket or on the web may be opened, which the workdir's config names. What is opened
      is printed.

  Returns:
    {'eval/<evaluator>/<name>': number}, as written to `eval.json`.

  Raises:
    ValueError: an unknown evaluator, a config without any, or one that names URLs that may not be opened.
    FileNotFoundError: no working directory, no checkpoint, or an evaluator's data is missing.
  """
  config, tokenizer = read_workdir(workdir)
  if not config.evals:
    raise ValueError(f"the config of {workdir} has no evaluators (config.evals is empty)")
  check_places(evals.places(config, names), allow_urls, f"{workdir}/config.json")
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
    write_atomic(f"{workdir}/eval.json", (json.dumps(finite, indent=2) + "\n").encode())
  return numbers


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.evaluate", description="Evaluate a working directory.")
  parser.add_argument("--workdir", required=True, help="what coca.train wrote")
  parser.add_argument("--eval", action="append", metavar="NAME", help="only this evaluator (may be repeated)")
  parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=None,
                      help="the parameters' moving average, or not; left out: where the run kept one")
  parser.add_argument("--allow_urls", action="store_true", help="open data in a bucket or on the web, too, that the "
                      "workdir names")
  parser.add_argument("--coordinator", default="", help="host:port of the first of several processes, where no "
                      "cluster is detected (coca/devices/processes.py)")
  parser.add_argument("--processes", type=int, help="how many there are")
  parser.add_argument("--process_id", type=int, help="which this one is, from 0")
  parser.add_argument("--timeout", type=int, default=processes.TIMEOUT,
                      help="seconds that a process waits for another (%(default)s)")
  args = parser.parse_args(argv)
  with (processes.together(), one_line(CheckpointError, OSError, status=processes.CRASHED),
        one_line(ValueError, FileNotFoundError, ImportError)):
    if __name__ == "__main__":  # before anything else of jax
      processes.initialize(args.coordinator, args.processes, args.process_id, args.timeout)
    evaluate(args.workdir, args.eval, args.ema, args.allow_urls)


if __name__ == "__main__":
  main()
