"""The common part of the systems that read a detector's regions: their data, and their small copies."""

from coca.config import Draft, Eval, Source, to_dict
from coca.recipes import tiny
from coca.recipes.coca import shorten


def coco(config: Draft) -> None:
  """Regions of COCO with captions, Karpathy's split, as data and to evaluate: Parquet files below data/coco_regions.

  docs/own-data.md says which columns they have.
  """

  def source(split):
    return Source(kind="parquet", path=f"data/coco_regions/{split}/*.parquet", regions=True, origin="human")

  config.data.sources = {"coco": to_dict(source("train"))}
  config.evals = {"coco_captions": to_dict(Eval(kind="captions", source=source("test"), every="10%", beams=5))}


def on_scenes(config: Draft) -> Draft:
  """`coca.recipes.tiny.on_scenes` with the regions of the scenes' things, in place, and no emoji."""
  # Names take longer than elsewhere: of an example 15 % of the words are learned, not all. No dropout, as in CoCa.
  tiny.on_scenes(config, steps=3000)
  del config.data.sources["emoji"]
  for source in (*config.data.sources.values(), *(settings.source for settings in config.evals.values())):
    source.regions = True
  config.model.text.update(multimodal_layers=4)
  config.model.regions.update(width=192, count=4, tags=min(config.model.regions.tags, 12))
  config.model.med.update(cls=2, mask=4, positions=32, dropout=0.0)
  return config


def runlocal(config: Draft) -> Draft:
  """The same in about half a minute."""
  config.name = config.name.removesuffix("_tiny") + "_runlocal"
  on_scenes(config)
  config.name = config.name.removesuffix("_tiny")
  config.model.text.update(multimodal_layers=2, width=64, mlp=256)
  captions = config.evals["captions"]
  captions.pixel_neighbours = ""
  config.evals = {"captions": captions}
  config.data.tokenizer_texts = 2000
  shorten(config)
  return config
