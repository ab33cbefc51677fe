r"""ALIGN (arXiv 2102.05918) with EfficientNet-B7 and BERT-base, as the public kakaobrain/align-base: 171,832,849
parameters, of which 305,600 are moving statistics of the batch norms.

  python -m coca.train --config=configs/align_base.py --workdir=runs/align_base
  python -m coca.train --config=configs/align_base.py:large --dry_run
  python -m coca.train --config=configs/align_base.py:runlocal        # two minutes on a laptop, built-in corpus
  python -m coca.train --config=configs/align_base.py:tiny            # minutes on two cores, scenes

With `large` it is as large as the paper's, EfficientNet-L7 and BERT-large, which InfoQ gives as 800M (20 July 2021):
803,802,165 parameters. No public file names an L7: kakaobrain/coyo-align-b7-base lists Google's as ALIGN-L2-Large, and
L2 is what makes 800M with BERT-large. Its factors, 4.3 and 5.3, are those of timm; efficientnet_builder.py in
tensorflow/tpu has B0 to B7.

The paper's (sections 4 and 5): global pooling without the 1x1 convolution of the classification head; a linear layer on
[CLS] as wide as the image tower; label smoothing 0.1 in a softmax whose temperature is learned from 1.0; LAMB with
weight decay 1e-5, 1e-3 after 10,000 steps, linear decay to 0, 1.2M steps of 16,384; images of 346 pixels, of which 289
are cut out, at random and flipped in training and in the centre in evaluation; 64 tokens. transformers' AlignModel
computes the same of the same parameters; where a side is odd, as 289 and most that follow are, it pads as TensorFlow
does only in the blocks that its `depthwise_padding` names.

Not the paper's, or not in it: BERT's vocabulary (data.tokenizer has to name its vocab.txt) and dropout 0.1; the central
square of an image, where "346 x 346" does not say what becomes of the rest; weight decay on matrices only, and LAMB's
scale on matrices only (google-research/albert, lamb_optimizer.py); equal texts are negatives as all others; batch norms
over the global batch; LAMB's eps 1e-6, which is that file's; initialisation; bfloat16. The alt-texts are not public:
pairs are looked for as WebDataset shards (`coca.recipes.coca.pretraining`, also for the evaluations).
"""

from coca.commands import arguments
from coca.recipes.coca import alt_text_alone, runlocal
from coca.recipes.tiny import on_scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False, large=False)
  config = alt_text_alone()
  config.name = "align_base"
  config.model.update(kind="align", activation="gelu", embed_dim=640)
  config.model.efficientnet.update(width=2.0, depth=3.1)
  config.model.image.size = 289
  config.model.text.update(vocab=30_524, length=64, unimodal_layers=12, multimodal_layers=0)
  if args.large:
    config.name = "align_large"
    config.model.embed_dim = 1376
    config.model.efficientnet.update(width=4.3, depth=5.3)
    config.model.text.update(width=1024, mlp=4096, heads=16, unimodal_layers=24)

  config.captioning.weight = 0.0
  config.contrastive.update(label_smoothing=0.1, temperature=1.0, max_scale=0.0, equal_texts="negatives")
  config.optim.update(name="lamb", lr=1e-3, eps=1e-6, weight_decay=1e-5, schedule="linear", warmup="10000")
  config.steps = "1200000"
  config.data.update(batch=16_384, resize=346, flip=True, tokenizer="data/bert/vocab.txt")
  del config.evals.coco_captions
  if args.tiny:
    on_scenes(config)
  if args.runlocal:
    runlocal(config)
  if args.tiny or args.runlocal:
    width = 0.5 if args.tiny else 0.25
    config.model.efficientnet.update(width=width, depth=0.5)
    config.model.embed_dim = round(320 * width)
    config.model.med.update(cls=2, encode=6, positions=config.model.text.length)
    config.data.resize = 0
  if args.tiny:  # 0.99 and a temperature of 1 take longer than there are steps
    config.model.efficientnet.norm_momentum, config.contrastive.temperature = 0.9, 0.1
  return config
