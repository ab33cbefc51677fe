r"""BLIP's fine-tune for retrieval, which is CapFilt's filter too (arXiv 2201.12086, section 5.1 and Table 14).

  python -m coca.train --config=configs/blip_retrieval.py:init_from=DIR --workdir=runs/blip_retrieval
  python -m coca.train --config=configs/blip_retrieval.py:init_from=DIR,tiny               # DIR as of blip_tiny
  python -m coca.train --config=configs/blip_retrieval.py:init_from=DIR,runlocal      # a few steps

DIR is a BLIP model: a run of configs/blip_base.py or what `python -m coca.convert` wrote. ITC and ITM with equal
weights, 6 epochs, rate 1e-5 (ViT-L 5e-6), batch 256, images of 384 pixels, texts of 35 tokens; hard negatives from
the whole batch, as for COCO. Evaluated by cosines, and with the 256 best candidates in the order of the matching head.

It trains on the built-in corpus, `tiny` on scenes; other data as in configs/finetune_caption.py, with
--config.steps='3.4e6 examples' for six epochs of COCO. BLIP knows which texts are of one image; here equal texts are
positives of each other, and a text may get another one of its image as a hard negative. The rate falls each step and
not each epoch.
"""

from coca.commands import arguments
from coca.recipes import blip as blip_recipes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False)
  config = blip_recipes.finetuning(args, lr=1e-5, large_lr=5e-6, epochs=6, size=384, tiny_steps=300, tiny_lr=3e-4)
  config.name = "blip_retrieval" + "_runlocal" * args.runlocal
  config.model.text.multimodal_layers = 0
  if config.model.image.size >= 224:
    config.model.text.length = 35
  config.contrastive.update(
    weight=1.0, equal_texts="positives", momentum=0.995, max_scale=1000.0, min_scale=2.0, soft_ramp="16.7%"
  )
  config.matching.weight = 1.0
  blip_recipes.evaluate(config, args, "retrieval", kind="retrieval", rerank=16 if args.tiny else 256, equal_texts=True)
  blip_recipes.evaluate(config, args, "matching", kind="matching")
  if args.runlocal:
    config.contrastive.queue = 24
    config.evals.retrieval.rerank = 16
  return config
