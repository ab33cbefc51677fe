"""The start of a run: what is judged before anything is written, whose folder it takes, what may change afterwards."""

import json
import os
import re
import runpy
from pathlib import Path

import pytest

from coca.config import Eval, Source, parse, to_dict
from coca.data.records import Record, Text
from coca.training import begin, limits, loop, saving
from coca.training.init_from import compare
from coca.training.state import Setup

ROOT = Path(__file__).parents[2]


def tiny(**changes):
  """configs/coca_tiny.py:runlocal with the values at dotted paths (double underscores for dots) replaced."""
  c = runpy.run_path(str(ROOT / "configs" / "coca_tiny.py"))["get_config"]("runlocal")
  for path, value in changes.items():
    *parents, last = path.split("__")
    node = c
    for name in parents:
      node = node[name]
    node.unlock()
    node[last] = value
  return c


EMOJI = "data__sources__emoji"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    # --- Data ---
    ({"data__crop": (0.9, 0.5)}, r"config\.data\.crop is \(0\.9, 0\.5\)"),
    ({"data__crop": (0.0, 1.0)}, r"config\.data\.crop is \(0\.0, 1\.0\)"),
    ({"data__background": "whyte"}, r"config\.data\.background is 'whyte'"),
    ({"data__max_pixels": 0}, r"config\.data\.max_pixels is 0; it takes 1 or more"),
    ({"data__threads": -1}, r"config\.data\.threads is -1; it takes 0 or more"),
    ({"data__tokenizer_texts": 0}, r"config\.data\.tokenizer_texts is 0; it takes 1 or more"),
    (
      {f"{EMOJI}__prompts": ("a photo",)},
      r"config\.data\.sources\.emoji\.prompts: the prompt 'a photo' has to hold {}",
    ),
    ({f"{EMOJI}__weight": -1.0}, r"config\.data\.sources\.emoji\.weight is -1\.0; it takes 0 or more"),
    (
      {"data__sources__more": to_dict(Source(kind="builtin", weight=0.0))},
      r"config\.data\.sources\.\*\.weight are \[0\.1, 0\.0, 0\.85, 0\.05\]; they have to be above 0, or 0 for all",
    ),
    ({f"{EMOJI}__min_matching": 0.5}, r"config\.data\.sources\.emoji\.min_matching chooses among a CapFilt workdir's"),
    ({f"{EMOJI}__origins": {"people": 1.0}, f"{EMOJI}__sidecars": "x"}, r"emoji\.origins\.people: no such origin"),
    ({f"{EMOJI}__question_key": "name"}, r"emoji\.question_key is 'name' and config\.answering\.weight 0\.0"),
    ({f"{EMOJI}__answer_weight": 0.0}, r"emoji\.answer_weight 0\.0 has to be above 0"),
    # --- Evaluators ---
    (
      {"evals__twemoji__templates": ("a photo",)},
      r"config\.evals\.twemoji\.templates: the prompt 'a photo' has to hold",
    ),
    ({"evals__twemoji__templates": ()}, r"config\.evals\.twemoji: a zero_shot evaluator needs templates"),
    (
      {"evals__twemoji__pixel_neighbours": "emojis"},
      r"config\.evals\.twemoji\.pixel_neighbours is 'emojis', which is no training source",
    ),
    (
      {"matching__weight": 1.0, "evals__captions__kind": "matching", "evals__captions__pixel_neighbours": "emoji"},
      r"config\.evals\.captions\.pixel_neighbours 'emoji' is for kinds 'zero_shot', .*, not 'matching'",
    ),
    ({"evals__twemoji__limit": -1}, r"config\.evals\.twemoji\.limit is -1; it takes 0 or more"),
    ({"evals__retrieval__texts_per_image": 0}, r"config\.evals\.retrieval\.texts_per_image is 0; it takes 1 or more"),
    ({"evals__captions__source__prompts": ("{} {}",)}, r"config\.evals\.captions\.source\.prompts: the prompt '{} {}'"),
    ({"contrastive__weight": 0.0}, r"config\.evals\.retrieval: a retrieval evaluator compares embeddings"),
    (
      {"captioning__weight": 0.0, "model__text__multimodal_layers": 0},
      r"config\.evals\.captions: a captions evaluator needs a decoder, config\.model\.text\.multimodal_layers above 0",
    ),
    (
      {"evals__captions__kind": "matching"},
      r"config\.evals\.captions: a matching evaluator needs config\.matching\.weight",
    ),
    (
      {"evals__q": to_dict(Eval(kind="vqa", source=Source(kind="builtin", question_key="name")))},
      r"config\.evals\.q: a vqa evaluator needs config\.answering\.weight above 0",
    ),
    # --- Model, losses, optimizer, run ---
    ({"model__text__length": 1}, r"config\.model\.text\.length is 1; it takes 2 or more"),
    ({"model__image__layers": -1}, r"config\.model\.image\.layers is -1; it takes 0 or more"),
    ({"contrastive__temperature": 0.0}, r"config\.contrastive\.temperature 0\.0 has to be above 0"),
    ({"contrastive__min_scale": 200.0}, r"config\.contrastive\.min_scale 200\.0 is above max_scale 100\.0"),
    ({"captioning__label_smoothing": 1.0}, r"config\.captioning\.label_smoothing 1\.0 is not in \[0, 1\)"),
    ({"captioning__weight": -2.0}, r"config\.captioning\.weight is -2\.0; it takes 0 or more"),
    ({"captioning__chunk": 0}, r"config\.captioning\.chunk is 0; it takes 1 or more"),
    ({"optim__lr": -1e-3}, r"config\.optim\.lr is -0\.001; it takes 0 or more"),
    ({"optim__lr": float("nan")}, r"config\.optim\.lr is nan; it takes a number"),
    ({"optim__b2": 1.0}, r"config\.optim\.b2 1\.0 is not in \[0, 1\)"),
    ({"optim__ema": 1.0}, r"config\.optim\.ema 1\.0 is not in \[0, 1\)"),
    (
      {"captioning__parallel": 0.5, "contrastive__weight": 0.0, "model__text__unimodal_layers": 0, "evals": {}}
      | {"classification__weight": 1.0, "classification__pool": "text", "classification__classes": 3},
      r"config\.captioning\.parallel needs .* no class head that reads the text",
    ),
    (
      {"classification__weight": 1.0, "classification__classes": 3}
      | {"model__poolers__heads": 6, "model__poolers__width": 48},
      r"config\.model\.poolers\.heads 6 does not divide config\.model\.image\.width 64",
    ),
    ({"optim__clip": -1.0}, r"config\.optim\.clip is -1\.0; it takes 0 or more"),
    ({"optim__max_nonfinite": 0}, r"config\.optim\.max_nonfinite is 0; it takes 1 or more"),
    (
      {"optim__lr_scale": {"image_encoder": -1.0}},
      r"config\.optim\.lr_scale\.image_encoder is -1\.0; it takes 0 or more",
    ),
    ({"checkpoint__keep": 0}, r"config\.checkpoint\.keep is 0; it takes 1 or more"),
    ({"seed": -1}, r"config\.seed is -1; it takes 0 or more"),
    ({"seed": 2**32}, r"config\.seed is 4294967296; it has to be below 2 \*\* 32"),
    ({"log_every": ""}, r"config\.log_every is ''; it takes a step or more"),
  ],
)
def test_settings_are_judged_by_parse_alone(changes, message):
  with pytest.raises(ValueError, match=message):
    parse(tiny(**changes))


