"""Puts a model on the Hugging Face hub, with a card: licence, data, recipe and results.

    python -m coca.push runs/tiny hf://org/name --licence=apache-2.0 --dataset=org/pairs --tag=emoji

Of a workdir the parameters go (the moving average, where the run kept one), the settings and the tokenizer, and the
results of its evaluators into the card; no checkpoint and no other file. A new repository is private, unless --public
is given. `coca.load("hf://org/name")` takes it from there. It needs huggingface_hub (pip install -e '.[hub]') and a
token that may write (hf auth login).
"""

import argparse
import math
from typing import Any

from etils import epath

from coca.config.command_line import one_line
from coca.config.typed import read_object
from coca.files.retries import again, exists
from coca.interop.hub_push import push
from coca.storage.checkpoint import CheckpointError
from coca.training import metrics_file


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.push", description="Put a model on the Hugging Face hub.")
  parser.add_argument("model", help="working directory or converted model")
  parser.add_argument("repository", help="hf://org/name")
  parser.add_argument("--licence", required=True, help="of the weights, as the hub calls it: apache-2.0, ...")
  parser.add_argument("--tag", action="append", default=[], help="for the card (may be repeated)")
  parser.add_argument("--dataset", action="append", default=[], help="its name on the hub (may be repeated)")
  parser.add_argument("--public", action="store_true", help="a new repository is for all to see")
  args = parser.parse_args(argv)
  with one_line(ValueError, ImportError, OSError, CheckpointError):
    more = {"tags": args.tag, "datasets": args.dataset, "public": args.public, "numbers": results(args.model)}
    print(f"wrote {push(args.model, args.repository, args.licence, **more)}")


def results(workdir: str) -> dict[str, Any]:
  """The newest number of each evaluator of a run: those of its last steps, and of `python -m coca.evaluate` since."""
  lines = metrics_file.read(f"{workdir}/{metrics_file.FILE}")
  written = epath.Path(workdir) / "eval.json"
  if exists(written):
    lines.append(read_object(again(written.read_bytes, str(written))))
    lines.sort(key=lambda line: line.get("step", math.inf))  # without one, as 0.2.0 wrote it, it counts as the newest
  return {
    name: x
    for line in lines
    for name, x in line.items()
    if name.count("/") > 1 and name.startswith("eval/") and (x is None or type(x) in (int, float))
  }


if __name__ == "__main__":
  main()
