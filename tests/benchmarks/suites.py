r"""A model on the built-in world in the layouts of public evaluation sets, by the commands that people give: a table.

    python tests/benchmarks/suites.py OUT --model=runs/tiny --vqa_model=runs/vqa

OUT gets the sets (`suite_sets.py`), --count images each. `python -m coca.evaluate` (with the evaluators of
`suite_config.py`) and `python -m coca.search` measure the model; --vqa_model is one that answers questions, such as of
configs/finetune_vqa.py:tiny. OUT/table.md and OUT/table.json hold what they told, beside what the nearest of 20,000
training images in 16x16 pixels says, or chance. Killed, the same command goes on. Without --model the sets are written:

    python tests/benchmarks/suites.py OUT
    python -m coca.evaluate --model=MODEL --data=OUT/clip_benchmark
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from suite_sets import CAPTIONS, SUITES

import coca
from coca.data.scenes.compose import World
from coca.data.scenes.questions import Questions
from coca.recipes.tiny import OBJECTS

CONFIG = Path(__file__).with_name("suite_config.py")
LAYOUTS = {  # by what the set's name begins with
  "wds": "CLIP_benchmark",
  "imagenet_r": "ImageNet-R",
  "karpathy": "Karpathy's COCO",
  "coco": "COCO",
  "nocaps": "NoCaps",
  "vqa": "VQA v2",
  "sugar_crepe": "SugarCrepe",
  "winoground_parquet": "Winoground, Parquet",
  "winoground": "Winoground",
}
HEAD = ("set", "layout", "kind", "examples", "measured by", "value", "baseline", "by", "others")
# Numbers that are shown beside the main one.
OTHERS = r"top5|i2t_r1|t2i_r1|bleu4|clip_score|cosine.*|likelihood.*|cider_(in|near|out)"


def measure(out: Path, model: str, vqa_model: str | None) -> list[dict]:
  """A row for each set, by `HEAD`."""
  sets = [f"--data={out}/{name}" for name in ("clip_benchmark", "imagenet_r")]
  _command("coca.evaluate", f"--model={model}", *sets, f"--config={CONFIG}:data={out}", f"--out={out}/results")
  found = [out / "results"]
  if vqa_model:
    config = f"{CONFIG}:data={out},questions"
    _command("coca.evaluate", f"--model={vqa_model}", f"--config={config}", f"--out={out}/answers")
    found.append(out / "answers")
  rows = []
  for folder in found:
    for name, result in json.loads((folder / "results.json").read_text())["results"].items():
      numbers, (main, value) = result["numbers"], result["main"]
      others = {k: x for k, x in numbers.items() if k != main and re.fullmatch(OTHERS, k)}
      baseline = _baseline(out, name, result)
      rows.append(_row(name, result["kind"], numbers["examples"], main, value, *baseline, others))
  layouts = list(LAYOUTS.values())
  return sorted([*rows, _searched(out, model), _embedded(out, model)], key=lambda row: layouts.index(row["layout"]))


def _row(name: str, *values) -> dict:
  layout = next(layout for start, layout in LAYOUTS.items() if name.startswith(start))
  return dict(zip(HEAD, (name, layout, *values), strict=True))


def _baseline(out: Path, name: str, result: dict) -> tuple[float, str]:
  """The number that a set's main one stands beside, and what it is of."""
  numbers, (main, _) = result["numbers"], result["main"]
  if result["kind"] in ("captions", "retrieval") and f"pixel_{main.partition(' ')[0]}" in numbers:
    return float(np.mean([numbers[f"pixel_{part}"] for part in main.split(" and ")])), "pixels"
  if result["kind"] == "vqa":
    return _guessed(int(numbers["examples"])), "usual answer"
  if result["kind"] == "pairs":
    return 1 / 6 if main.endswith("group") else 1 / 2, "chance"
  names = out / "clip_benchmark" / name / "classnames.txt"
  classes = names.read_text().splitlines() if names.exists() else list((out / "imagenet_r").glob("n*"))
  return 1 / (numbers["examples"] if result["kind"] == "retrieval" else len(classes)), "chance"


