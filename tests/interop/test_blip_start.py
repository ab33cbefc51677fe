"""A model that starts as a ViT and BERT, and what pre-training and fine-tunes take of it."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from coca import config
from coca.data.tokenizers import wordpiece
from coca.devices.trees import flat
from coca.interop import convert, tensors
from coca.interop.blip import weights as blip_weights
from coca.models.abstract import abstract_model
from coca.recipes import blip as blip_recipes
from coca.storage.workdir import read_config, read_params
from coca.training.init_from import initial_params, resize_positions
from support.common import make_mesh

pytestmark = pytest.mark.slow

WIDTH, VOCAB = 64, 40


def small(**changes):
  c = config.default()
  blip_recipes.model(c)
  c.model.image.update(size=32, patch=8, layers=2, width=WIDTH, mlp=96, heads=1)
  c.model.text.update(vocab=VOCAB + 2, length=8, unimodal_layers=2, multimodal_layers=2, width=WIDTH, mlp=80, heads=1)
  c.model.med.update(cls=2, encode=VOCAB + 1, positions=12)
  c.model.embed_dim, c.matching.weight = 256, 1.0
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
  return config.parse(c)


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
  """A ViT as timm names it, with a classifier, and BERT with an old checkpoint's names, pooler and segments."""
  folder = tmp_path_factory.mktemp("parents")
  c, rng = small(), np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract_model(c)[1])
  names = tensors.to_state_dict(params, blip_weights.original_entries(c))
  vit, bert = {"head.weight": np.ones((3, WIDTH), np.float32)}, {}
  for key, x in names.items():
    if key.startswith("visual_encoder."):
      vit[key.removeprefix("visual_encoder.")] = x
    if key.startswith("text_encoder.") and "crossattention" not in key:
      old = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
      bert[old.replace("text_encoder.", "bert.")] = x[:VOCAB] if "word_embeddings" in key else x
    if key.startswith("text_decoder.cls.") and ".decoder." not in key:
      bert[key.removeprefix("text_decoder.")] = x[:VOCAB] if key.endswith("predictions.bias") else x
  bert |= {
    "bert.pooler.dense.weight": np.ones((WIDTH, WIDTH), np.float32),
    "bert.embeddings.token_type_embeddings.weight": np.ones((2, WIDTH), np.float32),
    "cls.seq_relationship.bias": np.ones(2, np.float32),
  }
  for name, found in (("vit", vit), ("bert", bert)):
    (folder / name).mkdir()
    safetensors.numpy.save_file(
      {k: np.ascontiguousarray(x) for k, x in found.items()}, folder / name / "model.safetensors"
    )
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(VOCAB - 5))]
  (folder / "bert" / "vocab.txt").write_text("\n".join(pieces) + "\n")
  return folder, params


@pytest.fixture(scope="module")
def started(parents, tmp_path_factory):
  out = tmp_path_factory.mktemp("started") / "model"
  convert.from_vit_and_bert(parents[0] / "vit", parents[0] / "bert", out)
  return out


def loaded(settings, folder):
  mesh = make_mesh()
  fresh = jax.tree.map(lambda x: np.full(x.shape, -7.0, np.float32), abstract_model(settings)[1])
  return flat(initial_params(folder, settings, fresh, mesh)[0])


def test_towers_are_the_parents_and_the_rest_is_new(parents, started):
  c = read_config(started)
  assert c.model.med.sharing == "all_but_self_attention" and c.model.text.vocab == VOCAB + 2
  assert (c.model.image.size, c.model.image.heads, c.model.norm_eps, c.model.med.encode) == (32, 1, 1e-6, VOCAB + 1)
  new = {name.replace(".", "/"): x for name, x in safetensors.numpy.load_file(started / "model.safetensors").items()}
  old = flat(parents[1])
  assert set(new) == set(old)
  for name, x in old.items():
    if name == "text_decoder/embedding/tokens":
      np.testing.assert_array_equal(new[name][:VOCAB], x[:VOCAB])
      assert 0.01 < new[name][VOCAB:].std() < 0.03  # [DEC] and [ENC], as BERT's embeddings begin
    elif name == "caption_head/bias":
      np.testing.assert_array_equal(new[name], [*x[:VOCAB], 0, 0])
    elif any(part in name for part in ("cross", "image_projection", "text_projection", "matching", "temperature")):
      assert (np.isfinite(new[name]).all() and not (x == new[name]).any()) or name == "temperature/log_scale"
    elif name.startswith("text_decoder/stack/layers") and "self" in name:  # both begin as BERT
      np.testing.assert_array_equal(new[name], old[name.replace("text_decoder", "text_encoder")])
    else:
      np.testing.assert_array_equal(new[name], x)
  assert new["temperature/log_scale"] == pytest.approx(-np.log(0.07))


