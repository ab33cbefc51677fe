"""BLIP's weights: outputs as of transformers (golden/make_blip.py), the original files, and the way back."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from coca import convert as door
from coca import inference
from coca.capfilt.models import Models
from coca.capfilt.settings import CapFilt
from coca.config.special import Special
from coca.data.questions import clean, encode_candidates
from coca.data.tokenizers import wordpiece
from coca.decoding.settings import Decoding, answer_decoding
from coca.interop import convert
from coca.interop.blip import settings as blip_settings
from coca.interop.blip import weights as blip_weights
from coca.interop.blip.transformers_files import transformers_files
from coca.storage.workdir import read_config, read_workdir
from support.common import tiny

GOLDEN = Path(__file__).parent / "golden"
VOCAB = Path(__file__).parents[1] / "data" / "tokenizers" / "golden" / "wordpiece" / "vocab.txt"
NAMES = ["captioner", "retrieval", "vqa"]
CLS, SEP, DEC, ENC = 4, 5, 123, 124  # of that vocabulary
HEADS = {"text_heads": 2}  # tiny models have not 64 a head


def tensors(name):
  found = safetensors.numpy.load_file(GOLDEN / "blip" / name / "model.safetensors")
  return {key: x.astype(np.float32) for key, x in found.items()}


@pytest.fixture(scope="session")
def expected():
  return np.load(GOLDEN / "blip" / "outputs.npz")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
  """Folders as transformers saves them."""
  folder = tmp_path_factory.mktemp("published")
  for name in NAMES:
    shutil.copytree(GOLDEN / "blip" / name, folder / name)
    shutil.copy(VOCAB, folder / name)
  return folder


@pytest.fixture(scope="session")
def converted(published, tmp_path_factory):
  out = tmp_path_factory.mktemp("converted")
  for name in NAMES:
    convert.from_blip(published / name, out / name, matching_token="cls", **HEADS)
  return out


def load(folder):
  return inference.load(folder, devices=jax.devices()[:4])  # of the tests' eight: there are four pictures


def run(model, function, *args):
  return jax.jit(lambda params, *args: function(nnx.merge(model.forward.graphdef, params), *args))(model.params, *args)


# --- The same outputs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_embeddings_and_matching_are_those_of_transformers(converted, expected):
  model = load(converted / "retrieval")
  forward, image, text = model.forward, expected["image"], expected["text"]
  similarity = forward.embed_images(model.params, image) @ forward.embed_texts(model.params, text).T
  np.testing.assert_allclose(similarity, expected["similarity"], rtol=0, atol=2e-6)
  logits = run(
    model, lambda m, image, text: m.match(m.ground(None, text, m.image_encoder(image)), text), image, text[:, None]
  )
  np.testing.assert_allclose(logits.reshape(4, 2), expected["matching"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_token_of_matching(converted, published, expected, tmp_path):
  """BLIP was trained with [ENC] in front; transformers' classes leave [CLS] there."""
  convert.from_blip(published / "retrieval", tmp_path / "enc", **HEADS)
  scores = []
  for folder, token in ((converted / "retrieval", CLS), (tmp_path / "enc", ENC)):
    model = load(folder)
    assert (model.config.model.med.cls, model.config.model.med.encode) == (CLS, token)
    encoded = model.forward.encode(model.params, expected["image"])
    scores.append(np.asarray(model.forward.score(model.params, encoded, expected["text"][:, None]).match_logit)[:, 0])
  np.testing.assert_allclose(scores[0], expected["matching"][:, 1], rtol=0, atol=1e-5)
  assert np.abs(scores[1] - scores[0]).min() > 0.01


def written(texts):
  """Rows up to the first [SEP]; transformers fills them up with more of these."""
  return [row[: row.index(SEP) + 1] if SEP in row else row for row in np.asarray(texts).tolist()]


