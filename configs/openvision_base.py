r"""OpenVision B/16 (arXiv 2505.04601), from scratch: 86M parameters in its image encoder; 211.9M here in all.

  python -m coca.train --config=configs/openvision_base.py --workdir=runs/openvision_base
  python -m coca.train --config=configs/openvision_base.py --dry_run
  python -m coca.train --config=configs/openvision_base.py:runlocal  # a minute on a laptop, built-in corpus
  python -m coca.train --config=configs/openvision_base.py:tiny      # minutes on two cores, scenes

Two texts of an image, a synthetic caption and the web's, in the contrastive loss, a captioning loss of the first with
weight 2, and images of 160, 224 and 384 pixels one after the other (`config.stages`).

Theirs, from src/configs/openvision.py, scripts/project/openvision/train.sh and src/models of their code, as it was in
May 2025: the ViT, the text encoder (12 layers, width 512, 8 heads), a decoder of as many layers, width and heads, 80
tokens, 32,000 words of BERT's vocabulary, loss weights 1 and 2, the mean of both texts' losses, the mean over tokens,
temperature 0.07, AdamW with b2 0.95 and weight decay 0.2, batch of 32,768, and in each stage a warm-up and a cosine to
0 of its own: 10,000, 800 and 200 times ImageNet's 1,281,167 images, 40, 20 and 0 of these for the warm-up. The sizes
are those of the B/16s in the README (L/14: 84, 224, 336). No patches are dropped (`mask_ratio` 0).

Not theirs: later stages have their batch, too, where they have 16,384 and 8,192; the rates go by their rule, 8e-6,
4e-7 and 1e-7 times batch / 256, with this one. Their stages are runs that take over the parameters and begin the
optimizer anew; here its moments go on. Their positions are fixed sines and cosines, of which small images have the
first ones; here they are learned from there and resampled. Their image embedding is a mean over the patches; here a
contrastive pooler makes it. Their text encoder has no causal mask; here it is the decoder's unimodal half, as CoCa's.
Their decoder writes the synthetic caption from image and web text, with 128 learned queries, causal over all of them;
here it reads the words before, and no web text. They contrast one sentence of the caption, here the beginning of it is
(80 tokens for their decoder's 128). Not theirs, too: no colour jitter, weight decay on matrices only.

Pairs are looked for as WebDataset shards (`coca.recipes.coca.pretraining`, also for the evaluations), whose texts have
to be a list, the synthetic caption before the web's; `sample="image"` of a CapFilt workdir gives such, too.
"""

from coca.commands import arguments
from coca.config import Stage, to_dict
from coca.recipes.coca import alt_text_alone, runlocal
from coca.recipes.tiny import on_scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False)
  config = alt_text_alone()
  config.name = "openvision_base"
  image, text = config.model.image, config.model.text
  image.update(size=384, patch=16, layers=12, width=768, mlp=3072, heads=12, position_init="sincos2d", patch_bias=False)
  image.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  config.model.poolers.update(kind="parallel", n_query=0, heads=8)
  text.update(vocab=32_000, length=80, unimodal_layers=12, multimodal_layers=12, width=512, mlp=2048, heads=8)

  config.contrastive.update(texts=2, equal_texts="negatives", max_scale=0.0)
  config.optim.update(name="adamw", lr=1.28e-5, b2=0.95, weight_decay=0.2, schedule="cosine", warmup="0")
  config.steps = f"{11_000 * 1_281_167} examples"
  config.stages = {
    "small": to_dict(Stage(size=160, until=f"{100 * 10_000 / 11_000}%", lr=1.024e-3, warmup="0.4%")),
    "medium": to_dict(Stage(size=224, until=f"{100 * 10_800 / 11_000}%", lr=5.12e-5, warmup="2.5%")),
  }
  config.data.update(batch=32_768, crop=(0.4, 1.0))
  config.data.sources.alt_text.text = "first"
  if args.tiny:
    on_scenes(config)
    config.optim.warmup = "0"
    small, medium = config.stages.small, config.stages.medium
    small.update(size=30, until="80%", lr=4e-3, warmup="5%")
    medium.update(size=40, until="90%", lr=2e-3, warmup="5%")
    config.optim.lr = 1e-3
    config.data.sources.scenes.scenes.texts = 2
  if args.runlocal:
    runlocal(config)
    config.stages.small.size, config.stages.medium.size = (2 * image.patch, 4 * image.patch)
  return config
