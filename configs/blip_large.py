r"""BLIP with ViT-L/16 (arXiv 2201.12086, section 4.1): 475M parameters.

  python -m coca.train --config=configs/blip_large.py --workdir=runs/blip_large --config.mesh.fsdp=8
  python -m coca.train --config=configs/blip_large.py --dry_run
  python -m coca.train --config=configs/blip_large.py:runlocal       # a minute on a laptop, built-in corpus

As configs/blip_base.py, with batch 2,400 and rate 2e-4. The text layers stay BERT-base's; their cross-attention looks
at image tokens of 1,024. The authors' code also drops whole layers of the ViT-L at random (stochastic depth), which is
not done here.
"""

from coca.commands import arguments
from coca.recipes import blip as blip_recipes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="")
  config = blip_recipes.pretraining(batch=2400, lr=2e-4)
  blip_recipes.large(config)
  config.name, config.init_from = "blip_large", args.init_from
  return blip_recipes.runlocal(config) if args.runlocal else config
