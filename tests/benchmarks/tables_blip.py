"""BLIP's Tables 1, 2, 3, 4, 12 and 13 (arXiv 2201.12086) in small, on scenes of which it is known what is true.

    python tests/benchmarks/tables_blip.py --out=OUT --tables=1 --noise=40      # then --noise=0,60
    python tests/benchmarks/tables_blip.py --out=OUT --tables=2,4,12,13,3
    python tests/benchmarks/tables_blip.py --out=OUT --tables=as_long,synthetic
    python tests/benchmarks/tables_blip.py --out=OUT --table                    # prints what is finished

Every cell is in a folder of its own (grid.py); its settings are those of tables_config.py. All of Table 1 for a noise
and a seed comes from one CapFilt job: `none` is the model that its captioner and filter start from, the other variants
read the job's texts in other ways, and in `as_long` they have as many steps as `none`. `synthetic` is a question of
today: none, half or all of the web's images with a synthetic text in place of their own, none filtered, as many
examples each; and `two_texts`, both texts of an image in the contrastive loss (`config.contrastive.texts` 2), one of
which the captioner learns.

What is measured is the pre-trained model, with no fine-tuning, on 1,000 scenes that training lacks; BLIP's figures are
of COCO after fine-tuning. All but Table 3 is with CoCa's model, whose filter has its matching head on the causal
decoder.
"""

import argparse
import functools
from pathlib import Path

import grid
from capfilt_quality import of_job
from grid import OUT, Cell, Grid, Measure

CONFIG = "tests/benchmarks/tables_config.py"
VOCABULARY = f"{OUT}/vocab.txt"
T2I, TRUE = "eval/retrieval/t2i_r1", "eval/captions/true"
# BLIP with ViT-B on 14M pairs: IR@1 and CIDEr on COCO after fine-tuning.
PAPER = {
  "none": (60.7, 127.8),
  "filter": (61.5, 128.2),
  "captioner": (62.0, 128.9),
  "both": (63.1, 129.7),
  "beam": (61.9, 128.9),
  "shared": (62.2, 129.0),
  "longer": (60.5, 127.7),
  "continued": (63.0, 129.9),
  "all": (59.5, 125.9),
  "all_but_cross_attention": (59.9, 126.1),
  "all_but_self_attention": (60.7, 127.8),
  "unshared": (60.5, 127.4),
}
MEASURES = (
  Measure(T2I, "text-to-image R@1", {name: of[0] for name, of in PAPER.items()}, "BLIP: IR@1"),
  Measure(TRUE, "true captions", {name: of[1] for name, of in PAPER.items()}, "BLIP: CIDEr"),
)
# Share of the synthetic texts that the filter throws out, in percent.
REJECTED = {"both": 25, "beam": 19, "shared": 8}
SHARING = {name: name for name in ("all", "all_but_cross_attention", "all_but_self_attention")} | {"unshared": "none"}
AS_LONG = "_as_long"  # behind a variant's name: with as many steps as `none`
# Title, rows, and the row that others are compared with.
TABLES = {
  "1": ("Table 1: captioner and filter", ("none", "filter", "captioner", "both"), "none"),
  "as_long": (
    "Captioner and filter, with as many steps as 'none'",
    ("none", f"filter{AS_LONG}", f"captioner{AS_LONG}", f"both{AS_LONG}"),
    "none",
  ),
  "2": ("Table 2: captions by beams, or by nucleus sampling ('both')", ("none", "beam", "both"), "none"),
  "4": ("Table 4: one model as captioner and filter, or two ('both')", ("shared", "both"), "shared"),
  "12": ("Table 12: no more than longer training? The web's own texts, repeated", ("none", "longer", "both"), "none"),
  "13": ("Table 13: the model before trained on, or a new one ('both')", ("continued", "both"), "continued"),
  "3": ("Table 3: what encoder and decoder share, with BLIP's model and raw web texts", tuple(SHARING), "all"),
  "synthetic": (
    "Share of synthetic texts, none of them filtered; or both texts in the contrastive loss",
    ("none", "synthetic50", "synthetic100", "two_texts"),
    "none",
  ),
}
QUALITY = {
  "auc": "AUC of P(match): the web's true texts against the others",
  "auc_contrastive": "AUC of the cosine",
  "auc_other": "AUC, against another scene's captions",
  "auc_wrong": "against captions with one word wrong",
  "auc_wrong_object": "where that is an object",
  "auc_wrong_number": "a number",
  "auc_wrong_relation": "a side",
  "auc_title": "against titles",
  "auc_file_name": "against files' names",
  "web_not_true": "web texts that are not true",
  "web_not_true_kept": "of those that are kept",
  "web_true_rejected": "true web texts thrown out",
  "synthetic_true": "synthetic texts that are true",
  "synthetic_true_kept": "of those that are kept",
  "synthetic_right_parts": "right parts of synthetic texts",
  "not_true_kept": "all texts kept that are not true",
  "synthetic_rejected": "synthetic texts thrown out",
}


