"""The benchmarks of both papers' tables: their cells build, their grid goes on, their statistics are the textbook's."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from coca.capfilt import settings as capfilt
from coca.config import SceneNoise, Scenes, Source, parse
from coca.data.scenes.judge import judge
from coca.data.sources import open_source
from coca.data.tokenizers import sentencepiece
from coca.storage.workdir import write_run
from support.bootstrap import bootstrap

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import capfilt_quality
import family_config
import grid
import intervals
import tables_blip
import tables_coca
import tables_family
from grid import OUT, Cell, Grid, Measure

BLIP = SimpleNamespace(
  **{"seeds": [1], "noise": [40, 60], "ablation_noise": 40, "tables": list(tables_blip.TABLES), "share": 0.0},
  **{
    "human": 3,
    "web": 8,
    "limit": 9,
    "epochs": 2.0,
    "blip_epochs": 1.0,
    "init_steps": 4,
    "captioner_steps": 2,
    "filter_steps": 3,
  },
)
COCA = SimpleNamespace(seeds=[1], tables=list(tables_coca.TABLES), pairs=320, limit=9)


def settings_of(cell, out, monkeypatch):
  """The settings that a cell's command has."""
  command = ["command", *(flag.replace(OUT, str(out)) for flag in cell.flags)]
  monkeypatch.setattr(sys, "argv", command)  # where ml_collections looks for --config.x
  found = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=found)
  found(command)
  return (capfilt.parse if cell.module == "coca.capfilt" else parse)(found.config)


def test_family_cells(tmp_path, monkeypatch):
  """Each system in its tiny form, on the same scenes, beginning with what the cells that it needs leave behind."""
  monkeypatch.chdir(grid.ROOT)
  tokens = sentencepiece.train([f"a word number {i}" for i in range(40)], 60)
  args = SimpleNamespace(seeds=[1], tables=list(tables_family.SYSTEMS), pairs=320, limit=9)
  asked = set()
  for cell in grid.in_order(tables_family.cells(args)):
    config = settings_of(cell, tmp_path, monkeypatch)
    workdir = tmp_path / cell.name / "run"
    workdir.mkdir(parents=True)
    write_run(config, tokens, workdir)
    tokens.save(workdir / tokens.file)
    assert (config.seed, config.steps, config.data.batch) == (1, "320 examples", family_config.BATCH)
    scenes = [source.scenes for source in config.data.sources.values() if source.split == "scenes"]
    assert {(s.seed, s.vocabulary) for s in scenes} == {(1, 16)} and max(s.objects for s in scenes) <= 2
    asked |= set(config.evals)
    assert config.evals and {settings.limit for settings in config.evals.values()} == {9}
    assert config.init_from == (str(tmp_path / cell.needs[0].name / "run") if cell.needs else "")
  assert asked == {key.partition("/")[0] for key in tables_family.COLUMNS}


