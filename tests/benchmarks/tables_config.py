"""Settings of the cells of tables_blip.py and tables_coca.py: configs/coca_tiny.py, and what the cell changes.

    python -m coca.train --config=tests/benchmarks/tables_config.py:role=pretrain,seed=0,noise=40 --workdir=...
    python -m coca.capfilt --config=tests/benchmarks/tables_config.py:role=job,captioner=DIR,filter=DIR --workdir=...

role: `init`, a model that knows single things, from which every pre-training starts, as BLIP's start from ImageNet's
ViT and BERT, since minutes would not be enough from nothing; `pretrain` on human and web scenes; `captioner`, `filter`,
or `shared`, one model that is both (BLIP Table 4), on the human ones; `job`, CapFilt over the web scenes; `coca`,
configs/coca_tiny.py (CoCa Table 8). With `sharing`, `init` and `pretrain` are of BLIP's own model (Table 3).

Human pairs have true captions, up to five a scene, as COCO has; web pairs one text each, and `noise` percent of these
are not true: half of them have one wrong word, a quarter tell of another scene, the rest are titles and files' names.
There are ten web pairs to a human one, as in BLIP (14.0M and 1.3M texts). A seed is that of the scenes, too.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from coca.capfilt import settings as capfilt
from coca.commands import arguments
from coca.config import parse
from coca.data.sources import open_source

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# A small world, so that minutes are enough to learn it: the first objects, and things in a scene.
WORLD = {"vocabulary": 16, "objects": 2, "styles": ()}
# BLIP's kind of tokenizer, WordPiece, and one for all. SentencePiece finds no whole words where there are so few.
VOCAB = 512
BATCH = 32
# What a variant takes of one and the same CapFilt job.
VARIANTS = {
  "none": {},
  "filter": {"origins": {"web": 1.0}},
  "captioner": {"min_matching": 0.0},  # no score is below it
  "both": {},
  "longer": {},  # of the job only the number of texts that it kept
  # Each image once, with its web text or the synthetic one, none of them filtered.
  "synthetic50": {"sample": "image", "min_matching": 0.0, "origins": {"web": 1.0, "synthetic": 1.0}},
  "synthetic100": {"sample": "image", "min_matching": 0.0, "origins": {"synthetic": 1.0}},
  # The same batches as of synthetic50, and the image's other text besides, of a human one another caption.
  "two_texts": {"sample": "image", "min_matching": 0.0, "origins": {"web": 1.0, "synthetic": 1.0}},
}


def get_config(arg=None):
  args = arguments(
    arg,
    role="pretrain",
    seed=0,
    noise=40,
    human=2000,
    web=20_000,
    epochs=2.0,
    steps=0,
    pairs=0,
    variant="none",
    capfilt="",
    tokenizer="",
    init_from="",
    captioner="",
    filter="",
    decoding="nucleus",
    share=0.0,
    sharing="",
    objective="both",
    limit=1000,
  )
  return ROLES[args.role](args)


def init(args) -> ConfigDict:
  config = _on_scenes(args, _model(args))
  singles = human(args)
  singles.scenes.update(seed=1_000_000, count=1_000_000, objects=1)
  config.data.sources = {"singles": singles}
  config.steps = str(args.steps)
  return config


def pretrain(args) -> ConfigDict:
  return _for_epochs(args, _on_scenes(args, _model(args)))


def fine_tune(args) -> ConfigDict:
  file = "capfilt_captioner" if args.role == "captioner" else "capfilt_filter"
  config = _file(file, f"tiny,init_from={args.init_from}")
  config.data.sources = {"human": human(args)}
  config.update(seed=args.seed, steps=str(args.steps))
  config.data.threads = 1
  config.evals = {}
  if args.role == "shared":
    config.captioning.update(weight=1.0, label_smoothing=0.1)
    del config.optim.lr_scale.softmax  # it learns to write after all
  return config


def job(args) -> ConfigDict:
  config = capfilt.default()
  config.update(captioner=args.captioner, filter=args.filter, shard=2000, share=args.share, max_failed=1.0)
  config.source.update(web(args))
  # Texts of scenes have five words and more; with beams none at all is likelier than any.
  config.decoding.update(min_length=5, seed=args.seed)
  if args.decoding == "beam":
    config.decoding.update(strategy="beam", beams=3, top_p=1.0, length_normalisation="whole")
  return config


def coca(args) -> ConfigDict:
  config = _file("coca_tiny")
  config.update(seed=args.seed, steps=f"{args.pairs} examples")
  config.model.poolers.n_query = 8
  for source in config.data.sources.values():
    if source.split.startswith("scenes"):
      objects = min(source.scenes.objects, WORLD["objects"])
      source.scenes.update(WORLD, seed=args.seed, objects=objects)
  _evaluate(args, config, ("captions", "retrieval", "twemoji"))
  if args.objective == "contrastive":
    text = config.model.text
    text.update(unimodal_layers=text.unimodal_layers + text.multimodal_layers, multimodal_layers=0)
    config.captioning.weight = 0.0
    del config.evals.captions
  elif args.objective == "captioning":
    config.contrastive.weight = 0.0
    del config.evals.retrieval, config.evals.twemoji
  return config


ROLES = {
  "init": init,
  "pretrain": pretrain,
  "captioner": fine_tune,
  "filter": fine_tune,
  "shared": fine_tune,
  "job": job,
  "coca": coca,
}


def human(args) -> ConfigDict:
  return _scenes("human", seed=2 * args.seed, count=args.human)


def web(args) -> ConfigDict:
  source = _scenes("web", seed=2 * args.seed + 1, count=args.web)
  share = args.noise / 100
  source.scenes.noise.update(wrong=share / 2, other=share / 4, title=share / 8, file_name=share / 8)
  return source


def _file(name: str, arg: str | None = None) -> ConfigDict:
  config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](arg)
  if name == "coca_tiny":  # as it was when the kept cells were made, so that further seeds can stand beside them
    config.model.image.position_scale = 1.0
    config.optim.update(adamw_scale=1.0, schedule="cosine")
  return config


def _model(args) -> ConfigDict:
  """The settings of CoCa, or with `sharing` of BLIP."""
  config = _file("blip_tiny") if args.sharing else _file("coca_tiny", "web")
  if args.sharing:
    config.model.med.sharing = args.sharing
  config.init_from, config.data.tokenizer, config.model.text.vocab = args.init_from, args.tokenizer, VOCAB
  config.data.batch = BATCH
  return config


def _scenes(name: str, **settings) -> ConfigDict:
  source = _file("coca_tiny", "web").data.sources[name]
  source.scenes.update(**settings, **WORLD)
  return source


def _on_scenes(args, config: ConfigDict) -> ConfigDict:
  config.seed = args.seed
  config.data.sources = {"human": human(args), "web": web(args)}
  if args.variant not in ("none", "longer"):
    config.data.sources.web.update(sidecars=args.capfilt, **VARIANTS[args.variant])
  if args.variant == "two_texts":
    config.contrastive.texts = 2
  _evaluate(args, config, ("captions", "retrieval"))
  return config


def _evaluate(args, config: ConfigDict, names) -> None:
  config.evals = {name: config.evals[name] for name in names}
  for settings in config.evals.values():
    settings.update(every="", pixel_neighbours="")
    if settings.source.split.startswith("scenes"):
      settings.source.scenes.update(WORLD)
      settings.limit = args.limit
  config.checkpoint.update(every="20%", keep=1)


def _for_epochs(args, config: ConfigDict) -> ConfigDict:
  """As in BLIP, a run is so many times as long as its data have texts: more of them are a longer run (Table 12).

  Unless it is said how many `pairs` it learns from.
  """
  sources = {name: args.human if name == "human" else _texts(args, config) for name in config.data.sources}
  if args.variant == "longer":  # the web's texts as often as if there were as many as the job kept
    for name, texts in sources.items():
      config.data.sources[name].weight = float(texts)
  config.steps = f"{args.pairs or round(args.epochs * sum(sources.values()))} examples"
  return config


def _texts(args, config: ConfigDict) -> int:
  """The number of the web's texts, for 'longer' that of 'both'."""
  if args.variant == "none":
    return args.web
  source = config.data.sources.web
  if args.variant == "longer":
    source = source.copy_and_resolve_references()
    source.sidecars = args.capfilt
  config = config.copy_and_resolve_references()
  config.data.sources = {"web": source}
  config.steps = "1"
  return len(open_source(parse(config).data.sources["web"]))
