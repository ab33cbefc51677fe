r"""SigLIP B/16 (arXiv 2303.15343), from scratch: 203,155,970 parameters, as Google's at 224 pixels; 203,155,970 here.

  python -m coca.train --config=configs/siglip_base.py --workdir=runs/siglip_base
  python -m coca.train --config=configs/siglip_base.py --dry_run
  python -m coca.train --config=configs/siglip_base.py:runlocal      # a minute on a laptop, built-in corpus
  python -m coca.train --config=configs/siglip_base.py:tiny          # minutes on two cores, scenes

CoCa's image encoder under one contrastive pooler with a feed-forward behind it (a MAP head), its unimodal half without
a mask, whose last state is the text embedding, and the pairwise sigmoid loss, round the devices.

The paper's (sections 3, 4.2, 4.6 and 4.7, appendix C): sizes, 32,000 words, 64 tokens, 32,768 pairs a batch, 40e9 in
all, Adafactor with rate 1e-3, weight decay 1e-4 and b2 0.95, 1 / temperature 10 and bias -10 at the start. Their weight
decay is a step's at the highest rate, which is 0.1 in `config.optim.weight_decay`. The towers' details are those of
big_vision, its code. With the same weights, embeddings are those of transformers' SigLIP.

Not the paper's, or not in it: it trains at 256 pixels and goes on for 5e9 pairs at 224; here it is 224 throughout. A
warm-up of 20,000 steps, cosine decay and clipping at 1.0 are SigLIP 2's (arXiv 2502.14786). The tokenizer is trained on
the pairs' texts unless data.tokenizer names one (theirs is of C4). Texts begin with BOS and end in padding, theirs have
no BOS and are filled up with EOS. WebLI is not public: pairs are looked for as WebDataset shards
(`coca.recipes.coca.pretraining`, also for the evaluations).
"""

from coca.commands import arguments
from coca.recipes.coca import alt_text_alone, runlocal
from coca.recipes.tiny import on_scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False)
  config = alt_text_alone()
  config.name = "siglip_base"
  config.model.image.update(size=224, patch=16, layers=12, width=768, mlp=3072, heads=12)
  config.model.poolers.update(kind="parallel", n_query=0, mlp=3072)
  config.model.text.update(vocab=32_000, length=64, unimodal_layers=12, multimodal_layers=0, width=768, mlp=3072)
  config.model.text.update(heads=12, mask="full", pool="last", projection_bias=True)

  config.captioning.weight = 0.0
  config.contrastive.update(loss="sigmoid_ring", temperature=0.1, bias=-10.0, max_scale=0.0, equal_texts="negatives")
  config.optim.update(lr=1e-3, b2=0.95, weight_decay=0.1, schedule="cosine", warmup="20000", clip=1.0)
  config.steps = "40e9 examples"
  config.data.batch = 32_768
  del config.evals.coco_captions
  if args.tiny:
    on_scenes(config)
  return runlocal(config) if args.runlocal else config
