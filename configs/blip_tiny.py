r"""BLIP in minutes on two cores: scenes with sentences about them, and emoji with their names, both in the package.

  python -m coca.train --config=configs/blip_tiny.py --workdir=runs/blip_tiny
  python -m coca.train --config=configs/blip_tiny.py:runlocal        # a minute, to see that all of it works

Data, but for the styles, sizes of images, optimizer, but for `adamw_scale` and the schedule, and evaluations are those
of configs/coca_tiny.py; texts have room for the questions about scenes (docs/scenes.md).

The paper's: all three losses with equal weights, momentum encoders, queue and soft targets, hard negatives, what
encoder and decoder share. Not the paper's: all sizes, the optimizer and its settings, no dropout, no crops, flips and
RandAugment, and that equal texts are positives of each other.
"""

import runpy
from pathlib import Path

from coca.commands import arguments
from coca.config import default
from coca.recipes import blip as blip_recipes
from coca.recipes.coca import shorten


def get_config(arg=None):
  args = arguments(arg, runlocal=False)
  coca_tiny = runpy.run_path(str(Path(__file__).with_name("coca_tiny.py")))["get_config"](arg)
  config = default()
  config.name = "blip_tiny"
  config.update(steps="1200", log_every="20")
  blip_recipes.model(config)
  blip_recipes.tiny(config, layers=2 if args.runlocal else 4, width=64 if args.runlocal else 128)
  image = coca_tiny.model.image
  config.model.image.update(size=image.size, patch=image.patch, position_init=image.position_init)
  config.model.text.update(vocab=1600, length=20)
  config.model.med.positions = 20
  config.model.med.dropout = 0.0
  config.contrastive.update(
    weight=1.0, equal_texts="positives", momentum=0.995, queue=1024, max_scale=1000.0, min_scale=2.0
  )
  config.captioning.update(weight=1.0, label_smoothing=0.1)
  config.matching.update(weight=1.0, floor=1e-4, slow_keys=True)
  config.optim, config.data, config.evals = coca_tiny.optim, coca_tiny.data, coca_tiny.evals
  # With coca_tiny's scale captions are worse after so few steps. Its schedule and styles were not tried.
  config.optim.update(adamw_scale=1.0, schedule="cosine")
  for name in ("scenes", "single"):
    config.data.sources[name].scenes.styles = ()
  config.data.batch = 64
  config.evals.matching = config.evals.captions.copy_and_resolve_references()
  config.evals.matching.update(kind="matching", pixel_neighbours="", beams=1)
  config.checkpoint.every = "10%"
  if args.runlocal:
    config.name += "_runlocal"
    shorten(config)
  return config
