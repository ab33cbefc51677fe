r"""CapFilt's captioner (BLIP, arXiv 2201.12086, section 3.3): captioning loss alone, on human pairs.

  python -m coca.train --config=configs/capfilt_captioner.py:init_from=DIR --workdir=runs/captioner
  python -m coca.train --config=configs/capfilt_captioner.py:init_from=DIR,tiny        # DIR as of coca_tiny:web
  python -m coca.train --config=configs/capfilt_captioner.py:init_from=DIR,runlocal    # a few steps, to see it work

DIR is the pre-trained model: a workdir, or what `python -m coca.convert` wrote. Its filter, configs/capfilt_filter.py,
starts from the same one and is trained apart: with shared weights it would let the captioner's own mistakes pass
(Table 4). Table 14, captioning on COCO: 5 epochs, AdamW with weight decay 0.05, rate 1e-5 (ViT-L: 2e-6; here, what is
1,024 wide or wider), cosine decay to 0, batch 256. Label smoothing of 0.1 as in the language modelling loss (3.2).

It trains on the built-in corpus, emoji and their names; with `tiny` on the sources of origin 'human' that DIR was
trained on, if there are some, as of coca_tiny:web. On one's own images, a folder with a captions.jsonl:

  --config.data.sources.pairs.kind=folder --config.data.sources.pairs.path=data/coco_train \
  --config.data.sources.pairs.split='' --config.steps='2.8e6 examples'

(five times COCO's 567,000 captions), and in the same way config.evals.captions.source.

Not BLIP's: images stay as large as the model's unless told otherwise (BLIP: 384 pixels; res=384 behind the colon, or
378 for CoCa's patches of 18, resizes the position embeddings); no crops, flips and RandAugment; captions do not begin
with "a picture of"; weight decay on matrices only; the rate falls each step and not each epoch. The model loses its
contrastive side: what judges its captions is the filter.
"""

from coca.commands import arguments
from coca.recipes.coca import bootstrapping


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", res=0, tiny=False)
  config = bootstrapping(args, epochs=5, large_lr=2e-6, tiny_steps=200, tiny_lr=3e-4)
  config.name = "capfilt_captioner" + "_runlocal" * args.runlocal
  config.captioning.update(weight=1.0, label_smoothing=0.1)
  config.contrastive.weight = 0.0
  config.evals = {"captions": config.evals.captions}  # the others are of embeddings
  return config
