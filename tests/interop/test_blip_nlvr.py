"""BLIP's original file for NLVR2, which looks at two images; and such a model that starts from another BLIP.

The reference is the authors' formula (models/nlvr_encoder.py and models/blip_nlvr.py of salesforce/BLIP) in float64
NumPy over the file's own names.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import coca
from coca.config import parse, to_dict
from coca.devices.trees import flat
from coca.interop import convert
from coca.storage.workdir import read_config
from coca.training.init_from import initial_params
from support.blip_reference import log_softmax, tiny_blip
from support.common import make_mesh, random_params
from support.salesforce import HEADS, IMAGE, MLP, SIDE, VOCAB, WIDTH, Authors, Tensors
from support.workdirs import make_workdir

WORDS, LAYERS = 125, 4
SAID = ["a dog and two cats", "Both images show a dog!"]


def nlvr():
  """A fine-tuned file."""
  found, text = Tensors(), "text_encoder"
  found.vit()
  for name, rows in (("word", WORDS), ("position", 70)):
    found[f"{text}.embeddings.{name}_embeddings.weight"] = found.rng.normal(0, 0.5, (rows, WIDTH))
  found.norm(f"{text}.embeddings.LayerNorm", WIDTH)
  found[f"{text}.embeddings.position_ids"] = np.arange(70.0)[None]
  for i in range(LAYERS):
    layer = f"{text}.encoder.layer.{i}"
    for attention, width, number in (("attention", WIDTH, ""), *(("crossattention", IMAGE, n) for n in "01")):
      found.linear(f"{layer}.{attention}.self{number}.query", WIDTH, WIDTH)
      found.linear(f"{layer}.{attention}.self{number}.key", width, WIDTH)
      found.linear(f"{layer}.{attention}.self{number}.value", width, WIDTH)
      found.linear(f"{layer}.{attention}.output.dense{number}", WIDTH, WIDTH)
      found.norm(f"{layer}.{attention}.output.LayerNorm", WIDTH)
    if i >= LAYERS // 2:
      found.linear(f"{layer}.crossattention.output.merge_layer", 2 * WIDTH, WIDTH)
    found.linear(f"{layer}.intermediate.dense", WIDTH, MLP)
    found.linear(f"{layer}.output.dense", MLP, WIDTH)
    found.norm(f"{layer}.output.LayerNorm", WIDTH)
  found.linear("cls_head.0", WIDTH, WIDTH)
  found.linear("cls_head.2", WIDTH, 2)
  return found


class Nlvr(Authors):
  """Two images and one text of their ids, [ENC] first."""

  def look(self, name, number, x, tokens, seen=None):
    q, k, v = (
      self.linear(f"{name}.self{number}.{part}", y) for part, y in (("query", x), ("key", tokens), ("value", tokens))
    )
    return self.linear(f"{name}.output.dense{number}", self.attend(q, k, v, HEADS["text_heads"], seen))

  def logits(self, images, ids):
    tokens, e = [self.image(pixels) for pixels in images], "text_encoder.embeddings"
    x = self.p[f"{e}.word_embeddings.weight"][ids] + self.p[f"{e}.position_embeddings.weight"][: len(ids)]
    x = self.norm(f"{e}.LayerNorm", x)
    for i in range(LAYERS):
      layer = f"text_encoder.encoder.layer.{i}"
      x = self.norm(f"{layer}.attention.output.LayerNorm", self.look(f"{layer}.attention", "", x, x, ids != 0) + x)
      cross = f"{layer}.crossattention"
      first, second = (self.look(cross, number, x, tokens[number]) for number in (0, 1))
      if i < LAYERS // 2:
        seen = (first + second) / 2
      else:
        seen = self.linear(f"{cross}.output.merge_layer", np.concatenate([first, second], axis=-1))
      x = self.norm(f"{cross}.output.LayerNorm", seen + x)
      hidden = self.gelu(self.linear(f"{layer}.intermediate.dense", x))
      x = self.norm(f"{layer}.output.LayerNorm", self.linear(f"{layer}.output.dense", hidden) + x)
    return self.linear("cls_head.2", np.maximum(self.linear("cls_head.0", x[0]), 0))


@pytest.mark.slow
def test_outputs_are_the_authors_and_the_images_are_in_order(tmp_path):
  tensors = nlvr()
  convert.from_blip(tensors.save(tmp_path / "nlvr.safetensors"), tmp_path / "out", tokenizer=VOCAB, **HEADS)
  model = coca.load(tmp_path / "out")
  assert model.labels == ("False", "True") and model.config.model.text.length == 64
  images = np.random.default_rng(1).integers(0, 256, (2, 2, SIDE, SIDE, 3)).astype(np.uint8)
  ids = np.stack([model.tokenizer.encode(text, 64) for text in SAID])
  ids[:, 0] = model.tokenizer.enc
  assert (ids != 0).sum(axis=1).min() > 4
  authors = Nlvr(tensors)
  for pairs in (images, images[:, ::-1]):
    logits = np.array([authors.logits(pair, row) for pair, row in zip(pairs, ids, strict=True)])
    found = model.classify([tuple(pair) for pair in pairs], texts=SAID)
    np.testing.assert_allclose(found, np.exp(log_softmax(logits)), atol=1e-5)
  with pytest.raises(ValueError, match="transformers has no class for this model"):
    convert.to_transformers(tmp_path / "out", tmp_path / "back")


def test_what_is_missing_is_named(tmp_path):
  tensors = nlvr()
  del tensors["text_encoder.encoder.layer.3.crossattention.output.merge_layer.weight"]
  with pytest.raises(ValueError, match=r"layer\.3\.crossattention\.output\.merge_layer\.weight: missing, \[32, 64\]"):
    convert.from_blip(tensors.save(tmp_path / "nlvr.safetensors"), tmp_path / "out", tokenizer=VOCAB, **HEADS)


def test_it_starts_from_a_blip(tmp_path):
  """Both cross-attentions are the one that there was, which encoder and decoder shared; longer texts have room."""
  make_workdir(tmp_path / "blip", tiny_blip())
  old = read_config(tmp_path / "blip")
  new = to_dict(old)
  for name in ("contrastive", "captioning", "matching"):
    new[name].weight = 0.0
  new.classification.update(weight=1.0, classes=2, pool="text", images=2)
  new.model.text.update(multimodal_layers=0, length=15)
  new.model.med.positions = 15
  config, mesh = parse(new), make_mesh()
  fresh = jax.tree.map(jnp.asarray, random_params(config))
  params, report = initial_params(tmp_path / "blip", config, fresh, mesh)
  layers = params["text_encoder"]["stack"]["layers"]
  first, second = (flat(layers[name]) for name in ("cross_attention", "second_attention"))
  for name, x in first.items():
    np.testing.assert_array_equal(x, second[name], err_msg=name)
    assert not np.array_equal(x, flat(fresh["text_encoder"]["stack"]["layers"]["cross_attention"])[name])
  np.testing.assert_array_equal(
    params["text_encoder"]["merge"]["layers"]["kernel"], fresh["text_encoder"]["merge"]["layers"]["kernel"]
  )
  assert params["text_encoder"]["embedding"]["positions"].shape[0] == 15
  assert "freshly initialised: class_head, class_hidden, text_encoder/merge" in report
