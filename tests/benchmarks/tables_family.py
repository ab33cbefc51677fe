"""Every system of docs/family.md, trained for the same number of pairs on the built-in world, and what it can be asked.

    python tests/benchmarks/tables_family.py --out=OUT
    python tests/benchmarks/tables_family.py --out=OUT --table         # prints what is finished

Every cell is in a folder of its own (grid.py), with the settings of family_config.py: the tiny form of each config. It
is a comparison of systems as they are, at a budget of minutes, where what a system gets from long training, from its
size or from another's weights does not show. Measured are retrieval and true captions on 1,000 scenes that training
lacks, and the object of 1,000 scenes of a single thing, in the styles of training and in one that it never saw.
"""

import argparse
import functools

import grid
from grid import Cell, Grid
from intervals import t_interval
from tables_blip import trained

CONFIG = "tests/benchmarks/family_config.py"
# Its name in the table, and the system whose model it begins with.
SYSTEMS = {
  "coca_tiny": ("CoCa", ""),
  "clip_base": ("CLIP", ""),
  "siglip_base": ("SigLIP", ""),
  "unicl_base": ("UniCL", ""),
  "align_base": ("ALIGN", ""),
  "cap_base": ("Cap", ""),
  "cap_base+parallel": ("CapPa", ""),
  "simvlm_base": ("SimVLM", ""),
  "mammut_base": ("MaMMUT", ""),
  "openvision_base": ("OpenVision", ""),
  "albef_base": ("ALBEF", ""),
  "blip_tiny": ("BLIP", ""),
  "lemon_base": ("LEMON, reads true regions", ""),
  "vl_t5_base": ("VL-T5, reads true regions", ""),
  "vl_bart_base": ("VL-BART, reads true regions", ""),
  "vit_base": ("ViT, on single things", ""),
  "lit_base": ("LiT, on that ViT", "vit_base"),
  "finetune_classify": ("CoCa, tuned on single things", "coca_tiny"),
}
# A figure's title, and what chance is: of 1,000 scenes' captions 0.2 % are true of another, and there are 16 objects.
COLUMNS = {
  "retrieval/t2i_r1": ("t2i R@1", 0.001),
  "retrieval_in_new_style/t2i_r1": ("in a new style", 0.001),
  "captions/true": ("true captions", 0.002),
  "captions_in_new_style/true": ("in a new style", 0.002),
  "classification/top1": ("object", 1 / 16),
  "classification_in_new_style/top1": ("in a new style", 1 / 16),
}


def cell(args, system: str, seed: int) -> Cell:
  needs = tuple(cell(args, each, seed) for each in SYSTEMS[system][1:] if each)
  init = "".join(f",init_from={need.workdir}" for need in needs)
  config = f"--config={CONFIG}:system={system},seed={seed},pairs={args.pairs},limit={args.limit}{init}"
  return Cell(f"seed{seed}/{system}", "coca.train", (config,), needs)


def cells(args) -> list[Cell]:
  """Of all systems that are asked for; seeds outermost: what is finished after a while is of fewer seeds."""
  return [cell(args, system, seed) for seed in args.seeds for system in args.tables]


def percents(values: list[float]) -> str:
  """Mean in percent, and the lowest and the highest: of two seeds an interval would say nothing."""
  if not values:
    return ""
  mean, low, high = (grid.percent(v) for v in (t_interval(values)[0], min(values), max(values)))
  return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def measured(values: dict, key: str) -> float | None:
  """A cell's figure; ranks are those after the matching head, where there is one."""
  return values.get(f"{key}_reranked", values.get(key))


def table(args, made: Grid) -> str:
  """What is finished, as Markdown."""
  found = {s: [done for seed in args.seeds if (done := made.done(cell(args, s, seed)))] for s in args.tables}
  rows = {SYSTEMS[system][0]: ("", done) for system, done in found.items() if done}
  rows["chance"] = ("", [{f"eval/{key}": chance for key, (_, chance) in COLUMNS.items()}])
  rows["the nearest scene in 16 x 16 pixels"] = ("pixel_", found.get("coca_tiny", []))
  cost = grid.cost([values for done in found.values() for values in done])
  text = [
    f"{args.pairs:,} pairs each; {len(args.seeds)} seed(s). {cost}\n",
    "| in % | " + " | ".join(title for title, _ in COLUMNS.values()) + " |",
    "| --- |" + " ---: |" * len(COLUMNS),
  ]
  for title, (prefix, done) in rows.items():
    keys = ["eval/" + key.replace("/", f"/{prefix}") for key in COLUMNS]
    columns = (percents([found for values in done if (found := measured(values, key)) is not None]) for key in keys)
    text.append(f"| {title} | {' | '.join(columns)} |")
  return "\n".join(text)


def main() -> None:
  style = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=style, parents=[grid.flags(list(SYSTEMS))])
  parser.add_argument("--pairs", type=int, default=12_800, help="that a run sees")
  parser.set_defaults(seeds=[0, 1])
  args = parser.parse_args()
  made = Grid(args.out, {"coca.train": trained}, args.kept)
  grid.main(args, made, cells(args), functools.partial(table, args, made))


if __name__ == "__main__":
  main()
