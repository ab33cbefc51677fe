"""open_clip's weights: the same outputs as open_clip's, and the same bits back. golden/ holds what it computed."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from coca.config import parse, to_dict
from coca.inference.forward import Forward
from coca.interop import convert
from coca.interop.open_clip import export as open_clip_export
from coca.interop.open_clip import models as open_clip_models
from coca.interop.open_clip import settings as open_clip_settings
from coca.interop.open_clip import timm
from coca.interop.open_clip import weights as open_clip_weights
from coca.models.abstract import abstract_model
from coca.storage.workdir import read_workdir
from support.common import make_mesh, tiny

GOLDEN = Path(__file__).parent / "golden"
SIZES = 2, 48, 4, 72  # of golden/siglip's image tower
SMALL = 24, 8, *SIZES  # of those of timm's other ViTs
TOWERS = {
  "pe": timm._pe(*SMALL),
  "pe_no_class": timm._pe(*SMALL, class_token=False),
  "timm_clip": timm._clip(*SMALL),
  "eva": timm._eva(*SMALL),
  "eva_e": timm._eva(*SMALL[:-1], 96, norm_after=True),
}
NAMES = ["coca", "coca_patches", "clip", "openvision", "metaclip2", "siglip", *TOWERS]


@pytest.fixture(autouse=True)
def known_tower(monkeypatch):
  monkeypatch.setitem(timm.SIZES, "test", SIZES)
  for name, tower in TOWERS.items():
    monkeypatch.setitem(timm.TOWERS, f"vit_test_{name}", tower)


def weights(name):
  return safetensors.numpy.load_file(GOLDEN / name / "open_clip_model.safetensors")


def settings(name):
  return json.loads((GOLDEN / name / "open_clip_config.json").read_text())


def model(name):
  config = open_clip_settings.to_config(settings(name))
  return config, open_clip_weights.to_params(weights(name), config)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_open_clip(name):
  config, params = model(name)
  expected = np.load(GOLDEN / name / "outputs.npz")
  forward = Forward(config, make_mesh())
  close = {"rtol": 0, "atol": 2e-6}
  np.testing.assert_allclose(forward.embed_images(params, expected["image"]), expected["image_latent"], **close)
  np.testing.assert_allclose(forward.embed_texts(params, expected["text"]), expected["text_latent"], **close)
  if "larger" in expected:
    params["image_encoder"]["positions"][...] = 0  # these are resized otherwise there
    np.testing.assert_allclose(forward.embed_images(params, expected["larger"]), expected["larger_latent"], **close)
  if "logits" in expected:
    graphdef, _ = abstract_model(config)

    @jax.jit
    def run(params, image, text):
      m = nnx.merge(graphdef, params)
      out = m(image, text)
      return out.image, out.text, out.states @ m.softmax_kernel(), m.encode(image).tokens

    image, text, logits, tokens = run(params, expected["image"], expected["text"])
    np.testing.assert_allclose(image, expected["image_latent"], **close)  # both in one pass
    np.testing.assert_allclose(text, expected["text_latent"], **close)
    words = expected["text"] != 0  # at padding, versions of open_clip differ
    np.testing.assert_allclose(logits[words], expected["logits"][words], rtol=0, atol=1e-5)
    assert tokens.shape[1] == (5 if name == "coca" else 9)  # the decoder gets all but the first


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_the_same_bits(name):
  config, params = model(name)
  back = open_clip_weights.to_state_dict(params, config)
  before = weights(name)
  assert set(back) == set(before)
  for key, x in before.items():
    assert (back[key].dtype, back[key].shape) == (x.dtype, x.shape), key
    assert back[key].tobytes() == x.tobytes(), key


@pytest.mark.parametrize("name", NAMES)
def test_settings_there_and_back(name):
  config = open_clip_settings.to_config(settings(name))
  trained = to_dict(config)
  trained.model.image.update(position_init="sincos2d", position_scale=4.0)  # how they began is nothing to open_clip
  assert open_clip_export.from_config(parse(trained)) == open_clip_export.from_config(config)
  assert open_clip_settings.to_config(open_clip_export.from_config(config)).model == config.model


@pytest.mark.slow
def test_the_legacy_mask_and_the_class_token_matter():
  """The golden outputs would notice: each of these settings changes something."""
  config, params = model("coca")
  expected = np.load(GOLDEN / "coca" / "outputs.npz")
  changes = {
    "model.text.cls_mask": "words",
    "model.image.mean": (0.5, 0.5, 0.5),
    "model.norm_eps": 1e-2,
    "model.activation": "quick_gelu",
  }
  for name, value in changes.items():
    c = to_dict(config)
    c.update_from_flattened_dict({name: value})
    forward = Forward(parse(c), make_mesh())
    side, function = ("text", forward.embed_texts) if "text" in name else ("image", forward.embed_images)
    assert np.abs(function(params, expected[side]) - expected[f"{side}_latent"]).max() > 1e-4, name


def split_projections(tensors):
  """As torch stores attention whose keys have another width."""
  out = {}
  for key, x in tensors.items():
    if key.endswith("in_proj_weight"):
      out |= {key.replace("in_proj", f"{n}_proj"): part for n, part in zip("qkv", np.split(x, 3), strict=True)}
    else:
      out[key] = x
  return out


@pytest.mark.parametrize(
  "change",
  [
    split_projections,
    lambda t: {f"module.{k}": x for k, x in t.items()},
    lambda t: t | {"attn_mask": np.zeros((9, 9), np.float32)},
    lambda t: t | {"logit_scale": t["logit_scale"].reshape(1)},
    lambda t: {k if k.startswith(("visual", "logit")) else f"text.{k}": x for k, x in t.items()},
  ],
  ids=["separate projections", "module.", "mask", "logit_scale [1]", "custom_text"],
)
def test_other_ways_of_saving_clip(change):
  config, params = model("clip")
  again = open_clip_weights.to_params(change(weights("clip")), config)
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_half_precision_is_widened():
  config = open_clip_settings.to_config(settings("clip"))
  half = {k: x.astype(np.float16) for k, x in weights("clip").items()}
  params = open_clip_weights.to_params(half, config)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  np.testing.assert_array_equal(
    open_clip_weights.to_state_dict(params, config)["visual.proj"], half["visual.proj"].astype(np.float32)
  )


def test_differences_are_listed():
  config, tensors = open_clip_settings.to_config(settings("coca")), weights("coca")
  del tensors["visual.proj"]
  tensors["text.cls_emb"] = tensors["text.cls_emb"][:7]
  tensors["visual.extra"] = np.zeros(3, np.float32)
  with pytest.raises(ValueError) as e:
    open_clip_weights.to_params(tensors, config)
  for line in (
    "visual.proj: missing, [24, 24] expected",
    "text.cls_emb: [7] in the file, [24] expected",
    "visual.extra: unknown",
  ):
    assert line in str(e.value)


def test_values_that_are_not_finite_are_refused():
  config, tensors = open_clip_settings.to_config(settings("clip")), weights("clip")
  tensors["visual.proj"][1, 2] = np.nan
  with pytest.raises(ValueError, match=r"'visual.proj' holds values that are not finite"):
    open_clip_weights.to_params(tensors, config)


@pytest.mark.parametrize(
  ("key", "what"),
  [
    ("visual.trunk.blocks.0.attn.qkv.weight", "timm"),
    ("visual.layer1.0.conv1.weight", "ResNet"),
    ("text.transformer.embeddings.word_embeddings.weight", "RoBERTa"),
    ("attn_pool_contrastive.query", "CoCa2"),
    ("map_viz2txt_kv", "MaMMUT"),
    ("text_model.final_layer_norm.weight", "transformers library"),
  ],
)
def test_other_architectures_are_named(key, what):
  config = open_clip_settings.to_config(settings("coca"))
  with pytest.raises(ValueError, match=f"another architecture: .*{what}"):
    open_clip_weights.to_params(weights("coca") | {key: np.zeros(3, np.float32)}, config)


def changed(part, **values):
  s = settings("coca")
  (s["model_cfg"] if part == "model_cfg" else s["model_cfg"].get(part) or s[part]).update(values)
  return s


@pytest.mark.parametrize(
  ("part", "values", "message"),
  [
    ("vision_cfg", {"timm_model_name": "vit_base"}, "'vit_base': a timm image tower"),
    ("vision_cfg", {"timm_model_name": "vitamin_large_224"}, "'vitamin_large_224': a ViTamin, .* not supported"),
    ("vision_cfg", {"timm_model_name": "eva_giant_patch14_224", "timm_pool": "avg"}, "timm_pool is 'avg'"),
    ("vision_cfg", {"timm_model_name": "eva_giant_patch14_224", "timm_pool": "token"}, "timm_proj is 'linear'"),
    ("vision_cfg", {"layers": [3, 4, 6, 3]}, "ResNet"),
    ("vision_cfg", {"attentional_pool": "cascade"}, "CoCa2"),
    ("vision_cfg", {"pool_type": "avg"}, "pool_type .avg., which goes without attentional_pool"),
    ("vision_cfg", {"ls_init_value": 1e-5}, "ls_init_value"),
    ("vision_cfg", {"image_size": [24, 32]}, "only squares"),
    ("text_cfg", {"hf_model_name": "roberta-base"}, "'roberta-base': a Hugging Face text tower"),
    ("text_cfg", {"embed_cls": False}, "text_cfg.embed_cls is False"),
    ("text_cfg", {"tokenizer_kwargs": {"clean": "canonicalize"}}, "tokenizer_kwargs"),
    ("text_cfg", {"mlp_ratio": 2.0}, "text_cfg.mlp_ratio is 2.0"),
    ("multimodal_cfg", {"heads": 3}, "multimodal_cfg.heads is 3"),
    ("multimodal_cfg", {"cross_attn_ratio": 2}, "MaMMUT"),
    ("model_cfg", {"pooler": "cascade"}, "settings that are not known here: pooler"),
    ("preprocess_cfg", {"resize_mode": "longest"}, "resize_mode is 'longest'"),
    ("preprocess_cfg", {"mean": [0.5]}, r"preprocess_cfg.mean is \[0.5\]; it takes 3 numbers"),
    ("preprocess_cfg", {"std": [0.5, "", 10**400]}, r"preprocess_cfg.std is \[0.5, '', 10+; it takes 3 numbers"),
    ("preprocess_cfg", {"mean": [0.5, float("nan"), 0.5]}, "it takes 3 numbers from 0 to 1"),
    ("text_cfg", {"width": 1e308}, r"text_cfg.width is 1e\+308; it takes a whole number from 1 to 1,048,576"),
    ("text_cfg", {"width": 10**400}, "text_cfg.width is 10+; it takes"),
    ("text_cfg", {"embed_cls": [[]]}, r"text_cfg.embed_cls is \[\[\]\]; it takes true or false"),
    ("vision_cfg", {"layers": True}, "vision_cfg.layers is True; it takes a whole number"),
    ("vision_cfg", {"head_width": 0}, "vision_cfg.head_width is 0; it takes a whole number from 1"),
    ("vision_cfg", {"image_size": [[1], [1]]}, r"vision_cfg.image_size is \[1\]; it takes a whole number"),
    ("vision_cfg", {"image_size": float("nan")}, "vision_cfg.image_size is nan"),
    ("model_cfg", {"multimodal_cfg": 3}, "multimodal_cfg is 3; it takes an object"),
  ],
)
def test_settings_of_other_models_are_refused(part, values, message):
  with pytest.raises(ValueError, match=message):
    open_clip_settings.to_config(changed(part, **values))


@pytest.mark.parametrize(
  ("broken", "message"),
  [
    ({}, "vision_cfg is missing; it takes an object"),
    ({"model_cfg": {}}, "vision_cfg is missing"),
    ({"model_cfg": 3}, "model_cfg is 3"),
    ({"model_cfg": {"vision_cfg": 1}}, "vision_cfg is 1; it takes an object"),
  ],
)
def test_no_settings_at_all_are_an_error(broken, message):
  with pytest.raises(ValueError, match=message):
    open_clip_settings.to_config(broken)


def test_what_open_clip_lacks_is_not_exported():
  with pytest.raises(ValueError, match=r"config.model.poolers.kind is 'cascade'"):
    open_clip_export.from_config(tiny())
  changes = [
    ({"model.text.cls_mask": "words"}, "config.model.text.cls_mask: 'words' here, 'legacy' there"),
    ({"model.text.tied_softmax": True}, "tied_softmax"),
    ({"model.text.mlp": 48}, "mlp_ratio is 2.0"),
    ({"contrastive.weight": 0.0}, "have a contrastive side"),
    ({"model.embed_dim": 32}, "has to be 24"),
  ]
  for change, message in changes:
    c = to_dict(open_clip_settings.to_config(settings("coca")))
    c.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
      open_clip_export.from_config(parse(c))


@pytest.mark.parametrize(
  ("name", "millions"),
  [
    ("coca_ViT-B-32", 253.56),
    ("coca_ViT-L-14", 638.45),
    ("ViT-B-32", 151.28),
    ("ViT-B-16", 149.62),
    ("ViT-L-14", 427.62),
  ],
)
def test_named_models_have_the_published_sizes(name, millions):
  config = open_clip_settings.to_config(open_clip_models.MODELS[name])
  count = sum(x.size for x in jax.tree.leaves(abstract_model(config)[1]))
  assert count / 1e6 == pytest.approx(millions, abs=0.005)


TOKENIZERS = Path(__file__).parents[1] / "data" / "tokenizers" / "golden" / "json_file"


@pytest.mark.parametrize(
  ("name", "tokenizer", "kwargs"),
  [
    ("siglip", "t5", {"clean": "canonicalize"}),
    ("openvision", "bert", {"strip_sep_token": True}),
    ("metaclip2", "xlm", {}),
  ],
)
def test_folders_with_a_tokenizer_json_there_and_back(name, tokenizer, kwargs, tmp_path):
  folder = tmp_path / "theirs"
  shutil.copytree(GOLDEN / name, folder)
  shutil.copytree(TOKENIZERS / tokenizer, folder, dirs_exist_ok=True)
  described = settings(name)
  described["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "its/name", "tokenizer_kwargs": kwargs}
  described["preprocess_cfg"] |= {"interpolation": "bilinear", "resize_mode": "squash"}
  (folder / "open_clip_config.json").write_text(json.dumps(described))
  convert.from_open_clip(folder, tmp_path / "ours")
  config, tokens = read_workdir(tmp_path / "ours")
  assert (config.data.filter, config.data.squash) == ("bilinear", True)
  case = json.loads((folder / "cases.json").read_text())["cases"][0]
  ends = len(case["ids"]) if name == "siglip" else 8  # beyond EOS the filling may differ
  assert tokens.encode(case["text"], 12).tolist()[:ends] == case["ids"][:ends]
  convert.to_open_clip(tmp_path / "ours", tmp_path / "back")
  convert.from_open_clip(tmp_path / "back", tmp_path / "again")
  for file in ("config.json", tokens.file, "model.safetensors"):
    one, other = ((tmp_path / where / file).read_text(errors="replace") for where in ("ours", "again"))
    assert one.replace('"theirs"', '"back"') == other, file
