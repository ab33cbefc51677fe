"""Trackers beside small stand-ins of the two libraries, which keep what they are sent."""

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from coca.config import Source, default, parse, to_dict
from coca.training.metrics import Metrics
from coca.training.trackers import check_installed


@pytest.fixture
def config():
  settings = default()
  settings.update(trackers=("wandb", "mlflow"), name="mine")
  settings.data.sources = {"a": to_dict(Source(path="x"))}
  return parse(settings)


@pytest.fixture
def runs(monkeypatch):
  """{'wandb' or 'mlflow': {id: a run}}, as these keep them; `calls` of a run are those of all starts."""
  kept = {"wandb": {}, "mlflow": {}}

  def run(kind, run_id):
    return kept[kind].setdefault(run_id, SimpleNamespace(calls=[], rows=[], config={}, ended=None))

  def init(id, resume, name, config, allow_val_change):
    assert resume == "allow" and allow_val_change and threading.current_thread() is not threading.main_thread()
    this = run("wandb", id)
    this.config.update(config)
    this.calls.append(name)
    first = this.rows[-1][0] + 1 if this.rows else 0

    def finish(exit_code):
      this.ended = exit_code

    def log(values, step):
      assert step >= first, "it refuses steps that go back"
      this.rows.append((step, values))

    return SimpleNamespace(log=log, finish=finish, step=first)

  wandb = ModuleType("wandb")
  wandb.init, wandb.Image = init, lambda image: image.size  # pyright: ignore[reportAttributeAccessIssue]

  class Client:
    def get_metric_history(self, run_id, key):
      return [SimpleNamespace(step=step) for step, values in run("mlflow", run_id).rows if key in values]

  mlflow = ModuleType("mlflow")
  active = []

  def start_run(run_id, run_name):
    active[:] = [run("mlflow", run_id or f"r{len(kept['mlflow'])}")]
    found = next(key for key, value in kept["mlflow"].items() if value is active[0])
    active[0].calls.append(run_name)
    metrics = {key: x for _, values in active[0].rows for key, x in values.items()}
    return SimpleNamespace(info=SimpleNamespace(run_id=found), data=SimpleNamespace(metrics=metrics))

  def log_params(params):
    assert len(params) <= 100
    active[0].config.update(params)

  mlflow.__dict__.update(
    start_run=start_run,
    MlflowClient=Client,
    log_params=log_params,
    log_metrics=lambda values, step: active[0].rows.append((step, values)),
    log_image=lambda image, name: active[0].rows.append((name, image.size)),
    end_run=lambda status: setattr(active[0], "ended", status),
  )
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  monkeypatch.setitem(sys.modules, "mlflow", mlflow)
  return kept


def test_a_run_goes_on_in_the_same_run_and_sends_nothing_twice(tmp_path, config, runs):
  with pytest.raises(KeyError), Metrics(tmp_path, config=config) as m:
    for step in (1, 2, 3):
      m.log(step, {"train/loss": 1 / step})
    m.write(3, {"eval/a": 0.5})
    raise KeyError
  assert [run.ended for kind in runs.values() for run in kind.values()] == [1, "FAILED"]
  with Metrics(tmp_path, resume_step=1, config=config) as m:
    for step in (2, 3, 4):
      m.log(step, {"train/loss": 1 / step})
      m.write(step, {"eval/b": step})
    Image.new("RGB", (8, 4)).save(tmp_path / "sheet.png")
    m.image(4, tmp_path / "sheet.png")
  for kind, sheet in (("wandb", (4, {"sheet.png": (8, 4)})), ("mlflow", ("sheet.png", (8, 4)))):
    ((key, run),) = runs[kind].items()
    assert (tmp_path / f"{kind}.id").read_text() == key and run.calls == ["mine", None]
    assert run.rows.pop() == sheet and run.ended == {"wandb": 0, "mlflow": "FINISHED"}[kind]
    for name, steps in (
      ("train/loss", [1, 2, 3, 4]),
      ("eval/a", [3]),
      ("eval/b", [4] if kind == "wandb" else [2, 3, 4]),
    ):
      assert [step for step, values in run.rows if name in values] == steps
  ((first,), (second,)) = (runs[kind].values() for kind in runs)
  assert first.config["optim"]["lr"] == second.config["optim.lr"] == config.optim.lr


def test_a_start_from_the_beginning_is_a_new_run(tmp_path, config, runs):
  for _ in range(2):
    with Metrics(tmp_path, config=config) as m:
      m.write(1, {"train/loss": 1})
  for kind in runs.values():
    assert [run.rows for run in kind.values()] == [[(1, {"train/loss": 1})]] * 2


def test_a_tracker_that_fails_is_told_once(tmp_path, config, runs, monkeypatch, capsys):
  def fail(values, step):
    raise ConnectionError("no route")

  monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", fail)
  with Metrics(tmp_path, config=config) as m:
    for step in (1, 2, 3):
      m.write(step, {"train/loss": step})
  assert capsys.readouterr().out.count("mlflow: ConnectionError: no route: the run goes on without it") == 1
  ((run,),) = (runs["wandb"].values(),)
  assert len(run.rows) == 3


def test_a_missing_one_names_its_extra(tmp_path, monkeypatch):
  (tmp_path / "wandb").mkdir()  # what a run that was offline leaves
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  monkeypatch.delitem(sys.modules, "wandb", raising=False)
  with pytest.raises(ImportError, match=r"pip install -e '.\[wandb\]'"):
    check_installed(("wandb",))
