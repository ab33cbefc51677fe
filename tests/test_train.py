"""The command `python -m coca.train`: the whole run, kills and resumes, and what it says about mistakes."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import coca
from coca.training import evaluation, metrics
from support import forked
from support.processes import run_here, small_run

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "coca" / "train.py"
TINY = f"--config={ROOT}/configs/coca_tiny.py:runlocal"
STEPS = "--config.steps=14"  # 224 pairs; of fewer than 200, broken ones end no run


@pytest.fixture(scope="module")
def environment():
  """One device, and every program in the cache: that of all tests.

  jaxlib 0.10.1 complains of every program that it finds in the cache, 3.5 KB each time: of a pipe that nobody reads
  yet, 64 KB stop the run.
  """
  return {
    **os.environ,
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(ROOT),
  }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  return small_run(tmp_path_factory.mktemp("config"), ("twemoji", "retrieval", "captions"))


@pytest.fixture(scope="module")
def without_evals(tmp_path_factory):
  """Where nothing is evaluated: half of the programs to compile."""
  return small_run(tmp_path_factory.mktemp("without_evals"), ())


def start(environment, *arguments):
  return subprocess.Popen(
    [forked.python(), "-m", "coca.train", *arguments],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    process_group=0,
  )


def finish(process, timeout=300):
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


def parameters(workdir):
  import jax

  model = coca.load(workdir)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(model.params)}


@pytest.fixture(scope="module")
def finished(environment, small, tmp_path_factory):
  """A run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("finished")
  code, out, err = finish(start(environment, small, f"--workdir={workdir}", STEPS))
  assert code == 0, err
  return workdir, out


@pytest.mark.slow
def test_a_run_leaves_numbers_pictures_and_a_model(finished):
  workdir, out = finished
  assert "starting: 14 steps of 16 pairs" in out and "step 14/14" in out
  lines = metrics.read(workdir / "metrics.jsonl")
  last = {key: value for line in lines for key, value in line.items()}
  for key in (
    "train/loss",
    "train/contrastive",
    "train/captioning",
    "train/temperature",
    "train/grad_norm",
    "perf/pairs_per_second",
    "perf/data_wait",
    "data/skipped",
    "eval/twemoji/top1",
    "eval/twemoji/top5",
    "eval/twemoji/pixel_top1",
    "eval/retrieval/i2t_r1",
    "eval/captions/nll",
  ):
    assert np.isfinite(last[key]), key
  assert last["train/loss"] == pytest.approx(last["train/contrastive"] + 2 * last["train/captioning"], rel=1e-5)
  from PIL import Image

  for name in ("curves.png", "contact_sheet.png"):
    assert Image.open(workdir / name).size[0] > 300
  model = coca.load(workdir)
  pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 80, 3)).astype(np.uint8)
  embedded = model.embed_images(list(pixels))
  assert embedded.dtype == np.float32 and embedded.shape == (3, 64)
  np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-5)
  assert model.embed_texts(["a cat", "a dog"]).shape == (2, 64)
  assert len(model.caption(list(pixels))) == 3


def test_what_was_evaluated_is_not_evaluated_again(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 4, "eval/b/x": 1}\n{"step": 5, "train/loss": 1, "eval/a/x": 1}\n')
  assert evaluation.evaluated({"a": None, "b": None}, tmp_path, 5) == ["a"]
  assert evaluation.evaluated({"a": None, "b": None}, tmp_path, 6) == evaluation.evaluated({}, tmp_path, 5) == []


@pytest.mark.slow
def test_killed_and_stopped_again_and_again_it_ends_with_the_same_parameters(environment, finished, tmp_path):
  """kill -9 at moments of chance within a second: before the first save, in a save or behind it, at the evaluation.
  Upon SIGTERM and Ctrl-C it saves, though no save is due. Once ended, it changes nothing more."""
  undisturbed, _ = finished
  command = small_run(tmp_path, ("retrieval",)), f"--workdir={tmp_path / 'run'}", STEPS
  rng, begins = np.random.default_rng(), ""
  for begun, number in (
    ("metrics.jsonl", signal.SIGKILL),
    ("checkpoints/3*", signal.SIGKILL),
    ("", signal.SIGTERM),
    ("", signal.SIGINT),
    ("checkpoints/12*", signal.SIGKILL),
  ):
    process, said = start(environment, *command), ""
    if begun:
      while process.poll() is None and not any((tmp_path / "run").glob(begun)):
        time.sleep(0.02)
      time.sleep(rng.random())
    else:
      said = process.stdout.readline()  # from here on it listens
    forked.signal(process, number)
    code, out, err = finish(process)
    said += out
    assert begins in said, said
    if begun:
      assert code == -signal.SIGKILL, err
    else:
      assert code == 128 + number and "Traceback" not in err, err
      begins = f"going on from step {re.search('stopped at step ([0-9]+) and saved', said)[1]}: "
  code, _, err = finish(start(environment, *command))
  assert code == 0, err
  wanted, found = parameters(undisturbed), parameters(tmp_path / "run")
  for name, x in wanted.items():
    np.testing.assert_array_equal(x, found[name], err_msg=name)
  lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
  steps = [line["step"] for line in lines if "train/loss" in line]
  assert steps == sorted(set(steps)), "a step is written twice"
  evaluations = [key for line in lines for key in line if key.startswith("eval/")]
  assert evaluations and len(evaluations) == len(set(evaluations))
  code, out, err = finish(start(environment, *command))
  assert code == 0 and "going on from step 14" in out, err
  assert metrics.read(tmp_path / "run" / "metrics.jsonl") == lines


