"""The evaluators of the sets of `suites.py` that are no folders by class nor of CLIP_benchmark, whatever the model.

python -m coca.evaluate --model=runs/tiny --config=tests/benchmarks/suite_config.py:data=OUT
python -m coca.evaluate --model=runs/vqa --config=tests/benchmarks/suite_config.py:data=OUT,questions
"""

from coca.commands import arguments
from coca.config import Eval, Source, default, to_dict
from coca.recipes.tiny import scenes


def get_config(arg=None):
  args = arguments(arg, data="suites", questions=False)
  config, data = default(), args.data
  if args.questions:
    asked = f"{data}/vqa/v2_OpenEnded_mscoco_val2014_questions.json"
    source = Source(kind="folder", path=f"{data}/vqa", question_key="question")
    config.evals = {"vqa": to_dict(Eval(kind="vqa", source=source, annotations=asked))}
    return config
  pairs = {
    "sugar_crepe": {"path": f"{data}/sugar_crepe/val2017", "texts": f"{data}/sugar_crepe/data"},
    "winoground": {"path": f"{data}/winoground/images", "texts": f"{data}/winoground/examples.jsonl"},
    "winoground_parquet": {"path": f"{data}/winoground/data/*.parquet"},
  }
  config.evals = {name: to_dict(Eval(kind="pairs", source=Source(kind="pairs", **at))) for name, at in pairs.items()}
  captioned = {
    "karpathy": Source(kind="folder", path=f"{data}/karpathy", split="test"),
    "coco": Source(kind="folder", path=f"{data}/coco", texts=f"{data}/coco/annotations/captions_val2017.json"),
    "nocaps": Source(kind="folder", path=f"{data}/nocaps"),
  }
  config.data.sources = {"scenes": to_dict(scenes("scenes", texts=1))}
  for name, source in captioned.items():
    annotations = f"{data}/nocaps/nocaps_val_4500_captions.json" if name == "nocaps" else ""
    writes = Eval(kind="captions", source=source, beams=3, pixel_neighbours="scenes", annotations=annotations)
    config.evals[f"{name}_captions"] = to_dict(writes)
    config.evals[f"{name}_retrieval"] = to_dict(Eval(kind="retrieval", source=source, pixel_neighbours="scenes"))
  return config