def test_pre_training_starts_there_with_other_pictures(started):
  """224 and 384 pixels in the paper; the positions are resized bicubically."""
  c = small(model__image__size=48)
  found = loaded(c, started)
  positions = read_params(
    started,
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
      abstract_model(small())[1],
    ),
  )["image_encoder"]["positions"]
  expected = resize_positions(positions, 36, 1, "bicubic")
  assert np.abs(expected - resize_positions(positions, 36, 1, "bilinear")).max() > 0.1
  np.testing.assert_allclose(found["image_encoder/positions"], expected, rtol=0, atol=1e-6)
  assert all((np.asarray(x) != -7).any() for x in found.values())


@pytest.mark.parametrize(
  ("changes", "alone"),
  [
    ({"model__text__multimodal_layers": 0, "captioning__weight": 0.0}, "text_encoder"),
    ({"model__text__unimodal_layers": 0, "contrastive__weight": 0.0, "matching__weight": 0.0}, "text_decoder"),
    ({"model__med__sharing": "none"}, ""),
  ],
  ids=["retrieval", "captions", "nothing shared"],
)
def test_what_was_shared_is_taken_by_each(changes, alone, started):
  """The shared parameters lie with the decoder: an encoder alone takes them from there, two separate ones both do."""
  found = loaded(small(**changes), started)
  shared = {name.replace(".", "/"): x for name, x in safetensors.numpy.load_file(started / "model.safetensors").items()}
  towers = [alone] if alone else ["text_encoder", "text_decoder"]
  for tower in towers:
    for part in ("embedding/tokens", "stack/layers/mlp/up/kernel", "stack/layers/cross_attention/key/kernel"):
      np.testing.assert_array_equal(found[f"{tower}/{part}"], shared[f"text_decoder/{part}"])
    np.testing.assert_array_equal(
      found[f"{tower}/stack/layers/self_attention/query/kernel"],
      shared[f"{tower}/stack/layers/self_attention/query/kernel"],
    )
  assert {name.split("/")[0] for name in found if name.startswith("text_") and "projection" not in name} == set(towers)


def test_heads_that_are_not_of_width_64(parents, tmp_path):
  convert.from_vit_and_bert(parents[0] / "vit", parents[0] / "bert", tmp_path / "out", image_heads=4, text_heads=2)
  model = read_config(tmp_path / "out").model
  assert (model.image.heads, model.text.heads) == (4, 2)


def test_other_parents_are_refused(parents, tmp_path):
  folder = parents[0]
  with pytest.raises(ValueError, match=r"no ViT's of timm: there is no 'norm\.weight'"):
    convert.from_vit_and_bert(folder / "bert", folder / "bert", tmp_path / "a")
  with pytest.raises(ValueError, match=r"not BERT's .*no 'embeddings\.word_embeddings\.weight'"):
    convert.from_vit_and_bert(folder / "vit", folder / "vit", tmp_path / "b", tokenizer=folder / "bert")
  broken = safetensors.numpy.load_file(folder / "vit" / "model.safetensors")
  del broken["blocks.1.norm2.bias"]
  safetensors.numpy.save_file(broken | {"dist_token": np.ones((1, 1, WIDTH), np.float32)}, tmp_path / "vit.safetensors")
  with pytest.raises(ValueError, match=r"blocks\.1\.norm2\.bias: missing(?s:.*)dist_token: unknown"):
    convert.from_vit_and_bert(tmp_path / "vit.safetensors", folder / "bert", tmp_path / "c")
  (tmp_path / "vocab.txt").write_text((folder / "bert" / "vocab.txt").read_text() + "more\n")
  with pytest.raises(ValueError, match=r"BERT's weights are for 40 tokens, and vocab\.txt has 43.*another model"):
    convert.from_vit_and_bert(folder / "vit", folder / "bert", tmp_path / "d", tokenizer=tmp_path / "vocab.txt")
  (tmp_path / "vocab.txt").unlink()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["vit.safetensors"]
  assert wordpiece.find(folder / "bert", 100).vocab == VOCAB + 2
