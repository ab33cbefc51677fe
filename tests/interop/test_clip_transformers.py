"""transformers' CLIPModel and SiglipModel: the same outputs as in golden/clip_transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from PIL import Image

import coca
from coca import convert as command
from coca.data.tokenizers import clip, sentencepiece
from coca.inference.forward import Forward
from coca.interop import clip_transformers, convert
from coca.interop.export import about
from coca.storage.workdir import read_workdir
from support.common import make_mesh, tiny

GOLDEN = Path(__file__).parent / "golden" / "clip_transformers"
TOKENIZERS = Path(__file__).parents[1] / "data" / "tokenizers" / "golden"
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
  tokenizer = TOKENIZERS / "json_file" / "t5"
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


@pytest.mark.parametrize(
  ("name", "processor"),
  [("clip", {"size": {"shortest_edge": 24}}), ("siglip", {"size": {"height": 24, "width": 24}, "resample": 2})],
)
def test_a_folder_goes_back(name, processor, tmp_path, monkeypatch, capsys):
  shutil.copytree(GOLDEN / name, tmp_path / "theirs")
  if name == "clip":
    clip.find(TOKENIZERS / "tokenizer", 545).save(tmp_path / "theirs" / clip.FILE)
  else:
    shutil.copytree(TOKENIZERS / "json_file" / "t5", tmp_path / "theirs", dirs_exist_ok=True)
  (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(COLOURS | processor))
  convert.from_transformers(tmp_path / "theirs", tmp_path / "ours")
  command_line = ["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to=transformers"]
  monkeypatch.setattr("sys.argv", command_line)
  command.main()
  their_class = {"clip": "CLIPModel", "siglip": "SiglipModel"}[name]
  assert f'use it with {their_class}.from_pretrained("{tmp_path / "back"}")' in capsys.readouterr().out
  theirs, back = (safetensors.numpy.load_file(tmp_path / x / "model.safetensors") for x in ("theirs", "back"))
  assert theirs.keys() == back.keys()
  for key, x in theirs.items():
    assert x.shape == back[key].shape and np.array_equal(x, back[key]), key
  config = json.loads((tmp_path / "back" / "config.json").read_text())
  assert config["architectures"] == [their_class]
  free = ("bos_token_id", "eos_token_id", "projection_dim")  # of another tokenizer there, and not used by this class
  for part in ("vision_config", "text_config"):
    same = {key: x for key, x in settings(name)[part].items() if key in config[part] and key not in free}
    assert {key: config[part][key] for key in same} == same and len(same) >= 10
  convert.from_transformers(tmp_path / "back", tmp_path / "again")
  (ours, tokens), (again, others) = (read_workdir(tmp_path / x) for x in ("ours", "again"))
  assert (ours.model, ours.data, ours.contrastive) == (again.model, again.data, again.contrastive)
  text = "Two  Dogs, <b>it's</b> a_b!"
  assert tokens.encode(text, 40).tolist() == others.encode(text, 40).tolist()
  # As transformers reads it, which cleans nothing before.
  read = tokenizers.Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json")).encode(text).ids
  assert read == tokens.encode(text, 40).tolist()[: len(read)] and read[-1] == tokens.eos
  with pytest.raises(ValueError, match=f"architecture=BlipModel is for a BLIP model; this one is a {their_class}"):
    convert.to_transformers(tmp_path / "ours", tmp_path / "other", "BlipModel")


CLIP = {
  "model__image__class_token": True,
  "model__poolers__kind": "class_token",
  "model__poolers__n_query": 0,
  "model__text__multimodal_layers": 0,
  "captioning__weight": 0.0,
  "model__text__pool": "eos",
}


@pytest.mark.parametrize(
  ("changes", "eos", "message"),
  [
    ({}, 2, r"multimodal_layers is 2, poolers.kind 'cascade'\); a CoCa goes to open_clip, --to=open_clip"),
    (CLIP, 2, "takes a text's embedding from its highest id where EOS is 2, as it is in this model's tokenizer.model"),
    (CLIP | {"contrastive__loss": "sigmoid_ring"}, 3, "contrastive.loss is 'sigmoid'; there it is 'softmax'"),
    (CLIP | {"data__resize": 32}, 3, "config.data.resize is 32; there it is 16"),
    (CLIP, 3, r"\n  config.model.image.norm_pre: False here, True there"),
  ],
)
def test_models_that_transformers_lacks_are_told_apart(changes, eos, message):
  tokens = sentencepiece.train([f"a word number {i}" for i in range(40)], 60)
  tokens.eos = eos
  with pytest.raises(ValueError, match=message):
    clip_transformers.from_config(tiny(**changes), tokens)
