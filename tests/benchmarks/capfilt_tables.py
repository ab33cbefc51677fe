"""BLIP's Tables 1, 2 and 4 (arXiv 2201.12086) in small: does CapFilt help, on real pictures with noise that is known?

    python tests/benchmarks/capfilt_tables.py --data=DIR --out=OUT --table2 --table4

DIR holds Parquet files of drawings and their names (columns key, image, caption, source, skin_tone, boilerplate_title):
emoji_train, human_sentences, web_icons, web_openclipart, web_alt_text, emoji_eval_openmoji, emoji_eval_twemoji.
Human pairs are human_sentences and noto's emoji without skin tones, web pairs the rest of the training files. A share
of the web captions is made wrong: in equal parts another caption of the whole, another one of the same collection, a
boilerplate title, a file's name.

Each cell of the grid, in a folder of its own, is a run of `python -m coca.train` or `python -m coca.capfilt`
(settings: capfilt_grid.py). A finished cell has done.json and is not run again; stopped, the same command goes on.
All of Table 1 for a noise and a seed comes from one CapFilt job: variant `none` is the model that its captioner and
filter start from, and the other variants read the job's texts in other ways. --table prints what is finished.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from capfilt_noise import KINDS, corrupt, quality, t_interval, wilson

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "benchmarks" / "capfilt_grid.py"
EVALS = ("openmoji", "twemoji")
COLUMNS = ["key", "image", "caption", "source", "skin_tone", "boilerplate_title"]
# BLIP, 14M pairs, ViT-B: TR@1 of zero-shot retrieval on Flickr30K; share of the synthetic texts that is thrown out.
BLIP = {"none": 93.9, "filter": 94.1, "captioner": 94.4, "both": 94.8, "beam": 94.1, "shared": 94.3}
BLIP_NOISE = {"both": 25, "beam": 19, "shared": 8}


# --- The grid ---


def say(text: str) -> None:
  print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def write_json(path: Path, value) -> None:
  new = path.with_suffix(".new")
  new.write_text(json.dumps(value, indent=1) + "\n")
  new.replace(path)


def write_parquet(path: Path, columns: dict[str, list]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_suffix(".new")
  pq.write_table(pa.table(columns), new, row_group_size=100)  # a shuffled read costs a row group
  new.replace(path)


class CellFailed(RuntimeError):
  """A command ended with an error; the message says which and why."""


class Grid:
  """Cells by noise (percent) and seed. Each method runs what its cell needs, and then the cell, if it is not done.

  Args:
    args: of the command line.
  """

  def __init__(self, args):
    self.args, self.out, self.data = args, args.out, args.out / "data"
    self.failed: dict[Path, str] = {}
    self.steps = {
      "pretrain": args.steps,
      "captioner": args.captioner_steps,
      "filter": args.filter_steps,
      "shared": args.filter_steps,
    }
    settings = {"web": args.web, "steps": self.steps, "min_matching": args.min_matching, "share": args.share}
    path = self.out / "grid.json"
    if not path.exists():
      self.out.mkdir(parents=True, exist_ok=True)
      write_json(path, settings)
    elif (old := json.loads(path.read_text())) != settings:
      sys.exit(f"error: {self.out} holds a grid with {old}, not {settings}; go on with those, or take another --out")

  def prepare(self) -> None:
    """Writes the pairs of both roles, without noise, and the pictures to classify."""
    if not (self.data / "clean" / "web.parquet").exists():
      rows = [
        row
        for name in ("emoji_train", "human_sentences", "web_icons", "web_openclipart", "web_alt_text")
        for row in self.read(name)
        if row["caption"].strip()
      ]
      by_human = [
        row["source"] in ("tuxpaint", "gcompris") or (row["source"] == "noto" and not row["skin_tone"]) for row in rows
      ]
      web = [row for row, human in zip(rows, by_human, strict=True) if not human]
      titles = [row["caption"] for row in web if row["boilerplate_title"]]
      if self.args.web:
        web = [web[n * len(web) // self.args.web] for n in range(self.args.web)]
      for name in EVALS:
        found = [row for row in self.read(f"emoji_eval_{name}") if not row["skin_tone"]]
        self.write(self.data / "eval" / f"{name}.parquet", found)
      self.write(self.data / "clean" / "human.parquet", [r for r, human in zip(rows, by_human, strict=True) if human])
      write_json(self.data / "titles.json", titles)
      self.write(self.data / "clean" / "web.parquet", web)
    if not (self.out / "pixels.json").exists():
      from coca.config import Source
      from coca.data.sources import open_source
      from coca.evals.zero_shot import pixel_top1

      say("what the nearest picture in 16x16 pixels says")
      train = open_source(Source(kind="parquet", path=f"{self.data}/clean/*.parquet"))
      found = {
        name: pixel_top1(open_source(Source(kind="parquet", path=f"{self.data}/eval/{name}.parquet")), train)
        for name in EVALS
      }
      write_json(self.out / "pixels.json", found)

  def read(self, name: str) -> list[dict]:
    return pq.read_table(self.args.data / f"{name}.parquet", columns=COLUMNS).to_pylist()

  def write(self, path: Path, rows: list[dict]) -> None:
    columns = {name: [row[name] for row in rows] for name in ("key", "image", "caption", "source")}
    write_parquet(path, columns | {"boilerplate": [bool(row["boilerplate_title"]) for row in rows]})

  def web(self, noise: int, seed: int) -> Path:
    """The web pairs with so many percent of wrong captions; the right ones are in the column `original`."""
    path = self.data / f"noise{noise}-seed{seed}" / "web.parquet"
    if not path.exists():
      table = pq.read_table(self.data / "clean" / "web.parquet").to_pydict()
      titles = json.loads((self.data / "titles.json").read_text())
      captions, kinds = corrupt(table["caption"], table["source"], titles, noise / 100, seed)
      write_parquet(path, table | {"caption": captions, "original": table["caption"], "kind": kinds})
    return path

  def run(self, folder: Path, module: str, *flags, result) -> Path:
    """Runs a command of the project in `folder`, unless it is done; result() gives what done.json holds.

    Raises:
      CellFailed: it fails, or did so since this process began.
    """
    if folder in self.failed:
      raise CellFailed(self.failed[folder])
    if not (folder / "done.json").exists():
      folder.mkdir(parents=True, exist_ok=True)
      name, began = folder.relative_to(self.out), time.monotonic()
      with open(folder / "log.txt", "a") as log:
        code = subprocess.run(
          [sys.executable, "-m", module, *flags, f"--workdir={folder}"],
          stdout=log,
          stderr=log,
          cwd=ROOT,
          env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self.out / "compiled")},
          check=False,
        ).returncode
      if code:
        tail = "\n".join((folder / "log.txt").read_text(errors="replace").splitlines()[-5:])
        self.failed[folder] = f"{name} ended with status {code}; the end of {folder}/log.txt:\n{tail}"
        say(self.failed[folder])
        raise CellFailed(self.failed[folder])
      seconds = time.monotonic() - began
      write_json(folder / "done.json", result() | {"seconds": round(seconds, 1)})
      say(f"{name}: {seconds:.0f} s")
    return folder

  def train(self, folder: Path, role: str, seed: int, **arguments) -> Path:
    arguments = ",".join(f"{k}={v}" for k, v in {"role": role, "data": self.data, **arguments}.items())

    def result():
      from coca.data.sources import open_source
      from coca.storage.workdir import read_config
      from coca.training.metrics import read

      values = {name: value for row in read(folder / "metrics.jsonl") for name, value in row.items()}
      return values | {"texts": {k: len(open_source(s)) for k, s in read_config(folder).data.sources.items()}}

    return self.run(
      folder,
      "coca.train",
      f"--config={CONFIG}:{arguments}",
      f"--config.seed={seed}",
      f"--config.steps={self.steps[role]}",
      result=result,
    )

  def place(self, noise: int, seed: int, name: str) -> Path:
    return self.out / f"noise{noise}-seed{seed}" / name

  def none(self, noise: int, seed: int) -> Path:
    """Pre-trained on human pairs and raw web pairs."""
    return self.train(self.place(noise, seed, "none"), "pretrain", seed, web=self.web(noise, seed))

  def tuned(self, noise: int, seed: int, role: str) -> Path:
    return self.train(self.place(noise, seed, f"model-{role}"), role, seed, init_from=self.none(noise, seed))

  def capfilt(self, noise: int, seed: int, how: str) -> Path:
    """The job: 'both' as the paper has it, with 'beam' search, or with a 'shared' model."""
    roles = ("shared", "shared") if how == "shared" else ("captioner", "filter")
    models = [self.tuned(noise, seed, role) for role in roles]
    web, folder = self.web(noise, seed), self.place(noise, seed, f"capfilt-{how}")
    decoding = ("--config.decoding.strategy=beam", "--config.decoding.beams=3", "--config.decoding.top_p=1.")

    def result():
      rows = [row for path in sorted((folder / "texts").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
      return quality(rows, pq.read_table(web, columns=["key", "kind", "boilerplate", "original"]).to_pydict())

    return self.run(
      folder,
      "coca.capfilt",
      "--config=configs/capfilt.py",
      f"--config.captioner={models[0]}",
      f"--config.filter={models[1]}",
      "--config.source.kind=parquet",
      f"--config.source.path={web}",
      "--config.source.split=train",
      "--config.source.origin=web",
      "--config.shard=2000",
      f"--config.min_matching={self.args.min_matching}",
      f"--config.share={self.args.share}",
      "--config.max_failed=1.",
      "--config.decoding.min_length=1",  # a caption has a word; with beams none is likelier than any
      *(decoding if how == "beam" else (f"--config.decoding.seed={seed}",)),
      result=result,
    )

  def final(self, noise: int, seed: int, name: str) -> Path:
    """A new model on human pairs and what a variant of Table 1, 'beam' or 'shared' leaves of the web's texts."""
    if name == "none":
      return self.none(noise, seed)
    how, variant = (name, "both") if name in ("beam", "shared") else ("both", name)
    return self.train(
      self.place(noise, seed, name),
      "pretrain",
      seed,
      web=self.web(noise, seed),
      variant=variant,
      capfilt=self.capfilt(noise, seed, how),
    )

  def done(self, noise: int, seed: int, name: str) -> dict | None:
    path = self.place(noise, seed, name) / "done.json"
    return json.loads(path.read_text()) if path.exists() else None