class Blip:
  """The cells, by noise in percent and seed.

  Args:
    args: of the command line.
  """

  def __init__(self, args):
    self.args = args
    self._share = f"-share{args.share:g}" if args.share else ""  # another one needs no other model to start from

  def _cell(self, noise: int, seed: int, name: str, role: str, *needs: Cell, module="coca.train", **more):
    sizes = {"human": self.args.human, "web": self.args.web, "limit": self.args.limit}
    of_config = {"role": role, "seed": seed, "noise": noise, **sizes, **more}
    config = f"--config={CONFIG}:" + ",".join(f"{key}={value}" for key, value in of_config.items())
    return Cell(f"noise{noise}-seed{seed}/{name}", module, (config,), needs)

  def init(self, sharing: str = "") -> Cell:
    """The model that all pre-trainings of a kind start from."""
    of_config = (
      f"role=init,tokenizer={VOCABULARY},sharing={sharing},steps={self.args.init_steps},limit={self.args.limit}"
    )
    return Cell(f"init-{sharing or 'coca'}", "coca.train", (f"--config={CONFIG}:{of_config}",))

  def none(self, noise: int, seed: int) -> Cell:
    """Pre-trained on human pairs and raw web pairs."""
    init = self.init()
    return self._cell(noise, seed, "none", "pretrain", init, init_from=init.workdir, epochs=self.args.epochs)

  def tuned(self, noise: int, seed: int, role: str) -> Cell:
    none = self.none(noise, seed)
    steps = self.args.captioner_steps if role == "captioner" else self.args.filter_steps
    return self._cell(noise, seed, f"model-{role}", role, none, init_from=none.workdir, steps=steps)

  def job(self, noise: int, seed: int, how: str) -> Cell:
    """CapFilt: 'both' as the paper has it, with 'beam' search, or with a 'shared' model."""
    roles = ("shared", "shared") if how == "shared" else ("captioner", "filter")
    captioner, judge = (self.tuned(noise, seed, role) for role in roles)
    more = {"decoding": "beam" if how == "beam" else "nucleus", "share": self.args.share}
    models = {"captioner": captioner.workdir, "filter": judge.workdir}
    name = f"job-{how}{self._share}"
    return self._cell(noise, seed, name, "job", captioner, judge, module="coca.capfilt", **models, **more)

  def row(self, noise: int, seed: int, name: str) -> Cell:
    """The model of a row of `TABLES`."""
    if name == "none":
      return self.none(noise, seed)
    if name in SHARING:
      init = self.init(SHARING[name])
      more = {"sharing": SHARING[name], "init_from": init.workdir, "epochs": self.args.blip_epochs}
      return self._cell(noise, seed, f"blip-{name}", "pretrain", init, **more)
    none, job = self.none(noise, seed), self.job(noise, seed, name if name in ("beam", "shared") else "both")
    variant = "both" if name in ("beam", "shared", "continued") else name.removesuffix(AS_LONG)
    start = none if name == "continued" else self.init()
    more = {"init_from": start.workdir, "variant": variant, "capfilt": job.workdir, "epochs": self.args.epochs}
    if name.endswith(AS_LONG):
      more["pairs"] = round(self.args.epochs * (self.args.human + self.args.web))
    return self._cell(noise, seed, name + self._share, "pretrain", start, job, **more)

  def noises(self, table: str) -> list[int]:
    return self.args.noise if table == "1" else [self.args.ablation_noise]

  def cells(self) -> list[Cell]:
    """Of all tables that are asked for; seeds outermost: what is finished after a while is of fewer seeds."""
    return [
      self.row(noise, seed, name)
      for seed in self.args.seeds
      for table in self.args.tables
      for noise in self.noises(table)
      for name in TABLES[table][1]
    ]

  def found(self, made: Grid, noise: int, cell) -> dict[int, dict]:
    """What is finished of a cell (a function of noise and seed), by seed."""
    return {seed: done for seed in self.args.seeds if (done := made.done(cell(noise, seed)))}

  def tables(self, made: Grid) -> str:
    """What is finished, as Markdown."""
    text = [
      f"{self.args.human:,} human scenes, {self.args.web:,} of the web; {len(self.args.seeds)} seed(s). ±: 95 % t "
      "interval over seeds, in brackets, for a single seed, Wilson's over images. A gain is the mean of differences "
      "seed by seed; 'unclear': its interval holds 0. "
      + grid.cost(list(filter(None, map(made.done, grid.in_order(self.cells())))))
    ]
    jobs = {}
    for table in self.args.tables:
      title, names, base = TABLES[table]
      for noise in self.noises(table):
        found = {name: self.found(made, noise, functools.partial(self.row, name=name)) for name in names}
        lines = grid.rows(found, base, MEASURES, extra=lambda done: sum(done["texts"].values()))
        text += [f"\n{title}, {noise} % noise\n", *grid.head(MEASURES, "", "texts"), *lines]
        for how in {"2": ("beam", "both"), "3": (), "4": ("shared", "both"), "synthetic": ()}.get(table, ("both",)):
          jobs[noise, how] = self.found(made, noise, functools.partial(self.job, how=how))
    return "\n".join(text + self._quality({job: found for job, found in jobs.items() if found}))

  def _quality(self, jobs: dict) -> list[str]:
    """Lines about jobs, by noise and kind: their results by seed."""
    if not jobs:
      return []
    lines = [
      "\nThe filter and the captioner, in %\n",
      "| | " + " | ".join(f"{noise} % noise, {how}" for noise, how in jobs) + " |",
      "| --- |" + " ---: |" * len(jobs),
    ]
    for name, title in QUALITY.items():
      found = ([done[name] for done in of_seed.values()] for of_seed in jobs.values())
      lines.append(f"| {title} | " + " | ".join(map(grid.mean, found)) + " |")
    return [*lines, "| the same in BLIP | " + " | ".join(str(REJECTED[how]) for _, how in jobs) + " |"]


