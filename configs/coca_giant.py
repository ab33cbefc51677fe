r"""CoCa (arXiv 2205.01917, Table 1): 1.0B image (ViT-giant) and 1.1B text parameters, pre-trained (section 4.1).

  python -m coca.train --config=configs/coca_giant.py --workdir=runs/coca_giant \
    --config.mesh.data=-1 --config.mesh.fsdp=64
  python -m coca.train --config=configs/coca_giant.py --dry_run
  python -m coca.train --config=configs/coca_giant.py:runlocal       # a minute on a laptop, built-in corpus

The paper took about 5 days on 2,048 TPU v4 chips. The width, 1,408, is 128 x 11: `mesh.fsdp` may be up to 128.

The data sets, and how each is prepared or replaced: `coca.recipes.coca.pretraining`, which also holds the recipe. What
is not in the paper and was chosen here: see configs/coca_base.py, and that the backward pass computes all layers again.
Table 1's 1.1B of text does not tell whether the softmax has an output matrix of its own (1.18B, as here and as Base and
Large must have) or that of the embedding (1.09B, with --config.model.text.tied_softmax=True).
"""

from coca.commands import arguments
from coca.recipes.coca import pretraining, runlocal


def get_config(arg=None):
  args = arguments(arg, runlocal=False, pairs="")
  config = pretraining(args.pairs)
  config.name = "coca_giant"
  config.model.image.update(layers=40, width=1408, mlp=6144, heads=16)
  config.model.text.update(unimodal_layers=18, multimodal_layers=18, width=1408, mlp=5632, heads=16)
  return runlocal(config) if args.runlocal else config
