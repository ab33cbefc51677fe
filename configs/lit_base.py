r"""LiT (arXiv 2111.07991): a text tower learns to read a frozen, pre-trained ViT-B/16.

  python -m coca.train --config=configs/lit_base.py:init_from=DIR --workdir=runs/lit_base
  python -m coca.train --config=configs/lit_base.py:init_from=DIR --dry_run
  python -m coca.train --config=configs/lit_base.py:init_from=DIR --config.data.embeddings=DIR2   # see docs/family.md
  python -m coca.train --config=configs/lit_base.py:init_from=DIR,tiny       # DIR a run of vit_base:tiny
  python -m coca.train --config=configs/lit_base.py:init_from=DIR,runlocal   # a few steps

DIR is a run of configs/vit_base.py, or any model of kind 'coca' whose image encoder is to be used. Its encoder is
frozen (`config.optim.lr_scale`): it has no gradient and no optimizer state. Text tower and temperature begin anew, and
so does a linear projection of the class token to the width of the embeddings, the paper's optional head of the image
tower. Of an encoder without a class token a new attentional pooler takes the place of both, which is more than LiT has.

The authors' big_vision/configs/proj/image_text/lit_coco.py: texts of 16 tokens, batch of 4,096, rate 1e-3, weight decay
0.01 (a step's at the highest rate: 10 in `config.optim.weight_decay`), warm-up in 3 % of the run, cosine decay,
clipping at 1.0, 1 / temperature 10 at the start, Adam, a text tower of BERT-base's size. Their 5,000 steps are for a
demonstration on COCO; here 60,000 are chosen, on pairs as WebDataset shards.

Not theirs: the text tower begins anew (theirs from BERT, which the paper finds to help little), reads 32,000 words in a
SentencePiece tokenizer of the pairs' texts and is CoCa's unimodal half, causal with [CLS] last; crops and flips are
none.
"""

from coca.commands import arguments
from coca.config import to_dict
from coca.recipes.coca import alt_text_alone, runlocal
from coca.recipes.tiny import on_scenes
from coca.storage.workdir import read_config


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False, init_from="")
  if not args.init_from:
    raise ValueError("LiT starts from an image encoder: --config=FILE:init_from=DIR, a run of configs/vit_base.py")
  config, old = alt_text_alone(), read_config(args.init_from).model
  config.name, config.init_from = "lit_base", args.init_from
  config.model.text.update(vocab=32_000, length=16, unimodal_layers=12, multimodal_layers=0)
  config.model.poolers.update(kind="class_token" if old.image.class_token else "parallel", n_query=0)
  config.captioning.weight = 0.0
  config.contrastive.update(temperature=0.1, equal_texts="negatives")
  config.optim.update(name="adamw", lr=1e-3, weight_decay=10.0, schedule="cosine", warmup="3%", clip=1.0)
  config.steps = "60000"
  config.data.batch = 4096
  del config.evals.coco_captions
  if args.tiny:
    on_scenes(config)
  if args.runlocal:
    runlocal(config)
  config.model.update(norm_eps=old.norm_eps, activation=old.activation)
  config.model.image.update(to_dict(old.image), patch_dropout=0.0)
  config.init_parts = ("image_encoder",)
  config.optim.lr_scale = {"image_encoder": 0.0}
  return config
