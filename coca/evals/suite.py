"""One model on many data sets: results.json, eval_results.jsonl in DataComp's form, and results.html.

In OUT:

    results.json        {"model": ..., "average": ..., "results": {NAME: {"kind", "numbers", "main", ...}}}
    eval_results.jsonl  {"key", "dataset", "metrics"} a line, as DataComp's evaluate.py writes it
    results.html        the table and a section for each data set, which sections/NAME.html keeps
    NAME_results.json   of evaluators with `annotations`, what COCO's, NoCaps' or VQA's server takes

They are written after each data set. What results.json has of the same model, settings and data (by the number of
records, the class names, a sample, and the time of tars) is not measured again.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from coca.config import Config
from coca.config.special import Tokenizer
from coca.config.typed import to_plain
from coca.data.fingerprint import fingerprint
from coca.data.records import Records
from coca.data.survey import survey
from coca.devices.host import from_first
from coca.evals import build, datacomp
from coca.evals.folders import DataSet
from coca.evals.page import page, section
from coca.evals.server import write_results
from coca.evals.zero_shot import ZeroShot
from coca.files.retries import again, exists
from coca.files.writing import write_atomic
from coca.inference.captioner import ContrastiveCaptioner
from coca.inference.identity import identity

# Numbers that stand for a kind, the first that an evaluator tells; the mean of two, where there are two.
MAIN = {
  "zero_shot": [("top1",)],
  "classification": [("top1",)],
  "retrieval": [("i2t_r1", "t2i_r1"), ("v2t_r1", "t2v_r1")],
  "captions": [("cider",), ("bleu4",), ("bleu1",)],
  "vqa": [("accuracy",)],
  "dialogs": [("mrr",)],
  "matching": [("auc_hard",)],
  "pairs": [(f"{by}{part}",) for by in ("cosine", "matching", "likelihood") for part in ("", "_group")],
}
AVERAGED = ("zero_shot", "classification", "retrieval")  # kinds whose main numbers are shares of right answers


def run(
  model: ContrastiveCaptioner,
  name: str,
  sets: Mapping[str, DataSet],
  out,
  train_sources: dict[str, Records] | None = None,
  config: Config | None = None,
) -> tuple[dict, dict[str, str]]:
  """Measures a model on data sets; what is there already is kept. All processes call this.

  Args:
    model: from `coca.load`, on the devices of all processes.
    name: of the model, for people.
    sets: by name, opened.
    out: folder, local or a URL.
    train_sources: opened ones that `pixel_neighbours` names.
    config: of the model, with the training sources of these evaluators; None: the model's.

  Returns:
    the results by data set, as in results.json, and the reasons of those that went wrong.
  """
  out, first = epath.Path(out), jax.process_index() == 0
  config = dataclasses.replace(config or model.config, evals={n: s.settings for n, s in sets.items()})
  whose = {"path": name, "identity": identity(model)}
  of = {n: _depends_on(whose, config, s) for n, s in sets.items()}
  results = _earlier(out, whose) if first else {}
  done = [first and results.get(n, {}).get("of") == of[n] and exists(_section(out, n)) for n in sets]
  done, wrong = from_first(np.array(done, bool)), {}
  for number, (n, data_set) in enumerate(sets.items(), 1):
    where = f"[{number}/{len(sets)}] {n}"
    if done[number - 1]:
      if first:
        print(f"{where}: {_main_line(results[n])}, measured before", flush=True)
      continue
    opened = {n: data_set.source}, train_sources, model.labels
    evaluator = build.make_evaluators(config, model.forward, model.tokenizer, *opened)[n]
    if isinstance(evaluator, ZeroShot):
      evaluator.keeps = True
    try:
      numbers = dict(evaluator.run(model.params))
      metrics = _datacomp(data_set, evaluator, numbers)
    except ValueError as e:
      wrong[n] = str(e)
      if first:
        print(f"{where}: error: {e}", flush=True)
      continue
    lost = _lost(config, n, data_set, model.tokenizer) if first else []
    problems = [*lost, *data_set.source.problems, *evaluator.stream.problems]
    shown = section(n, evaluator, model.params, numbers, problems)
    if first:
      results[n] = {
        "kind": data_set.settings.kind,
        "data": data_set.source.name,
        "numbers": _finite(numbers),
        "main": _main(data_set, numbers, metrics),
        **({"task": data_set.task} if metrics else {}),
        **({"datacomp": _finite(metrics)} if metrics else {}),
        "problems": problems[:20],
        "of": of[n],
      }
      write_results(evaluator, out / f"{n}_results.json")
      write_atomic(_section(out, n), shown.encode("utf-8", "replace"))
      _write(out, whose, results)
      print("\n".join([*lost, *data_set.source.problems[:3], f"{where}: {_main_line(results[n])}"]), flush=True)
  if first and sets:
    _write(out, whose, results)
  return {n: results[n] for n in sets if n in results and n not in wrong}, wrong


def table(results: Mapping[str, dict]) -> list[tuple[str, ...]]:
  """A line of heads, then a line for each data set, and their average."""
  rows = [("data set", "kind", "images", "measured by", "value", "others")]
  for name, result in results.items():
    numbers, (main, value) = result["numbers"], result["main"]
    names = ("top1", "top5", "mean_per_class_recall", "i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5", "bleu4", "rouge_l")
    names += ("v2t_r1", "v2t_r5", "t2v_r1", "t2v_r5")
    others = [f"{k} {_number(numbers[k])}" for k in names if k in numbers and k != main]
    images = str(int(numbers.get("examples") or 0))
    rows.append((name, result["kind"], images, main, _number(value), ", ".join(others)))
  if (mean := average(results)) is not None:
    listed = sum("datacomp" in r and r["main"][1] is not None for r in results.values() if r.get("task"))
    of_all = f"{listed} of DataComp's {datacomp.OF_ALL} tasks" if listed else ""
    rows.append(("average", "", "", "", _number(mean), of_all))
  return rows


def average(results: Mapping[str, dict]) -> float | None:
  """The mean of the main numbers of the kinds in `AVERAGED`; None if there are none."""
  values = [r["main"][1] for r in results.values() if r["kind"] in AVERAGED and r["main"][1] is not None]
  return math.fsum(values) / len(values) if values else None


def aligned(rows: list[tuple[str, ...]]) -> str:
  """A table as text."""
  widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
  return "\n".join("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _lost(config: Config, name: str, data_set: DataSet, tokenizer: Tokenizer) -> list[str]:
  """A line if the records' texts are cut, and one if words are unknown, where they are read."""
  if data_set.settings.kind in ("classification", "zero_shot", "vqa", "dialogs"):
    return []
  data = dataclasses.replace(config.data, sources={name: data_set.settings.source})
  return survey(dataclasses.replace(config, data=data), {name: data_set.source}, tokenizer)


