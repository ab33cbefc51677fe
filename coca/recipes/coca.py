"""The common part of the configs of the paper's sizes: CoCa's pre-training, and its small copy for a laptop."""

from dataclasses import replace

from coca.config import Config, Draft, Eval, Source, default, to_dict
from coca.data.prompts import CLIP_IMAGENET
from coca.storage.workdir import read_config

EMOJI = 5406  # pairs that the fine-tunes' built-in splits hold
EMOJI_NAMES = 1753  # different ones among the emoji that `runlocal` trains on

IMAGENET = 1_281_167  # training images


def pretraining(pairs: str = "") -> Draft:
  """CoCa's pre-training (section 4.1). The optimizer, the batch, the vocabulary and the loss weights are the defaults.

  Half of each batch is label-as-text data, the other half alt-text. The paper's JFT-3B and ALIGN are not public; these
  names are where one's own data is looked for, and each can be overridden, as `--config.data.sources.labels.path=DIR`:

    labels      a tfds data set with class labels, prepared as array_record, by directory or name. Its label names have
                to be words: ImageNet's are WordNet ids, to be replaced in its label.labels.txt, one name a line.
    alt_text    WebDataset shards as img2dataset writes them

    imagenet    tfds' imagenet2012, whose WordNet ids stand for CLIP's class names
    coco, flickr  folders of images with a captions.jsonl, the captions of an image in a list: Karpathy's test splits
                of 5,000 and 1,000 images

  Not in the paper: crops (section 4.1 names no augmentation), where evaluation happens, the split over devices, remat.

  Args:
    pairs: tars as `alt_text`'s; they are then all the data there is, and nothing is evaluated.
  """
  config = default()
  config.data.sources.labels = to_dict(
    Source(kind="tfds", path="data/imagenet21k", text="labels", text_key="label", prompts=CLIP_IMAGENET)
  )
  config.data.sources.alt_text = to_dict(Source(kind="webdataset", path="data/alt_text/*.tar"))

  # Label texts repeat within a batch; the paper says nothing about it.
  config.contrastive.equal_texts = "mask"
  config.model.remat = "full"
  config.mesh.data, config.mesh.fsdp = 1, -1
  if pairs:
    config.data.sources = {"pairs": to_dict(Source(kind="webdataset", path=pairs))}
    return config

  config.evals.imagenet = to_dict(
    Eval(
      kind="zero_shot",
      source=Source(kind="tfds", path="imagenet2012", split="validation", text="labels", text_key="label"),
      every="5%",
      batch=4096,
      templates=CLIP_IMAGENET,
    )
  )
  for name, path in (("coco", "data/coco_test"), ("flickr", "data/flickr30k_test")):
    source = Source(kind="folder", path=path)
    config.evals[f"{name}_retrieval"] = to_dict(Eval(kind="retrieval", source=source, every="5%", batch=4096))
  config.evals.coco_captions = to_dict(
    Eval(kind="captions", source=Source(kind="folder", path="data/coco_test"), batch=1024)
  )
  return config


def alt_text_alone() -> Draft:
  """`pretraining` on the pairs of `alt_text` alone, as CLIP, SigLIP and CapPa train, in place of half and half."""
  config = pretraining()
  del config.data.sources.labels
  return config


