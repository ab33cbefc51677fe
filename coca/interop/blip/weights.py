"""BLIP's state_dict as our parameters, and back, in two layouts: that of the original files and that of transformers.

Both name the text side alike; `RENAMED` are the parts of names in which the image side differs. Only the original files
hold the temperature, and momentum encoders and queues, which are left out.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from coca.config import Config
from coca.interop import tensors
from coca.interop.tensors import Entry, linear, norm
from coca.models.blip import SHARED

RENAMED = {  # of the original files: of transformers
  "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
  "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
  "visual_encoder.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
  "visual_encoder.blocks.": "vision_model.encoder.layers.",
  "visual_encoder.norm.": "vision_model.post_layernorm.",
  ".norm1.": ".layer_norm1.",
  ".norm2.": ".layer_norm2.",
  ".attn.qkv.": ".self_attn.qkv.",
  ".attn.proj.": ".self_attn.projection.",
}
CLASSES = {  # transformers' classes, and how the names of their tensors begin
  "BlipForConditionalGeneration": ("vision_model.", "text_decoder."),
  "BlipForImageTextRetrieval": ("vision_model.", "text_encoder.", "vision_proj.", "text_proj.", "itm_head."),
  "BlipForQuestionAnswering": ("vision_model.", "text_encoder.", "text_decoder."),
}
OTHERS = {  # beginnings of names of models that are not read here
  "text_model.": "transformers' BlipModel, whose projections are not BLIP's; take one of " + ", ".join(CLASSES),
  "qformer.": "BLIP-2",
  "Qformer.": "BLIP-2",
  "query_tokens": "BLIP-2",
}
LEFT_OUT = ("image_queue", "text_queue", "queue_ptr", "idx_queue", "ptr_queue")
MOMENTUM = ("visual_encoder_m.", "vision_proj_m.", "text_encoder_m.", "text_proj_m.")

PARTS = {  # of a text layer: ours, theirs
  "norm_self": "attention.output.LayerNorm",
  "self_attention": "attention",
  "norm_cross": "crossattention.output.LayerNorm",
  "cross_attention": "crossattention",
  "norm_mlp": "output.LayerNorm",
  "mlp": "",  # "intermediate.dense" and "output.dense"
}


def to_params(state_dict: Mapping[str, np.ndarray], config: Config) -> dict:
  """Our parameters, fp32. A layout without temperature gets the initial one.

  Args:
    state_dict: of `tidy`.
    config: of `coca.interop.blip.settings`.

  Raises:
    ValueError: as `coca.interop.tensors.to_params`.
  """
  if config.contrastive.heads and "temp" not in state_dict:
    state_dict = {**state_dict, "temp": np.float32(config.contrastive.temperature)}
  return tensors.to_params(state_dict, config, _entries(config, is_original(state_dict)))


def to_state_dict(params, config: Config, architecture: str) -> dict[str, np.ndarray]:
  """The fp32 tensors of one of transformers' classes (`CLASSES`), which may be a part of ours."""
  start = CLASSES[architecture]
  return tensors.to_state_dict(params, [e for e in _entries(config, original=False) if e.key.startswith(start)])


def is_original(names) -> bool:
  """True if names of tensors are those of the original files."""
  return any(name.removeprefix("module.").startswith("visual_encoder.") for name in names)


