r"""BLIP's fine-tune for statements about two images, on NLVR2 (arXiv 2201.12086, section 5.4 and Table 14).

  python -m coca.train --config=configs/blip_nlvr2.py:init_from=DIR --workdir=runs/blip_nlvr2
  python -m coca.train --config=configs/blip_nlvr2.py:init_from=DIR,tiny               # DIR as of blip_tiny
  python -m coca.train --config=configs/blip_nlvr2.py:init_from=DIR,runlocal            # a few steps

DIR is a BLIP model: a run of configs/blip_base.py or what `python -m coca.convert` wrote. The image-grounded encoder
reads the sentence once, with a cross-attention for each image in every layer, both of which begin as the one of DIR;
what they give is averaged in the lower half of the layers, and projected together in the upper half. An MLP on the
state of [Encode] tells whether the sentence is true.

Table 14: 15 epochs, rate 3e-5, batch 256, images of 384 pixels. Of BLIP's code: the images change places in half of the
examples, and 'left' and 'right' in the sentence with them; sentences are not cut, for which there are 64 tokens. It
swaps them when it evaluates, too, which is left out here.

It reads the files of NLVR2 (arXiv 1811.00491), train.json and dev.json, and the images below them, in data/nlvr2
(docs/transfer.md). With `tiny` it learns from statements about scenes (docs/scenes.md), in which 'left' stands for
sides within an image, too: nothing is swapped or flipped.

The rate falls each step and not each epoch; no stochastic depth in the ViT (BLIP's code: 0.1).
"""

from coca.commands import arguments
from coca.recipes import blip as blip_recipes
from coca.recipes.coca import shorten
from coca.recipes.nlvr2 import statements

PAIRS = 86_373  # statements that NLVR2 trains on


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False)
  config = blip_recipes.finetuning(args, lr=3e-5, large_lr=3e-5, epochs=15, size=384, tiny_steps=1000, tiny_lr=2e-4)
  config.name = "blip_nlvr2" + "_runlocal" * args.runlocal
  text = config.model.text
  text.update(multimodal_layers=0, length=64 if config.model.image.size >= 224 else max(text.length, 24))
  config.model.med.positions = max(config.model.med.positions, text.length)
  config.classification.update(weight=1.0, classes=2, pool="text", images=2)
  on_scenes = args.tiny or args.runlocal
  statements(config, args.tiny, on_scenes)
  if on_scenes:
    config.data.update(batch=64, crop=(1.0, 1.0), flip=False, rand_augment=(0, 0))
  else:
    config.steps = f"{15 * PAIRS} examples"
    config.data.swap = True
  if args.runlocal:
    shorten(config, steps=4, batch=8)
  return config
