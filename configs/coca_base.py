r"""CoCa-Base (arXiv 2205.01917, Table 1): 86M image and 297M text parameters, pre-trained from scratch (section 4.1).

  python -m coca.train --config=configs/coca_base.py --workdir=runs/coca_base \
    --config.mesh.data=-1 --config.mesh.fsdp=8
  python -m coca.train --config=configs/coca_base.py:pairs='gs://bucket/pairs/*.tar' ...   # on your own pairs alone
  python -m coca.train --config=configs/coca_base.py --dry_run
  python -m coca.train --config=configs/coca_base.py:runlocal        # a minute on a laptop, built-in corpus

The data sets, and how each is prepared or replaced: `coca.recipes.coca.pretraining`, which also holds the recipe.

Not in the paper, and chosen here: text of 64 tokens (as ALIGN), contrastive embeddings as wide as the text tower,
bfloat16 activations, LayerNorm on the pooled tokens, tanh GELU, equal texts in a batch left out of the contrastive
loss, 1 / temperature capped at 100, both losses means (of the two directions, over tokens), for which the paper's 1 : 2
makes the captioning loss twice the other at the start. docs/settings.md says so at each setting.
"""

from coca.commands import arguments
from coca.recipes.coca import pretraining, runlocal


def get_config(arg=None):
  args = arguments(arg, runlocal=False, pairs="")
  config = pretraining(args.pairs)
  config.name = "coca_base"
  config.model.image.update(layers=12, width=768, mlp=3072, heads=12)
  config.model.text.update(unimodal_layers=12, multimodal_layers=12, width=768, mlp=3072, heads=12)
  return runlocal(config) if args.runlocal else config