def _main(data_set: DataSet, numbers: dict[str, float], metrics: dict) -> tuple[str, float | None]:
  if metrics and data_set.task in datacomp.MAIN:
    name = datacomp.MAIN[data_set.task]
    return name, _finite(metrics)["main_metric"]
  names = next((x for x in MAIN[data_set.settings.kind] if x[0] in numbers), ())
  value = float(np.mean([numbers[x] for x in names])) if names else math.nan
  return " and ".join(names), value if math.isfinite(value) else None


def _datacomp(data_set: DataSet, evaluator, numbers: dict[str, float]) -> dict:
  answers = evaluator.answers if isinstance(evaluator, ZeroShot) else None
  if not data_set.task or (answers is None and "i2t_r1" not in numbers):
    return {}
  groups = None
  if answers is not None and data_set.task in datacomp.WORST:
    if not hasattr(data_set.source, "members"):  # a folder that is called so; groups come in tars
      return {}
    groups = datacomp.groups_of(data_set.source, np.asarray(evaluator.stream.source.indices)[answers.index])
  return datacomp.metrics(data_set.task, numbers, answers, groups)


def _depends_on(whose: dict, config: Config, data_set: DataSet) -> str:
  data = {
    name: getattr(config.data, name) for name in ("prompt", "resize", "squash", "filter", "background", "max_pixels")
  }
  about = [whose["identity"], data, to_plain(data_set.settings), fingerprint(data_set.source)]
  about += [list(data_set.source.label_names), getattr(data_set.source, "stamps", [])]
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _earlier(out: epath.Path, whose: dict) -> dict:
  """The results that are there of the same model. Those of its parameters of before are left out."""
  path = out / "results.json"
  if not exists(path):
    return {}
  try:
    found = json.loads(again(path.read_bytes, str(path)))
    model, results = found["model"]["identity"], dict(found["results"])
    of = found["model"]["path"]
  except (ValueError, KeyError, TypeError):
    raise ValueError(f"{path} is damaged: delete it to measure anew, or take another folder (--out)") from None
  if model == whose["identity"]:
    return results
  if of != whose["path"]:
    raise ValueError(f"{path} is of another model, {of}: delete it, or take another folder (--out)")
  return {}


def _section(out: epath.Path, name: str) -> epath.Path:
  return out / "sections" / f"{name}.html"


def _write(out: epath.Path, whose: dict, results: dict) -> None:
  rows = table(results)
  summary = {"model": whose, "average": average(results), "results": results}
  write_atomic(out / "results.json", (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
  lines = [
    json.dumps({"key": r["task"], "dataset": datacomp.TASKS[r["task"]], "metrics": r["datacomp"]}) + "\n"
    for r in results.values()
    if "datacomp" in r
  ]
  if lines:
    write_atomic(out / "eval_results.jsonl", "".join(lines).encode())
  elif exists(out / "eval_results.jsonl"):
    (out / "eval_results.jsonl").unlink()
  sections = [again(_section(out, n).read_bytes, n).decode() for n in results if exists(_section(out, n))]
  write_atomic(out / "results.html", page(f"Results of {whose['path']}", rows, sections).encode("utf-8", "replace"))


def _finite(numbers: Mapping) -> dict:
  return {k: v if v is not None and math.isfinite(v) else None for k, v in numbers.items()}  # JSON has no NaN


def _main_line(result: dict) -> str:
  return f"{result['main'][0]} {_number(result['main'][1])}"


def _number(value: float | None) -> str:
  return "none" if value is None else f"{value:.4f}"