def tidy(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Without what only training needs and what can be computed.

  Raises:
    ValueError: weights of another model; it is named.
  """
  found = {key.removeprefix("module."): x for key, x in state_dict.items()}
  if "cls_head.0.weight" in found and not any(".crossattention.self0." in key for key in found):
    raise ValueError(
      "these are weights of another architecture: a classifier, and not BLIP's of two images ('cls_head')"
    )
  for key in found:
    for start, what in OTHERS.items():
      if key.startswith(start):
        raise ValueError(f"these are weights of another architecture: {what} ('{key}')")
  return {
    key: x
    for key, x in found.items()
    if key not in LEFT_OUT and not key.startswith(MOMENTUM) and not key.endswith(".position_ids")
  }


def vocabulary(state_dict: Mapping[str, np.ndarray]) -> int:
  """The number of tokens that the text side knows. Raises ValueError: it has none."""
  for key, x in state_dict.items():
    if key.endswith(".embeddings.word_embeddings.weight") and x.ndim == 2:
      return len(x)
  raise ValueError("the weights have no word embeddings: they are not BLIP's, or not all of them")


def _entries(config: Config, original: bool) -> Iterator[Entry]:
  for entry in original_entries(config):
    key = entry.key
    if not original:
      for theirs, renamed in RENAMED.items():
        key = key.replace(theirs, renamed)
    yield entry._replace(key=key)


def original_entries(config: Config) -> Iterator[Entry]:
  """The tensors of an original file."""
  text, has_answering = config.model.text, config.answering.weight > 0
  yield from image_encoder(config.model.image.layers)
  n_encoder, n_decoder = text.unimodal_layers, text.multimodal_layers
  shared = SHARED[config.model.med.sharing] if n_encoder and n_decoder and not has_answering else ()
  if n_encoder:
    yield from _bert("text_encoder", "text_encoder", n_encoder, shared, looks_twice=config.classification.weight > 0)
  if n_decoder:
    yield from _bert("text_decoder.bert", "text_decoder", n_decoder, ())
    yield from vocabulary_head("text_decoder.cls.predictions", "caption_head", "text_decoder")
  yield from projections(config)
  if config.classification.weight:
    yield from linear("cls_head.0", "class_hidden")
    yield from linear("cls_head.2", "class_head")


def vocabulary_head(theirs: str, ours: str, tower: str) -> Iterator[Entry]:
  """BERT's head, whose vocabulary is that of the tower's embedding."""
  yield from linear(f"{theirs}.transform.dense", f"{ours}/transform")
  yield from norm(f"{theirs}.transform.LayerNorm", f"{ours}/norm")
  yield Entry(f"{theirs}.bias", (f"{ours}/bias",), None, "same")
  yield Entry(f"{theirs}.decoder.bias", (f"{ours}/bias",), None, "same")
  yield Entry(f"{theirs}.decoder.weight", (f"{tower}/embedding/tokens",), None, "same")


def projections(config: Config) -> Iterator[Entry]:
  """The heads of the contrastive and the matching loss, where the model has these."""
  if config.contrastive.heads:
    yield from linear("vision_proj", "image_projection")
    yield from linear("text_proj", "text_projection")
    yield Entry("temp", ("temperature/log_scale",), None, "temperature")
  if config.matching.weight:
    yield from linear("itm_head", "matching_head")


def image_encoder(layers: int) -> Iterator[Entry]:
  """The ViT, as timm names its parts."""
  theirs, ours = "visual_encoder", "image_encoder"
  yield Entry(f"{theirs}.cls_token", (f"{ours}/class_token",), None, "leading")
  yield Entry(f"{theirs}.pos_embed", (f"{ours}/positions",), None, "leading")
  yield Entry(f"{theirs}.patch_embed.proj.weight", (f"{ours}/patches/kernel",), None, "conv")
  yield Entry(f"{theirs}.patch_embed.proj.bias", (f"{ours}/patches/bias",), None, "same")
  for i in range(layers):
    key, path = f"{theirs}.blocks.{i}", f"{ours}/stack/layers"
    parts = [f"{path}/self_attention/{part}" for part in ("query", "key", "value")]
    yield from norm(f"{key}.norm1", f"{path}/norm_self", i)
    yield Entry(f"{key}.attn.qkv.weight", tuple(f"{part}/kernel" for part in parts), i, "transposed")
    yield Entry(f"{key}.attn.qkv.bias", tuple(f"{part}/bias" for part in parts), i, "same")
    yield from linear(f"{key}.attn.proj", f"{path}/self_attention/out", i)
    yield from norm(f"{key}.norm2", f"{path}/norm_mlp", i)
    yield from linear(f"{key}.mlp.fc1", f"{path}/mlp/up", i)
    yield from linear(f"{key}.mlp.fc2", f"{path}/mlp/down", i)
  yield from norm(f"{theirs}.norm", f"{ours}/norm")


def _bert(theirs: str, ours: str, layers: int, shared: tuple[str, ...], looks_twice: bool = False) -> Iterator[Entry]:
  """The text side.

  Args:
    theirs, ours: the names of it.
    layers: the number of them.
    shared: the parts of a layer that are the decoder's; with any of them the embedding is too.
    looks_twice: True of the encoder for two images.
  """
  yield from embedding(theirs, "text_decoder" if shared else ours)
  for i in range(layers):
    for part in PARTS:
      path = f"{'text_decoder' if part in shared else ours}/stack/layers/{part}"
      if looks_twice and part == "cross_attention":
        yield from _two_attentions(f"{theirs}.encoder.layer.{i}.crossattention", ours, i, i - layers // 2)
      else:
        yield from layer_part(f"{theirs}.encoder.layer.{i}", path, part, i)


def _two_attentions(key: str, ours: str, layer: int, merged: int) -> Iterator[Entry]:
  """Both cross-attentions of a layer; `merged`: its place among those that project them, below 0: they are averaged."""
  for number, name in enumerate(("cross_attention", "second_attention")):
    path = f"{ours}/stack/layers/{name}"
    for projection in ("query", "key", "value"):
      yield from linear(f"{key}.self{number}.{projection}", f"{path}/{projection}", layer)
    yield from linear(f"{key}.output.dense{number}", f"{path}/out", layer)
  if merged >= 0:
    yield from linear(f"{key}.output.merge_layer", f"{ours}/merge/layers", merged)


def embedding(theirs: str, ours: str) -> Iterator[Entry]:
  """BERT's embedding with its norm."""
  yield Entry(f"{theirs}.embeddings.word_embeddings.weight", (f"{ours}/embedding/tokens",), None, "same")
  yield Entry(f"{theirs}.embeddings.position_embeddings.weight", (f"{ours}/embedding/positions",), None, "same")
  yield from norm(f"{theirs}.embeddings.LayerNorm", f"{ours}/norm")


def layer_part(key: str, path: str, part: str, layer: int) -> Iterator[Entry]:
  """One of `PARTS` of the text layer that they call `key`, in ours of a stack."""
  if part == "mlp":
    yield from linear(f"{key}.intermediate.dense", f"{path}/up", layer)
    yield from linear(f"{key}.output.dense", f"{path}/down", layer)
  elif part.startswith("norm"):
    yield from norm(f"{key}.{PARTS[part]}", path, layer)
  else:
    for projection in ("query", "key", "value"):
      yield from linear(f"{key}.{PARTS[part]}.self.{projection}", f"{path}/{projection}", layer)
    yield from linear(f"{key}.{PARTS[part]}.output.dense", f"{path}/out", layer)
