"""`python -m coca.export`: what it writes gives the model's results where there is no coca."""

import dataclasses
import hashlib
import json
import re

import jax
import jaxtyping
import numpy as np
import pytest
import safetensors.numpy
from jax import export
from PIL import Image

from coca import export as command
from coca.data.tokenizers.sentencepiece import train
from coca.decoding.settings import Decoding
from coca.devices.sharding import absent_device
from coca.inference import ContrastiveCaptioner, load
from coca.inference.forward import Forward
from coca.interop import onnx_files
from coca.interop.export import export_model, exported
from coca.interop.programs import programs, tensors_of
from coca.models.abstract import abstract_model
from support.blip_reference import tiny_blip
from support.common import make_mesh, random_params, tiny
from support.processes import ROOT
from support.workdirs import TEXTS, make_workdir, small_config

pytest.importorskip("flatbuffers", reason="pip install -e '.[export]'")
SNIPPET = re.search(r"^```py\n(.*?)^```", (ROOT / "docs/export.md").read_text(), re.M | re.S)[1]
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module", autouse=True)
def _open_batches():
  """jaxtyping takes numbers alone for sizes."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


def images(n, side=16):
  return np.random.default_rng(n).integers(0, 256, (n, side, side, 3), np.uint8)


def in_memory(config):
  """A model as `coca.load` returns it."""
  tokens = train(TEXTS * 8, config.model.text.vocab)
  return ContrastiveCaptioner(config, tokens, Forward(config, make_mesh()), random_params(config))


def run(folder, name, array):
  """A program of a folder, by jax alone."""
  about = json.loads((folder / "manifest.json").read_text())["programs"][name]
  weights = safetensors.numpy.load_file(folder / "model.safetensors")
  program = export.deserialize((folder / about["file"]).read_bytes())
  return np.asarray(program.call({tensor: weights[tensor] for tensor in about["tensors"]}, array))


@pytest.mark.slow
def test_the_page_runs_and_gives_what_the_model_gives(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for name, pixels in (("cat", images(1, 40)[0, :, 5:]), ("dog", images(2, 20)[0])):
    Image.fromarray(pixels).save(f"{name}.png")
  (tmp_path / "runs").mkdir()
  make_workdir(tmp_path / "runs/tiny", small_config(tmp_path))
  command.main(["--model=runs/tiny", "--out=exported"])
  assert "caption: uint8 [batch, 16, 16, 3] -> int32 [batch, 1, 12]\nwrote exported" in capsys.readouterr().out
  found = {}
  exec(SNIPPET, found)
  assert "coca" not in found and "import coca" not in SNIPPET
  model, shown = load("runs/tiny", devices=jax.devices()[:1]), ["cat.png", "dog.png"]
  np.testing.assert_allclose(found["cosines"], model.score(shown, ["a cat", "a dog", "an apple"]), **CLOSE)
  scale = np.exp(model.params["temperature"]["log_scale"])
  np.testing.assert_allclose(found["logits"], scale * found["cosines"], rtol=1e-6)
  assert found["captions"] == model.caption(shown) and found["captions"][0]
  five = images(5)  # the page has a batch of two
  ids = np.stack([model.tokenizer.encode(text, 12) for text in TEXTS])
  np.testing.assert_allclose(found["embed_images"](five), model.embed_images(five), **CLOSE)
  np.testing.assert_allclose(found["embed_texts"](ids), model.embed_texts(TEXTS), **CLOSE)
  assert [found["decode"](row[0]) for row in found["caption"](five)] == model.caption(five)
  there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "exported").iterdir()}
  assert there.pop("manifest.json") and there == found["manifest"]["files"]
  assert not set(found["manifest"]["programs"]["embed_texts"]["tensors"]) & set(tensors_of(model.params["multimodal"]))
  with pytest.raises(SystemExit, match="exported is there already"):
    command.main(["--model=runs/tiny", "--out=exported"])


@pytest.mark.slow
def test_a_captioner_with_a_prompt_by_beam_search(tmp_path):
  config = tiny_blip(contrastive__weight=0.0, matching__weight=0.0, data__prompt="red", model__text__unimodal_layers=0)
  model, decoding = in_memory(config), Decoding(strategy="beam", beams=3, n=2)
  manifest = export_model(model, tmp_path / "out", decoding)
  assert list(manifest["programs"]) == ["caption"] and "logit_scale" not in manifest
  assert set(manifest["lacks"]) == {"embed_images", "embed_texts"}
  begin = manifest["caption"]["begins_at"]
  texts = [
    [model.tokenizer.decode(row[begin:]) for row in rows] for rows in run(tmp_path / "out", "caption", images(3))
  ]
  assert texts == model.caption(images(3), strategy="beam", beams=3, n=2)
  assert begin > 1 and len({rows[0] for rows in texts}) > 1


def test_what_cannot_be_exported_is_said(tmp_path):
  pairs_alone = {"captioning__weight": 0.0, "model__text__multimodal_layers": 0}
  found, lacking = programs(in_memory(tiny(**pairs_alone)))
  assert set(found) == {"embed_images", "embed_texts"} and "no multimodal decoder" in lacking["caption"]
  model = in_memory(tiny())
  with pytest.raises(ValueError, match="draws no samples; take strategy 'greedy' or 'beam'"):
    export_model(model, tmp_path / "out", Decoding(strategy="sample"))
  with pytest.raises(ValueError, match="max_length 9 is more than the 8 tokens"):
    export_model(model, tmp_path / "out", Decoding(max_length=9))
  reads = dataclasses.replace(model.config, model=dataclasses.replace(model.config.model, kind="lemon"))
  with pytest.raises(ValueError, match="reads the regions of a detector"):
    programs(ContrastiveCaptioner(reads, model.tokenizer, model.forward, model.params))
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_kernel_is_in_a_program():
  sizes = {"model__image__size": 64, "model__image__patch": 8, "model__image__width": 128, "model__attention": "flash"}
  config = tiny(**sizes)
  model = ContrastiveCaptioner(config, train(TEXTS * 8, 64), Forward(config, make_mesh()), None)
  program = programs(model, dtype="bfloat16")[0]["embed_images"]
  shapes = tensors_of(abstract_model(config)[1])
  with jax.sharding.use_abstract_mesh(absent_device("tpu")):
    trace = jax.make_jaxpr(program.function)(shapes, jax.ShapeDtypeStruct((2, *program.shape), np.uint8))
  assert "pallas_call" in str(trace)  # what a TPU would run otherwise
  written, _ = exported(program, shapes)
  assert "bf16" in written.mlir_module() and "tpu_custom_call" not in written.mlir_module()
  assert written.platforms == ("cpu", "cuda", "rocm", "tpu")


@pytest.mark.slow
def test_towers_as_onnx(tmp_path, monkeypatch):
  pytest.importorskip("jax2onnx", reason="pip install -e '.[onnx]'")
  onnx = pytest.importorskip("onnx", reason="pip install -e '.[onnx]'")
  onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[onnx]'")
  # What jax2onnx took for a part of the batch: positions behind a class token, and a first token that is put in.
  for model, names in (
    (in_memory(tiny(model__image__class_token=True)), onnx_files.TOWERS),
    (in_memory(tiny_blip()), ["embed_texts"]),
  ):
    for name in names:
      program = programs(model)[0][name]
      about = onnx_files.write(tmp_path, name, program, tensors_of(model.params))
      session = onnxruntime.InferenceSession(tmp_path / about["file"])
      assert "Loop" not in {node.op_type for node in onnx.load(tmp_path / about["file"]).graph.node}
      for n in (2, 5):
        given = np.random.default_rng(n).integers(4, program.below, (n, *program.shape)).astype(program.dtype)
        (found,) = session.run(["embedding"], {program.input: given})
        np.testing.assert_allclose(found, getattr(model.forward, name)(model.params, given), rtol=0, atol=1e-5)
  odd = program._replace(function=lambda tensors, x: jax.pure_callback(abs, x, x))
  with pytest.raises(ValueError, match=r"can't be had as ONNX \(.*pure_callback.*leave out --onnx"):
    onnx_files.write(tmp_path, name, odd, {})
  monkeypatch.setattr(onnx_files, "TOLERANCE", 0)
  with pytest.raises(ValueError, match=r"numbers that are [\d.]+e-0\d from jax', .*leave out --onnx"):
    onnx_files.write(tmp_path, name, program, tensors_of(model.params))