@pytest.mark.slow
def test_logits_and_captions_are_those_of_transformers(converted, expected):
  model = load(converted / "captioner")
  forward, image, text = model.forward, expected["image"], expected["text"].copy()
  text[:, 0] = DEC
  logits = run(model, lambda m, image, text: m.logits(m(image, text, contrast=False).states), image, text)
  np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5)

  beams = {"strategy": "beam", "beams": 3, "max_length": 12, "min_length": 4}
  decoded = forward.caption(
    forward.writer(model.params), forward.encode(model.params, image), Decoding(**beams), special=Special(DEC, SEP)
  ).text
  wanted = written(expected["captions"])
  assert [row[: len(w)] for row, w in zip(np.asarray(decoded)[:, 0].tolist(), wanted, strict=True)] == wanted
  # transformers puts [DEC] in the place of the prompt's [CLS] and drops its [SEP].
  assert expected["prompted"][:, 0].tolist() == [DEC] * 4
  captions = model.caption(image, "a picture of ", **beams)
  assert captions == [model.tokenizer.decode(row[1:]) for row in expected["prompted"]]
  assert all(caption.startswith("a picture of ") for caption in captions)
  # Without a prompt of one's own, the captioner's is read and left out.
  assert model.caption(image, **beams) == [caption.removeprefix("a picture of ") for caption in captions]


@pytest.mark.slow
def test_answers_are_those_of_transformers(converted, expected):
  model = load(converted / "vqa")
  forward, image, question = model.forward, expected["image"], expected["text"]

  def losses(m, image, question, answer):
    log_p = jax.nn.log_softmax(m.logits(m.answer(m.ask(m.image_encoder(image), question), answer[:, None])[:, :-1]))
    label = answer[:, 1:]
    loss = -0.9 * jax.numpy.take_along_axis(log_p, label[..., None], 2)[..., 0] - 0.1 * log_p.mean(2)
    return (loss * (label != 0)).sum(1) / (label != 0).sum(1)

  found = run(model, losses, image, question, expected["answer"])
  np.testing.assert_allclose(found, expected["answer_losses"], rtol=0, atol=1e-5)
  answers = forward.answer(
    forward.writer(model.params),
    forward.encode(model.params, image),
    question,
    Decoding(strategy="beam", beams=3, max_length=6),
    special=Special(DEC, SEP),
  )
  assert np.asarray(answers.text)[:, 0].tolist() == expected["answers"].tolist()


@pytest.mark.slow
def test_answers_to_questions_as_texts(converted, expected):
  model = load(converted / "vqa")
  questions = [model.tokenizer.decode(row[1:]) for row in expected["text"]]
  forward, special = model.forward, Special(DEC, SEP)
  rows = np.stack([model.tokenizer.encode(clean(q), model.config.model.text.length) for q in questions])
  encoded = forward.encode(model.params, expected["image"])
  ids = forward.answer(forward.writer(model.params), encoded, rows, answer_decoding(10), special=special).text[:, 0]
  assert model.answer(expected["image"], questions) == [model.tokenizer.decode(row[1:]) for row in np.asarray(ids)]
  possible = ["a", "a picture", "of a picture", "picture"]
  best = forward.rank_answers(model.params, encoded, rows, encode_candidates(possible, model.tokenizer, 9), 3)
  assert model.answer(expected["image"], questions, possible, rank=3) == [possible[i] for i in np.asarray(best)]
  with pytest.raises(ValueError, match="4 images and 2 questions"):
    model.answer(expected["image"], ["what", "where"])
  with pytest.raises(ValueError, match="answer takes a list of answers to choose from, not 'cat'"):
    model.answer(expected["image"], "what", "cat")
  with pytest.raises(ValueError, match="not empty"):
    model.answer(expected["image"], "!!")
  with pytest.raises(ValueError, match="writes no captions"):
    model.caption(expected["image"])
  with pytest.raises(ValueError, match=r"configs/blip_vqa\.py"):
    load(converted / "captioner").answer(expected["image"], "what")


