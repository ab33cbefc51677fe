r"""Statements about two images by the class head of any CoCa, on NLVR2 (CoCa, arXiv 2205.01917, section 4.2.3 and Table
10).

  python -m coca.train --config=configs/finetune_nlvr2.py:init_from=DIR --workdir=runs/nlvr2
  python -m coca.train --config=configs/finetune_nlvr2.py:init_from=DIR,tiny       # DIR as of coca_tiny
  python -m coca.train --config=configs/finetune_nlvr2.py:init_from=DIR,runlocal   # a few steps

DIR is a workdir or a converted model directory with a multimodal decoder. The decoder reads the sentence over each of
the two images; a new attentional pooler with one query reads its outputs, and of both, one behind the other, a linear
head tells whether the sentence is true.

Table 10: Adafactor with decoupled weight decay 0.1, rate 5e-4 for the pooler and the head and 2e-5 for all else, cosine
decay to 0 after 1,000 steps of warm-up, 50,000 steps of 64, clipping at 1.0, no RandAugment.

It reads the files of NLVR2 (arXiv 1811.00491), train.json and dev.json, and the images below them, in data/nlvr2
(docs/transfer.md).
"""

from coca.commands import arguments
from coca.recipes.coca import finetuning, shorten
from coca.recipes.nlvr2 import statements


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False)
  config = finetuning(args.init_from, runlocal=False)
  config.name = "finetune_nlvr2" + "_tiny" * args.tiny + "_runlocal" * args.runlocal
  config.model.text.length = max(config.model.text.length, 24 if args.tiny else 48)  # of the sentences
  config.contrastive.weight = config.captioning.weight = 0.0
  config.classification.update(weight=1.0, pool="text", classes=2, images=2)
  config.optim.update(lr=2e-5, lr_scale={"class_pooler": 25.0, "class_head": 25.0})
  config.steps = "50000"
  config.data.update(batch=64, flip=False)
  on_scenes = args.tiny or args.runlocal
  statements(config, args.tiny, on_scenes)
  if on_scenes:
    config.optim.update(lr=2e-4, lr_scale={"class_pooler": 5.0, "class_head": 5.0}, warmup="5%")
    config.update(steps="1000", log_every="20")
  if args.runlocal:
    shorten(config, steps=4, batch=8)
  return config
