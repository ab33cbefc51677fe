r"""Classification fine-tune of any model of kind 'coca', frozen or whole (CoCa, arXiv 2205.01917, section 4.2.1).

  python -m coca.train --config=configs/finetune_classify.py:init_from=DIR --workdir=runs/classifier
  python -m coca.train --config=configs/finetune_classify.py:init_from=DIR,frozen --workdir=runs/probe
  python -m coca.train --config=configs/finetune_classify.py:init_from=DIR,tiny       # DIR as of coca_tiny
  python -m coca.train --config=configs/finetune_classify.py:init_from=DIR,runlocal   # a few steps

DIR is a workdir or a converted model directory; the image encoder is taken over and the text side is left out. A new
attentional pooler with one query and a linear head read its tokens. `frozen` trains these two alone.

Table 9 for ImageNet: Adafactor with decoupled weight decay 0.01, rate 5e-4, cosine decay to 0 without a warm-up,
200,000 steps of 512, label smoothing 0.5 (frozen 0.2), clipping at 1.0, average with decay 0.9999, no mixup and no
cutmix. Section 4.2.1 has other figures: a rate of 1e-4 for the whole model, a batch of 128 for the frozen one.

Not the paper's: RandAugment is BLIP's ten operations at their full strength (coca/data/augment.py), where Table 9 has
2, 20; crops are none and images are of the model's size, of which the paper says nothing here. Other data with labels:
--config.data.sources.imagenet.path=NAME and --config.classification.classes=N, and config.evals.imagenet.source.path.
"""

from coca.commands import arguments
from coca.recipes.coca import finetuning, imagenet, runlocal
from coca.recipes.tiny import classes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", frozen=False, tiny=False)
  config = imagenet(finetuning(args.init_from, runlocal=False))
  config.name = "finetune_classify"
  config.classification.label_smoothing = 0.2 if args.frozen else 0.5
  config.optim.update(lr=5e-4, weight_decay=0.01, warmup="0", ema=0.9999)
  config.optim.lr_scale = {"image_encoder": 0.0} if args.frozen else {}
  config.steps = "200000"
  config.data.update(batch=512, rand_augment=(2, 10))
  if args.tiny:
    config.name += "_tiny"
    config.evals = {}
    classes(config)
    config.update(steps="300", log_every="20")
    config.optim.update(lr=1e-3, warmup="5%", ema=0.0)
    config.data.update(batch=64, rand_augment=(0, 0), threads=1)
  if args.runlocal:
    image, text = config.model.image.copy_and_resolve_references(), config.model.text.copy_and_resolve_references()
    runlocal(config)
    config.model.image, config.model.text = image, text  # those of DIR
    config.update(steps="4", log_every="1")
  return config