def _guessed(count: int, known: int = 5000) -> float:
  """The share of answers that are right if a question gets the most frequent one of the same question in training."""
  train, asked = (Questions(World(split, vocabulary=OBJECTS)) for split in ("scenes", "scenes_val"))
  answers, usual = {}, Counter()
  for made in (train[i] for i in range(known)):
    answers.setdefault(made.question, Counter())[made.answer] += 1
    usual[made.answer] += 1
  guesses = (
    (answers.get(made.question, usual).most_common(1)[0][0], made.answer)
    for made in map(asked.__getitem__, range(count))
  )
  return float(np.mean([guess == answer for guess, answer in guesses]))


def _searched(out: Path, model: str, count: int = 200) -> dict:
  """The search for images by the first of their captions."""
  index, images = out / "index", out / "coco" / "val2017"
  _command("coca.search", str(index), f"--data={images}", f"--model={model}")
  annotations = json.loads((out / "coco" / CAPTIONS).read_text())["annotations"]
  first = {row["caption"]: row["image_id"] for row in annotations if row["id"] % 5 == 0 and row["image_id"] < count}
  lines = _told("coca.search", str(index), *first, "--k=1")
  found = [int(Path(line.split("\t")[1]).stem) for line in lines if "\t" in line]
  right, count = np.mean(np.array(found) == list(first.values())), len(list(images.iterdir()))
  return _row("coco_search", "search", count, "t2i_r1", float(right), 1 / count, "chance", {"queries": len(found)})


def _embedded(out: Path, model: str) -> dict:
  """Retrieval from embeddings in NumPy files, those of Karpathy's images and sentences."""
  folder, loaded = out / "karpathy", coca.load(model)
  images = json.loads((folder / "dataset_coco.json").read_text())["images"]
  texts = [[sentence["raw"] for sentence in image["sentences"]] for image in images]
  arrays = {
    "images": loaded.embed_images([f"{folder}/{image['filepath']}/{image['filename']}" for image in images]),
    "texts": loaded.embed_texts([text for own in texts for text in own]),
    "owners": np.repeat(np.arange(len(texts)), [len(own) for own in texts]),
  }
  for name, array in arrays.items():
    np.save(out / f"{name}.npy", array)
  told = _told("coca.evaluate", *(f"--{name}={out}/{name}.npy" for name in arrays))
  numbers = {name: float(value) for name, value in map(str.split, told)}
  value = (numbers["i2t_r1"] + numbers["t2i_r1"]) / 2
  return _row("karpathy_npy", "retrieval", len(images), "i2t_r1 and t2i_r1", value, 1 / len(images), "chance", {})


def _command(module: str, *args: str) -> None:
  print(f"python -m {module} {' '.join(args)}", flush=True)
  subprocess.run([sys.executable, "-m", module, *args], check=True)


def _told(module: str, *args: str) -> list[str]:
  return subprocess.check_output([sys.executable, "-m", module, *args], text=True).splitlines()


def markdown(rows: list[dict]) -> str:
  """The rows as a table."""
  cells = [HEAD, *(tuple(map(_cell, row.values())) for row in rows)]
  cells.insert(1, tuple("---:" if name in ("examples", "value", "baseline") else "---" for name in HEAD))
  return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _cell(value) -> str:
  if isinstance(value, dict):
    return ", ".join(f"{name} {_cell(x)}" for name, x in value.items())
  return value if isinstance(value, str) else f"{value:.0f}" if value >= 20 else f"{value:.3f}"


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("out", type=Path)
  parser.add_argument("--model", help="working directory, converted model, or hf://org/name; left out: no measurement")
  parser.add_argument("--vqa_model", help="one that answers questions")
  parser.add_argument("--count", type=int, default=1000, help="images of a set")
  args = parser.parse_args()
  for suite in SUITES:
    folder = args.out / suite.__name__
    if not folder.exists():  # it is renamed when it is whole
      part = args.out / f"{suite.__name__}.part"
      shutil.rmtree(part, ignore_errors=True)
      suite(part, args.count)
      os.rename(part, folder)
  if args.model:
    rows = measure(args.out, args.model, args.vqa_model)
    (args.out / "table.json").write_text(json.dumps(rows, indent=1))
    (args.out / "table.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
  main()