# --- Settings --------------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_files(converted):
  for name in NAMES:
    config, tokens = read_workdir(converted / name)
    image, text, med = config.model.image, config.model.text, config.model.med
    assert (config.name, config.model.kind, config.model.activation) == (name, "blip", "gelu")
    assert (config.model.norm_eps, med.norm_eps, med.positions, med.dropout) == (1e-3, 1e-4, 40, 0.1)
    assert (image.size, image.patch, image.layers, image.class_token, image.mlp) == (12, 4, 2, True, 36)
    assert image.mean == (0.48145466, 0.4578275, 0.40821073) and image.std[0] == 0.26862954
    assert (text.vocab, text.width, text.mlp, text.heads, tokens.bos) == (125, 24, 28, 2, DEC)
    layers = {"captioner": (0, 2), "retrieval": (2, 0), "vqa": (2, 2)}[name]
    assert (text.unimodal_layers, text.multimodal_layers) == layers
    weights = [x.weight for x in (config.contrastive, config.matching, config.captioning, config.answering)]
    assert weights == {"captioner": [0, 0, 1, 0], "retrieval": [1, 1, 0, 0], "vqa": [0, 0, 0, 1]}[name]
    assert text.length == {"captioner": 40, "retrieval": 35, "vqa": 35}[name]
    assert config.captioning.label_smoothing == 0.1
    assert (config.data.prompt, config.captioning.prompt_tokens) == (
      ("a picture of ", 3) if name == "captioner" else ("", 0)
    )


def settings(change=lambda c: None, name="captioner"):
  found = json.loads((GOLDEN / "blip" / name / "config.json").read_text())
  change(found)
  return found


def text_config(**values):
  return lambda c: c["text_config"].update(values)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.update(model_type="blip-2"), "model_type is 'blip-2'; supported: 'blip'"),
    (lambda c: c.update(architectures=["BlipModel"]), r"architectures is \['BlipModel'\]; supported: BlipFor"),
    (lambda c: c.pop("architectures"), r"architectures is \[\]"),
    (lambda c: c["vision_config"].update(hidden_act="quick_gelu"), "vision_config: hidden_act is 'quick_gelu'"),
    (text_config(hidden_act="relu"), "text_config: hidden_act is 'relu'; supported: 'gelu'"),
    (text_config(is_decoder=False), "text_config: is_decoder is False"),
    (text_config(tie_word_embeddings=False), "text_config: tie_word_embeddings is False"),
    (text_config(bos_token_id=30522), "bos_token_id is 30522, and 123 in vocab.txt"),
    (text_config(sep_token_id=102), "sep_token_id is 102, and 5 in vocab.txt"),
    (lambda c: c.pop("text_config"), "text_config is missing; it takes an object"),
    (lambda c: c.update(text_config=3), "text_config is 3; it takes an object"),
    (
      lambda c: c["vision_config"].update(image_size=10**400),
      "vision_config.image_size is 10+; it takes a whole number",
    ),
    (
      lambda c: c["vision_config"].update(patch_size=0),
      "vision_config.patch_size is 0; it takes a whole number from 1",
    ),
    (lambda c: c.update(architectures=[[], {}]), r"architectures is \[\[\], {}\]"),
    (text_config(layer_norm_eps="1e-5"), "text_config.layer_norm_eps is '1e-5'; it takes a number"),
  ],
)
def test_settings_of_other_models_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    blip_settings.from_transformers(settings(change), {}, wordpiece.load(VOCAB.read_bytes()), **HEADS)


@pytest.mark.parametrize(
  ("preprocess", "message"),
  [
    ({"size": {"height": 12, "width": 16}}, "the model's images are 12 x 12"),
    ({"size": {"shortest_edge": 12}}, "the model's images are 12 x 12"),
    ({"size": 24}, "size is 24"),
    ({"resample": 2}, "resample is 2; supported: 3"),
    ({"do_normalize": False}, "do_normalize is False"),
    ({"do_center_crop": True}, "do_center_crop is True"),
    ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
    ({"rescale_factor": "x"}, "rescale_factor is 'x'; it takes a number"),
    ({"image_mean": {}}, "it takes 3 numbers"),
  ],
)
def test_pictures_prepared_otherwise_are_refused(preprocess, message):
  with pytest.raises(ValueError, match=message):
    blip_settings.from_transformers(settings(), preprocess, wordpiece.load(VOCAB.read_bytes()), **HEADS)