@pytest.fixture
def nothing_done(monkeypatch):
  """Any work fails the test: a tokenizer, reading a record, compiling."""

  def fail(*_, **__):
    raise AssertionError("judged too late")

  for module, name in (
    (begin, "train"),
    (begin, "texts_of"),
    (begin, "write_run"),
    (Setup, "init_state"),
    (saving, "Checkpoints"),
    (loop, "TrainStep"),
  ):
    monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"optim__lr_scale": {"towr": 0.5}}, r"config\.optim\.lr_scale names towr; the model's parts are .*image_encoder"),
    (
      {"mesh__tensor": 8, "mesh__data": 1, "model__image__mlp": 100},
      r"cannot be split over 8 devices; choose a config\.mesh\.tensor",
    ),
    ({"mesh__data": 3}, r"config\.mesh data=3"),
    ({"data__batch": 63}, r"config\.data\.batch 63 cannot be split over 8 devices"),
    ({"data__sources": {}, "evals": {}}, r"config\.data\.sources is empty"),
    ({f"{EMOJI}__kind": "folder", f"{EMOJI}__path": "/nowhere"}, r"config\.data\.sources\.emoji\.path"),
    (
      {"evals__twemoji__source__kind": "folder", "evals__twemoji__source__path": "/nowhere"},
      r"config\.evals\.twemoji\.source\.path",
    ),
    ({"init_from": "/nowhere"}, "/nowhere is no working directory of a run"),
    ({"contrastive__temperature": 0.005}, r"temperature 0\.005 is a scale of 200, .*max_scale .*: 0 to 100"),
    ({"data__tokenizer": "/nowhere/words.model"}, "no tokenizer in /nowhere/words.model"),
  ],
)
def test_the_rest_is_judged_before_anything_is_written(nothing_done, tmp_path, changes, message):
  settings = tiny(model__text__heads=2, **changes)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    loop.run(parse(settings), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_model_to_start_from_is_looked_at_before_anything_is_written(nothing_done, tmp_path):
  old = tmp_path / "old"
  old.mkdir()
  narrow = json.loads(tiny(model__image__width=32).to_json_best_effort())
  (old / "config.json").write_text(json.dumps({"config": narrow}))
  (old / "vocab.txt").write_text("")
  for message in ("has no checkpoint yet", r"image_encoder/.*: \[.*32.*\] there, \[.*64.*\] here"):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      loop.run(parse(tiny(init_from=str(old))), tmp_path / "run")
    (old / "checkpoints" / "5").mkdir(parents=True, exist_ok=True)
  assert not (tmp_path / "run").exists()


# --- Whose folder ---


@pytest.mark.parametrize(
  "names",
  [
    (),
    (".DS_Store", "lost+found", "logs", "train.log", "log.txt", "stderr", "nohup.out", "slurm-7.out", "xla_cache"),
    ("config.json", "tokenizer.model", "metrics.jsonl"),
  ],
)
def test_folders_that_a_run_takes(tmp_path, names):
  for name in names:
    (tmp_path / name).touch()
  begin.check_folder(tmp_path)
  begin.check_folder(tmp_path / "new")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("vocab.txt", "neither empty nor the workdir of a run .* it holds vocab.txt"),
    ("tensorboard", "it holds tensorboard"),
    ("model.safetensors", "holds a model, .* --config.init_from="),
  ],
)
def test_folders_of_others_are_refused_and_left_as_they_are(nothing_done, tmp_path, name, message):
  (tmp_path / name).write_text("mine")
  with pytest.raises(ValueError, match=message):
    loop.run(parse(tiny()), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("text", ['{"model_type": "blip"}', "[]", "[" * 10_000, "{"])
def test_a_config_json_of_others_is_refused(nothing_done, tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  (tmp_path / "vocab.txt").write_text("mine")
  with pytest.raises(ValueError, match=r"config\.json .*take another (folder|workdir)"):
    loop.run(parse(tiny()), tmp_path)
  assert (tmp_path / "vocab.txt").read_text() == "mine"


# --- What may change ---


class Words:
  """A source in memory."""

  name, problems, label_names = "memory", (), ()

  def __init__(self, count=50, word="word"):
    self.count, self.word = count, word

  def __len__(self):
    return self.count

  def __getitem__(self, i):
    return Record(str(i), b"picture", (Text(f"a {self.word} {i} of many {i % 7} others"),))


def settings_of(**changes):
  return parse(tiny(**{"model__text__vocab": 60, **changes}))


def start(workdir, source=None, done=None, **changes):
  """As `train.run` begins; `done`: steps that are in a checkpoint then."""
  begin.check_folder(workdir)
  found = begin.begin(settings_of(**changes), {"emoji": source or Words()}, workdir)
  if done:
    (workdir / "checkpoints" / str(done)).mkdir(parents=True)
  return found


def test_a_run_without_a_checkpoint_takes_new_settings(tmp_path):
  first, _ = start(tmp_path)
  again, said = start(tmp_path, model__text__vocab=27, optim__lr=0.5, data__batch=32)
  assert first.vocab != again.vocab and not said
  assert json.loads((tmp_path / "config.json").read_text())["tokenizer_sha256"] == again.sha256
  assert start(tmp_path, model__text__vocab=27)[0].sha256 == again.sha256


def test_a_kept_tokenizer_is_not_trained_again(tmp_path, monkeypatch):
  first, _ = start(tmp_path)
  monkeypatch.setattr(begin, "train", None)
  before = (tmp_path / "config.json").stat()
  assert start(tmp_path)[0].sha256 == first.sha256
  assert (tmp_path / "config.json").stat().st_ino == before.st_ino  # what says so already is not written again
  start(tmp_path, log_every="7")
  assert (tmp_path / "config.json").stat().st_ino != before.st_ino


def test_a_tokenizer_that_the_run_did_not_write_stays(tmp_path):
  start(tmp_path)
  (tmp_path / "tokenizer.json").write_text("mine")
  with pytest.raises(ValueError, match=r"tokenizer\.json is not what the run in .* wrote; move it elsewhere"):
    start(tmp_path, model__text__vocab=27)
  assert (tmp_path / "tokenizer.json").read_text() == "mine" and (tmp_path / "tokenizer.model").exists()


def test_a_start_killed_between_its_files_begins_again(tmp_path, monkeypatch):
  """config.json is there, and its tokenizer is not."""
  first, _ = start(tmp_path)
  os.remove(tmp_path / "tokenizer.model")
  assert start(tmp_path)[0].sha256 == first.sha256


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"log_every": "7", "checkpoint__every": "3", "evals": {}, "name": "other", "data__threads": 2}, ""),
    ({"init_from": "/moved"}, r"config\.init_from: '' before, '/moved' now; the run .* does not read it again"),
    ({"steps": "90"}, r"config\.steps: 60 before, 90 now; the learning rate is that of a run of 90 steps from here on"),
    ({"steps": "40"}, r"config\.steps: 60 before, 40 now; "),
    ({f"{EMOJI}__path": "/moved"}, r"config\.data\.sources\.emoji\.path: '' before, '/moved' now"),
  ],
)
def test_what_does_not_change_the_past_may_change(tmp_path, changes, said):
  start(tmp_path, done=30)
  lines = start(tmp_path, **changes)[1]
  assert len(lines) == bool(said) and re.match(said, "".join(lines))
  assert start(tmp_path, **changes)[1] == []  # said once


