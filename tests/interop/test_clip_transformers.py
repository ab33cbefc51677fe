"""transformers' CLIPModel and SiglipModel: the same outputs as in golden/clip_transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import coca
from coca import convert as command
from coca.inference.forward import Forward
from coca.interop import clip_transformers
from coca.interop.export import about
from support.common import make_mesh

GOLDEN = Path(__file__).parent / "golden" / "clip_transformers"
COLOURS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def settings(name):
  return json.loads((GOLDEN / name / "config.json").read_text())


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_outputs_are_those_of_transformers(name):
  config = clip_transformers.to_config(settings(name), COLOURS, name)
  params = clip_transformers.to_params(safetensors.numpy.load_file(GOLDEN / name / "model.safetensors"), config)
  expected, forward = np.load(GOLDEN / name / "outputs.npz"), Forward(config, make_mesh())
  close = {"rtol": 0, "atol": 2e-6}
  np.testing.assert_allclose(forward.embed_images(params, expected["image"]), expected["image_latent"], **close)
  np.testing.assert_allclose(forward.embed_texts(params, expected["text"]), expected["text_latent"], **close)


@pytest.mark.parametrize(
  ("part", "values", "message"),
  [
    ("", {"model_type": "siglip2"}, "model_type is 'siglip2', which is not supported; .*: blip, clip, siglip"),
    ("text_config", {"hidden_act": "swish"}, "hidden_act is 'swish'; supported: gelu"),
    ("text_config", {"layer_norm_eps": 1e-3}, "layer_norm_eps is 1e-06 in vision_config and 0.001 in text_config"),
    ("vision_config", {"vision_use_head": False}, "without SigLIP's pooler"),
    ("text_config", {"projection_size": 24}, "projection_size is 24, and vision_config.hidden_size 48"),
  ],
)
def test_other_models_are_named(part, values, message):
  found = settings("siglip")
  (found[part] if part else found).update(values)
  with pytest.raises(ValueError, match=message):
    clip_transformers.to_config(found, {}, "siglip")


@pytest.mark.parametrize(
  ("values", "message"),
  [({"resample": 0}, "resample is 0; supported: 3"), ({"size": {"height": 32, "width": 24}}, "and vision_config.*24"),
   ({"do_normalize": False}, "do_normalize is False; supported: True"),
   ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.007.*; supported: 1 / 255")],
)  # fmt: skip
def test_images_prepared_in_another_way_are_named(values, message):
  with pytest.raises(ValueError, match=message):
    clip_transformers.to_config(settings("siglip"), values, "siglip")


def test_a_folder_converts_with_its_tokenizer(tmp_path, monkeypatch, capsys):
  shutil.copytree(GOLDEN / "siglip", tmp_path / "theirs")
  tokenizer = Path(__file__).parents[1] / "data" / "tokenizers" / "golden" / "json_file" / "t5"
  shutil.copytree(tokenizer, tmp_path / "theirs", dirs_exist_ok=True)
  processor = COLOURS | {"size": {"height": 24, "width": 24}, "resample": 2}
  (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(processor))
  monkeypatch.setattr("sys.argv", ["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")])
  command.main()
  assert "coca.load" in capsys.readouterr().out
  model = coca.load(tmp_path / "ours")
  assert model.config.contrastive.max_scale == 0  # of released SigLIPs it is above CLIP's 100
  assert about(model)["text"] | {"bos": -1, "eos": 1, "pad": 1} == about(model)["text"]
  case = json.loads((tokenizer / "cases.json").read_text())["cases"][0]
  assert model.tokenizer.encode(case["text"], 12).tolist() == case["ids"]
  assert (model.config.data.squash, model.config.data.filter) == (True, "bilinear")
  image = Image.fromarray(np.load(GOLDEN / "siglip" / "outputs.npz")["image"][0])
  expected = np.load(GOLDEN / "siglip" / "outputs.npz")["image_latent"][:1]
  np.testing.assert_allclose(model.embed_images([image]), expected, rtol=0, atol=2e-6)