def test_eight_heads_are_refused_unless_given():
  """transformers takes 8 where config.json says nothing, and BLIP has 12."""
  tokens = wordpiece.load(VOCAB.read_bytes())

  def config(heads, **given):
    def change(c):
      c["text_config"].update(hidden_size=768, num_attention_heads=heads)
      if heads is None:
        del c["text_config"]["num_attention_heads"]

    return blip_settings.from_transformers(settings(change), {}, tokens, **given).model.text.heads

  assert config(12) == 12
  for heads in (8, None):
    with pytest.raises(ValueError, match=r"num_attention_heads is 8, and BLIP's .* have 12.*--text_heads=8"):
      config(heads)
    assert config(heads, text_heads=8) == 8
    assert config(heads, text_heads=12) == 12


# --- The original files ----------------------------------------------------------------------------------------------


def original(found):
  """Names of the original files for those of transformers, which leaves out what is tied."""
  out = {}
  for key, x in found.items():
    key = re.sub(r"^vision_model\.encoder\.layers\.(\d+)\.(?:self_)?", r"visual_encoder.blocks.\1.", key)
    key = re.sub(r"^(visual_encoder\.blocks\.\d+\.)layer_norm", r"\1norm", key)
    key = key.replace(".projection.", ".proj.")
    key = key.replace("vision_model.embeddings.class_embedding", "visual_encoder.cls_token")
    key = key.replace("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed")
    key = key.replace("vision_model.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj.")
    out[key.replace("vision_model.post_layernorm.", "visual_encoder.norm.")] = x
  if "text_decoder.cls.predictions.bias" in out:
    out["text_decoder.cls.predictions.decoder.bias"] = out["text_decoder.cls.predictions.bias"]
    out["text_decoder.cls.predictions.decoder.weight"] = out["text_decoder.bert.embeddings.word_embeddings.weight"]
  return out


def pretraining():
  """The file of BLIP's pre-training: all parts, copies of what encoder and decoder share, and what training adds."""
  found = original(tensors("captioner") | tensors("retrieval"))
  found |= {
    "temp": np.float32(0.05),
    "queue_ptr": np.zeros(1, np.int64),
    "image_queue": np.ones((16, 8), np.float32),
    "text_queue": np.ones((16, 8), np.float32),
  }
  found |= {f"{tower}.embeddings.position_ids": np.arange(40)[None] for tower in ("text_encoder", "text_decoder.bert")}
  return found | {
    re.sub(r"^(visual_encoder|text_encoder|vision_proj|text_proj)\.", r"\1_m.", key): x * 2
    for key, x in found.items()
    if key.startswith(("vis", "text_enc", "text_proj"))
  }


def save(found, path):
  safetensors.numpy.save_file({key: np.asarray(x) for key, x in found.items()}, path)
  return path


def from_original(found, folder, **more):
  source = save(found, folder / "original.safetensors")
  convert.from_blip(source, folder / "out", tokenizer=VOCAB, **{"image_heads": 4, **HEADS, **more})
  return load(folder / "out")


def test_names_of_the_original_files():
  found, layers = original(tensors("captioner")), "text_decoder.bert.encoder.layer.1"
  assert {
    "visual_encoder.cls_token",
    "visual_encoder.pos_embed",
    "visual_encoder.patch_embed.proj.bias",
    "visual_encoder.blocks.0.attn.qkv.weight",
    "visual_encoder.blocks.1.attn.proj.bias",
    "visual_encoder.blocks.1.norm2.weight",
    "visual_encoder.blocks.0.mlp.fc1.bias",
    "visual_encoder.norm.weight",
    f"{layers}.crossattention.self.query.weight",
    f"{layers}.attention.output.LayerNorm.bias",
    f"{layers}.intermediate.dense.weight",
    "text_decoder.cls.predictions.transform.dense.weight",
  } <= set(found)


