"""open_clip's model on a tree of CLIP_benchmark's folders, by clip_benchmark's own metrics: beside `coca.evaluate`.

    python tests/benchmarks/suites.py suites
    python -m coca.evaluate --model=models/clip --data=suites/clip_benchmark --out=results
    PEER/bin/python tests/benchmarks/peer_clip_benchmark.py open_clip_folder suites/clip_benchmark results/results.json

PEER has torch, open_clip_torch, clip_benchmark==1.6.2 and scikit-learn. Prints each number of both and how far they are
apart. Tars are read with tarfile: clip_benchmark's own reader needs torchvision's transforms.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from peer_open_clip import import_open_clip
from PIL import Image


def records(folder: Path) -> Iterator[dict[str, bytes]]:
  for number in range(int((folder / "test" / "nshards.txt").read_text())):
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(folder / "test" / f"{number}.tar") as tar:
      for member in tar:
        key, _, extension = member.name.partition(".")
        members.setdefault(key, {})[extension] = tar.extractfile(member).read()
    yield from members.values()


def white(image: Image.Image) -> Image.Image:
  """On white, as coca has transparent images; open_clip makes them black."""
  image = image.convert("RGBA")
  return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def measured(torch, model, preprocess, tokenizer, folder: Path) -> dict[str, float]:
  from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

  zeroshot_classification.float = lambda array: array.item()  # NumPy's newer float() takes no array of one number
  found = list(records(folder))
  data = (next(r[k] for k in ("webp", "png", "jpg") if k in r) for r in found)
  images = torch.stack([preprocess(white(Image.open(io.BytesIO(d)))) for d in data])
  if not (folder / "classnames.txt").exists():
    batches = [(images[i : i + 100], range(i, min(i + 100, len(found)))) for i in range(0, len(found), 100)]
    loader = [(x, [found[i]["txt"].decode().splitlines() for i in rows]) for x, rows in batches]
    numbers = zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    ways = {"image_retrieval_recall@": "t2i_r", "text_retrieval_recall@": "i2t_r"}
    return {f"{ours}{k}": numbers[f"{theirs}{k}"] for theirs, ours in ways.items() for k in (1, 5, 10)}
  labels = torch.tensor([int(r["cls"]) for r in found])
  loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 100)
  names, templates = (
    (folder / name).read_text().splitlines() for name in ("classnames.txt", "zeroshot_classification_templates.txt")
  )
  loader.dataset.classes = names
  numbers = zeroshot_classification.evaluate(model, loader, tokenizer, names, templates, "cpu", amp=False)
  return {"top1": numbers["acc1"], "top5": numbers["acc5"], "mean_per_class_recall": numbers["mean_per_class_recall"]}


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("model", type=Path, help="folder that `coca.convert --to=open_clip` wrote")
  parser.add_argument("data", type=Path, help="tree of CLIP_benchmark's folders")
  parser.add_argument("results", type=Path, help="results.json of `coca.evaluate` on both")
  args = parser.parse_args()
  open_clip, torch = import_open_clip()
  model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{args.model.resolve()}")
  tokenizer = open_clip.get_tokenizer(f"local-dir:{args.model.resolve()}")
  ours = json.loads(args.results.read_text())["results"]
  for folder in sorted(args.data.iterdir()):
    for name, theirs in measured(torch, model.eval(), preprocess, tokenizer, folder).items():
      mine = ours[folder.name]["numbers"][name]
      print(f"{folder.name:<24} {name:<24} {theirs:.4f} {mine:.4f} {abs(theirs - mine):.1e}", flush=True)


if __name__ == "__main__":
  main()
