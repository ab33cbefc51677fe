r"""SimVLM Base (arXiv 2108.10904), from scratch: no count of its parameters was found; 276.2M here.

  python -m coca.train --config=configs/simvlm_base.py --workdir=runs/simvlm_base
  python -m coca.train --config=configs/simvlm_base.py --dry_run
  python -m coca.train --config=configs/simvlm_base.py:runlocal      # a minute on a laptop, built-in corpus
  python -m coca.train --config=configs/simvlm_base.py:tiny          # minutes on two cores, scenes

A prefix language model: an encoder of the image and of the first words of its text, and a decoder of the rest. How many
words are given is drawn anew for each text and step. Each batch mixes pairs with texts that stand alone, of which the
encoder reads a beginning. Afterwards `coca.load(...).caption(image, "A picture of")` is the paper's zero-shot
captioning.

The paper's: prefix language modeling over encoder and decoder, patches through the first three blocks of a ResNet,
about 1M steps, ALIGN and C4, 4,096 pairs and 512 documents a step, AdamW. From memory, as the text of the paper could
not be read again: ViT-Base's sizes for encoder and decoder, blocks of ResNet-101, 224 pixels, 32,000 words, b1 0.9, b2
0.999, weight decay 0.01, 2 % of the steps warm-up to 5e-4 and then a line to 0, no dropout.

Not the paper's: group norm in the stem (a ResNet has batch norm, and the paper names none); position embeddings alone,
where the paper adds relative attention over image patches (it would need a bias in every kernel of attention); 64
tokens a text, documents cut to as many; no count of given words is likelier than another, and a document may have none;
the softmax is untied. ALIGN is not public: pairs are looked for as WebDataset shards (`coca.recipes.coca.pretraining`,
also for the evaluation), documents in Parquet files with a column 'text', as C4 has it. The tokenizer is trained on the
texts unless data.tokenizer names one.
"""

from coca.commands import arguments
from coca.config import Source, to_dict
from coca.recipes.coca import alt_text_alone, runlocal
from coca.recipes.tiny import on_scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False)
  config = alt_text_alone()
  config.name = "simvlm_base"
  config.model.kind = "simvlm"
  config.model.image.update(size=224, patch=16, layers=12, width=768, mlp=3072, heads=12)
  config.model.text.update(vocab=32_000, length=64, unimodal_layers=0, multimodal_layers=12, width=768, mlp=3072)
  config.model.text.heads = 12

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
    on_scenes(config)
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
