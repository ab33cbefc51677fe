r"""Classification fine-tune of any model with a ViT, frozen or whole (CoCa, arXiv 2205.01917, section 4.2.1).

  python -m coca.train --config=configs/finetune_classify.py:init_from=DIR --workdir=runs/classifier
  python -m coca.train --config=configs/finetune_classify.py:init_from=DIR,frozen --workdir=runs/probe
  python -m coca.train --config=configs/finetune_classify.py:init_from=DIR,frozen,cache=DIR2 --workdir=runs/probe
  python -m coca.train --config=configs/finetune_classify.py:init_from=DIR,tiny       # DIR as of coca_tiny
  python -m coca.train --config=configs/finetune_classify.py:init_from=DIR,runlocal   # a few steps

DIR is a workdir or a converted model directory; the image encoder is taken over and the text side is left out. A new
attentional pooler with one query and a linear head read its tokens. `frozen` trains these two alone, the paper's
"attentional evaluation"; with `cache` the encoder runs once over the data, DIR2 keeps its tokens, and images are
prepared as in evaluation, without RandAugment (docs/transfer.md).

Table 9 for ImageNet: Adafactor with decoupled weight decay 0.01, rate 5e-4, cosine decay to 0 without a warm-up,
200,000 steps of 512, label smoothing 0.5 (frozen 0.2), clipping at 1.0, average with decay 0.9999, RandAugment 2, 20,
no mixup and no cutmix. Section 4.2.1 has other figures: a rate of 1e-4 for the whole model, a batch of 128 for the
frozen one. `--config.optim.lr_scale.image_encoder=0.2` gives the encoder a rate of its own.

Of these the paper says nothing: RandAugment's operations are those of Google's other code (coca/data/augment.py), crops
are none and images are of the model's size. Other data with labels, as folders of classes:

  --config.data.sources.imagenet.kind=folder --config.data.sources.imagenet.path=TRAIN \
    --config.evals.imagenet.source.kind=folder --config.evals.imagenet.source.path=VAL --config.classification.classes=N
"""

from coca.commands import arguments
from coca.recipes.coca import finetuning, imagenet, runlocal
from coca.recipes.tiny import classes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", frozen=False, cache="", tiny=False)
  config = imagenet(finetuning(args.init_from, runlocal=False))
  config.name = "finetune_classify"
  if config.model.kind not in ("coca", "blip", "albef"):
    raise ValueError(f"{args.init_from} is of kind {config.model.kind!r}, which has no ViT of its own to classify with")
  config.model.kind = "coca"  # BLIP's and ALBEF's image encoders are CoCa's, with a class token
  config.classification.label_smoothing = 0.2 if args.frozen or args.cache else 0.5
  config.optim.update(lr=5e-4, weight_decay=0.01, warmup="0", ema=0.9999)
  config.optim.lr_scale = {"image_encoder": 0.0 if args.frozen or args.cache else 1.0}
  config.steps = "200000"
  config.data.update(batch=512, rand_augment=(2, 20), rand_augment_kind="google")
  if args.tiny:
    config.name += "_tiny"
    config.evals = {}
    classes(config)
    config.update(steps="300", log_every="20")
    config.optim.update(lr=1e-3, warmup="5%", ema=0.0)
    config.data.update(batch=64, rand_augment=(0, 0), threads=1)
  if args.cache:
    config.data.update(embeddings=args.cache, embeddings_type="float16", rand_augment=(0, 0))
  if args.cache and args.tiny:
    config.data.sources.single.scenes.count = 20_000  # of which each is seen about ten times
    config.update(steps="3000", log_every="100")
  if args.runlocal:
    image, text = config.model.image.copy_and_resolve_references(), config.model.text.copy_and_resolve_references()
    runlocal(config)
    config.model.image, config.model.text = image, text  # those of DIR
    config.update(steps="4", log_every="1")
  return config