def test_a_pre_trained_model(converted, tmp_path):
  model = from_original(pretraining(), tmp_path)
  config = model.config
  assert (config.model.norm_eps, config.model.med.norm_eps) == (1e-6, 1e-12)
  assert config.model.med.sharing == "all_but_self_attention"
  assert (config.model.image.size, config.model.image.heads, config.model.embed_dim) == (12, 4, 16)
  text = config.model.text
  assert (text.unimodal_layers, text.multimodal_layers, text.length) == (2, 2, 30)
  assert [x.weight for x in (config.contrastive, config.matching, config.captioning, config.answering)] == [1, 1, 1, 0]
  np.testing.assert_allclose(model.params["temperature"]["log_scale"], np.log(20), rtol=1e-6)

  captioner, retrieval = (load(converted / name).params for name in ("captioner", "retrieval"))
  for part in ("image_encoder", "text_decoder", "caption_head"):
    jax.tree.map(np.testing.assert_array_equal, model.params[part], captioner[part])
  for part in ("image_projection", "text_projection", "matching_head"):
    jax.tree.map(np.testing.assert_array_equal, model.params[part], retrieval[part])
  own = model.params["text_encoder"]["stack"]["layers"]
  assert set(own) == {"norm_self", "self_attention"}  # all else is the decoder's
  jax.tree.map(
    np.testing.assert_array_equal, own, {part: retrieval["text_encoder"]["stack"]["layers"][part] for part in own}
  )


def test_a_pre_trained_model_as_two_of_transformers(tmp_path):
  from_original(pretraining(), tmp_path)
  with pytest.raises(ValueError, match=r"--architecture= is not what .*BlipForConditionalGeneration, BlipForImageText"):
    convert.to_transformers(tmp_path / "out", tmp_path / "back")
  with pytest.raises(ValueError, match="--architecture=BlipForQuestionAnswering is not"):
    convert.to_transformers(tmp_path / "out", tmp_path / "back", "BlipForQuestionAnswering")
  for name, architecture in (("captioner", "BlipForConditionalGeneration"), ("retrieval", "BlipForImageTextRetrieval")):
    assert convert.to_transformers(tmp_path / "out", tmp_path / name, architecture) == architecture
    same(safetensors.numpy.load_file(tmp_path / name / "model.safetensors"), tensors(name))
    convert.from_blip(tmp_path / name, tmp_path / f"{name}_again", **HEADS)
    assert read_config(tmp_path / f"{name}_again").model.norm_eps == 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_other_original_files(name, converted, tmp_path):
  heads = {"image_heads": 3 if name == "vqa" else 4}
  model = from_original({f"module.{key}": x for key, x in original(tensors(name)).items()}, tmp_path, **heads)
  other = load(converted / name)
  jax.tree.map(np.testing.assert_array_equal, model.params, other.params)  # without a temperature: the initial one
  assert model.config.model.text == other.config.model.text and model.config.model.image == other.config.model.image