def test_more_steps_of_a_constant_schedule_change_nothing(tmp_path):
  constant = {"optim__schedule": "constant", "optim__warmup": "5"}
  start(tmp_path, done=30, **constant)
  assert start(tmp_path, steps="90", **constant)[1] == ["config.steps: 60 before, 90 now"]


@pytest.mark.parametrize(
  ("changes", "source", "message"),
  [
    ({"optim__lr": 0.5}, None, r"config\.optim\.lr: 0\.004 before, 0\.5 now"),
    ({"steps": "29"}, None, r"config\.steps is 29, and 30 are done; it takes 30 or more"),
    (
      {f"{EMOJI}__path": "/moved"},
      Words(51),
      r"emoji\.path differs from before, and so do the records \(50 .* 51 now\)",
    ),
    (
      {f"{EMOJI}__path": "/moved"},
      Words(word="other"),
      r"emoji\.path differs from before, and so do the records \(50 ",
    ),
    ({f"{EMOJI}__split": "twemoji"}, None, r"config\.data\.sources\.emoji\.split: "),
  ],
)
def test_what_changes_the_past_is_refused(tmp_path, changes, source, message):
  start(tmp_path, done=30)
  before = (tmp_path / "config.json").read_text()
  with pytest.raises(ValueError, match=message):
    start(tmp_path, source, **changes)
  assert (tmp_path / "config.json").read_text() == before


