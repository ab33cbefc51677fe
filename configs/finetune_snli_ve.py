r"""Visual entailment of any CoCa by its class head, on SNLI-VE (CoCa, arXiv 2205.01917, section 4.2.3 and Table 10).

  python -m coca.train --config=configs/finetune_snli_ve.py:init_from=DIR --workdir=runs/snli_ve
  python -m coca.train --config=configs/finetune_snli_ve.py:init_from=DIR,tiny       # DIR as of coca_tiny
  python -m coca.train --config=configs/finetune_snli_ve.py:init_from=DIR,runlocal   # a few steps

DIR is a workdir or a converted model directory with a multimodal decoder. The decoder reads the hypothesis over the
image; a new attentional pooler with one query and a linear head read its outputs, and choose among entailment, neutral
and contradiction.

Table 10: Adafactor with decoupled weight decay 0.1, rate 1e-3 for the pooler and the head and 5e-5 for all else, cosine
decay to 0 after 1,000 steps of warm-up, 50,000 steps of 128, clipping at 1.0, RandAugment 1, 10.

The paper has no generative loss beside it, as it has in VQA. RandAugment's operations are those of Google's other code
(coca/data/augment.py). Images are not flipped, as hypotheses may say left or right.

It reads the files of SNLI-VE (arXiv 1901.06706) beside Flickr30k's images, in data/snli_ve (docs/transfer.md). Other
pairs with labels train in the same way, with their number of classes.
"""

from dataclasses import replace

from coca.commands import arguments
from coca.config import Eval, Source, to_dict
from coca.recipes.coca import finetuning, shorten
from coca.recipes.tiny import scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False)
  config = finetuning(args.init_from, runlocal=False)
  config.name = "finetune_snli_ve" + "_tiny" * args.tiny + "_runlocal" * args.runlocal
  if not args.tiny:  # coca_tiny's 17 are enough for those about scenes
    config.model.text.length = max(config.model.text.length, 32)
  config.contrastive.weight = config.captioning.weight = 0.0
  config.classification.update(weight=1.0, pool="text", classes=3)
  config.optim.update(lr=5e-5, lr_scale={"class_pooler": 20.0, "class_head": 20.0})
  config.steps = "50000"
  config.data.update(batch=128, rand_augment=(1, 10), rand_augment_kind="google", flip=False, tokenizer_texts=100_000)
  train, dev = (Source(kind="folder", path="data/snli_ve", split=split, text="first") for split in ("train", "dev"))
  if args.tiny or args.runlocal:
    train, dev = (replace(scenes(split), text="first") for split in ("scenes_hypotheses", "scenes_hypotheses_val"))
    config.data.update(rand_augment=(0, 0), threads=1, tokenizer_texts=2000)
    config.optim.update(lr=2e-4, lr_scale={"class_pooler": 5.0, "class_head": 5.0}, warmup="5%")
    config.update(steps="1000", log_every="20")
    config.data.batch = 64
  config.data.sources = {"snli_ve": to_dict(train)}
  config.evals = {"snli_ve": to_dict(Eval(kind="classification", source=dev, every="" if args.tiny else "10%"))}
  if args.tiny:
    config.evals.snli_ve.limit = 3000
  if args.runlocal:
    shorten(config, steps=4, batch=8)
  return config
