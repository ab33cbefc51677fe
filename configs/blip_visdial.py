r"""BLIP's fine-tune for visual dialog, on VisDial v1.0 (arXiv 2201.12086, section 5.5 and Table 14).

  python -m coca.train --config=configs/blip_visdial.py:init_from=DIR --workdir=runs/blip_visdial
  python -m coca.train --config=configs/blip_visdial.py:init_from=DIR,tiny               # DIR as of blip_tiny
  python -m coca.train --config=configs/blip_visdial.py:init_from=DIR,runlocal            # a few steps

DIR is a BLIP model with ViT-B: a run of configs/blip_base.py or what `python -m coca.convert` wrote. Its text encoder
reads the image's caption; image tokens and the caption's states, one behind the other, are what the image-grounded
encoder looks at, which reads a question with one answer behind what was said before. The matching head tells whether
the answer is true. By that the 100 candidates of each question are ranked.

Table 14: 20 epochs, rate 2e-5, batch 240. Section 5.5: the concatenation, the caption through the text encoder, and the
loss. The authors did not publish this code, so the rest is chosen here: an example is one round, with its right answer
and two wrong ones among its candidates (in pre-training a pair has two negatives); text encoder and image-grounded
encoder are one stack, as in pre-training, and so is their start; captions have 40 tokens, and history, question and
answer together 128, of which the oldest rounds are left out (coca/data/dialogs.py has their order); images of 384
pixels, and none is flipped, since questions are about left and right; crops and RandAugment are those of BLIP's other
fine-tunes. ViT-L, whose states are wider than the text's, is refused.

It reads data/visdial/visdial_1.0_train.json and ..._val.json, with the dense annotations beside them, and COCO's and
VisualDialog_val2018's images in folders below data/visdial (docs/transfer.md). With `tiny` it learns from dialogs about
scenes (docs/scenes.md).
"""

from coca.commands import arguments
from coca.config import Eval, Source, to_dict
from coca.recipes import blip as blip_recipes
from coca.recipes.coca import shorten
from coca.recipes.tiny import scenes

ROUNDS = 10 * 123_287  # of VisDial v1.0's training dialogs


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False)
  config = blip_recipes.finetuning(args, lr=2e-5, large_lr=2e-5, epochs=20, size=384, tiny_steps=600, tiny_lr=1e-3)
  config.name = "blip_visdial" + "_runlocal" * args.runlocal
  is_whole = config.model.image.size >= 224
  config.model.text.multimodal_layers = 0
  if is_whole:
    config.model.text.length = 40
  config.dialog.update(weight=1.0, length=128 if is_whole else 64)
  config.model.med.positions = max(config.model.med.positions, config.dialog.length)
  config.data.update(batch=240, flip=False, tokenizer_texts=100_000)
  train, val = (
    Source(kind="dialogs", path="data/visdial", texts=f"data/visdial/visdial_1.0_{split}.json")
    for split in ("train", "val")
  )
  if args.tiny or args.runlocal:
    train, val = scenes("scenes_dialogs"), scenes("scenes_dialogs_val", count=500)  # 50 dialogs, all rounds of each
    config.data.update(batch=64, crop=(1.0, 1.0), rand_augment=(0, 0), threads=1, tokenizer_texts=2000)
  else:
    config.steps = f"{20 * ROUNDS} examples"
  config.data.sources = {"visdial": to_dict(train)}
  config.evals = {"visdial": to_dict(Eval(kind="dialogs", source=val, batch=64, every="" if args.tiny else "20%"))}
  if args.runlocal:
    shorten(config, steps=4, batch=8)
    config.evals.visdial.update(limit=16, batch=16)
  return config
