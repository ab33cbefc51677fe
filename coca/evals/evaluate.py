"""The evaluators of a working directory, run on its newest checkpoint."""

import json
import math

import jax

from coca import inference
from coca.data.sources import check_places
from coca.evals import build
from coca.evals.contact_sheet import write_contact_sheet
from coca.evals.server import write_results
from coca.files.writing import write_atomic
from coca.storage.workdir import read_labels, read_workdir, saved_steps


def evaluate(
  workdir, names: list[str] | None = None, ema: bool | None = None, allow_urls: bool = False
) -> dict[str, float]:
  """Runs evaluators on the newest checkpoint of a working directory.

  Args:
    workdir: what `python -m coca.train --workdir=...` wrote; a folder, gs:// or s3://.
    names: of evaluators in the run's config; None: all.
    ema: as for `coca.inference.load`.
    allow_urls: whether data in a bucket or on the web may be opened, which the workdir's config names. What is opened
      is printed.

  Returns:
    {'eval/<evaluator>/<name>': number}, as written to `eval.json` with the 'step' of the checkpoint.

  Raises:
    ValueError: an unknown evaluator, a config without any, or one that names URLs that may not be opened.
    FileNotFoundError: no working directory, no checkpoint, or an evaluator's data is missing.
  """
  config, tokenizer = read_workdir(workdir)
  if not config.evals:
    raise ValueError(
      f"{workdir} has no evaluators (config.evals is empty): give --data=PATH, or --config with evaluators of its own"
    )
  check_places(build.places(config, names), allow_urls, f"{workdir}/config.json")
  sources = build.open_sources(config, names)
  step = max(saved_steps(workdir), default=0)
  model = inference.load(workdir, ema, jax.devices())
  evaluators = build.make_evaluators(config, model.forward, tokenizer, *sources, labels=read_labels(workdir))
  numbers = {}
  for name, value in build.run_all(evaluators, model.params):
    numbers[name] = value
    if jax.process_index() == 0:
      print(f"{name:<48} {value:12.4f}", flush=True)
  write_contact_sheet(evaluators, model.params, f"{workdir}/contact_sheet.png")
  if jax.process_index() == 0:
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}  # JSON has no NaN
    write_atomic(f"{workdir}/eval.json", (json.dumps({"step": step} | finite, indent=2) + "\n").encode())
    for name, evaluator in evaluators.items():
      write_results(evaluator, f"{workdir}/{name}_results.json")
  return numbers