@pytest.mark.slow
def test_blip_cells(tmp_path, monkeypatch):
  """All cells of all tables, each from what the cells that it needs leave behind."""
  monkeypatch.chdir(grid.ROOT)
  tokens = sentencepiece.train([f"a word number {i}" for i in range(40)], 60)
  configs = {}
  for cell in grid.in_order(tables_blip.Blip(BLIP).cells()):
    configs[cell.name] = config = settings_of(cell, tmp_path, monkeypatch)
    workdir = tmp_path / cell.name / "run"
    if cell.module == "coca.capfilt":
      bootstrap(workdir, config.source)
    else:
      workdir.mkdir(parents=True)
      write_run(config, tokens, workdir)
      tokens.save(workdir / tokens.file)
  assert len(configs) == 5 + 2 * 7 + 2 + 3 + 1 + 1 + 4 + 3 + 3
  at_40 = {name.partition("/")[2]: config for name, config in configs.items() if name.startswith("noise40")}

  def texts(name):
    return {source: len(open_source(s)) for source, s in at_40[name].data.sources.items()}

  origins = {
    name: {text.origin for record in open_source(at_40[name].data.sources["web"]) for text in record.texts}
    for name in ("none", "filter", "captioner", "both", "continued", "beam", "synthetic50", "synthetic100", "two_texts")
  }
  both = {"web", "synthetic"}
  assert origins == dict.fromkeys(origins, both) | {"none": {"web"}, "filter": {"web"}, "synthetic100": {"synthetic"}}
  for name in ("none", "synthetic50", "synthetic100", "two_texts", "longer"):
    assert texts(name) == {"human": 3, "web": 8}
  assert texts("filter")["web"] < 8 < texts("both")["web"] < texts("captioner")["web"] == 24
  # As long as their texts are many; 'longer' as long as 'both', with the web's as often as there.
  assert {name for name, c in at_40.items() if "job" not in name and c.contrastive.texts == 2} == {"two_texts"}
  for name in ("none", "filter", "captioner", "both", "continued", "synthetic50", "two_texts"):
    assert at_40[name].steps == f"{2 * sum(texts(name).values())} examples"
    if name in ("filter", "captioner", "both"):
      as_long = at_40[f"{name}_as_long"]
      assert (as_long.data, as_long.steps) == (at_40[name].data, f"{2 * (BLIP.human + BLIP.web)} examples")
  assert at_40["longer"].steps == at_40["both"].steps
  assert {name: s.weight for name, s in at_40["longer"].data.sources.items()} == texts("both")
  assert at_40["continued"].init_from == at_40["model-filter"].init_from == str(tmp_path / "noise40-seed1/none/run")
  assert at_40["both"].init_from == at_40["none"].init_from == str(tmp_path / "init-coca/run")
  assert at_40["blip-unshared"].init_from == str(tmp_path / "init-none/run")
  assert configs["init-coca"].data.tokenizer == str(tmp_path / "vocab.txt") and not at_40["none"].data.tokenizer
  assert at_40["job-shared"].captioner == at_40["job-shared"].filter
  assert at_40["job-both"].source.scenes == at_40["none"].data.sources["web"].scenes
  assert at_40["job-beam"].decoding.strategy == "beam" and at_40["job-both"].decoding.top_p == 0.9
  sharing = {at_40[f"blip-{name}"].model.med.sharing for name in tables_blip.SHARING}
  assert sharing == {"all", "all_but_cross_attention", "all_but_self_attention", "none"}
  for noise in (40, 60):
    web = configs[f"noise{noise}-seed1/none"].data.sources["web"]
    shares = web.scenes.noise
    assert math.isclose(shares.wrong, noise / 200)
    assert math.isclose(shares.wrong + shares.other + shares.title + shares.file_name, noise / 100)
    assert web.origin == "web" and web.scenes.seed != configs["noise40-seed1/none"].data.sources["human"].scenes.seed


def test_coca_cells(tmp_path, monkeypatch):
  monkeypatch.chdir(grid.ROOT)
  found = {cell.name.partition("/")[2]: settings_of(cell, tmp_path, monkeypatch) for cell in tables_coca.cells(COCA)}
  assert len(found) == len(tables_coca.ROWS)
  base = found["cascade"]
  assert (base.captioning.weight, base.contrastive.weight, base.contrastive.directions) == (2.0, 1.0, "mean")
  layers = {name: (c.model.text.unimodal_layers, c.model.text.multimodal_layers) for name, c in found.items()}
  assert {sum(of) for of in layers.values()} == {4}
  assert layers["contrastive"] == (4, 0) and layers["n_uni_1"] == (1, 3) and layers["cascade"] == (2, 2)
  assert found["parallel"].model.poolers.kind == "parallel" and found["n_query_0"].model.poolers.n_query == 0
  assert set(found["captioning"].evals) == {"captions"} and "captions" not in found["contrastive"].evals
  assert found["1_to_2"].captioning.weight / found["1_to_2"].contrastive.weight == 0.5