def shorten(config: Draft, steps: int = 60, batch: int = 64) -> None:
  """Leaves a config, in place, a few steps of a few pairs, and evaluations of a few examples at the end."""
  config.update(steps=str(steps), log_every=str(max(steps // 6, 1)))
  config.data.batch = batch
  for settings in config.evals.values():
    settings.update(limit=64, batch=64, every="")
  config.checkpoint.every = "50%"


def runlocal(config: Draft) -> Draft:
  """Shrinks a config in place to about a minute on two cores, with the built-in corpus as data, and returns it.

  What makes the recipe (sources half and half, losses, optimizer, towers, poolers) stays; the tokenizer is trained.
  """
  config.name += "_runlocal"
  image, text, poolers = config.model.image, config.model.text, config.model.poolers
  image.update(size=image.size // image.patch // 4 * image.patch, layers=2, width=64, mlp=256, heads=4)
  text.update(
    vocab=1024,
    length=16,
    width=64,
    mlp=256,
    heads=4,
    unimodal_layers=min(text.unimodal_layers, 2),
    multimodal_layers=min(text.multimodal_layers, 2),
  )
  poolers.update(n_query=min(poolers.n_query, 8), mlp=min(poolers.mlp, 256))
  config.optim.warmup = "2%"
  config.data.update(tokenizer="", tokenizer_texts=10_000)
  emoji = Source(kind="builtin", text="labels", prompts=("a drawing of a {}", "the {}", "{}"))
  if "labels" in config.data.sources:
    config.data.sources = {"labels": to_dict(emoji), "alt_text": to_dict(Source(kind="builtin", split="openclipart"))}
  else:
    config.data.sources = {"alt_text": to_dict(emoji)}
  twemoji = to_dict(Eval(source=Source(kind="builtin", split="twemoji")))
  if config.classification.weight:
    config.classification.classes = EMOJI_NAMES
    twemoji.kind = "classification"
  elif config.contrastive.weight:
    twemoji.pixel_neighbours = next(iter(config.data.sources))  # where the emoji are
  else:
    twemoji.kind = "captions"
  config.evals = {"twemoji": twemoji}
  shorten(config)
  return config


def imagenet(config: Draft) -> Draft:
  """Gives a config ImageNet's images with label ids (tfds' imagenet2012, in ArrayRecord format), and returns it."""
  source = Source(kind="tfds", path="imagenet2012", text="labels", text_key="label")
  config.data.sources = {"imagenet": to_dict(source)}
  config.evals = {
    "imagenet": to_dict(Eval(kind="classification", source=replace(source, split="validation"), every="5%", batch=4096))
  }
  config.contrastive.weight = config.captioning.weight = 0.0
  config.classification.update(weight=1.0, classes=1000)
  config.model.text.update(unimodal_layers=0, multimodal_layers=0)
  config.data.tokenizer_texts = 10_000  # a run keeps a tokenizer, even one that reads no texts
  return config


def finetuning(init_from: str, runlocal: bool) -> Draft:
  """The base of the fine-tunes: the model in `init_from`, CoCa's Table 10 (MSCOCO), the built-in corpus, both sides
  evaluated on a style of drawings that is not trained on.

  Args:
    init_from: a workdir or a model directory; its settings of the model and of its contrastive loss are taken over.
    runlocal: a few steps of a few pairs.

  Raises:
    ValueError: no `init_from`.
    FileNotFoundError: nothing there.
  """
  if not init_from:
    raise ValueError(
      "a fine-tune starts from a model: --config=FILE:init_from=DIR, where DIR is a run's workdir or "
      "what python -m coca.convert wrote"
    )
  old = read_config(init_from)
  config = default()
  config.init_from = init_from
  config.model.update(to_dict(old.model))
  config.model.image.patch_dropout = 0.0  # of a pre-training that is to be fast (FLIP), which ends with all patches
  for name in ("loss", "bias", "max_scale", "min_scale"):
    config.contrastive[name] = getattr(old.contrastive, name)
  config.contrastive.equal_texts = "positives"  # a name stands beside several drawings
  config.optim.update(name="adafactor", lr=1e-5, schedule="cosine", warmup="1000", weight_decay=0.1, clip=1.0)
  config.data.batch = 128
  config.data.sources.pairs = to_dict(Source(kind="builtin", split="train+unseen_concepts"))
  config.checkpoint.every = "10%"

  unseen = Source(kind="builtin", split="twemoji")
  text = old.model.text
  for kind, has in (
    ("zero_shot", text.unimodal_layers),
    ("retrieval", text.unimodal_layers),
    ("captions", old.model.writes),
  ):
    if has:
      # Equal names: as in the loss.
      config.evals[kind] = to_dict(Eval(kind=kind, source=unseen, every="20%", equal_texts=kind == "retrieval"))
  if runlocal:
    config.optim.warmup = "1"
    shorten(config, steps=4, batch=8)
  return config


def self_critical(config: Draft, baseline: str) -> None:
  """Trains a captioner, in place, by self-critical sequence training alone; without a `baseline` nothing changes.

  Args:
    config: of a fine-tune for captions; what embeddings it makes stay in the model.
    baseline: 'greedy', with a caption drawn for each image, or 'mean', with five.

  Raises:
    ValueError: another baseline.
  """
  if not baseline:
    return
  samples = {"greedy": 1, "mean": 5}
  if baseline not in samples:
    raise ValueError(f"scst={baseline} is unknown; this config takes scst=greedy or scst=mean")
  config.name += "_scst"
  config.contrastive.weight = config.captioning.weight = 0.0
  config.self_critical.update(weight=1.0, samples=samples[baseline], baseline=baseline)


def of_origin(origin: str, config: Config) -> dict[str, Draft]:
  """The sources of a run that are said to be of an origin, by their names."""
  return {name: to_dict(source) for name, source in config.data.sources.items() if source.origin == origin}


def bootstrapping(args: Draft, epochs: int, large_lr: float, tiny_steps: int, tiny_lr: float) -> Draft:
  """The common part of CapFilt's two fine-tunes: BLIP's Table 14 (arXiv 2201.12086) over the built-in corpus' emoji,
  with `tiny` over the human pairs of the run that they start from, if its sources name some.

  Args:
    args: of the config file: init_from, runlocal, tiny, and res, the images' size (0: the model's).
    epochs: of the corpus.
    large_lr: the learning rate of ViT-L; smaller models have 1e-5.
    tiny_steps: in place of the epochs for a model like configs/coca_tiny.py's, of batches of 128.
    tiny_lr: likewise; it has seen no billion pairs and has more to learn.

  Raises:
    ValueError: a BLIP, a model without a multimodal decoder, or as `finetuning`.
    FileNotFoundError: as `finetuning`.
  """
  config = finetuning(args.init_from, args.runlocal)
  if config.model.kind == "blip":
    raise ValueError(
      f"{args.init_from} is a BLIP: its captioner is configs/blip_caption.py, its filter configs/blip_retrieval.py"
    )
  if not config.model.text.multimodal_layers:
    raise ValueError(
      f"{args.init_from} has no multimodal decoder (config.model.text.multimodal_layers is 0): "
      "captioner and filter need a pre-trained one; configs/finetune_caption.py can add and train it"
    )
  config.model.image.size = args.res or config.model.image.size
  large = config.model.image.width >= 1024
  config.optim.update(name="adamw", lr=large_lr if large else 1e-5, weight_decay=0.05, warmup="0", clip=0.0)
  if not args.runlocal:
    config.steps = f"{epochs * EMOJI} examples"
    config.data.batch = 256
  if args.tiny:
    config.optim.update(lr=tiny_lr, warmup="5%")
    if not args.runlocal:
      config.steps = str(tiny_steps)
      config.data.batch = 128
    old = read_config(args.init_from)
    if human := of_origin("human", old):
      config.data.sources = human
      if "zero_shot" in config.evals:
        del config.evals.zero_shot  # among the emoji's names
      for settings in config.evals.values():
        for held_out in [e for e in old.evals.values() if e.kind == settings.kind][:1]:
          settings.source = to_dict(held_out.source)
          settings.limit = settings.limit or held_out.limit
  return config
