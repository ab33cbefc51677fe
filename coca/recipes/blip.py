"""The common part of BLIP's configs (arXiv 2201.12086). Constants that the paper lacks are its code's, marked so."""

from dataclasses import replace

from coca.config import Draft, Eval, Source, default, to_dict
from coca.config.model import MEAN, STD
from coca.decoding.settings import beam_search
from coca.recipes.coca import EMOJI, shorten
from coca.recipes.tiny import scenes
from coca.storage.workdir import read_config

# How captions are written for BLIP's tables: 3 beams, 5 to 20 tokens with BOS and prompt (salesforce/BLIP,
# caption_coco.yaml and nocaps.yaml).
CAPTIONS = replace(beam_search(3, 20), min_length=5)


def pretraining(batch: int, lr: float) -> Draft:
  """BLIP's pre-training (sections 3 and 4.1) with ViT-B/16; equal weights of ITC, ITM and LM.

  The 14M images and their texts (Table 11) are looked for under these names, each to be replaced as in
  `--config.data.sources.web.path=...`:

    web     WebDataset shards as img2dataset writes them: SBU, CC3M, CC12M
    human   WebDataset shards of COCO and Visual Genome; an image's texts in a list, of which one is drawn

  Their weights are the numbers of texts in millions: 15.3 are an epoch (Table 12), and human ones come as often as in
  BLIP, where each is an example.

  Args:
    batch: pairs a step: 2,880 for ViT-B, 2,400 for ViT-L.
    lr: the highest learning rate: 3e-4 and 2e-4.

  BLIP's text tokenizer is BERT's uncased one, whose vocab.txt is looked for in data/bert/.
  """
  config = default()
  config.steps = "3.06e8 examples"  # 20 epochs
  model(config)
  config.contrastive.update(weight=1.0, equal_texts="negatives", momentum=0.995, max_scale=1000.0, min_scale=2.0)
  config.captioning.update(weight=1.0, label_smoothing=0.1)
  # A GPU's pairs are each other's negatives: 32 GPUs.
  config.matching.update(weight=1.0, floor=1e-4, slow_keys=True, group=batch // 32)
  config.optim.update(
    name="adamw",
    lr=lr,
    b2=0.999,
    weight_decay=0.05,
    decay_mask="all",
    schedule="epochs",
    epoch="15.3e6 examples",
    lr_decay=0.85,
    final_lr=1e-6 / lr,
    warmup="3000",
  )
  config.data.update(
    batch=batch, crop=(0.2, 1.0), flip=True, rand_augment=(2, 5), squash=True, tokenizer="data/bert/vocab.txt"
  )
  for name, millions in (("web", 13.96), ("human", 1.34)):
    path = f"data/{name}/*.tar"
    config.data.sources[name] = to_dict(Source(kind="webdataset", path=path, origin=name, weight=millions))
  config.model.remat = "dots"
  config.mesh.data, config.mesh.fsdp = -1, 1
  source = Source(kind="folder", path="data/coco_test")
  config.evals.coco_retrieval = to_dict(Eval(kind="retrieval", source=source, every="5%", batch=1024))
  config.evals.coco_captions = to_dict(Eval(kind="captions", source=source, batch=1024, decoding=CAPTIONS))
  return config


def model(config: Draft) -> None:
  """BLIP's model with ViT-B/16 and BERT-base, at 224 pixels and 30 tokens."""
  config.model.update(kind="blip", activation="gelu", norm_eps=1e-6, embed_dim=256)
  config.model.image.update(
    size=224, patch=16, layers=12, width=768, mlp=3072, heads=12, class_token=True, mean=MEAN, std=STD
  )
  config.model.text.update(
    vocab=30_524, length=30, unimodal_layers=12, multimodal_layers=12, width=768, mlp=3072, heads=12
  )


def large(config: Draft) -> None:
  """ViT-L/16 in place of ViT-B/16."""
  config.model.image.update(layers=24, width=1024, mlp=4096, heads=16)


def runlocal(config: Draft) -> Draft:
  """Shrinks a pre-training in place to about a minute on two cores, with the built-in corpus as data; returns it."""
  config.name += "_runlocal"
  tiny(config, layers=2, width=64)
  config.optim.update(epoch="5%", warmup="5%")
  config.contrastive.queue = 240
  config.matching.group = 32
  config.data.update(tokenizer="", tokenizer_texts=10_000)
  config.data.sources = {
    "web": to_dict(Source(kind="builtin", split="openclipart", weight=0.0)),
    "human": to_dict(Source(kind="builtin", weight=0.0)),
  }
  config.evals = {"twemoji": to_dict(Eval(kind="zero_shot", source=Source(kind="builtin", split="twemoji")))}
  shorten(config)
  return config


def tiny(config: Draft, layers: int, width: int) -> None:
  """A small model, with the ids of a WordPiece that is trained on the run's own texts."""
  config.model.image.update(size=48, patch=12, layers=layers, width=width, mlp=4 * width, heads=4)
  config.model.text.update(
    vocab=1200, length=12, unimodal_layers=2, multimodal_layers=2, width=width, mlp=4 * width, heads=4
  )
  config.model.med.update(cls=2, encode=6, positions=12)
  config.model.embed_dim = width
  config.model.unroll = 4


def finetuning(
  args: Draft,
  lr: float,
  large_lr: float,
  epochs: int,
  size: int,
  tiny_steps: int,
  tiny_lr: float,
  kind: str = "blip",
) -> Draft:
  """The common part of BLIP's fine-tunes (Table 14): AdamW with weight decay 0.05, cosine decay to 0, batch 256.

  They train on the built-in corpus, like the fine-tunes of CoCa, `tiny` on scenes; other data as
  `configs/finetune_caption.py` says.

  Args:
    args: of the config file: init_from, tiny, and runlocal for a few steps.
    lr: the highest learning rate.
    large_lr: with ViT-L.
    epochs: of the built-in corpus' 5,406 pairs.
    size: of the images, in pixels, for models with images of 224 and more; smaller ones keep theirs.
    tiny_steps: in place of the epochs for a model like configs/blip_tiny.py's, of batches of 128.
    tiny_lr: likewise; it has seen no million pairs and has more to learn.
    kind: of the model: 'blip' or 'albef'.

  Raises:
    ValueError: no `init_from`, or no model of that kind.
    FileNotFoundError: nothing there.
  """
  if not args.init_from:
    raise ValueError(
      "a fine-tune starts from a model: --config=FILE:init_from=DIR, where DIR is a run's workdir or "
      "what python -m coca.convert wrote"
    )
  old = read_config(args.init_from)
  if old.model.kind != kind:
    raise ValueError(
      f"{args.init_from} holds a model of kind {old.model.kind!r}; this is a recipe for {kind!r}, and "
      "configs/albef_retrieval.py for 'albef', configs/blip_retrieval.py for 'blip', configs/finetune_caption.py or "
      "configs/capfilt_filter.py for 'coca'"
    )
  config = default()
  config.init_from = args.init_from
  config.model.update(to_dict(old.model))
  config.model.image.patch_dropout = 0.0
  if old.model.image.size >= 224:
    config.model.image.size = size
  config.contrastive.weight = config.captioning.weight = 0.0
  config.captioning.label_smoothing = 0.1
  config.optim.update(
    name="adamw",
    lr=large_lr if old.model.image.width >= 1024 else lr,
    schedule="cosine",
    warmup="0",
    weight_decay=0.05,
    decay_mask="all",
  )
  # BLIP's code: every fine-tune crops to half the area and more, flips, and has RandAugment.
  config.data.update(batch=256, crop=(0.5, 1.0), flip=True, rand_augment=(2, 5), squash=True)
  config.steps = f"{epochs * EMOJI} examples"
  config.data.sources.pairs = to_dict(Source(kind="builtin", split="train+unseen_concepts"))
  config.checkpoint.every = "10%"
  if args.tiny:
    config.optim.update(lr=tiny_lr, warmup="5%")
    config.data.update(batch=128, crop=(1.0, 1.0), flip=False, rand_augment=(0, 0), threads=1)
    config.data.sources.pairs = to_dict(scenes("scenes"))
    config.model.text.length = max(24, config.model.text.length)  # of scenes' sentences and the prompt
    config.model.med.positions = max(config.model.med.positions, config.model.text.length)
    config.steps = str(tiny_steps)
  if args.runlocal:
    shorten(config, steps=4, batch=8)
  return config


def evaluate(config: Draft, args: Draft, name: str, **settings) -> None:
  """Adds an evaluator over a style of drawings that is not trained on; with `tiny` one of scenes, in the end."""
  source = scenes("scenes_val") if args.tiny else Source(kind="builtin", split="twemoji")
  source = replace(source, **settings.pop("source", {}))
  config.evals[name] = to_dict(Eval(source=source, every="20%", **settings))
  if args.tiny:
    config.evals[name].update(limit=1000, every="")
  if args.runlocal:
    config.evals[name].update(limit=64, batch=64, every="")
