"""Which of open_clip's pretrained pairs of model and tag convert, and why the others do not. Nothing is downloaded.

    PEER/bin/python tests/benchmarks/open_clip_pairs.py --write=pairs.json
    python tests/benchmarks/open_clip_pairs.py pairs.json

PEER is an environment with torch and open_clip_torch. It writes the settings of each pair of open_clip's own list, and
the names and shapes of its model's tensors, which torch makes without memory. A pair converts if `coca.convert` reads
its settings, and finds all the tensors that it needs and no others.
"""

import argparse
import collections
import json


def write(path: str) -> None:
  from peer_open_clip import import_open_clip

  open_clip, torch = import_open_clip()
  pairs, tensors = [], {}
  for model, tag in open_clip.list_pretrained():
    settings, pretrained = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
    if model not in tensors and "hf_model_name" not in settings["text_cfg"]:  # which would be downloaded
      with torch.device("meta"):
        made = open_clip.create_model(model, device="meta").state_dict()
      tensors[model] = {key: list(x.shape) for key, x in made.items()}
    settings["quick_gelu"] = pretrained.get("quick_gelu", settings.get("quick_gelu", False))
    pairs.append({"model": model, "tag": tag, "settings": {"model_cfg": settings, "preprocess_cfg": pretrained}})
  with open(path, "w") as f:
    json.dump({"version": open_clip.__version__, "pairs": pairs, "tensors": tensors}, f)


class Right(Exception):
  """All names and shapes are."""


class Tensor:
  """A shape, whose numbers are asked for once those of all tensors were looked at."""

  def __init__(self, shape: list):
    self.shape = tuple(shape)

  def __array__(self, *args, **kwargs):
    raise Right


def outcome(settings: dict, tensors: dict) -> str:
  """'converts', or what is in the way."""
  from coca.interop.open_clip import settings as read
  from coca.interop.open_clip import weights

  try:
    weights.to_params({key: Tensor(shape) for key, shape in tensors.items()}, read.to_config(settings))
  except ValueError as e:
    return str(e)
  except Right:
    return "converts"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("pairs", nargs="?", help="what --write wrote")
  parser.add_argument("--write", help="where open_clip's list goes")
  args = parser.parse_args()
  if args.write:
    return write(args.write)
  with open(args.pairs) as f:
    found = json.load(f)
  models = collections.defaultdict(list)
  for pair in found["pairs"]:
    why = outcome(pair["settings"], found["tensors"].get(pair["model"], {}))
    models[why.partition(": ")[2].partition(",")[0] or why].append(pair["model"])  # without what names the model
  print(f"{len(models['converts'])} of {len(found['pairs'])} pairs of open_clip {found['version']} convert")
  for why, names in sorted(models.items(), key=lambda item: -len(item[1])):
    print(f"{len(names):4} {why}: {', '.join(sorted(set(names)))}")


if __name__ == "__main__":
  main()