# --- Tables ---


def percent(value: float, digits: int = 1) -> str:
  return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def accuracy(values: list[float], images: float) -> str:
  """Mean and 95 % interval, in percent."""
  mean, half = t_interval(values)
  if math.isnan(half):
    low, high = wilson(mean, images)
    return f"{percent(mean)} ({percent(low)} to {percent(high)})"
  return f"{percent(mean)} ± {percent(half)}"


def gain(values: list[float]) -> str:
  mean, half = t_interval(values)
  if math.isnan(half):
    return f"{100 * mean:+.1f}"
  return f"{100 * mean:+.1f} ± {percent(half)}" + (", unclear" if abs(mean) <= half else "")


def results(grid: Grid, noise: int, names, seeds, base: str) -> list[str]:
  """Rows of Markdown: a name, texts, top-1 on both styles, the gain on `base`, seed by seed, and BLIP's gain."""
  lines = []
  for name in names:
    found = {seed: cell for seed in seeds if (cell := grid.done(noise, seed, name))}
    if not found:
      continue
    cells = [f"{noise} %", name, f"{np.mean([cell['texts']['web'] for cell in found.values()]):,.0f}"]
    for style in EVALS:
      top1 = {seed: cell[f"eval/{style}/top1"] for seed, cell in found.items()}
      cells.append(accuracy(list(top1.values()), next(iter(found.values()))[f"eval/{style}/examples"]))
      bases = {seed: b[f"eval/{style}/top1"] for seed in found if (b := grid.done(noise, seed, base))}
      cells.append(gain([top1[seed] - b for seed, b in bases.items()]) if bases and name != base else "")
    lines.append("| " + " | ".join([*cells, f"{BLIP[name] - BLIP[base]:+.1f}" if name != base else ""]) + " |")
  return lines