def fake_run(monkeypatch, codes):
  """In place of processes: `codes` gives the next exit status of a cell, 0 where it has none. Returns what ran."""
  ran = []

  def run(command, **_):
    if command[0] == "git":
      return SimpleNamespace(stdout="abc1234\n")
    name = Path(command[-1].removeprefix("--workdir=")).parent.name
    ran.append(name)
    return SimpleNamespace(returncode=codes.get(name, [0]).pop(0) if codes.get(name) else 0)

  monkeypatch.setattr(grid.subprocess, "run", run)
  monkeypatch.setattr(grid, "WAIT", 0)
  return ran


def test_grid_goes_on(tmp_path, monkeypatch):
  a = Cell("a", "coca.train", ("--x=1",))
  b, c = Cell("b", "coca.train", (f"--from={a.workdir}",), (a,)), Cell("c", "coca.train", ())
  made = Grid(tmp_path, {"coca.train": lambda folder: {"in": folder.parent.name}})
  ran = fake_run(monkeypatch, {"a": [1]})
  failed = made.run([b, c])
  assert ran == ["a", "c"] and set(failed) == {"a", "b"}
  assert "status 1" in failed["a"] and failed["b"] == "needs a"
  assert made.done(c)["in"] == "c" and made.done(c)["commit"] == "abc1234" and made.done(c)["seconds"] is not None
  ran.clear()
  assert made.run([b, c]) == {} and ran == ["a", "b"]
  assert made.done(a)["seconds"] is None  # it was begun before
  ran.clear()
  assert made.run([b, c]) == {} and ran == []
  with pytest.raises(SystemExit, match=r"--x=1\n  --x=2  \(now\)"):
    made.done(Cell("a", "coca.train", ("--x=2",)))
  with pytest.raises(ValueError, match="two cells are called a"):
    made.run([b, Cell("a", "coca.train", ())])


def test_kept_figures_are_enough_for_what_nothing_needs(tmp_path, monkeypatch):
  a = Cell("a", "coca.train", ("--x=1",))
  b, c = Cell("b", "coca.train", ("--y=1",), (a,)), Cell("c", "coca.train", (), (a,))
  results = {"coca.train": lambda folder: {"in": folder.parent.name}}
  ran = fake_run(monkeypatch, {})
  assert Grid(tmp_path / "first", results, tmp_path / "kept").run([b]) == {} and ran == ["a", "b"]
  ran.clear()
  elsewhere = Grid(tmp_path / "second", results, tmp_path / "kept")
  assert elsewhere.done(b)["in"] == "b" and elsewhere.run([a, b]) == {} and ran == []
  assert elsewhere.run([b, c]) == {} and ran == ["a", "c"]  # c reads what a leaves
  assert elsewhere.done(Cell("b", "coca.train", ("--y=2",))) is None  # of other settings


def test_grid_waits_for_a_process_of_a_killed_one(tmp_path, monkeypatch):
  made = Grid(tmp_path, {"coca.train": lambda folder: {}})
  ran = fake_run(monkeypatch, {"a": [grid.LOCKED, grid.LOCKED, 0]})
  assert made.run([Cell("a", "coca.train", ())]) == {} and ran == ["a"] * 3


def test_a_result_that_cannot_be_read_is_a_failed_cell(tmp_path, monkeypatch):
  fake_run(monkeypatch, {})
  made = Grid(tmp_path, {"coca.train": lambda folder: json.loads("")})
  assert "Expecting value" in made.run([Cell("a", "coca.train", ())])["a"]


def finish(out, cell, **values):
  folder = out / cell.name
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "command.json").write_text(json.dumps([cell.module, *cell.flags]))
  (folder / "done.json").write_text(json.dumps({"seconds": 120.0, "commit": "abc1234", **values}))


def columns(text, name):
  """The cells of the first row of that name."""
  line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
  return [column.strip() for column in line.split("|")[1:-1]]