def trained(workdir) -> dict:
  """The last numbers of a run's evaluations, and how many texts its sources have."""
  from coca.data.sources import open_source
  from coca.storage.workdir import read_config
  from coca.training.metrics import read

  values = {
    name: value for row in read(workdir / "metrics.jsonl") for name, value in row.items() if name.startswith("eval/")
  }
  return values | {"texts": {name: len(open_source(s)) for name, s in read_config(workdir).data.sources.items()}}


def write_vocabulary(path: Path) -> None:
  """WordPiece of the texts of a run, for all: BLIP's is BERT's."""
  from tables_config import get_config

  from coca.config import parse
  from coca.data.sources import open_source
  from coca.data.tokenizers import wordpiece
  from coca.data.tokenizers.load import texts_of

  config = parse(get_config("role=pretrain,noise=40"))
  sources = {name: open_source(settings) for name, settings in config.data.sources.items()}
  texts = texts_of(sources, config.data.sources, config.data.tokenizer_texts, config.seed)
  path.parent.mkdir(parents=True, exist_ok=True)
  wordpiece.train(texts, config.model.text.vocab).save(path)


def main() -> None:
  style = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=style, parents=[grid.flags(list(TABLES))])
  parser.add_argument("--noise", type=grid.numbers, default=[40, 0, 60], help="percent of web texts not true, Table 1")
  parser.add_argument("--ablation_noise", type=int, default=40, help="of the other tables")
  parser.add_argument("--human", type=int, default=2000, help="human scenes")
  parser.add_argument("--web", type=int, default=20_000, help="web scenes")
  parser.add_argument("--init_steps", type=int, default=3000, help="of the models that pre-trainings start from")
  parser.add_argument("--epochs", type=float, default=2.0, help="of each pre-training over its texts")
  parser.add_argument("--blip_epochs", type=float, default=1.0, help="in Table 3, where a step costs more")
  parser.add_argument("--captioner_steps", type=int, default=150)
  parser.add_argument("--filter_steps", type=int, default=250)
  parser.add_argument(
    "--share",
    type=float,
    default=0.0,
    help="of all texts that a job keeps, in place of P(match) of 0.5 and more: for filters of too few steps",
  )
  args = parser.parse_args()
  blip, made = Blip(args), Grid(args.out, {"coca.train": trained, "coca.capfilt": of_job}, args.kept)
  if not args.table and not (args.out / "vocab.txt").exists():
    write_vocabulary(args.out / "vocab.txt")
  grid.main(args, made, blip.cells(), lambda: blip.tables(made))


if __name__ == "__main__":
  main()
