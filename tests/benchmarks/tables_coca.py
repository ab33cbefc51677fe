"""CoCa's Table 8 (arXiv 2205.01917) in small: configs/coca_tiny.py with other losses, poolers and layers.

    python tests/benchmarks/tables_coca.py --out=OUT --tables=b,f      # then --tables=c,d,e
    python tests/benchmarks/tables_coca.py --out=OUT --table           # prints what is finished

Every cell is in a folder of its own (grid.py), with the settings of tables_config.py. Scenes and emoji are mixed as in
coca_tiny; measured are retrieval and true captions on 1,000 scenes that training lacks. The paper's columns are
ImageNet zero-shot beside retrieval, and VQA beside captions.

Not here: (a), which needs labels; of (e) the rows with 8 [CLS] or with the text's tokens beside [CLS], for which there
are no settings: in their place the state at EOS (CLIP). Two texts of an image in the contrastive loss have none either.
"""

import argparse
import functools

import grid
from grid import Cell, Grid, Measure
from tables_blip import CONFIG, T2I, TRUE, trained

POOLERS = ("parallel", "n_query_0", "cascade")
# What coca_tiny has since the other cells were made (tables_config.py).
TODAY = {"model.image.position_scale": 4.0, "optim.adamw_scale": 0.25, "optim.schedule": "linear"}
# Objective, settings beside those of the paper's model in small ('cascade'), ImageNet zero-shot and VQA in the paper.
ROWS = {
  "cascade": ("both", {}, (71.6, 69.0)),
  "contrastive": ("contrastive", {}, (70.7, 59.2)),
  "captioning": ("captioning", {}, (None, 68.9)),
  "parallel": ("both", {"model.poolers.kind": "parallel"}, (71.2, 68.7)),
  "n_query_0": ("both", {"model.poolers.n_query": 0}, (71.5, 69.0)),
  "n_query_1": ("both", {"model.poolers.n_query": 1}, (69.3, 64.4)),
  "n_query_36": ("both", {"model.poolers.n_query": 36}, (None, None)),
  "1:1": ("both", {"captioning.weight": 1.0}, (71.5, 68.6)),
  "1:2": ("both", {"captioning.weight": 1.0, "contrastive.weight": 2.0}, (71.0, 68.1)),
  "n_uni_1": ("both", {"model.text.unimodal_layers": 1, "model.text.multimodal_layers": 3}, (70.2, 69.0)),
  "n_uni_3": ("both", {"model.text.unimodal_layers": 3, "model.text.multimodal_layers": 1}, (71.4, 68.8)),
  "eos": ("both", {"model.text.pool": "eos"}, (None, None)),
}
ROWS |= {f"{name}_today": (ROWS[name][0], ROWS[name][1] | TODAY, ROWS[name][2]) for name in POOLERS}
TABLES = {
  "b": ("Table 8b: the losses", ("contrastive", "captioning", "cascade")),
  "f": (
    "Table 8f: poolers ('cascade' has 8 queries for 36 image tokens, the paper 256 for 256)",
    ("parallel", "n_query_0", "n_query_1", "n_query_36", "cascade"),
  ),
  "c": ("Table 8c: weights of captioning : contrastive loss ('cascade' has 2:1)", ("1:1", "1:2", "cascade")),
  "d": ("Table 8d: unimodal of all text layers ('cascade' has 2 of 4)", ("n_uni_1", "n_uni_3", "cascade")),
  "e": ("Table 8e: the text embedding ('cascade' has a [CLS])", ("eos", "cascade")),
  "t": ("Table 8f with coca_tiny's rate and positions of today", tuple(f"{name}_today" for name in POOLERS)),
}
ZERO_SHOT = {name: row[2][0] for name, row in ROWS.items() if row[2][0]}
VQA = {name: row[2][1] for name, row in ROWS.items() if row[2][1]}
MEASURES = (
  Measure(T2I, "text-to-image R@1", ZERO_SHOT, "CoCa: ImageNet"),
  Measure(TRUE, "true captions", VQA, "CoCa: VQA"),
)


def cell(args, name: str, seed: int) -> Cell:
  objective, settings, _ = ROWS[name]
  config = f"--config={CONFIG}:role=coca,objective={objective},seed={seed},pairs={args.pairs},limit={args.limit}"
  flags = (f"--config.{key}={value}" for key, value in settings.items())
  return Cell(f"seed{seed}/{name.replace(':', '_to_')}", "coca.train", (config, *flags))


def cells(args) -> list[Cell]:
  """Of all tables that are asked for; seeds outermost: what is finished after a while is of fewer seeds."""
  names = dict.fromkeys(name for table in args.tables for name in TABLES[table][1])
  return [cell(args, name, seed) for seed in args.seeds for name in names]


def tables(args, made: Grid) -> str:
  """What is finished, as Markdown."""
  text = [
    f"{args.pairs:,} pairs; {len(args.seeds)} seed(s). ±: 95 % t interval over seeds, in brackets, for a single seed, "
    "Wilson's over images. A gain is on the last row, the paper's model: the mean of differences seed by seed; "
    "'unclear': its interval holds 0. " + grid.cost(list(filter(None, map(made.done, cells(args)))))
  ]
  for table in args.tables:
    title, names = TABLES[table]
    found = {name: {seed: done for seed in args.seeds if (done := made.done(cell(args, name, seed)))} for name in names}
    text += [f"\n{title}\n", *grid.head(MEASURES), *grid.rows(found, names[-1], MEASURES)]
  return "\n".join(text)


def main() -> None:
  style = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=style, parents=[grid.flags(list(TABLES))])
  parser.add_argument("--pairs", type=int, default=32_000, help="that a run sees")
  args = parser.parse_args()
  made = Grid(args.out, {"coca.train": trained}, args.kept)
  grid.main(args, made, cells(args), functools.partial(tables, args, made))


if __name__ == "__main__":
  main()