def test_blip_tables(tmp_path):
  args = SimpleNamespace(**vars(BLIP) | {"seeds": [0, 1, 2], "noise": [40], "tables": ["1", "12"]})
  blip, made = tables_blip.Blip(args), Grid(tmp_path, {})
  values = {"none": [0.10, 0.20, 0.30], "both": [0.12, 0.22, 0.35], "filter": [0.01, 0.11, 0.21], "longer": [0.5]}
  for name, of_seed in values.items():
    for seed, value in enumerate(of_seed):
      more = {"eval/retrieval/examples": 1000.0, "eval/captions/examples": 1000.0, tables_blip.TRUE: 0.5}
      finish(tmp_path, blip.row(40, seed, name), **{tables_blip.T2I: value}, texts={"human": 3, "web": 8}, **more)
  quality = dict.fromkeys(tables_blip.QUALITY, 0.75)
  finish(tmp_path, blip.job(40, 0, "both"), **quality | {"auc_title": math.nan})
  text = blip.tables(made)
  none, both, out = (columns(text, name) for name in ("none", "both", "filter"))
  # 4.3027 x 0.1 / sqrt(3); 0.02, 0.02, 0.05: 4.3027 x 0.01732 / sqrt(3)
  assert none[1:6] == ["11", "20.0 ± 24.8", "", "60.7", ""] and none[7] == "50.0 ± 0.0"
  assert both[2:7] == ["23.0 ± 28.6", "+3.0 ± 4.3", "63.1", "+2.4", "unclear"]
  assert out[3:7] == ["-9.0 ± 0.0", "61.5", "+0.8", "AGAINST THE PAPER"]
  low, high = intervals.wilson(0.5, 1000)
  assert columns(text, "longer")[2] == f"50.0 ({100 * low:.1f} to {100 * high:.1f})"
  assert columns(text, "longer")[6] == "one seed"
  assert "| | 40 % noise, both |" in text
  assert columns(text, "against titles")[1] == "-" and columns(text, "AUC of the cosine")[1] == "75.0"
  assert columns(text, "the same in BLIP")[1] == "25"
  assert "11 cells are done, 2.0 minutes each, at abc1234" in text
  assert "captioner |" not in text  # nothing is finished of it
  heads = [line.count("|") for line in text.splitlines() if line.startswith("|")]
  assert len(set(heads)) == 2


def test_coca_tables(tmp_path):
  args = SimpleNamespace(seeds=[0, 1], tables=["b", "f"], pairs=320, limit=9)
  for name, value in (("cascade", 0.5), ("contrastive", 0.4), ("captioning", None), ("n_query_0", 0.45)):
    for seed in args.seeds:
      examples = {f"eval/{kind}/examples": 1000.0 for kind in ("retrieval", "captions", "twemoji")}
      found = {m.key: value and value + seed / 100 for m in tables_coca.MEASURES}
      if name == "captioning":
        found = {tables_coca.TRUE: 0.6}
      finish(tmp_path, tables_coca.cell(args, name, seed), **found, **examples)
  text = tables_coca.tables(args, Grid(tmp_path, {}))
  assert columns(text, "contrastive")[2:6] == ["-10.0 ± 0.0", "70.7", "-0.9", "as the paper"]
  assert columns(text, "captioning")[1:7] == ["-", "", "", "", "", "60.0 ± 0.0"]
  assert columns(text, "captioning")[7:11] == ["+9.5 ± 6.4", "68.9", "-0.1", "AGAINST THE PAPER"]
  assert columns(text, "cascade")[1] == "50.5 ± 6.4"
  assert "parallel |" not in text


def test_direction():
  assert grid.direction(1.0, 2.0, 1.0) == "unclear"
  assert grid.direction(-3.0, 2.0, -1.0) == "as the paper"
  assert grid.direction(3.0, 2.0, -1.0) == "AGAINST THE PAPER"
  assert grid.direction(3.0, 2.0, 0.0) == "the paper has no gain"
  m = Measure("a/x", "x", {}, "paper")
  assert grid.rows({"base": {}, "other": {0: {"a/x": 0.5, "a/examples": 9}}}, "base", [m])[0].count("|") == 7