def table(grid: Grid, noises, variants, seeds, ablation: int, table2: bool, table4: bool) -> str:
  """What is finished of the tables, as Markdown."""
  path = grid.out / "pixels.json"
  pixels = json.loads(path.read_text()) if path.exists() else {}
  head = (
    "| noise | variant | web texts | openmoji top-1 | gain | twemoji top-1 | gain | gain in BLIP |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
  )
  text = [
    f"Zero-shot top-1 in %, {len(seeds)} seed(s). ±: 95 % t interval over seeds; in brackets, for a single seed: "
    "Wilson's over pictures. A gain is the mean of differences seed by seed; 'unclear': its interval holds 0. "
    "BLIP: TR@1, zero-shot on Flickr30K, 14M pairs. Nearest picture in 16x16 pixels: "
    + ", ".join(f"{name} {percent(value)}" for name, value in pixels.items())
    + ".",
    "\nTable 1: captioner and filter\n",
    head,
  ]
  for noise in noises:
    text += results(grid, noise, variants, seeds, "none")
  jobs = [(noise, "both") for noise in noises]
  if table2:
    text += [
      "\nTable 2: how captions are written\n",
      head,
      *results(grid, ablation, ("none", "beam", "both"), seeds, "none"),
    ]
    jobs += [(ablation, "beam")]
  if table4:
    text += [
      "\nTable 4: one model as captioner and filter, or two; gain on the shared one\n",
      head,
      *results(grid, ablation, ("shared", "both"), seeds, "shared"),
    ]
    jobs += [(ablation, "shared")]
  text += [
    "\nThe filter (in %; AUC of P(match), true captions against wrong ones; 'both' is nucleus sampling and two "
    "models)\n",
    "| noise | job | AUC | of cosine | "
    + " | ".join(f"AUC {kind}" for kind in KINDS)
    + " | true kept | noise before | after | synthetic rejected | BLIP | synthetic = true caption |",
    "| --- | --- |" + " ---: |" * (len(KINDS) + 8),
  ]
  names = (
    "auc",
    "auc_contrastive",
    *(f"auc_{kind}" for kind in KINDS),
    "true_kept",
    "noise_before",
    "noise_after",
    "synthetic_rejected",
    "blip",
    "synthetic_right",
  )
  for noise, how in dict.fromkeys(jobs):
    found = [cell for seed in seeds if (cell := grid.done(noise, seed, f"capfilt-{how}"))]
    if found:
      values = [
        BLIP_NOISE[how] if name == "blip" else percent(np.mean([cell[name] for cell in found])) for name in names
      ]
      text.append(f"| {noise} % | {how} | " + " | ".join(map(str, values)) + " |")
  return "\n".join(text)


