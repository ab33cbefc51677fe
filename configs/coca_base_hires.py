r"""CoCa-Base's last phase (arXiv 2205.01917, section 4.1): one epoch at 576 pixels, going on from a run at 288.

  python -m coca.train --config=configs/coca_base_hires.py:init_from=runs/coca_base --workdir=runs/coca_base_hires \
    --config.mesh.data=-1 --config.mesh.fsdp=8
  python -m coca.train --config=configs/coca_base_hires.py:runlocal,init_from=DIR      # DIR: of coca_base.py:runlocal

`init_from` is the workdir of that run; its parameters are read, the position embeddings resized to 32 x 32 patches, and
optimizer, schedule and step begin anew. The decoder still sees 256 pooled tokens. Other sizes: `--config.model...`.

Not in the paper, and chosen here: which data set the one epoch is of (ALIGN's 1.8B pairs, half of each batch, so 3.6e9
examples), the learning rate (a tenth of pre-training's, as that ended at 0) and that the batch stays.
"""

from coca.commands import arguments
from coca.recipes.coca import pretraining, runlocal


def get_config(arg=None):
  # With no argument, the workdir that the docstring of coca_base.py suggests: a run without one would start from noise.
  args = arguments(arg, runlocal=False, init_from="runs/coca_base")
  config = pretraining()
  config.name = "coca_base_hires"
  config.init_from = args.init_from
  config.model.image.update(size=576, layers=12, width=768, mlp=3072, heads=12)
  config.model.text.update(unimodal_layers=12, multimodal_layers=12, width=768, mlp=3072, heads=12)
  config.steps = "3.6e9 examples"
  config.optim.lr = 8e-5
  return runlocal(config) if args.runlocal else config
