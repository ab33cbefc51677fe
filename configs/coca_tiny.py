r"""CoCa in minutes on two cores: images of 48 pixels and their names, from the corpus in the package.

  python -m coca.train --config=configs/coca_tiny.py --workdir=runs/tiny
  python -m coca.train --config=configs/coca_tiny.py:runlocal        # a minute, to see that all of it works

Trains on four styles of emoji; tests on a fifth one, twemoji, that it never saw: zero-shot classification among its
1,940 names (beside what the nearest image in 16x16 pixels would say), retrieval and captions.

With `web` behind the colon, the clip art of the corpus is mixed in, under the titles it had on the web; with
`capfilt=DIR` it has the texts that a CapFilt job in DIR kept instead (launch/bootstrap_tiny.sh).

The architecture is the paper's (poolers in cascade, [CLS] last, as many unimodal as multimodal layers), in small. Not
the paper's: all sizes, AdamW and its settings, that equal names in a batch are positives of each other, and that the
contrastive loss, a sum of both directions beside a mean over tokens, weighs as much as the captioning loss.
"""

from coca.commands import arguments
from coca.config import Eval, Source, default, to_dict
from coca.recipes.coca import shorten


def get_config(arg=None):
  args = arguments(arg, runlocal=False, web=False, capfilt="")
  config = default()
  config.name = "coca_tiny"
  config.update(steps="1500", log_every="20")

  config.model.image.update(size=48, patch=12, layers=4, width=128, mlp=512, heads=4)
  config.model.poolers.n_query = 8
  config.model.text.update(vocab=1600, length=12, unimodal_layers=1, multimodal_layers=1, width=128, mlp=512, heads=4)
  config.model.unroll = 4

  config.contrastive.equal_texts = "positives"  # a name stands beside up to four images
  config.contrastive.directions = "sum"  # what its settings were chosen with
  config.optim.update(name="adamw", lr=1.5e-3, b2=0.98, weight_decay=0.05, schedule="cosine", warmup="5%", clip=1.0)

  config.data.sources.emoji = to_dict(Source(kind="builtin", split="train+unseen_concepts"))
  if args.web or args.capfilt:
    config.data.sources.web = to_dict(Source(kind="builtin", split="openclipart", sidecars=args.capfilt))
    for source in config.data.sources.values():
      source.weight = 0.0  # every text is an example, as in BLIP's D and D'
  config.data.update(batch=128, crop=(0.8, 1.0), flip=False, threads=1)

  unseen_style = Source(kind="builtin", split="twemoji")
  config.evals.twemoji = to_dict(Eval(kind="zero_shot", source=unseen_style, every="20%", pixel_neighbours="emoji"))
  config.evals.retrieval = to_dict(Eval(kind="retrieval", source=unseen_style, equal_texts=True))
  config.evals.captions = to_dict(Eval(kind="captions", source=unseen_style))
  config.checkpoint.every = "10%"

  if args.runlocal:
    config.name += "_runlocal"
    config.model.image.update(layers=2, width=64, mlp=256)
    config.model.text.update(vocab=1000, width=64, mlp=256)
    shorten(config)
  return config
