"""Minutes on two cores: the data of the tiny models, what they are asked, and sizes for each system of the family."""

from coca.config import Draft, Eval, Scenes, Source, to_dict

OBJECTS = 26


def scenes(split: str, weight: float = 1.0, **settings) -> Source:
  """A split of the built-in world with its first 26 objects, the animals: all 100 take longer to learn."""
  settings = Scenes(pixels=60, vocabulary=OBJECTS, **settings)
  return Source(kind="builtin", split=split, weight=weight, scenes=settings)


def sources(config: Draft) -> None:
  """Scenes with sentences about them, and emoji with their names.

  A text each, which takes less time to write: no scene is seen twice. Those of a single thing teach the objects.
  """
  config.data.update(flip=False, threads=1, tokenizer="", tokenizer_pieces="bpe", tokenizer_texts=8000)
  config.data.sources = {
    "emoji": to_dict(Source(kind="builtin", split="train+unseen_concepts", weight=0.1)),
    "scenes": to_dict(scenes("scenes", weight=0.85, texts=1)),
    "single": to_dict(scenes("scenes", weight=0.05, texts=1, objects=1)),
  }


def evaluate(config: Draft, name: str, source: Source, **settings) -> None:
  """Captions and retrieval. A sentence that is true of two scenes is right for both: so it is for their equal texts."""
  config.evals[f"captions{name}"] = to_dict(Eval(kind="captions", source=source, beams=3, **settings))
  config.evals[f"retrieval{name}"] = to_dict(Eval(kind="retrieval", source=source, equal_texts=True, **settings))


def classes(config: Draft) -> None:
  """Scenes of a single thing with its object as label, of the styles of training and of another."""
  config.classification.classes = OBJECTS
  config.data.sources = {"single": to_dict(scenes("scenes", texts=1, objects=1))}
  for name, split in (("", "scenes_val"), ("_in_new_style", "scenes_new_style")):
    settings = Eval(kind="classification", source=scenes(split, objects=1), limit=1000)
    config.evals[f"classification{name}"] = to_dict(settings)


def on_scenes(config: Draft, steps: int = 1200, batch: int = 64) -> Draft:
  """Shrinks a system of the family in place to minutes on two cores, on `sources`, and returns it.

  What makes the system stays; sizes are configs/coca_tiny.py's, as are the optimizer, but for its `adamw_scale` and
  schedule, and that equal texts are positives of each other. It is asked for what it has the parts for, on scenes of
  the styles of training and of another.
  """
  config.name += "_tiny"
  config.update(steps=str(steps), log_every="20")
  config.model.image.update(size=60, patch=10, layers=4, width=128, mlp=512, heads=4, position_init="sincos2d")
  text, poolers = config.model.text, config.model.poolers
  text.update(vocab=1600, length=17, width=128, mlp=512, heads=4)
  text.update(unimodal_layers=min(text.unimodal_layers, 2), multimodal_layers=min(text.multimodal_layers, 2))
  poolers.update(n_query=min(poolers.n_query, 16), mlp=min(poolers.mlp, 512))
  config.model.update(unroll=4, remat="none")
  config.contrastive.equal_texts = "positives"
  config.optim.update(name="muon", lr=4e-3, b2=0.98, weight_decay=0.05, schedule="cosine", warmup="5%", clip=1.0)
  config.data.update(batch=batch, crop=(1.0, 1.0), rand_augment=(0, 0))
  config.mesh.update(data=-1, fsdp=1)
  sources(config)
  config.evals = {}
  for name, split in (("", "scenes_val"), ("_in_new_style", "scenes_new_style")):
    evaluate(config, name, scenes(split), limit=1000, pixel_neighbours="scenes")
  if config.classification.weight:
    classes(config)
  writes = text.multimodal_layers and (config.captioning.weight or config.model.kind == "lemon")
  has = {"captions": writes, "retrieval": config.contrastive.weight}
  has["classification"] = config.classification.weight
  config.evals = {name: settings for name, settings in config.evals.items() if has[settings.kind]}
  config.checkpoint.every = "10%"
  return config
