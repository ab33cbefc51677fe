"""The common part of the systems that read a detector's regions: their data, and their small copies."""

from dataclasses import replace

from coca.config import Draft, Eval, Source, to_dict
from coca.recipes import tiny
from coca.recipes.coca import shorten


def _files(split: str, name: str = "coco", **settings) -> Source:
  path = f"data/{name}_regions/{split}/*.parquet"
  return Source(kind="parquet", path=path, regions=True, origin="human", **settings)


def coco(config: Draft) -> None:
  """Regions of COCO with captions, Karpathy's split, as data and to evaluate: Parquet files below data/coco_regions.

  docs/own-data.md says which columns they have.
  """
  config.data.sources = {"coco": to_dict(_files("train"))}
  config.evals = {"coco_captions": to_dict(Eval(kind="captions", source=_files("test"), every="10%", beams=5))}


def pose(config: Draft, tasks: tuple[str, ...], small: bool) -> None:
  """Makes the data in place those of VL-T5's tasks: captions as they are, others a source each, all of one weight.

  Questions are in files below data/vqa_regions, or `small`, of scenes; with any, answers are evaluated, not captions.
  """
  if tasks == ("caption",):
    for source in config.data.sources.values():
      source.task = "caption"
    return
  if small:
    splits = "scenes", "scenes_questions", "scenes_questions_val"
    found = [replace(tiny.scenes(split), regions=True) for split in splits]
  else:
    found = [_files("train"), *(_files(split, "vqa", text_key="answers") for split in ("train", "test"))]
  pairs, asked, held_out = found[0], *(replace(source, question_key="question") for source in found[1:])
  config.data.sources = {
    task.replace(" ", "_"): to_dict(replace(asked if task == "vqa" else pairs, task=task)) for task in tasks
  }
  evaluated = next(iter(config.evals.values()))
  evaluated.update(kind="vqa", source=to_dict(held_out), beams=1, pixel_neighbours="")
  config.evals = {"vqa": evaluated}


def on_scenes(config: Draft) -> Draft:
  """`coca.recipes.tiny.on_scenes` with the regions of the scenes' things, in place, and no emoji."""
  # Where 15 % of the words of an example are learned, not all, names take longer. No dropout, as in CoCa.
  tiny.on_scenes(config, steps=2600 if config.masked.weight else 1200)
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
