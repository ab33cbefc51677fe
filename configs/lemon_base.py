r"""LEMON (arXiv 2111.12233), whose base is as large as VinVL (2101.00529): 111.7M in its Table 2; 111,095,612 here.

  python -m coca.train --config=configs/lemon_base.py --workdir=runs/lemon_base
  python -m coca.train --config=configs/lemon_base.py:size=huge --dry_run
  python -m coca.train --config=configs/lemon_base.py:runlocal       # a minute on a laptop, regions of scenes
  python -m coca.train --config=configs/lemon_base.py:tiny           # minutes on two cores, regions of scenes

A captioner that reads the regions of a detector: BERT over the caption, the regions' names and the regions, under a
mask that lets a text be written word by word (coca/models/lemon.py). No image encoder, no embeddings. `size` is one of
the paper's eight. Table 2 counts BERT's pooler, which captions don't use: with its d^2 + d parameters the sizes below
come to the paper's 13.4, 18.1, 34.3, 55.6, 111.7, 196.7, 338.3 and 675.4 million.

VinVL's (VinVL_MODEL_ZOO.md and oscar/run_captioning.py in microsoft/Oscar, for COCO's captions): 50 regions of 2,048
numbers and 6 of the box, 40 tokens of a caption and 30 of names; 15 % of a caption's tokens hidden, 1 to 3 of them,
80 % of these as [MASK] and 10 % as any word; batch of 512, 60 epochs, AdamW with 3e-5, falling in a line, weight decay
0.05, clipping at 1.0, dropout 0.1. It starts there from a model trained on 5.65M images, `init_from` here.

Not VinVL's: its label smoothing of 0.1, the fifth of the losses that it leaves out, embeddings that stay as BERT has
them, and BERT's initialisation. LEMON's own pre-training, on 200M pairs of the web of which the regions are not public,
is not here: its constants were looked for, and no public copy that was searched has more of the paper than its
beginning.
"""

from coca.commands import arguments
from coca.config import default
from coca.recipes import regions

SIZES = {  # Table 2: layers, width, feed-forward width, heads
  "tiny": (6, 256, 1024, 4),
  "tiny12": (12, 256, 1024, 4),
  "small": (12, 384, 1536, 6),
  "small24": (24, 384, 1536, 6),
  "base": (12, 768, 3072, 12),
  "base24": (24, 768, 3072, 12),
  "large": (24, 1024, 4096, 16),
  "huge": (32, 1280, 5120, 16),
}


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False, size="base")
  if args.size not in SIZES:
    raise ValueError(f"size={args.size}: LEMON has {', '.join(SIZES)}")
  layers, width, mlp, heads = SIZES[args.size]
  config = default()
  config.name = f"lemon_{args.size}"
  config.model.update(kind="lemon", activation="gelu", remat="dots")
  config.model.text.update(vocab=30_524, length=40, unimodal_layers=0, multimodal_layers=layers)
  config.model.text.update(width=width, mlp=mlp, heads=heads)

  config.contrastive.weight, config.captioning.weight = 0.0, 0.0
  config.masked.update(weight=1.0, draw="number", most=3)
  config.optim.update(name="adamw", lr=3e-5, b2=0.999, weight_decay=0.05, schedule="linear", warmup="0", clip=1.0)
  config.steps = "3.4e7 examples"  # 60 epochs of 566,747 captions
  config.data.update(batch=512, tokenizer="data/bert/vocab.txt")
  config.mesh.data, config.mesh.fsdp = -1, 1
  regions.coco(config)
  if args.tiny:
    regions.on_scenes(config)
  return regions.runlocal(config) if args.runlocal else config
