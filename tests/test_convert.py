"""`python -m coca.convert`: a folder of open_clip's becomes a model directory and comes back; mistakes are one line."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import coca
from coca.config import parse
from coca.interop import convert
from coca.interop.open_clip import settings as open_clip_settings
from coca.storage import weights
from coca.storage.checkpoint import Checkpoints
from coca.storage.workdir import read_config, read_workdir, write_run
from coca.training import loop
from support.processes import ROOT, run_here

GOLDEN = Path(__file__).parent / "interop" / "golden"
TOKENIZERS = Path(__file__).parent / "data" / "tokenizers" / "golden"


@pytest.fixture(scope="session")
def published(tmp_path_factory):
  """A folder as people publish it: open_clip's config, weights, and a tokenizer that has fewer words than the model."""
  folder = tmp_path_factory.mktemp("published") / "tiny_coca"
  shutil.copytree(GOLDEN / "coca", folder)
  tokens = convert.clip.find(
    TOKENIZERS / "tokenizer", json.loads((TOKENIZERS / "tokenizer" / "cases.json").read_text())["vocab"]
  )
  tokens.save(folder / "tokenizer.json")
  return folder


@pytest.fixture(scope="session")
def converted(published, tmp_path_factory):
  out = tmp_path_factory.mktemp("converted") / "model"
  convert.from_open_clip(published, out)
  return out


