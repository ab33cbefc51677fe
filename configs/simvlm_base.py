r"""SimVLM (arXiv 2108.10904), from scratch: Base has 276.2M parameters here, Large 815.5M, Huge 1,620.6M.

  python -m coca.train --config=configs/simvlm_base.py --workdir=runs/simvlm_base
  python -m coca.train --config=configs/simvlm_base.py:size=huge --dry_run
  python -m coca.train --config=configs/simvlm_base.py:runlocal      # a minute on a laptop, built-in corpus
  python -m coca.train --config=configs/simvlm_base.py:tiny          # minutes on two cores, scenes

A prefix language model: an encoder of the image and of the first words of its text, and a decoder of the rest. How many
words are given is drawn anew for each text and step. Each batch mixes pairs with texts that stand alone, of which the
encoder reads a beginning. Afterwards `coca.load(...).caption(image, "A picture of")` is the paper's zero-shot
captioning.

The paper's, as others quote it: prefix language modeling over encoder and decoder, patches through the first three
blocks of a ResNet, about 1M steps, ALIGN and C4, 4,096 pairs and 512 documents a step, AdamW (L. Weng's post of
2022-06-09 on such models; a summary of what can be reproduced). BLIP-2 (arXiv 2301.12597), Table 1, gives Huge 1.4B
parameters, 220M fewer than here, which is not explained; no count of the others was found. From memory, since no public
copy that was searched has more of the text than its beginning: ViT's sizes for encoder and decoder, ResNet-101's blocks
for Base, ResNet-152's for the others, for Huge with as many channels at the end as it is wide, 224 pixels, 32,000
words, b1 0.9, b2 0.999, weight decay 0.01, 2 % of the steps warm-up to 5e-4 and then a line to 0, no dropout; and
relative attention over the image tokens, as CoAtNet has it, which `--config.model.stem.distances=True` adds (CoAtNet's
appendix A.1 was read for it). It is off since it was not found written, and in the encoder XLA's kernel of attention
then takes the place of the faster ones.

Not the paper's: group norm in the stem (a ResNet has batch norm, and the paper names none); 64 tokens a text, documents
cut to as many; no count of given words is likelier than another, and a document may have none; the softmax is untied.
ALIGN is not public: pairs are looked for as WebDataset shards (`coca.recipes.coca.pretraining`, also for the
evaluation), documents in Parquet files with a column 'text', as C4 has it. The tokenizer is trained on the texts unless
data.tokenizer names one.
"""

from coca.commands import arguments
from coca.config import Source, to_dict
from coca.recipes.coca import alt_text_alone, runlocal
from coca.recipes.tiny import on_scenes

SIZES = {  # layers, width, feed-forward width and heads of each half; bottlenecks and channels of the stem
  "base": (12, 768, 3072, 12, (3, 4, 23), 64),
  "large": (24, 1024, 4096, 16, (3, 8, 36), 64),
  "huge": (32, 1280, 5120, 16, (3, 8, 36), 80),
}


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False, size="base")
  if args.size not in SIZES:
    raise ValueError(f"size={args.size}: SimVLM has {', '.join(SIZES)}")
  layers, width, mlp, heads, blocks, channels = SIZES[args.size]
  config = alt_text_alone()
  config.name = f"simvlm_{args.size}"
  config.model.kind = "simvlm"
  config.model.image.update(size=224, patch=16, layers=layers)
  config.model.text.update(vocab=32_000, length=64, unimodal_layers=0, multimodal_layers=layers)
  for tower in (config.model.image, config.model.text):
    tower.update(width=width, mlp=mlp, heads=heads)
  config.model.stem.update(blocks=blocks, width=channels)

  config.contrastive.weight = 0.0
  config.captioning.weight = 1.0
  config.optim.update(name="adamw", lr=5e-4, weight_decay=0.01, warmup="2%")
  config.steps = "1000000"
  config.data.batch = 4096 + 512
  for name in ("imagenet", "coco_retrieval", "flickr_retrieval"):  # of embeddings
    del config.evals[name]
  config.evals.coco_captions.every = "5%"
  documents = Source(kind="parquet", path="data/c4/*.parquet", text_key="text", text_only=True)
  if args.tiny:
    on_scenes(config, steps=900)
    config.model.image.update(size=64, patch=16)
    documents = Source(kind="builtin", split="openclipart", text_only=True)
  if args.runlocal:
    runlocal(config)
    documents = Source(kind="builtin", split="openclipart", text_only=True)
  if args.tiny or args.runlocal:
    config.model.stem.update(blocks=(1, 1, 2), width=16)
  pairs = sum(source.weight for source in config.data.sources.values())
  config.data.sources.documents = to_dict(documents)
  config.data.sources.documents.weight = pairs * 512 / 4096
  return config
