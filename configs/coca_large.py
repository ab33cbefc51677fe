r"""CoCa-Large (arXiv 2205.01917, Table 1): 303M image and 484M text parameters, pre-trained from scratch (section 4.1).

  python -m coca.train --config=configs/coca_large.py --workdir=runs/coca_large \
    --config.mesh.data=-1 --config.mesh.fsdp=16
  python -m coca.train --config=configs/coca_large.py --dry_run
  python -m coca.train --config=configs/coca_large.py:runlocal       # a minute on a laptop, built-in corpus

The data sets, and how each is prepared or replaced: `coca.recipes.coca.pretraining`, which also holds the recipe. What
is not in the paper and was chosen here: see configs/coca_base.py.
"""

from coca.commands import arguments
from coca.recipes.coca import pretraining, runlocal


def get_config(arg=None):
  args = arguments(arg, runlocal=False, pairs="")
  config = pretraining(args.pairs)
  config.name = "coca_large"
  config.model.image.update(layers=24, width=1024, mlp=4096, heads=16)
  config.model.text.update(unimodal_layers=12, multimodal_layers=12, width=1024, mlp=4096, heads=16)
  return runlocal(config) if args.runlocal else config
