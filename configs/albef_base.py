r"""ALBEF (arXiv 2107.07651): 209.5M parameters in the paper, 85.8M of the ViT and 123.7M of BERT; 209,937,727 here.

  python -m coca.train --config=configs/albef_base.py --workdir=runs/albef_base
  python -m coca.train --config=configs/albef_base.py --dry_run
  python -m coca.train --config=configs/albef_base.py:runlocal        # a minute on a laptop, built-in corpus
  python -m coca.train --config=configs/albef_base.py:tiny            # minutes on two cores, scenes
  python -m coca.train --config=configs/albef_base.py:init_from=DIR   # DIR: ViT and BERT, as ALBEF starts

ViT-B/16 at 256 pixels and BERT-base, whose first six layers read the text and whose last six join it with the image.
The momentum model has all of both, and the head that tells hidden words.

The paper's (sections 3 and 4, appendix): contrastive loss with queue 65,536 and momentum 0.995, matching with hard
negatives, 15 % of the words hidden, equal weights; soft targets 0.4, from 0 in the first epoch; AdamW with weight decay
0.02, 512 pairs a step on 8 GPUs, 30 epochs of 14.1M images, rate 1e-4 after 1,000 steps, then a cosine to 1e-5. From
salesforce/ALBEF and not the paper: embeddings of 256, temperature 0.07 (Pretrain.yaml), six and six layers
(config_bert.json: fusion_layer 6 of 12), texts of 25 tokens (Pretrain.py), 1 / temperature between 2 and 1,000
(models/model_pretrain.py), crops of 20 % and more and RandAugment 2, 7 (dataset/__init__.py).

Not as either: warm-up is 2,000 steps in the code; pairs of the whole batch are compared and not a GPU's (hard negatives
are drawn from groups of 64, a GPU's); [SEP] is never hidden; soft targets of hidden words are probabilities over the
vocabulary (equation 7), where the code's logarithms are over the places of a text (models/xbert.py: dim=1); texts are
cleaned as BLIP's; RandAugment is BLIP's set of operations; the rate falls each step; [DEC] and [ENC], which the
tokenizer has, are two words more. The paper starts from DeiT's ViT and from BERT; without DIR all begins anew. Images
and texts as in `coca.recipes.blip.pretraining`.
"""

from coca.commands import arguments
from coca.config import Eval, to_dict
from coca.recipes import blip as blip_recipes
from coca.recipes.tiny import on_scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False, init_from="")
  config = blip_recipes.pretraining(batch=512, lr=1e-4)
  config.name, config.init_from = "albef_base", args.init_from
  config.model.kind = "albef"
  config.model.image.size = 256
  config.model.text.update(length=25, unimodal_layers=6, multimodal_layers=6)
  config.contrastive.update(queue=65_536, soft_ramp="3.33%")
  config.captioning.update(weight=0.0, label_smoothing=0.0)
  config.matching.update(floor=0.0, group=64)
  config.masked.weight = 1.0
  config.optim.update(schedule="cosine", epoch="", warmup="1000", final_lr=0.1, weight_decay=0.02, decay_mask="kernels")
  config.steps = "4.23e8 examples"
  config.data.rand_augment = (2, 7)
  config.evals.coco_retrieval.rerank = 256
  del config.evals.coco_captions
  if args.tiny:
    on_scenes(config, steps=700)
    config.model.embed_dim = 128
    config.model.med.update(cls=2, encode=6, mask=4, positions=17, dropout=0.0)
    config.contrastive.queue = 1024
    config.matching.group = 0
    for name, settings in list(config.evals.items()):
      config.evals[name.replace("retrieval", "matching")] = to_dict(
        Eval(kind="matching", source=settings.source, limit=settings.limit)
      )
      settings.rerank = 16
  if args.runlocal:
    blip_recipes.runlocal(config)
    config.model.med.mask = 4
  return config
