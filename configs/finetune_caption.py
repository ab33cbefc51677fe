r"""Captioning fine-tune of any model: a run of ours, or open_clip's CoCa after `python -m coca.convert`.

  python -m coca.train --config=configs/finetune_caption.py:init_from=DIR --workdir=runs/captioner
  python -m coca.train --config=configs/finetune_caption.py:init_from=DIR,runlocal   # a few steps, to see that it works

DIR is a workdir or a converted model directory; the model's settings are its own. CoCa's Table 10 for MSCOCO: Adafactor
with decoupled weight decay 0.1, rate 1e-5, cosine decay to 0 after 1,000 steps of warm-up, batch 128, clipping at 1.0,
50,000 steps.

Not the paper's: it trains with the captioning loss alone. Here the contrastive loss keeps half the weight, because
without it the other half of the model may be lost: open_clip's captioning fine-tune of its B/32 with contrastive weight
0 went from 63.3 to 0.8 % zero-shot on ImageNet. To have the paper's, --config.contrastive.weight=0: what the embeddings
have for themselves then stays in the model, as it is. Both sides are evaluated.

It trains on the built-in corpus. On one's own images, a folder with a captions.jsonl:

  --config.data.sources.pairs.kind=folder --config.data.sources.pairs.path=data/coco_train \
  --config.data.sources.pairs.split=''

and in the same way config.evals.*.source. A model without a decoder (CLIP) is given a new one with
--config.model.text.multimodal_layers=6; --config.optim.lr_scale is then worth a look.
"""

from coca.commands import arguments
from coca.recipes.coca import finetuning
from coca.storage.workdir import read_config


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="")
  config = finetuning(args.init_from, args.runlocal)
  config.name = "finetune_caption" + "_runlocal" * args.runlocal
  config.captioning.weight = 2.0
  config.contrastive.weight = 1.0 if config.model.text.unimodal_layers else 0.0  # of a captioner alone
  config.contrastive.keep = read_config(args.init_from).contrastive.heads
  if not args.runlocal:
    config.steps = "50000"
  return config