def test_copies_that_differ_are_not_shared(tmp_path):
  found = pretraining()
  found["text_encoder.encoder.layer.1.crossattention.self.value.bias"] += 1.0
  model = from_original(found, tmp_path)
  assert model.config.model.med.sharing == "none"
  values = [
    model.params[tower]["stack"]["layers"]["cross_attention"]["value"]["bias"]
    for tower in ("text_encoder", "text_decoder")
  ]
  np.testing.assert_allclose(np.asarray(values[0]) - np.asarray(values[1]), [[0] * 24, [1] * 24], atol=1e-6)

  found = pretraining()
  found["text_decoder.cls.predictions.decoder.weight"] = found["text_decoder.cls.predictions.decoder.weight"] * 2
  with pytest.raises(ValueError, match=r"word_embeddings.weight' and '.*decoder.weight' are one parameter"):
    blip_weights.to_params(blip_weights.tidy(found), model.config)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop("visual_encoder.norm.bias"), r"visual_encoder.norm.bias: missing, \[32\] expected"),
    (lambda t: t.update(extra=np.zeros(3, np.float32)), "extra: unknown"),
    (lambda t: t.pop("visual_encoder.pos_embed"), "have no 'visual_encoder.pos_embed' of 3 dimensions"),
    (
      lambda t: t.update({"vision_proj.weight": t["vision_proj.weight"][:, :8]}),
      r"vision_proj.weight: \[16, 8\] in the",
    ),
    (lambda t: t.update({"cls_head.0.weight": np.zeros(3, np.float32)}), "another architecture: a classifier"),
    (lambda t: t.update({"text_model.x": np.zeros(3, np.float32)}), "another architecture: transformers' BlipModel"),
    (lambda t: [t.pop(k) for k in list(t) if k.startswith("text_")], "have no word embeddings"),
    (lambda t: [t.pop(k) for k in list(t) if k.startswith(("text_decoder", "vision_proj"))], "none of BLIP's models"),
    (lambda t: t.update({k: x[:124] for k, x in t.items() if "word_emb" in k}), "has 125 tokens, the model only 124"),
    (
      lambda t: t.update({k: np.concatenate([x, x[:3]]) for k, x in t.items() if "word_emb" in k}),
      "are for 128 tokens, and vocab.txt has 125",
    ),
    (lambda t: t["itm_head.bias"].fill(np.nan), "'itm_head.bias' holds values that are not finite"),
  ],
  ids=range(11),
)
def test_other_weights_are_refused(change, message, tmp_path):
  found = pretraining()
  change(found)
  with pytest.raises(ValueError, match=message):
    from_original(found, tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["original.safetensors"]


def test_heads_that_the_weights_do_not_say(tmp_path):
  with pytest.raises(ValueError, match=r"how many heads the image side has, .* give --image_heads"):
    from_original(pretraining(), tmp_path, image_heads=0)


# --- The command -----------------------------------------------------------------------------------------------------


def same(found, wanted):
  assert {k: (x.dtype, x.shape, x.tobytes()) for k, x in found.items()} == {
    k: (x.dtype, x.shape, x.tobytes()) for k, x in wanted.items()
  }


@pytest.mark.parametrize("name", NAMES)
def test_back_again_is_the_same_bits(name, converted, tmp_path):
  convert.to_transformers(converted / name, tmp_path / name)
  same(safetensors.numpy.load_file(tmp_path / name / "model.safetensors"), tensors(name))
  before, after = settings(name=name), json.loads((tmp_path / name / "config.json").read_text())
  assert after["architectures"] == before["architectures"]
  for part in ("text_config", "vision_config"):
    free = {"hidden_dropout_prob", "attention_probs_dropout_prob", "eos_token_id"}
    assert {k: before[part][k] for k in after[part] if k not in free} == {
      k: x for k, x in after[part].items() if k not in free
    }
  convert.from_blip(tmp_path / name, tmp_path / "again" / name, matching_token="cls", **HEADS)
  bits = [(folder / name / "model.safetensors").read_bytes() for folder in (tmp_path / "again", converted)]
  assert bits[0] == bits[1]
  assert read_config(tmp_path / "again" / name) == read_config(converted / name)


def command(monkeypatch, *args):
  monkeypatch.setattr(sys, "argv", ["coca.convert", *map(str, args)])
  door.main()


def test_the_command_finds_out_what_it_is_given(published, converted, tmp_path, monkeypatch, capsys):
  command(monkeypatch, published / "captioner", tmp_path / "a", "--text_heads=2")
  assert f'coca.load("{tmp_path / "a"}")' in capsys.readouterr().out
  assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
    converted / "captioner" / "model.safetensors"
  ).read_bytes()
  path = save(pretraining(), tmp_path / "model_base.safetensors")
  command(monkeypatch, path, tmp_path / "b", f"--tokenizer={VOCAB}", "--text_heads=2", "--image_heads=4")
  assert read_config(tmp_path / "b").matching.weight == 1
  command(monkeypatch, tmp_path / "b", tmp_path / "c", "--to=transformers", "--architecture=BlipForImageTextRetrieval")
  said = capsys.readouterr().out
  assert f'BlipForImageTextRetrieval.from_pretrained("{tmp_path / "c"}")' in said and "put the id 124" in said
  assert {p.name for p in (tmp_path / "c").iterdir()} == {
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "vocab.txt",
  }
  with pytest.raises(SystemExit, match=r"it takes tokenizer.json, or vocab.json and merges.txt"):  # CLIP's
    command(monkeypatch, GOLDEN / "clip", tmp_path / "d")


