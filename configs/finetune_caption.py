r"""Captioning fine-tune of any model: a run of ours, or open_clip's CoCa after `python -m coca.convert`.

  python -m coca.train --config=configs/finetune_caption.py:init_from=DIR --workdir=runs/captioner
  python -m coca.train --config=configs/finetune_caption.py:init_from=DIR,runlocal   # a few steps, to see that it works
  python -m coca.train --config=configs/finetune_caption.py:init_from=DIR,tiny       # on scenes, DIR as of coca_tiny
  python -m coca.train --config=configs/finetune_caption.py:init_from=DIR,scst=mean  # DIR as of one of these

DIR is a workdir or a converted model directory; the model's settings are its own. CoCa's Table 10 for MSCOCO: Adafactor
with decoupled weight decay 0.1, rate 1e-5, cosine decay to 0 after 1,000 steps of warm-up, batch 128, clipping at 1.0,
50,000 steps.

Not the paper's: it trains with the captioning loss alone. Here the contrastive loss keeps half the weight, because
without it the other half of the model may be lost: open_clip's captioning fine-tune of its B/32 with contrastive weight
0 went from 63.3 to 0.8 % zero-shot on ImageNet. To have the paper's, --config.contrastive.weight=0: what the embeddings
have for themselves then stays in the model, as it is. Both sides are evaluated.

Nor is `scst`, self-critical sequence training (arXiv 1612.00563; docs/transfer.md), with which a captioner that one of
these has trained goes on: captions that it draws are learned by their CIDEr-D. `greedy` compares one an image with the
likeliest one, as the paper, and `mean` five with each other (arXiv 2003.09971). Of rate and length no paper speaks for
such models: they are Table 10's here, and few are needed of the steps.

It trains on the built-in corpus. On one's own images, a folder with a captions.jsonl:

  --config.data.sources.pairs.kind=folder --config.data.sources.pairs.path=data/coco_train \
  --config.data.sources.pairs.split=''

and in the same way config.evals.*.source. A model without a decoder (CLIP) is given a new one with
--config.model.text.multimodal_layers=6; --config.optim.lr_scale is then worth a look.
"""

from coca.commands import arguments
from coca.config import Eval, to_dict
from coca.recipes.coca import finetuning, self_critical
from coca.recipes.tiny import scenes
from coca.storage.workdir import read_config


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False, scst="")
  config = finetuning(args.init_from, args.runlocal)
  config.name = "finetune_caption" + "_tiny" * args.tiny + "_runlocal" * args.runlocal
  config.captioning.weight = 2.0
  config.contrastive.weight = 1.0 if config.model.text.unimodal_layers else 0.0  # of a captioner alone
  config.contrastive.keep = read_config(args.init_from).contrastive.heads
  if not args.runlocal:
    config.steps = "50000"
  if args.tiny:
    config.data.sources = {"scenes": to_dict(scenes("scenes"))}
    config.data.update(flip=False, threads=1)
    config.evals = {"captions": to_dict(Eval(kind="captions", source=scenes("scenes_val"), limit=1000))}
    config.optim.update(lr=1e-4 if args.scst else 3e-4, warmup="5%")
    config.self_critical.images = 5000  # there are a million scenes, which are drawn to be read
    if not args.runlocal:
      config.update(steps="300", log_every="10")
      config.data.batch = 64
  self_critical(config, args.scst)
  return config
