r"""ALBEF's fine-tune for retrieval (arXiv 2107.07651, section 5).

  python -m coca.train --config=configs/albef_retrieval.py:init_from=DIR --workdir=runs/albef_retrieval
  python -m coca.train --config=configs/albef_retrieval.py:init_from=DIR,tiny         # DIR as of albef_base:tiny
  python -m coca.train --config=configs/albef_retrieval.py:init_from=DIR,runlocal     # a few steps

DIR is an ALBEF: a run of configs/albef_base.py or what `python -m coca.convert` wrote. The contrastive and the matching
loss, with the momentum model; no words are hidden. Evaluated by cosines, and with the 256 best candidates in the order
of the matching head.

From salesforce/ALBEF (Retrieval_coco.yaml, Retrieval.py, model_retrieval.py, dataset/__init__.py): 5 epochs, rate 1e-5
to 1e-6 in a cosine, weight decay 0.02, 32 pairs on each of 8 GPUs, images of 384 pixels, texts of 30 tokens, queue
65,536, soft targets 0.4 from 0 in the first epoch, crops of half the area and more, RandAugment 2, 7.

Not as there: pairs of the whole batch are compared (hard negatives are drawn from groups of 32, a GPU's); equal texts
and not texts of one image match each other; the cosine is added to the matching head's logit, as BLIP's; the rate falls
each step. It trains on the built-in corpus, `tiny` on scenes; other data as in configs/finetune_caption.py, with
--config.steps='2.83e6 examples' for five epochs of COCO.
"""

from coca.commands import arguments
from coca.recipes import blip as blip_recipes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False)
  config = blip_recipes.finetuning(
    args, lr=1e-5, large_lr=1e-5, epochs=5, size=384, tiny_steps=300, tiny_lr=3e-4, kind="albef"
  )
  config.name = "albef_retrieval" + "_runlocal" * args.runlocal
  if config.model.image.size >= 224:
    config.model.text.length = 30
  config.contrastive.update(
    weight=1.0, equal_texts="positives", momentum=0.995, queue=65_536, max_scale=1000.0, min_scale=2.0, soft_ramp="20%"
  )
  config.captioning.label_smoothing = 0.0
  config.matching.update(weight=1.0, slow_keys=True, group=0 if args.tiny or args.runlocal else 32)
  config.optim.update(final_lr=0.1, weight_decay=0.02, decay_mask="kernels")
  if not args.tiny:
    config.data.rand_augment = (2, 7)
  blip_recipes.evaluate(config, args, "retrieval", kind="retrieval", rerank=16 if args.tiny else 256, equal_texts=True)
  blip_recipes.evaluate(config, args, "matching", kind="matching")
  if args.runlocal:
    config.contrastive.queue = 24
    config.evals.retrieval.rerank = 16
  return config
