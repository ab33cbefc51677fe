r"""ViT-B/16 (arXiv 2010.11929) trained on ImageNet's labels: 86,567,656 parameters, as timm's; 86,567,656 here.

  python -m coca.train --config=configs/vit_base.py --workdir=runs/vit_base
  python -m coca.train --config=configs/vit_base.py:plain --workdir=runs/vit_plain
  python -m coca.train --config=configs/vit_base.py --dry_run
  python -m coca.train --config=configs/vit_base.py:runlocal         # a minute on a laptop, emoji and their names
  python -m coca.train --config=configs/vit_base.py:tiny             # minutes on two cores, scenes of a single thing

CoCa's image encoder with a class token and a linear head on it: softmax cross-entropy over label ids (CoCa section 3.1,
single-encoder classification). `coca.load(DIR).classify(images)` names the classes; configs/lit_base.py teaches texts
to its frozen encoder.

The recipe is that of "How to train your ViT?" (arXiv 2106.10270) for B/16, as its authors'
big_vision/configs/vit_i1k.py has it: batch of 4,096, 300 epochs, Adam with rate 1e-3 after 10,000 steps of warm-up,
cosine decay, weight decay 1e-4 (a step's at the highest rate: 0.1 in `config.optim.weight_decay`) on matrices, clipping
at 1.0, mixup 0.5, RandAugment 2, 15, inception crops, flips, a head that begins with zeros. `plain` is "Better plain
ViT baselines" (arXiv 2205.01580, vit_s16_i1k.py), whose constants are for S/16: the mean of the patches in place of the
class token, positions as sines and cosines, batch of 1,024, 90 epochs, mixup 0.2, RandAugment 2, 10.

Not theirs: theirs blends an image with the next one, here with that of the mirrored place. Theirs has a layer with tanh
before the head, ImageNet's last percent held out, and the sines of `plain` fixed. A tokenizer, which a run's folder
holds, is trained on the class names and not used.
"""

from coca.commands import arguments
from coca.config import default
from coca.recipes.coca import IMAGENET, imagenet, runlocal
from coca.recipes.tiny import on_scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False, plain=False)
  config = imagenet(default())
  config.name = "vit_plain" if args.plain else "vit_base"
  config.model.image.update(size=224, patch=16, layers=12, width=768, mlp=3072, heads=12, class_token=not args.plain)
  config.model.image.position_init = "sincos2d" if args.plain else "normal"
  config.model.text.vocab = 1000
  config.classification.update(pool="mean" if args.plain else "class_token", mixup=0.2 if args.plain else 0.5)
  config.optim.update(name="adamw", lr=1e-3, weight_decay=0.1, schedule="cosine", warmup="10000", clip=1.0)
  config.steps = f"{(90 if args.plain else 300) * IMAGENET} examples"
  config.data.update(batch=1024 if args.plain else 4096, crop=(0.05, 1.0), flip=True)
  config.data.update(rand_augment=(2, 10 if args.plain else 15), rand_augment_kind="google")
  if args.tiny:
    on_scenes(config)
    config.classification.mixup = 0.0  # no scene is seen twice
  return runlocal(config) if args.runlocal else config