@pytest.mark.slow
def test_other_settings_in_the_same_workdir_are_refused(small, finished):
  workdir, _ = finished
  said = run_here(PROGRAM, small, f"--workdir={workdir}", STEPS, "--config.optim.lr=0.5")
  assert "config.optim.lr" in said and "0.5" in said and "new workdir" in said


@pytest.mark.slow
def test_dry_run_prints_and_reads_nothing(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert run_here(PROGRAM, f"--config={ROOT}/configs/coca_base.py", "--dry_run") is None
  out = capsys.readouterr().out
  for part in (
    "image_encoder",
    "generative_pooler",
    "contrastive_pooler",
    "embedding",
    "unimodal",
    "multimodal",
    "softmax",
    "total",
  ):
    assert part in out
  assert "65,536" in out
  assert not list(tmp_path.iterdir())


def test_help_settings_needs_no_config(monkeypatch, capsys):
  monkeypatch.setattr(signal, "signal", lambda *args: None)  # this process keeps its own
  assert run_here(PROGRAM, "--help_settings", "config.model.text.pool", "mesh.data") is None
  out = capsys.readouterr().out
  assert out.startswith("model.text.pool: 'cls', 'eos', 'last'; default 'cls'\n  ") and "\nmesh.data: int" in out


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ((), ("--config", "--help_settings")),
    ((f"--config={ROOT}/configs/coca_tiny.py:runlokal",), ("runlokal", "runlocal")),
    ((f"--config={ROOT}/configs/coca_tinny.py",), ("no such file", f"is {ROOT}/configs/coca_tiny.py meant?")),
    ((f"--config={ROOT}/configs/zzzz.py",), (f"in {ROOT}/configs are", "coca_base.py, coca_base_hires.py")),
    (("--config=nowhere/coca_tiny.py",), ("no such file", "checkout")),
    ((TINY, "--config.optim.name=sgd"), ("config.optim.name", "'adafactor', 'adamw'")),
    ((f"--config={ROOT}/configs/coca_base.py",), ("config.data.sources.alt_text.path", "img2dataset")),
    ((TINY, "--config.data.sources.emoji.kind=folder", "--config.data.sources.emoji.path=/nowhere"), ("/nowhere",)),
    ((TINY, "--config.mesh.data=3"), ("config.mesh", "8 devices")),
    ((TINY, "--config.init_from=/nowhere"), ("/nowhere", "config.json")),
    ((f"--config={ROOT}/configs/coca_base.py:pairs=abfs://bucket/*.tar",), ("adlfs",)),  # which is not installed
  ],
)
def test_mistakes_are_named_with_their_fix(tmp_path, arguments, said):
  error = run_here(PROGRAM, *arguments, f"--workdir={tmp_path}")
  assert error.startswith("error: ")  # Python prints it and ends with status 1
  for text in said:
    assert text in error


def traced_steps(workdir):
  """Numbers of the steps in the traces that TensorBoard finds in a workdir."""
  import jax

  files = (workdir / "tensorboard").glob("plugins/profile/*/*.xplane.pb")
  planes = [plane for file in files for plane in jax.profiler.ProfileData.from_file(str(file)).planes]
  events = [event for plane in planes for line in plane.lines for event in line.events]
  return [dict(event.stats)["step_num"] for event in events if event.name == "train"]


@pytest.mark.slow
def test_a_run_from_another_ones_parameters_at_a_higher_resolution(environment, finished, without_evals, tmp_path):
  """The tokenizer is the other run's, position embeddings are resized, all else is taken as it is."""
  source, _ = finished
  code, _, err = finish(
    start(
      environment,
      without_evals,
      f"--workdir={tmp_path}",
      STEPS,
      f"--config.init_from={source}",
      "--config.model.image.size=96",
      "--config.optim.lr=0.0",
      "--config.steps=1",
      "--config.optim.weight_decay=0.0",
      "--profile",
    )
  )
  assert code == 0, err
  assert traced_steps(tmp_path) == [1]
  run, before = json.loads((tmp_path / "config.json").read_text()), json.loads((source / "config.json").read_text())
  assert run["tokenizer_sha256"] == before["tokenizer_sha256"]
  old, new = parameters(source), parameters(tmp_path)
  for name, x in old.items():
    if name == "['image_encoder']['positions']":
      assert x.shape == (16, 64) and new[name].shape == (64, 64)
      np.testing.assert_allclose(x.mean(0), new[name].mean(0), atol=1e-3)
    else:
      np.testing.assert_array_equal(x, new[name], err_msg=name)


@pytest.mark.slow
def test_too_many_broken_records_end_the_run(environment, without_evals, tmp_path):
  from PIL import Image

  folder = tmp_path / "pictures"
  folder.mkdir()
  rows = []
  for i in range(40):
    path = folder / f"{i}.png"
    Image.new("RGB", (32, 32), (i, 0, 0)).save(path)
    if i % 2:
      path.write_bytes(path.read_bytes()[:50])
    rows.append(json.dumps({"file_name": path.name, "caption": f"red {i}"}))
  (folder / "captions.jsonl").write_text("\n".join(rows))
  code, _, err = finish(
    start(
      environment,
      without_evals,
      f"--workdir={tmp_path / 'run'}",
      STEPS,
      "--config.data.sources.emoji.kind=folder",
      f"--config.data.sources.emoji.path={folder}",
      "--config.data.sources.emoji.split=",
      "--config.checkpoint.every=1",
    )
  )
  assert code == 1
  assert "error: " in err and "config.data.max_skipped" in err and ".png" in err and "Traceback" not in err
  # What was being saved is there whole.
  names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
  assert names and all(name.isdecimal() for name in names), names
