r"""Contrastive fine-tune of any model, for retrieval or zero-shot classes: a run of ours, or open_clip's CoCa or CLIP.

  python -m coca.train --config=configs/finetune_contrastive.py:init_from=DIR --workdir=runs/retriever
  python -m coca.train --config=configs/finetune_contrastive.py:init_from=DIR,tiny          # DIR as of coca_tiny
  python -m coca.train --config=configs/finetune_contrastive.py:init_from=DIR,runlocal      # a few steps

DIR is a workdir or a directory that `python -m coca.convert` wrote; the model's settings are its own. CoCa has no such
fine-tune. Chosen here: the optimizer of its Table 10 (Adafactor with decoupled weight decay 0.1, rate 1e-5, cosine
decay to 0 after 1,000 steps of warm-up, clipping at 1.0), a batch of 1,024, since a contrastive batch is its own
negatives, and 5,000 steps. Where the model writes captions, the captioning loss keeps half the contrastive loss'
weight, so that it still does afterwards. Both sides are evaluated.

It trains on the built-in corpus, `tiny` on scenes; other data as in finetune_caption.py.
"""

from coca.commands import arguments
from coca.config import Eval, to_dict
from coca.recipes.coca import finetuning
from coca.recipes.tiny import scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False)
  config = finetuning(args.init_from, args.runlocal)
  config.name = "finetune_contrastive" + "_tiny" * args.tiny + "_runlocal" * args.runlocal
  config.contrastive.weight = 1.0
  config.captioning.weight = 0.5 if config.model.text.multimodal_layers else 0.0
  if not args.runlocal:
    config.update(steps="5000")
    config.data.batch = 1024
  if args.tiny:
    config.data.sources = {"scenes": to_dict(scenes("scenes"))}
    config.data.update(flip=False, threads=1)
    settings = Eval(kind="retrieval", source=scenes("scenes_val"), limit=1000, equal_texts=True)
    config.evals = {"retrieval": to_dict(settings)}
    config.optim.update(lr=3e-4, warmup="5%")
    if not args.runlocal:
      config.update(steps="300", log_every="10")
      config.data.batch = 128
  return config
