r"""CapFilt's filter (BLIP, arXiv 2201.12086, section 3.3): a fine-tune on human pairs that learns which texts match.

  python -m coca.train --config=configs/capfilt_filter.py:init_from=DIR --workdir=runs/filter
  python -m coca.train --config=configs/capfilt_filter.py:init_from=DIR,tiny           # DIR as of coca_tiny:web
  python -m coca.train --config=configs/capfilt_filter.py:init_from=DIR,runlocal       # a few steps, to see it work

DIR is the pre-trained model that the captioner, configs/capfilt_captioner.py, starts from too; the two share no weights
afterwards. Contrastive and matching loss with equal weights, each pair with two hard negatives from the whole batch (as
BLIP's COCO fine-tune draws them from all GPUs). Table 14, retrieval on COCO: 6 epochs, AdamW with weight decay 0.05,
rate 1e-5 (ViT-L: 5e-6; here, what is 1,024 wide or wider), cosine decay to 0, batch 256. The filter keeps a text whose
probability of a match is 0.5 or more: `coca.load("runs/filter").match(images, texts)`.

It trains on what capfilt_captioner.py does; other data and sizes of images as there, with
--config.steps='3.4e6 examples' for six epochs of COCO.

Not BLIP's: the matching head sits on CoCa's causal multimodal decoder, behind a pooler with one query (CoCa section
4.2.3 and appendix B), since there is no bidirectional text encoder to put it on. Where head and pooler are new, they
learn at 50 times the rate (5e-4 beside 1e-5; CoCa's Table 10 has new poolers at 20 to 25 times); BLIP's come from
pre-training. No momentum encoder, queue and soft labels in the contrastive loss; equal names are positives of each
other, where BLIP knows equal images. No crops, flips and RandAugment; weight decay on matrices only; the rate falls
each step and not each epoch. The vocabulary head stays in the model and is frozen.
"""

from coca.commands import arguments
from coca.recipes.coca import bootstrapping
from coca.storage.workdir import read_config


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", res=0, tiny=False)
  config = bootstrapping(args, epochs=6, large_lr=5e-6, tiny_steps=500, tiny_lr=1e-3)
  config.name = "capfilt_filter" + "_runlocal" * args.runlocal
  config.captioning.weight = 0.0
  config.contrastive.weight = 1.0
  config.matching.weight = 1.0
  if not args.tiny and not read_config(args.init_from).matching.weight:
    config.optim.lr_scale.update(matching_pooler=50.0, matching_head=50.0)
  if not config.model.text.tied_softmax:
    config.optim.lr_scale.softmax = 0.0
  config.evals.matching = config.evals.captions.copy_and_resolve_references()
  config.evals.matching.kind = "matching"
  del config.evals.captions
  return config