def main() -> None:
  def numbers(text):
    return [int(n) for n in text.split(",")]

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", type=lambda p: Path(p).resolve(), required=True)
  parser.add_argument("--out", type=lambda p: Path(p).resolve(), required=True)
  parser.add_argument("--noise", type=numbers, default=[0, 20, 40, 60], help="percent of web captions made wrong")
  parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="of noise and runs")
  parser.add_argument("--variants", type=lambda t: t.split(","), default=["none", "filter", "captioner", "both"])
  parser.add_argument("--table2", action="store_true", help="beam search beside nucleus sampling")
  parser.add_argument("--table4", action="store_true", help="one model as captioner and filter")
  parser.add_argument("--ablation_noise", type=int, default=40, help="of tables 2 and 4")
  parser.add_argument("--steps", type=int, default=1500, help="of each pre-training")
  parser.add_argument("--captioner_steps", type=int, default=200)
  parser.add_argument("--filter_steps", type=int, default=400)
  parser.add_argument("--min_matching", type=float, default=0.5, help="of the texts that are kept; BLIP's 0.5")
  parser.add_argument(
    "--share",
    type=float,
    default=0.0,
    help="of the texts that are kept, in place of min_matching: for filters of too few steps",
  )
  parser.add_argument("--web", type=int, default=0, help="web pairs, evenly sampled; 0: all")
  parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
  args = parser.parse_args()
  if unknown := set(args.variants) - {"none", "filter", "captioner", "both"}:
    parser.error(f"--variants: unknown: {', '.join(unknown)}")
  if set(",=") & set(str(args.out)):
    parser.error("--out: no ',' and '=' in the path, please: it becomes a config argument")
  grid = Grid(args)
  if not args.table:
    grid.prepare()
    extra = ["beam"] * args.table2 + ["shared"] * args.table4
    # Seeds outermost: what is finished after a while is a whole grid of fewer seeds.
    for seed in args.seeds:
      cells = [(noise, name) for noise in args.noise for name in args.variants]
      cells += [(args.ablation_noise, name) for name in ("none", "both", *extra) if extra]
      for noise, name in cells:
        with contextlib.suppress(CellFailed):  # said where it happened; the other cells need not wait
          grid.final(noise, seed, name)
  print(table(grid, args.noise, args.variants, args.seeds, args.ablation_noise, args.table2, args.table4))
  if grid.failed:
    sys.exit("error: not finished:\n" + "\n".join(grid.failed.values()))


if __name__ == "__main__":
  main()
