r"""UniCL (arXiv 2204.03610): labels and texts in one contrastive loss, here with a ViT-B/16.

  python -m coca.train --config=configs/unicl_base.py --workdir=runs/unicl_base
  python -m coca.train --config=configs/unicl_base.py --dry_run
  python -m coca.train --config=configs/unicl_base.py:runlocal       # a minute on a laptop, built-in corpus
  python -m coca.train --config=configs/unicl_base.py:tiny           # minutes on two cores, scenes

Half of the data are images with class names in a prompt, half are pairs. All images and texts of one class match each
other, and a pair's text its image alone: `config.contrastive.equal_texts` 'positives' (the paper's Algorithm 1; here,
equal texts of pairs match, too). Florence trains its dual encoder so.

The authors' (microsoft/UniCL, its unicl_swin_tiny.yaml and model.py): CLIP's text tower of 12 layers, width 512 and 8
heads, causal, its tokenizer, embeddings of 512, 1 / temperature e at the start; their data are ImageNet-21k and
YFCC14M, here those of `coca.recipes.coca.pretraining`.

Not theirs: the image tower is ViT-B/16 with a class token in place of Swin-T and Swin-B (their stages of windows are no
part of the family), without stochastic depth (0.2). Rate, decay and warm-up are CLIP's, and a batch of 4,096 and 32
times those 28M images are chosen: their code has no training loop to read them from.
"""

from coca.commands import arguments
from coca.recipes.coca import pretraining, runlocal
from coca.recipes.tiny import on_scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False)
  config = pretraining()
  config.name = "unicl_base"
  config.model.image.update(size=224, patch=16, layers=12, width=768, mlp=3072, heads=12, class_token=True)
  config.model.poolers.update(kind="class_token", n_query=0)
  config.model.text.update(vocab=49_408, length=77, width=512, mlp=2048, heads=8, pool="eos")
  config.model.text.update(unimodal_layers=12, multimodal_layers=0)
  config.captioning.weight = 0.0
  config.contrastive.update(equal_texts="positives", temperature=0.36788)
  config.optim.update(name="adamw", lr=5e-4, b2=0.98, eps=1e-6, weight_decay=0.2, schedule="cosine", warmup="2000")
  config.steps = "897e6 examples"
  config.data.update(batch=4096, crop=(0.9, 1.0), tokenizer="data/clip/tokenizer.json")
  del config.evals.coco_captions
  if args.tiny:
    on_scenes(config)
  return runlocal(config) if args.runlocal else config
