"""Settings of the runs that capfilt_tables.py starts: the project's own configs with the data of the grid.

    python -m coca.train --config=tests/benchmarks/capfilt_grid.py:role=pretrain,data=DIR,web=FILE --workdir=...

role: `pretrain`, `captioner`, `filter`, or `shared`, one model that is both (BLIP Table 4). Sizes, rates and losses are
those of configs/coca_tiny.py and, for `tiny` models, of the two fine-tunes. Different: 16 tokens a text (the human
sentences are longer than names), and sources are mixed by their numbers of texts, so that each text is seen equally
often.
"""

import os
import runpy
from pathlib import Path

from coca.config import Eval, Source, to_dict
from coca.config.command_line import arguments

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# What a variant of Table 1 reads of one and the same CapFilt job; `none` does without one.
VARIANTS = {
  "none": {},
  "filter": {"origins": {"web": 1.0}},
  "captioner": {"min_matching": 0.0},  # no score is below it
  "both": {},
}
EVALS = ("openmoji", "twemoji")


def human(data) -> Source:
  return Source(kind="parquet", path=f"{data}/clean/human.parquet", origin="human")


def web(path, variant: str = "none", capfilt: str = "") -> Source:
  """The web pairs: raw, or with the texts that `variant` takes from the CapFilt job in `capfilt`."""
  read = {"sidecars": str(capfilt), **VARIANTS[variant]} if variant != "none" else {}
  return Source(kind="parquet", path=str(path), origin="web", **read)


def get_config(arg=None):
  args = arguments(arg, role="pretrain", data="", web="", variant="none", capfilt="", init_from="")
  name = {"pretrain": "coca_tiny", "captioner": "capfilt_captioner"}.get(args.role, "capfilt_filter")
  of_config = "" if args.role == "pretrain" else f"tiny,init_from={args.init_from}"
  config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](of_config)
  config.data.sources = {"human": to_dict(human(args.data))}
  config.data.update(batch=128, threads=max(1, os.cpu_count() // 2))
  config.evals = {}
  config.checkpoint.update(every="20%", keep=1)
  if args.role == "pretrain":
    source = web(args.web, args.variant, args.capfilt)
    config.data.sources.web = to_dict(source)
    config.data.sources.human.weight = config.data.sources.web.weight = 0.0  # every text is an example
    config.model.text.length = 16
    config.evals = {
      name: to_dict(Eval(source=Source(kind="parquet", path=f"{args.data}/eval/{name}.parquet"))) for name in EVALS
    }
    return config
  if args.role == "shared":
    config.captioning.update(weight=1.0, label_smoothing=0.1)
    del config.optim.lr_scale.softmax  # it learns to write after all
  return config
