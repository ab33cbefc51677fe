r"""MaMMUT (arXiv 2303.16839) in the size of CoCa-Base, from scratch: 2B parameters in the paper; 286.3M here.

  python -m coca.train --config=configs/mammut_base.py --workdir=runs/mammut_base
  python -m coca.train --config=configs/mammut_base.py --dry_run
  python -m coca.train --config=configs/mammut_base.py:runlocal      # a minute on a laptop, built-in corpus
  python -m coca.train --config=configs/mammut_base.py:tiny          # minutes on two cores, scenes

One text decoder that reads each text twice: for the contrastive loss without cross-attention and without a causal mask,
for captions with both. The second pass starts from the words, not from the first's states. The order of two losses
that are summed makes no difference.

The paper's (abstract and its authors' post of May 2023): one image encoder and one text decoder with shared weights,
these two passes, contrastive and captioning loss. The rest of its recipe was not to be found where it could be read.

Not the paper's, or not known to be: the size (12 layers, as CoCa-Base's halves), the optimizer, batch, steps,
vocabulary and weights of the losses, which are CoCa's; cross-attention in every second layer (`cross_every`); [CLS]
behind the words and a contrastive pooler over the image tokens, all of which the decoder sees; no focal loss in place
of the contrastive one; no cropped position embeddings, which are for detection; no video.
"""

from coca.commands import arguments
from coca.recipes.coca import alt_text_alone, runlocal
from coca.recipes.tiny import on_scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False)
  config = alt_text_alone()
  config.name = "mammut_base"
  config.model.image.update(size=224, patch=16, layers=12, width=768, mlp=3072, heads=12)
  config.model.poolers.update(kind="parallel", n_query=0)
  config.model.text.update(unimodal_layers=12, multimodal_layers=12, width=768, mlp=3072, heads=12)
  config.model.text.update(two_passes=True, cross_every=2)
  if args.tiny:
    on_scenes(config)
  return runlocal(config) if args.runlocal else config