@pytest.mark.slow
def test_a_converted_model_is_used_like_any_other(converted, published):
  model = coca.load(converted)
  assert model.config.name == "tiny_coca"
  expected = np.load(GOLDEN / "coca" / "outputs.npz")
  np.testing.assert_allclose(model.embed_images(expected["image"]), expected["image_latent"], atol=2e-6)
  assert model.embed_texts(["a cat", "the dog"]).shape == (2, 24)
  captions = model.caption(expected["image"])
  assert len(captions) == 4 and all(isinstance(c, str) for c in captions)
  assert sorted(p.name for p in converted.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
  assert not list(converted.parent.glob(".*"))


def test_back_again_is_the_same_bits(converted, published, tmp_path):
  convert.to_open_clip(converted, tmp_path / "back")
  before = safetensors.numpy.load_file(published / "open_clip_model.safetensors")
  after = safetensors.numpy.load_file(tmp_path / "back" / "open_clip_model.safetensors")
  assert {k: (x.dtype, x.shape, x.tobytes()) for k, x in after.items()} == {
    k: (x.dtype, x.shape, x.tobytes()) for k, x in before.items()
  }
  assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
  settings = json.loads((tmp_path / "back" / "open_clip_config.json").read_text())
  assert open_clip_settings.to_config(settings).model == read_config(converted).model
  convert.from_open_clip(tmp_path / "back", tmp_path / "again")
  assert (tmp_path / "again" / "model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_trained_workdir_is_exported_too(converted, tmp_path):
  config, tokens = read_workdir(converted)
  params = jax.tree.map(lambda x: jax.numpy.asarray(x) * 2, coca.load(converted).params)
  write_run(config, tokens, tmp_path)
  tokens.save(tmp_path / tokens.file)
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  checkpoints.save(1, {"params": params}, {})
  checkpoints.close()
  convert.to_open_clip(tmp_path, tmp_path / "out")
  before = safetensors.numpy.load_file(GOLDEN / "coca" / "open_clip_model.safetensors")
  after = safetensors.numpy.load_file(tmp_path / "out" / "open_clip_model.safetensors")
  np.testing.assert_array_equal(after["visual.proj"], 2 * before["visual.proj"])


# --- Mistakes -------------------------------------------------------------------------------------------------------


def copy(published, tmp_path):
  return Path(shutil.copytree(published, tmp_path / "source"))


def damage(path, change):
  path.write_bytes(change(path.read_bytes()))


def no_weights(s):
  (s / "open_clip_model.safetensors").unlink()


def no_tokenizer(s):
  (s / "tokenizer.json").unlink()


def no_settings(s):
  (s / "open_clip_config.json").unlink()


def settings_that_are_no_json(s):
  (s / "open_clip_config.json").write_text("{")


def settings_of_another_type(s):
  damage(s / "open_clip_config.json", lambda b: b.replace(b'"layers": 2', b'"layers": "2"'))


def quantised(s):
  path = s / "open_clip_model.safetensors"
  tensors = dict(safetensors.numpy.load_file(path))
  tensors["visual.proj"] = tensors["visual.proj"].astype(ml_dtypes.float8_e4m3fn)
  safetensors.numpy.save_file(tensors, path)


def truncated(s):
  damage(s / "open_clip_model.safetensors", lambda b: b[:-1000])


def header_gone(s):
  damage(s / "open_clip_model.safetensors", lambda b: b"\xff" * 16 + b[16:])


def empty(s):
  damage(s / "open_clip_model.safetensors", lambda b: b"")


def other_model(s):
  shutil.copy(GOLDEN / "clip" / "open_clip_model.safetensors", s)


def code_in_the_weights(s):
  no_weights(s)
  (s / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")


MISTAKES = [
  (no_weights, r"no weights in .*looked for open_clip_model.safetensors"),
  (no_tokenizer, r"it takes tokenizer.json, or vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt.gz"),
  (no_settings, r"say which model this is, with --model=NAME \(coca_ViT-B-32"),
  (settings_that_are_no_json, r"open_clip_config.json can't be read"),
  (settings_of_another_type, r"open_clip_config.json: vision_cfg.layers is '2'; it takes a whole number"),
  (quantised, r"open_clip_model.safetensors: 'visual.proj' is stored as F8_E4M3; .*take the file"),
  (truncated, r"open_clip_model.safetensors is no safetensors file, or a damaged or truncated one"),
  (header_gone, r"is no safetensors file, or a damaged or truncated one"),
  (empty, r"is no safetensors file, or a damaged or truncated one"),
  (other_model, r"(?s)the weights are not those of the config:.*missing"),
  (code_in_the_weights, r"takes torch, which is not installed|no file of weights alone"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=lambda m: getattr(m, "__name__", ""))
def test_a_mistake_is_named_and_leaves_nothing(mistake, message, published, tmp_path):
  source = copy(published, tmp_path)
  mistake(source)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    convert.from_open_clip(source, tmp_path / "out")
  assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("version", ["2.9.1+cpu", "1.13.0", "unknown"])
def test_an_old_torch_is_not_asked_to_read_a_file(version, published, tmp_path, monkeypatch):
  """Its `weights_only` could be made to run code; an old torch is to be found out before it opens the file."""
  opened = []
  torch = types.SimpleNamespace(__version__=version, load=lambda path, **_: opened.append(path), Tensor=np.ndarray)
  monkeypatch.setitem(sys.modules, "torch", torch)
  source = copy(published, tmp_path)
  code_in_the_weights(source)
  with pytest.raises(ValueError, match=rf"pytorch_model.bin: torch {re.escape(version)} .*pip install 'torch>=2.10'"):
    convert.from_open_clip(source, tmp_path / "out")
  assert not opened
  torch.__version__ = "2.10.0+cu128"
  with pytest.raises(ValueError, match="no file of weights alone"):
    convert.from_open_clip(source, tmp_path / "out")
  assert opened


def test_an_unknown_model_and_a_place_that_is_taken(published, converted, tmp_path):
  with pytest.raises(ValueError, match=r"--model=ViT-Z is not known; these are: coca_ViT-B-32"):
    convert.from_open_clip(published, tmp_path / "out", model="ViT-Z")
  with pytest.raises(ValueError, match="is there already"):
    convert.from_open_clip(published, converted)
  (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="is a URL; name a folder"):
    convert.from_open_clip(published, "gs://bucket/model")
  with pytest.raises(ValueError, match="is a link, a mount or where you are"):
    convert.from_open_clip(published, tmp_path / "link")
  with pytest.raises(NotADirectoryError):
    convert.from_open_clip(published, tmp_path / "file" / "x" / "out")
  with pytest.raises(ValueError, match=f"{Path.home()} is there already"):
    convert.from_open_clip(published, "~")
  with pytest.raises(FileNotFoundError, match="no such file or folder"):
    convert.from_open_clip(tmp_path / "gone", tmp_path / "out")


def test_weights_alone_with_a_config_and_a_tokenizer(published, converted, tmp_path):
  alone = tmp_path / "w.safetensors"
  shutil.copy(published / "open_clip_model.safetensors", alone)
  convert.from_open_clip(alone, tmp_path / "out", config=published / "open_clip_config.json", tokenizer=published)
  assert (tmp_path / "out" / "model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_looks_complete(published, tmp_path):
  """Killed at the very last moment, after everything was written and before the directory got its name."""
  code = (
    "import os, sys; from coca.interop import convert; "
    "os.replace = lambda a, b: os.kill(os.getpid(), 9) if str(b).endswith('out') else os.rename(a, b);"
    "convert.from_open_clip(sys.argv[1], sys.argv[2])"
  )
  ended = subprocess.run(
    [sys.executable, "-c", code, str(published), str(tmp_path / "out")],
    capture_output=True,
    cwd=Path(__file__).parents[1],
    text=True,
  )
  assert ended.returncode == -9, ended.stderr
  assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out.*"))
  with pytest.raises(FileNotFoundError):
    coca.load(tmp_path / "out")
  convert.from_open_clip(published, tmp_path / "out")  # and it can be done again


def test_the_command_says_one_line(published, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("COCA_TRACEBACK", "")
  program = ROOT / "coca/convert.py"
  assert run_here(program, tmp_path / "gone", tmp_path / "out") == f"error: no such file or folder: {tmp_path / 'gone'}"
  assert run_here(program, published, tmp_path / "out") is None
  assert f'coca.load("{tmp_path / "out"}")' in capsys.readouterr().out


# --- The model directory's file -------------------------------------------------------------------------------------


def test_a_changed_byte_is_noticed(converted, tmp_path):
  shutil.copytree(converted, tmp_path / "m")
  path = tmp_path / "m" / "model.safetensors"
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
    coca.load(tmp_path / "m")


def test_other_parameters_are_listed(tmp_path):
  path = tmp_path / "w.safetensors"
  weights.write(path, {"a": {"b": np.ones((2, 3), np.float32)}})
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def like(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)

  np.testing.assert_array_equal(weights.read(path, {"a": {"b": like(2, 3)}})["a"]["b"], np.ones((2, 3)))
  with pytest.raises(ValueError) as e:
    weights.read(path, {"a": {"b": like(3, 2), "c": like()}})
  assert "a.b: [2, 3] in the file, [3, 2] wanted" in str(e.value)
  assert "a.c: none in the file, [] wanted" in str(e.value)


def test_half_precision_in_a_bucket(tmp_path, monkeypatch):
  value = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
  weights.save(tmp_path / "w.safetensors", {"a": value})
  monkeypatch.setattr(weights.epath, "Path", lambda path: Path(str(path).replace("gs://bucket", str(tmp_path))))
  with weights.Tensors("gs://bucket/w.safetensors") as found:
    np.testing.assert_array_equal(found["a"], value)
    assert (list(found), found.shape("a")) == (["a"], (2, 3))
    with pytest.raises(KeyError):
      found["b"]


# --- Fine-tuning ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_converted_model_is_fine_tuned_and_goes_back(converted, tmp_path, capfd):
  file = Path(__file__).parents[1] / "configs" / "finetune_caption.py"
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(f"runlocal,init_from={converted}")
  config.evals = {}  # thousands of names to embed
  config.optim.lr = 1e-3
  assert loop.run(parse(config), tmp_path / "run") == 0
  said = capfd.readouterr().out
  assert "loaded: " in said and "fresh" not in said and "skipped, not" not in said
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert {"train/contrastive", "train/captioning"} <= {key for line in lines for key in line}
  assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (converted / "tokenizer.json").read_bytes()
  assert coca.load(tmp_path / "run").embed_texts("a cat").shape == (1, 24)
  convert.to_open_clip(tmp_path / "run", tmp_path / "out")
  before = safetensors.numpy.load_file(GOLDEN / "coca" / "open_clip_model.safetensors")
  after = safetensors.numpy.load_file(tmp_path / "out" / "open_clip_model.safetensors")
  assert {k: x.shape for k, x in after.items()} == {k: x.shape for k, x in before.items()}
  moved = np.abs(after["text.text_projection"] - before["text.text_projection"]).max()
  assert 0 < moved < 0.1  # four steps from where it was