def test_a_classifier_goes_on_with_images_or_with_embeddings(tmp_path):
  """Which are of images that are decoded in another way; where they lie may change."""
  weights = {"contrastive__weight": 0.0, "captioning__weight": 0.0, "classification__weight": 1.0}
  layers = {f"model__text__{half}_layers": 0 for half in ("unimodal", "multimodal")}
  frozen = {"optim__lr_scale": {"image_encoder": 0.0}, "classification__classes": 3, "data__flip": False}
  alone = {**weights, **layers, **frozen, "evals": {}}
  start(tmp_path, done=30, data__embeddings="kept", **alone)
  assert start(tmp_path, data__embeddings="moved", **alone)[1] == []
  with pytest.raises(ValueError, match=r"config\.data\.embeddings: '\w+' before, '' now"):
    start(tmp_path, **alone)


def test_data_that_changed_in_their_place_are_told(tmp_path):
  start(tmp_path, done=30)
  [line] = start(tmp_path, Words(51))[1]
  assert "emoji has other records than when the run began (50 then, 51 now)" in line


# --- The end ---


@pytest.mark.parametrize(
  ("done", "said"),
  [
    ((), "No checkpoint was written before, so start again, in this workdir if you like"),
    ((20, 30), r"Start a new run from the newest checkpoint \(there are those of 20, 30; .* --config\.init_from="),
  ],
)
def test_advice_after_non_finite_steps_can_be_followed(tmp_path, done, said):
  """With a checkpoint, a new run starts from it at another rate; without one, the same workdir takes another rate."""
  start(tmp_path)
  for step in done:
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  waited = []
  settings, numbers = settings_of(), {"skipped_in_a_row": 20, "data/skipped": 0}
  skipped = limits.Skipped(1.0, 64, 0, 0)
  with pytest.raises(limits.Stop, match=r"20 steps in a row up to step 40 had a non-finite .*" + said):
    limits.check((40, numbers), skipped, settings, tmp_path, lambda: waited.append(1))
  assert waited
  limits.check((40, numbers | {"skipped_in_a_row": 19}), skipped, settings, tmp_path, None)
  if done:
    compare(tmp_path, settings_of(optim__lr=1e-5))
  else:
    start(tmp_path, optim__lr=1e-5)
