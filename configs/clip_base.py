r"""CLIP with a ViT-B/16 (arXiv 2103.00020), from scratch: 149,620,737 parameters, as OpenAI's; 149,620,737 here.

  python -m coca.train --config=configs/clip_base.py --workdir=runs/clip_base --config.data.tokenizer=tokenizer.json
  python -m coca.train --config=configs/clip_base.py --dry_run
  python -m coca.train --config=configs/clip_base.py:runlocal        # a minute on a laptop, built-in corpus
  python -m coca.train --config=configs/clip_base.py:tiny            # minutes on two cores, scenes

CoCa's image encoder with a class token and one LayerNorm more, and its unimodal decoder, whose state at EOS is the text
embedding; no poolers, no multimodal half, no captioning loss. `python -m coca.convert` reads OpenAI's and open_clip's
weights into this model.

CLIP's words are those of its tokenizer: data.tokenizer has to name its tokenizer.json. Pairs are looked for as
WebDataset shards (`coca.recipes.coca.pretraining`, also for the evaluations); OpenAI's 400M are not public.

The paper's (section 2.5, Tables 18 and 20): sizes, batch of 32,768, 32 epochs, Adam with b2 0.98, eps 1e-6 and
decoupled weight decay 0.2, 5e-4 after 2,000 steps of warm-up, cosine decay, temperature 0.07 and 1 / temperature capped
at 100. Not the paper's: weight decay on matrices only (there, on embeddings too), crops of 90 % of the area or more
(there, a square of the resized image), initialisation, bfloat16.
"""

from coca.commands import arguments
from coca.config.model import MEAN, STD
from coca.recipes.coca import alt_text_alone, runlocal
from coca.recipes.tiny import on_scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False)
  config = alt_text_alone()
  config.name = "clip_base"
  config.model.update(activation="quick_gelu", norm_eps=1e-5)
  config.model.image.update(size=224, patch=16, layers=12, width=768, mlp=3072, heads=12)
  config.model.image.update(class_token=True, patch_bias=False, norm_pre=True, mean=MEAN, std=STD)
  config.model.poolers.update(kind="class_token", n_query=0)
  config.model.text.update(vocab=49_408, length=77, width=512, mlp=2048, heads=8, pool="eos")
  config.model.text.update(unimodal_layers=12, multimodal_layers=0)

  config.captioning.weight = 0.0
  config.contrastive.equal_texts = "negatives"
  config.optim.update(name="adamw", lr=5e-4, b2=0.98, eps=1e-6, weight_decay=0.2, schedule="cosine", warmup="2000")
  config.steps = "12.8e9 examples"
  config.data.update(batch=32_768, crop=(0.9, 1.0), tokenizer="data/clip/tokenizer.json")
  del config.evals.coco_captions
  if args.tiny:
    on_scenes(config)
  return runlocal(config) if args.runlocal else config