def cut(s):
  (s / "model.safetensors").write_bytes((s / "model.safetensors").read_bytes()[:-100])


@pytest.mark.parametrize(
  ("mistake", "message"),
  [
    (cut, "is no safetensors file, or a damaged or truncated one"),
    (lambda s: (s / "vocab.txt").unlink(), "it takes vocab.txt or tokenizer.json of uncased BERT"),
    (lambda s: (s / "config.json").write_text("{"), "config.json can't be read"),
    (lambda s: (s / "config.json").write_text("[" * 100_000), "config.json can't be read: .*nested too deeply"),
    (lambda s: (s / "config.json").write_text("[]"), "config.json can't be read: it holds a list and no object"),
    (lambda s: (s / "config.json").write_text('{"a": [NaN]}'), "config.json can't be read: NaN is no number"),
    (lambda s: (s / "config.json").write_text('{"a": 1e999}'), "config.json can't be read: 1e999 is no number"),
    (lambda s: (s / "config.json").write_text("{}"), "config.json: vision_config is missing"),
    (lambda s: (s / "processor_config.json").write_text("{"), "processor_config.json can't be read"),
    (
      lambda s: (s / "processor_config.json").write_text('{"image_processor": 3}'),
      "processor_config.json: image_processor is 3; it takes an object",
    ),
    (lambda s: save(tensors("retrieval"), s / "model.safetensors"), "the weights are not those of the config"),
  ],
  ids=[
    "truncated",
    "no tokenizer",
    "config",
    "nested",
    "a list",
    "NaN",
    "1e999",
    "empty",
    "processor",
    "a number",
    "other weights",
  ],
)
def test_a_mistake_is_named_and_leaves_nothing(mistake, message, published, tmp_path):
  source = Path(shutil.copytree(published / "captioner", tmp_path / "source"))
  mistake(source)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    convert.from_blip(source, tmp_path / "out", **HEADS)
  assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_each_system_refuses_the_others_models(converted, published, tmp_path):
  with pytest.raises(ValueError, match=r"no model like that of config.model.kind 'blip'"):
    convert.to_open_clip(converted / "captioner", tmp_path / "out")
  with pytest.raises(ValueError, match=r"are for config.model.kind 'blip', not 'coca'"):
    transformers_files(tiny(), wordpiece.load(VOCAB.read_bytes()))
  with pytest.raises(ValueError, match="is there already"):
    convert.from_blip(published / "vqa", converted / "vqa", **HEADS)


# --- CapFilt ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_capfilt_takes_blip_as_captioner_and_as_filter(converted, expected):
  decoding = Decoding(strategy="sample", top_p=0.9, max_length=12, seed=3)
  folders = {"captioner": str(converted / "captioner"), "filter": str(converted / "retrieval")}
  models = Models(CapFilt(**folders, decoding=decoding, batch=4), jax.devices()[:4])
  encoded = models.encode([{"captioner": image, "filter": image} for image in expected["image"]])
  ids = np.array([5, 6, 7, 8], np.uint32)
  texts = models.read(models.write(encoded, ids))
  written = load(converted / "captioner").caption(
    expected["image"], ids=ids, strategy="sample", top_p=0.9, max_length=12, seed=3
  )
  assert texts == [[text] for text in written]  # the prompt is left out
  scores = models.score(encoded, texts)
  retrieval = load(converted / "retrieval")
  np.testing.assert_allclose(scores.matching[:, 0], retrieval.match(expected["image"], written), rtol=1e-5)
  cosines = np.sum(retrieval.embed_images(expected["image"]) * retrieval.embed_texts(written), axis=1)
  np.testing.assert_allclose(scores.contrastive[:, 0], cosines, rtol=0, atol=1e-6)
