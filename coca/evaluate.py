"""Evaluates a working directory: every number of its config's evaluators, and a contact sheet.

    python -m coca.evaluate --workdir=runs/tiny
    python -m coca.evaluate --workdir=runs/tiny --eval=twemoji

Prints a table, and writes `eval.json` and `contact_sheet.png` into the working directory.
"""

import argparse

from coca.config.command_line import one_line
from coca.devices import processes
from coca.evals.evaluate import evaluate
from coca.storage.checkpoint import CheckpointError


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.evaluate", description="Evaluate a working directory.")
  parser.add_argument("--workdir", required=True, help="what coca.train wrote")
  parser.add_argument("--eval", action="append", metavar="NAME", help="only this evaluator (may be repeated)")
  parser.add_argument(
    "--ema",
    action=argparse.BooleanOptionalAction,
    default=None,
    help="the parameters' moving average, or not; left out: where the run kept one",
  )
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
  with (
    processes.together(),
    one_line(CheckpointError, OSError, status=processes.CRASHED),
    one_line(ValueError, FileNotFoundError, ImportError),
  ):
    if __name__ == "__main__":  # before anything else of jax
      processes.initialize(args.coordinator, args.processes, args.process_id, args.timeout)
    evaluate(args.workdir, args.eval, args.ema, args.allow_urls)


if __name__ == "__main__":
  main()
