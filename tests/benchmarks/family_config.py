"""Settings of the cells of tables_family.py: the tiny form of a system, on the same pairs as all others.

    python -m coca.train --config=tests/benchmarks/family_config.py:system=clip_base,seed=0 --workdir=...

system: a file of configs/ with its argument, 'cap_base+parallel' for `cap_base.py:parallel`. What its tiny form says of
sizes and losses stays, and the optimizer, which is the same in all. A smaller world than the tiny forms', `WORLD`, half
of it single things and no emoji, and a small batch for all: of minutes, each system should learn something. The seed is
that of the scenes, too.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from coca.commands import arguments

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WORLD = {"vocabulary": 16, "objects": 2, "styles": ()}
BATCH = 32
EVALS = ("captions", "retrieval", "classification")


def get_config(arg=None) -> ConfigDict:
  args = arguments(arg, system="", seed=0, pairs=12_800, limit=1000, init_from="")
  name, *options = args.system.split("+")
  options += ["tiny"] * (not name.endswith("_tiny")) + [f"init_from={args.init_from}"] * bool(args.init_from)
  config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](",".join(options) or None)
  config.update(seed=args.seed, steps=f"{args.pairs} examples")
  config.data.batch = BATCH
  config.evals = {
    f"{kind}{style}": config.evals[f"{kind}{style}"]
    for kind in EVALS
    for style in ("", "_in_new_style")
    if kind in config.evals
  }
  for settings in config.evals.values():
    settings.update(every="", limit=args.limit)
    if name != "coca_tiny":  # it says the same beside all, and takes half a minute
      settings.pixel_neighbours = ""
    if settings.kind == "retrieval" and config.matching.weight:
      settings.rerank = 16
  for source in (*config.data.sources.values(), *(settings.source for settings in config.evals.values())):
    if source.split.startswith("scenes"):
      source.scenes.update(WORLD, objects=min(source.scenes.objects, WORLD["objects"]))
  sources = config.data.sources
  for source in sources.values():
    if source.split.startswith("scenes"):
      source.scenes.seed = args.seed
  if "scenes" in sources:
    sources.single.weight = sources.scenes.weight
    if "emoji" in sources:
      del sources["emoji"]
  if config.classification.weight:
    config.classification.classes = WORLD["vocabulary"]
  config.checkpoint.update(every="25%", keep=1)
  return config
