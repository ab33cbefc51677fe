r"""BLIP in minutes on two cores: images of 48 pixels and their names, from the corpus in the package.

  python -m coca.train --config=configs/blip_tiny.py --workdir=runs/blip_tiny
  python -m coca.train --config=configs/blip_tiny.py:runlocal        # a minute, to see that all of it works

Trained on four styles of emoji, tested on a fifth one, as configs/coca_tiny.py:emoji is.

9 minutes; 10.0 % top-1 and 27.8 % top-5 of twemoji's 1,940 names, which it never saw drawn so.

The paper's: all three losses with equal weights, momentum encoders, queue and soft targets, hard negatives, what
encoder and decoder share. Not the paper's: all sizes, the optimizer's settings, no dropout, no flips and RandAugment,
and that equal names are positives of each other.
"""

from coca.commands import arguments
from coca.config import Eval, Source, default, to_dict
from coca.recipes import blip as blip_recipes
from coca.recipes.coca import shorten


def get_config(arg=None):
  args = arguments(arg, runlocal=False)
  config = default()
  config.name = "blip_tiny"
  config.update(steps="800", log_every="20")
  blip_recipes.model(config)
  blip_recipes.tiny(config, layers=4, width=128)
  config.model.med.dropout = 0.0
  config.contrastive.update(
    weight=1.0, equal_texts="positives", momentum=0.995, queue=1024, max_scale=1000.0, min_scale=2.0
  )
  config.captioning.update(weight=1.0, label_smoothing=0.1)
  config.matching.update(weight=1.0, floor=1e-4, slow_keys=True)
  config.optim.update(name="adamw", lr=1.5e-3, b2=0.98, weight_decay=0.05, schedule="cosine", warmup="5%", clip=1.0)
  config.data.sources.emoji = to_dict(Source(kind="builtin", split="train+unseen_concepts"))
  config.data.update(batch=128, crop=(0.8, 1.0), threads=1)
  unseen = Source(kind="builtin", split="twemoji")
  config.evals.twemoji = to_dict(Eval(kind="zero_shot", source=unseen, every="20%", pixel_neighbours="emoji"))
  config.evals.retrieval = to_dict(Eval(kind="retrieval", source=unseen, equal_texts=True))
  config.evals.matching = to_dict(Eval(kind="matching", source=unseen))
  config.evals.captions = to_dict(Eval(kind="captions", source=unseen))
  config.checkpoint.every = "10%"
  if args.runlocal:
    config.name += "_runlocal"
    blip_recipes.tiny(config, layers=2, width=64)
    shorten(config)
  return config
