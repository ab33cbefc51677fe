"""ALBEF's original files, and what its pre-training starts from.

The reference is the authors' formula (models/vit.py, models/xbert.py and models/model_pretrain.py of salesforce/ALBEF)
in float64 NumPy over the file's own names.
"""

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from coca import inference
from coca.data.tokenizers import wordpiece
from coca.interop import convert
from coca.storage.workdir import read_config
from support.blip_reference import log_softmax
from support.salesforce import HEADS, IMAGE, MLP, SIDE, VOCAB, WIDTH, Authors, Tensors

CLS, SEP, MASK, WORDS = 4, 5, 6, 123
LAYERS, CUT, EMBED = 4, 2, 12
HEAD = "text_encoder.cls.predictions"


def pretraining():
  """A file of ALBEF's pre-training, with all that training adds."""
  found, text = Tensors(), "text_encoder.bert"
  rng, linear, norm = found.rng, found.linear, found.norm
  found.vit()
  for name, rows in (("word", WORDS), ("position", 20), ("token_type", 2)):
    found[f"{text}.embeddings.{name}_embeddings.weight"] = rng.normal(0, 0.5, (rows, WIDTH))
  norm(f"{text}.embeddings.LayerNorm", WIDTH)
  for i in range(LAYERS):
    layer = f"{text}.encoder.layer.{i}"
    for attention, width in (("attention", WIDTH), ("crossattention", IMAGE))[: 1 + (i >= CUT)]:
      linear(f"{layer}.{attention}.self.query", WIDTH, WIDTH)
      linear(f"{layer}.{attention}.self.key", width, WIDTH)
      linear(f"{layer}.{attention}.self.value", width, WIDTH)
      linear(f"{layer}.{attention}.output.dense", WIDTH, WIDTH)
      norm(f"{layer}.{attention}.output.LayerNorm", WIDTH)
    linear(f"{layer}.intermediate.dense", WIDTH, MLP)
    linear(f"{layer}.output.dense", MLP, WIDTH)
    norm(f"{layer}.output.LayerNorm", WIDTH)
  linear(f"{HEAD}.transform.dense", WIDTH, WIDTH)
  norm(f"{HEAD}.transform.LayerNorm", WIDTH)
  found[f"{HEAD}.bias"] = found[f"{HEAD}.decoder.bias"] = rng.normal(0, 0.3, WORDS)
  found[f"{HEAD}.decoder.weight"] = found[f"{text}.embeddings.word_embeddings.weight"]
  linear("vision_proj", IMAGE, EMBED)
  linear("text_proj", WIDTH, EMBED)
  linear("itm_head", WIDTH, 2)
  moments = {
    key.replace(part, f"{part}_m", 1): 2 * x
    for key, x in found.items()
    for part in ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    if key.startswith(f"{part}.")
  }
  extra = {"temp": 0.05, "image_queue": np.ones((EMBED, 8)), "text_queue": np.ones((EMBED, 8)), "queue_ptr": np.ones(1)}
  found |= moments | extra | {f"{text}.embeddings.position_ids": np.arange(20.0)[None]}
  return {key: np.asarray(x, np.float32) for key, x in found.items()}


