r"""BLIP with ViT-B/16 (arXiv 2201.12086, sections 3 and 4.1): 252M parameters, pre-trained on 14M images.

  python -m coca.train --config=configs/blip_base.py --workdir=runs/blip_base
  python -m coca.train --config=configs/blip_base.py --config.mesh.fsdp=16 --config.model.remat=full  # for TPUs
  python -m coca.train --config=configs/blip_base.py --dry_run
  python -m coca.train --config=configs/blip_base.py:runlocal        # a minute on a laptop, built-in corpus
  python -m coca.train --config=configs/blip_base.py:init_from=DIR   # DIR: ViT and BERT, as BLIP starts

Data and recipe: `coca.recipes.blip.pretraining`. 20 epochs, AdamW with weight decay 0.05 on everything, batch 2,880,
rate 3e-4 times 0.85 after each epoch (the authors' code: 0.9), texts of 30 tokens, dropout 0.1 in the text layers.

The paper starts from a ViT trained on ImageNet and from BERT; DIR is a model directory of kind 'blip' that holds them,
and what it lacks begins anew. Without it all begins anew.

As the code and not the paper has them: sizes of queues and embeddings, warm-up of 3,000 steps, the augmentation. Not as
either: pairs of the whole batch are compared and not a GPU's (the hard negatives are drawn from groups of 90, a GPU's);
1 / temperature is learned by its logarithm; weights are in fp32 and activations in bfloat16.
"""

from coca.commands import arguments
from coca.recipes import blip as blip_recipes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="")
  config = blip_recipes.pretraining(batch=2880, lr=3e-4)
  config.name, config.init_from = "blip_base", args.init_from
  return blip_recipes.runlocal(config) if args.runlocal else config
