r"""Cap and CapPa B/16 (arXiv 2306.07915), from scratch: 191.7M parameters in big_vision's code; 191.7M here.

  python -m coca.train --config=configs/cap_base.py --workdir=runs/cap_base
  python -m coca.train --config=configs/cap_base.py:parallel --workdir=runs/cappa_base
  python -m coca.train --config=configs/cap_base.py:parallel --dry_run
  python -m coca.train --config=configs/cap_base.py:runlocal         # a minute on a laptop, built-in corpus
  python -m coca.train --config=configs/cap_base.py:tiny             # minutes on two cores, scenes

A captioner alone: CoCa's image encoder, all of whose tokens its multimodal decoder sees; no unimodal half, no poolers,
no contrastive loss. With `parallel` (CapPa), the decoder has nothing but [MASK]s for three quarters of the examples, no
causal mask, and predicts all words at once. It writes captions word by word in either case.

The paper's and big_vision's (cappa.py and pretrain.py): sizes, six layers, 32,000 words, 64 tokens, batch of 8,192,
366,500 steps, 10,000 of them warm-up, Adafactor with rate 1e-3, weight decay 1e-4 (a step's at the highest rate: 0.1 in
`config.optim.weight_decay`) and clipping at 1.0, cosine decay.

Not theirs: their decoder has no biases but in its last LayerNorm and in the vocabulary head, ours has them everywhere
but there (73,728 more and 32,000 fewer: 191,710,464 parameters for 191,668,736, and [MASK]'s 768 on both sides).
Their head starts at zero. Their first input is padding in place of BOS, so they predict one word more. The tokenizer
is trained on the pairs' texts unless data.tokenizer names one (theirs is of C4). WebLI is not public: pairs are looked
for as WebDataset shards (`coca.recipes.coca.pretraining`, also for the evaluations).
"""

from coca.commands import arguments
from coca.recipes.coca import alt_text_alone, runlocal
from coca.recipes.tiny import on_scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False, parallel=False)
  config = alt_text_alone()
  config.name = "cappa_base" if args.parallel else "cap_base"
  config.model.image.update(size=224, patch=16, layers=12, width=768, mlp=3072, heads=12)
  config.model.poolers.n_query = 0
  config.model.text.update(vocab=32_000, length=64, unimodal_layers=0, multimodal_layers=6, width=768, mlp=3072)
  config.model.text.heads = 12

  config.contrastive.weight = 0.0
  config.captioning.update(weight=1.0, tokens="per_text", parallel=0.75 if args.parallel else 0.0)
  config.optim.update(lr=1e-3, weight_decay=0.1, schedule="cosine", warmup="10000", clip=1.0)
  config.steps = "366500"
  config.data.batch = 8192
  for name in ("imagenet", "coco_retrieval", "flickr_retrieval"):  # of embeddings
    del config.evals[name]
  config.evals.coco_captions.every = "5%"
  if args.tiny:
    on_scenes(config)
  return runlocal(config) if args.runlocal else config