class Albef(Authors):
  """One image and one text [T] of their ids, of the pre-training."""

  def attention(self, name, x, tokens, seen=None):
    q, k, v = (self.linear(f"{name}.self.{part}", y) for part, y in (("query", x), ("key", tokens), ("value", tokens)))
    mixed = self.linear(f"{name}.output.dense", self.attend(q, k, v, HEADS["text_heads"], seen))
    return self.norm(f"{name}.output.LayerNorm", mixed + x)

  def text(self, ids, tokens=None):
    """mode 'text'; with an image's tokens, 'multi_modal'."""
    e = "text_encoder.bert.embeddings"
    x = self.p[f"{e}.word_embeddings.weight"][ids] + self.p[f"{e}.token_type_embeddings.weight"][0]
    x = self.norm(f"{e}.LayerNorm", x + self.p[f"{e}.position_embeddings.weight"][: len(ids)])
    for i in range(CUT if tokens is None else LAYERS):
      layer = f"text_encoder.bert.encoder.layer.{i}"
      x = self.attention(f"{layer}.attention", x, x, ids != 0)
      x = self.attention(f"{layer}.crossattention", x, tokens) if i >= CUT else x
      hidden = self.gelu(self.linear(f"{layer}.intermediate.dense", x))
      x = self.norm(f"{layer}.output.LayerNorm", self.linear(f"{layer}.output.dense", hidden) + x)
    return x

  def embed(self, projection, state):
    x = self.linear(projection, state)
    return x / np.linalg.norm(x)

  def words(self, states):
    x = self.norm(f"{HEAD}.transform.LayerNorm", self.gelu(self.linear(f"{HEAD}.transform.dense", states)))
    return self.linear(f"{HEAD}.decoder", x)


def save(found, path):
  safetensors.numpy.save_file({key: np.ascontiguousarray(x) for key, x in found.items()}, path)
  return path


def converted(found, folder):
  convert.from_blip(save(found, folder / "albef.safetensors"), folder / "out", tokenizer=VOCAB, **HEADS)
  return inference.load(folder / "out", devices=jax.devices()[:1])


def as_fine_tuned(found):
  """The names of the fine-tune for retrieval, which has no head for hidden words."""
  return {key.replace(".bert.", "."): x for key, x in found.items() if ".cls." not in key}


@pytest.mark.slow
def test_outputs_are_the_authors(tmp_path):
  tensors, rng = pretraining(), np.random.default_rng(1)
  model = converted(tensors, tmp_path)
  images = rng.integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
  ids = np.zeros((2, model.config.model.text.length), np.int32)
  ids[0, :6], ids[1, :4] = [CLS, 30, 40, MASK, 50, SEP], [CLS, 60, 70, SEP]
  given = ids.copy()
  given[:, 0] = model.tokenizer.bos  # whose place [CLS] takes
  authors, forward = Albef(tensors), model.forward
  tokens = [authors.image(pixels) for pixels in images]
  states = [authors.text(row, x) for row, x in zip(ids, tokens, strict=True)]

  expected = [authors.embed("vision_proj", x[0]) for x in tokens]
  np.testing.assert_allclose(model.embed_images(images), expected, atol=2e-6)
  texts = [authors.embed("text_proj", authors.text(row)[0]) for row in ids]
  encoded = forward.encode(model.params, images)
  scores = forward.score(model.params, encoded, given[:, None])
  np.testing.assert_allclose(scores.contrastive[:, 0], np.sum(np.multiply(expected, texts), axis=1), atol=2e-6)
  logits = np.array([authors.linear("itm_head", x[0]) for x in states])
  np.testing.assert_allclose(scores.match_logit[:, 0], logits[:, 1], atol=1e-5)
  np.testing.assert_allclose(scores.matching[:, 0], np.exp(log_softmax(logits))[:, 1], atol=1e-5)
  assert np.exp(-model.params["temperature"]["log_scale"]) == pytest.approx(0.05)

  def fill(params, tokens, text):
    m, places = nnx.merge(forward.graphdef, params), np.tile(np.arange(6, dtype=np.int32), (2, 1))
    return m.fill(tokens, text, jax.numpy.array(places)) @ m.softmax_kernel() + m.softmax_bias

  found = jax.nn.softmax(jax.jit(fill)(model.params, encoded.tokens, jax.numpy.array(given)))
  probabilities = np.exp(log_softmax(np.array([authors.words(x[:6]) for x in states])))
  np.testing.assert_allclose(found[..., :WORDS], probabilities, atol=1e-5)
  assert np.max(found[..., WORDS:]) < 1e-30  # [DEC] and [ENC] never come up