def test_quality_of_a_job():
  noise = SceneNoise(other=0.2, wrong=0.3, title=0.1)
  source = open_source(Source(kind="builtin", split="scenes", scenes=Scenes(count=120, vocabulary=25, noise=noise)))
  rows, truths = [], [source.truth(i) for i in range(len(source))]
  for i, truth in enumerate(truths):
    text = source[i].texts[0].text
    is_true = bool(judge(text, truth.scene))
    assert is_true or truth.noise
    score = {"": 0.9, "other": 0.1, "title": 0.2}.get(truth.noise, 0.8 if i % 2 else 0.95)
    row = {"index": i, "text": text, "origin": "web", "matching": score, "contrastive": -score, "kept": score > 0.85}
    rows += [
      row,
      {**row, "origin": "synthetic", "text": truth.captions[0] if i % 4 else "no sentence", "matching": None},
    ]
  found = capfilt_quality.quality(rows, source)
  true = [not truth.noise or bool(judge(rows[2 * i]["text"], truth.scene)) for i, truth in enumerate(truths)]
  hard = [i for i, truth in enumerate(truths) if truth.noise == "wrong" and not true[i]]
  assert found["auc_other"] == found["auc_title"] == 1.0 and math.isnan(found["auc_file_name"])
  good = [rows[2 * i]["matching"] for i in range(120) if true[i]]
  assert found["auc_wrong"] == intervals.auc(good, [rows[2 * i]["matching"] for i in hard])
  wrong = [judge(rows[2 * i]["text"], truths[i].scene).wrong for i in hard]
  numbers = [rows[2 * i]["matching"] for i, what in zip(hard, wrong, strict=True) if what == {"number"}]
  assert numbers and found["auc_wrong_number"] == intervals.auc(good, numbers)
  assert found["auc_contrastive"] == pytest.approx(1 - found["auc"]) and math.isnan(found["auc_synthetic"])
  assert found["web_not_true"] == pytest.approx(1 - sum(true) / 120)
  kept = [i for i in range(120) if rows[2 * i]["kept"]]
  assert found["web_not_true_kept"] == pytest.approx(sum(not true[i] for i in kept) / len(kept))
  assert (found["synthetic"], found["synthetic_true"], found["synthetic_right_parts"]) == (120, 0.75, 0.75)
  assert found["synthetic_rejected"] == pytest.approx(1 - len(kept) / 120) and found["kept"] == 2 * len(kept)


# --- Statistics ---


def test_auc():
  rng = np.random.default_rng(0)
  good, bad = rng.integers(0, 12, 70), rng.integers(0, 9, 50)  # with many ties
  expected = np.mean([1.0 * (g > b) + 0.5 * (g == b) for g in good for b in bad])
  assert intervals.auc(good, bad) == pytest.approx(expected, abs=1e-12)
  assert (intervals.auc([2, 3], [0, 1]), intervals.auc([0], [1]), intervals.auc([1, 1], [1])) == (1.0, 0.0, 0.5)
  assert math.isnan(intervals.auc([], [1])) and math.isnan(intervals.auc([1], []))


def test_t_interval():
  # 4.302653 and 2.776445: Student's t with 2 and 4 degrees of freedom, from printed tables
  for values, t in (([0.31, 0.35, 0.36], 4.302653), ([1.0, 2.0, 4.0, 8.0, 16.0], 2.776445)):
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    assert intervals.t_interval(values) == pytest.approx((mean, t * deviation / math.sqrt(len(values))), rel=1e-6)
  mean, half = intervals.t_interval([0.5])
  assert mean == 0.5 and math.isnan(half)


def test_wilson():
  z = 1.959964
  for share, n in ((0.0, 10), (0.113, 1940), (1.0, 50)):
    low, high = intervals.wilson(share, n)
    for p in (low, high):  # it ends where the normal test of p just rejects the share
      assert abs(share - p) == pytest.approx(z * math.sqrt(max(p * (1 - p), 0) / n), rel=1e-5, abs=1e-12)
    assert low <= share <= high