def test_a_fine_tune_for_retrieval_is_the_same_without_the_head(tmp_path):
  (tmp_path / "whole").mkdir()
  whole, tuned = converted(pretraining(), tmp_path / "whole"), converted(as_fine_tuned(pretraining()), tmp_path)
  del whole.params["masked_head"]
  jax.tree.map(np.testing.assert_array_equal, tuned.params, whole.params)
  assert (whole.config.masked.weight, tuned.config.masked.weight, tuned.config.matching.weight) == (1, 0, 1)


def test_what_is_not_read_is_named(tmp_path):
  found = pretraining()
  with pytest.raises(ValueError, match="ALBEF's answering model"):
    converted(found | {"text_decoder.bert.embeddings.LayerNorm.bias": np.ones(2, np.float32)}, tmp_path)
  key = "text_encoder.bert.embeddings.word_embeddings.weight"
  with pytest.raises(ValueError, match=r"are for 130 tokens, and vocab\.txt has 125"):
    converted(found | {key: np.ones((130, WIDTH), np.float32)}, tmp_path)
  del found["text_encoder.bert.encoder.layer.3.crossattention.self.key.bias"]
  with pytest.raises(ValueError, match=r"layer\.3\.crossattention\.self\.key\.bias: missing"):
    converted(found, tmp_path)


@pytest.mark.slow
def test_pre_training_starts_as_a_vit_and_bert_cut_in_the_middle(tmp_path):
  found = pretraining()
  width = 64  # heads of 64 in both
  rng = np.random.default_rng(2)

  def of_width(x):
    return rng.normal(size=[width if n in (WIDTH, IMAGE) else 3 * width if n == 3 * IMAGE else n for n in x.shape])

  vit, bert = (
    {
      key.removeprefix(start): of_width(x).astype(np.float32)
      for key, x in found.items()
      if key.startswith(start) and "crossattention" not in key and "position_ids" not in key
    }
    for start in ("visual_encoder.", "text_encoder.")
  )
  bert["cls.predictions.decoder.weight"] = bert["bert.embeddings.word_embeddings.weight"]
  bert["cls.predictions.decoder.bias"] = bert["cls.predictions.bias"]
  bert |= {"bert.pooler.dense.bias": np.ones(3, np.float32), "cls.seq_relationship.bias": np.ones(2, np.float32)}
  save(vit | {"head.weight": np.ones((3, 3), np.float32)}, tmp_path / "vit.safetensors")
  save(bert, tmp_path / "bert.safetensors")
  out = tmp_path / "out"
  convert.from_vit_and_bert(
    tmp_path / "vit.safetensors", tmp_path / "bert.safetensors", out, tokenizer=VOCAB, kind="albef"
  )
  config, new = read_config(out), safetensors.numpy.load_file(out / "model.safetensors")
  text = config.model.text
  assert (config.model.kind, text.unimodal_layers, text.multimodal_layers) == ("albef", 2, 2)
  assert (text.vocab, config.masked.weight, config.model.med.mask) == (WORDS + 2, 1, MASK)
  assert config.model.med.cls == wordpiece.load(VOCAB.read_bytes()).cls == CLS
  for layer, name, i in ((1, "text_encoder.stack", 1), (2, "fusion", 0), (3, "fusion", 1)):
    up = new[f"{name}.layers.mlp.up.kernel"][i]
    np.testing.assert_array_equal(up.T, bert[f"bert.encoder.layer.{layer}.intermediate.dense.weight"])
  np.testing.assert_array_equal(
    new["text_encoder.embedding.positions"],
    bert["bert.embeddings.position_embeddings.weight"] + bert["bert.embeddings.token_type_embeddings.weight"][0],
  )
  np.testing.assert_array_equal(new["image_encoder.norm.scale"], vit["norm.weight"])
  assert 0 < np.abs(new["fusion.layers.cross_attention.key.kernel"]).max() < 1
