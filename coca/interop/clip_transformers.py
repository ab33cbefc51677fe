"""transformers' CLIPModel and SiglipModel (SigLIP 2's at fixed sizes are the latter): settings and weights as ours, and
ours as theirs.

The settings lie in config.json, what a text or an image tower leaves unsaid is its class' default; those of images in
preprocessor_config.json. Every projection of attention is a tensor of its own, but those of SigLIP's pooler.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from coca.config import Captioning, Config, Contrastive, Data, ImageEncoder, Model, Poolers, TextDecoder, parse, to_dict
from coca.config.model import MEAN, STD
from coca.config.special import Tokenizer
from coca.config.typed import entry
from coca.interop import tensors
from coca.interop.blip.settings import check_rescaling
from coca.interop.differing import check_same
from coca.interop.tensors import Entry, linear, norm

KINDS = ("clip", "siglip")  # of config.json's model_type
CONVERT = "blip, clip, siglip"
LAYERS, PIXELS = 1000, 1 << 14  # at most: of a tower, of an image's side
_ACTIVATIONS: dict[str, Any] = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_GEMMA = 256_000  # SigLIP 2's words, whose texts keep their punctuation
_LAYER = {"layer_norm1": "norm_self", "self_attn": "self_attention", "layer_norm2": "norm_mlp", "mlp": "mlp"}


def to_config(found: dict, preprocess: dict, name: str) -> Config:
  """Our config.

  Args:
    found: of config.json.
    preprocess: of the image processor; empty: its class' defaults.
    name: what the config is to be called.

  Raises:
    ValueError: another model; what is in the way is named.
  """
  kind = found.get("model_type")
  if kind not in KINDS:
    raise ValueError(f"model_type is {kind!r:.80}, which is not supported; of transformers' models, these: {CONVERT}")
  is_clip = kind == "clip"
  vision, text = (entry(found, f"{side}_config", {}) for side in ("vision", "text"))

  def of(side: str, key: str, default, least: float = 1, most: float = 1 << 20):
    return entry(vision if side == "vision" else text, f"{side}_config.{key}", default, least, most)

  def both(key: str, default):
    pair = [of(side, key, default, 0) for side in ("vision", "text")]
    return pair if all(type(x) is str for x in pair) or pair[0] == pair[1] else _differ(key, pair)

  activations = both("hidden_act", "quick_gelu" if is_clip else "gelu_pytorch_tanh")
  if unknown := set(activations) - set(_ACTIVATIONS):
    raise ValueError(f"hidden_act is {min(unknown)!r:.80}; supported: {', '.join(_ACTIVATIONS)}")
  image_activation, text_activation = (_ACTIVATIONS[x] for x in activations)
  if not of("vision", "vision_use_head", True):
    raise ValueError("vision_config.vision_use_head is False: an image tower without SigLIP's pooler")
  size, width = of("vision", "image_size", 224, most=PIXELS), of("vision", "hidden_size", 768)
  patch, text_width = (
    of("vision", "patch_size", 32 if is_clip else 16),
    of("text", "hidden_size", 512 if is_clip else 768),
  )
  embed_dim = entry(found, "projection_dim", 512, 1) if is_clip else of("text", "projection_size", text_width)
  image = ImageEncoder(
    # Of 384 pixels and a patch of 14, as in SigLIP's largest, 6 rows and columns go into no patch.
    size=size if is_clip else size // patch * patch,
    patch=patch,
    layers=of("vision", "num_hidden_layers", 12, most=LAYERS),
    width=width,
    mlp=of("vision", "intermediate_size", 3072),
    heads=of("vision", "num_attention_heads", 12),
    class_token=is_clip,
    patch_bias=not is_clip,
    norm_pre=is_clip,
    mean=entry(preprocess, "image_mean", MEAN if is_clip else (0.5, 0.5, 0.5), most=1),
    std=entry(preprocess, "image_std", STD if is_clip else (0.5, 0.5, 0.5), most=1),
  )
  words = TextDecoder(
    vocab=of("text", "vocab_size", 49408 if is_clip else 32000),
    length=of("text", "max_position_embeddings", 77 if is_clip else 64),
    unimodal_layers=of("text", "num_hidden_layers", 12, most=LAYERS),
    multimodal_layers=0,
    width=text_width,
    mlp=of("text", "intermediate_size", 2048 if is_clip else 3072),
    heads=of("text", "num_attention_heads", 8 if is_clip else 12),
    mask="causal" if is_clip else "full",
    pool="eos" if is_clip else "last",
    projection_bias=not is_clip,
    activation="model" if text_activation == image_activation else text_activation,
  )
  poolers = Poolers(kind="class_token", n_query=0)
  if not is_clip:
    poolers = Poolers(kind="parallel", n_query=0, mlp=image.mlp, width=width)
    if embed_dim != width:
      raise ValueError(
        f"text_config.projection_size is {embed_dim}, and vision_config.hidden_size {width}: they differ"
      )
  return parse(
    to_dict(
      Config(
        name=name,
        model=Model(
          image=image,
          poolers=poolers,
          text=words,
          embed_dim=embed_dim,
          norm_eps=both("layer_norm_eps", 1e-5 if is_clip else 1e-6)[0],
          activation=image_activation,
        ),
        contrastive=Contrastive() if is_clip else Contrastive(loss="sigmoid", bias=-10.0, max_scale=0.0),
        captioning=Captioning(weight=0.0),
        data=_data(preprocess, size, is_clip),
      )
    )
  )


def from_config(config: Config, tokens: Tokenizer) -> tuple[str, dict[str, dict]]:
  """The means for transformers to build the same model: the class, and the contents of files by name.

  Args:
    config: of the model.
    tokens: its tokenizer.

  Raises:
    ValueError: transformers has no such model; the settings that are in the way are listed.
  """
  model, data = config.model, config.data
  image, text, is_clip = model.image, model.text, model.poolers.kind == "class_token"
  if text.multimodal_layers or model.poolers.kind not in ("class_token", "parallel"):
    raise ValueError(
      "of models like this one transformers has CLIP's and SigLIP's alone, without captions and with a class token or "
      f"SigLIP's pooler (config.model.text.multimodal_layers is {text.multimodal_layers}, poolers.kind "
      f"{model.poolers.kind!r}); a CoCa goes to open_clip, --to=open_clip"
    )
  for name, here, there in (
    ("contrastive.loss", config.contrastive.loss.partition("_")[0], "softmax" if is_clip else "sigmoid"),
    ("contrastive.heads", config.contrastive.heads, True),
    ("data.resize", data.resize or image.size, image.size),
  ):
    if here != there:
      raise ValueError(f"transformers has no such model: config.{name} is {here!r}; there it is {there!r}")
  if is_clip and tokens.eos == 2:
    raise ValueError(
      "transformers' CLIPModel takes a text's embedding from its highest id where EOS is 2, as it is in this model's "
      f"{tokens.file}; a model with CLIP's tokenizer can be written"
    )
  of_both = {"layer_norm_eps": model.norm_eps, "attention_dropout": 0.0}
  activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
  vision = {
    "model_type": "clip_vision_model" if is_clip else "siglip_vision_model",
    "image_size": image.size,
    "patch_size": image.patch,
    "hidden_size": image.width,
    "intermediate_size": image.mlp,
    "num_hidden_layers": image.layers,
    "num_attention_heads": image.heads,
    "hidden_act": activations.get(model.activation),
    **of_both,
  }
  words = {
    "model_type": "clip_text_model" if is_clip else "siglip_text_model",
    "vocab_size": text.vocab,
    "max_position_embeddings": text.length,
    "hidden_size": text.width,
    "intermediate_size": text.mlp,
    "num_hidden_layers": text.unimodal_layers,
    "num_attention_heads": text.heads,
    "hidden_act": activations.get(model.activation if text.activation == "model" else text.activation),
    "bos_token_id": tokens.bos if tokens.bos >= 0 else None,
    "eos_token_id": tokens.eos,
    **of_both,
  }
  architecture, embed_dim = "CLIPModel" if is_clip else "SiglipModel", model.embed_dim or text.width
  settings: dict[str, Any] = {
    "architectures": [architecture],
    "model_type": "clip" if is_clip else "siglip",
    "dtype": "float32",
    "vision_config": vision,
    "text_config": words,
  }
  if is_clip:
    settings["projection_dim"] = vision["projection_dim"] = words["projection_dim"] = embed_dim
  else:
    words["projection_size"] = embed_dim
  processor = _processor(config, is_clip)
  try:
    again = to_config(settings, processor, config.name)
  except ValueError as e:
    raise ValueError(f"transformers has no such model: {e}") from None
  check_same(config, again, "transformers")
  return architecture, {"config.json": settings, "preprocessor_config.json": processor}


def _processor(config: Config, is_clip: bool) -> dict:
  """The preparation of images, as transformers keeps it."""
  side = config.model.image.size
  whole = {"height": side, "width": side}
  # SigLIP's own only squashes.
  kind = "CLIP" if is_clip or not config.data.squash else "Siglip"
  return {
    "image_processor_type": f"{kind}ImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": whole if config.data.squash else {"shortest_edge": side},
    "do_center_crop": not config.data.squash,
    "crop_size": whole,
    "resample": {"bicubic": 3, "bilinear": 2}[config.data.filter],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(config.model.image.mean),
    "image_std": list(config.model.image.std),
  }


def tokenizer(config: Config) -> dict | None:
  """Arguments of `coca.data.tokenizers.json_file.find`. None: CLIP's tokenizer is the model's."""
  if config.model.poolers.kind == "class_token":
    return None
  return {"clean": "lower" if config.model.text.vocab == _GEMMA else "canonicalize", "fills": True}


def to_params(state_dict: Mapping[str, np.ndarray], config: Config) -> dict:
  """Our parameters, fp32. Raises ValueError as `coca.interop.tensors.to_params`."""
  found = {key.removeprefix("module."): x for key, x in state_dict.items() if not key.endswith(".position_ids")}
  return tensors.to_params(found, config, _entries(config))


def to_state_dict(params, config: Config) -> dict[str, np.ndarray]:
  """transformers' tensors, fp32, of parameters of ours."""
  out = tensors.to_state_dict(params, _entries(config))
  if config.model.poolers.kind != "class_token":
    out |= {name: out[name].reshape(1) for name in ("logit_scale", "logit_bias")}
  return out


def _entries(config: Config) -> Iterator[Entry]:
  model, is_clip = config.model, config.model.poolers.kind == "class_token"
  yield Entry("logit_scale", ("temperature/log_scale",), None, "same")
  if not is_clip:
    yield Entry("logit_bias", ("temperature/logit_bias",), None, "same")

  start = "vision_model.embeddings"
  if is_clip:
    yield Entry(f"{start}.class_embedding", ("image_encoder/class_token",), None, "same")
  yield Entry(f"{start}.patch_embedding.weight", ("image_encoder/patches/kernel",), None, "conv")
  if model.image.patch_bias:
    yield Entry(f"{start}.patch_embedding.bias", ("image_encoder/patches/bias",), None, "same")
  yield Entry(f"{start}.position_embedding.weight", ("image_encoder/positions",), None, "same")
  if model.image.norm_pre:
    yield from norm("vision_model.pre_layrnorm", "image_encoder/norm_pre")  # its name
  yield from _layers("vision_model", "image_encoder", model.image.layers)
  yield from norm("vision_model.post_layernorm", "image_encoder/norm")
  if is_clip:
    yield Entry("visual_projection.weight", ("image_projection/kernel",), None, "transposed")
  else:
    yield from _head("vision_model.head", "contrastive_pooler")

  start = "text_model.embeddings"
  yield Entry(f"{start}.token_embedding.weight", ("embedding/tokens",), None, "same")
  yield Entry(f"{start}.position_embedding.weight", ("embedding/positions",), None, "same")
  yield from _layers("text_model", "unimodal", model.text.unimodal_layers)
  yield from norm("text_model.final_layer_norm", "unimodal/norm")
  if is_clip:
    yield Entry("text_projection.weight", ("unimodal/projection/kernel",), None, "transposed")
  else:
    yield from linear("text_model.head", "unimodal/projection")


def _layers(theirs: str, ours: str, layers: int) -> Iterator[Entry]:
  for i in range(layers):
    for their_name, our_name in _LAYER.items():
      key, path = f"{theirs}.encoder.layers.{i}.{their_name}", f"{ours}/stack/layers/{our_name}"
      if their_name == "self_attn":
        for letter, part in (("q", "query"), ("k", "key"), ("v", "value")):
          yield from linear(f"{key}.{letter}_proj", f"{path}/{part}", i)
        yield from linear(f"{key}.out_proj", f"{path}/out", i)
      elif their_name == "mlp":
        yield from linear(f"{key}.fc1", f"{path}/up", i)
        yield from linear(f"{key}.fc2", f"{path}/down", i)
      else:
        yield from norm(key, path, i)


def _head(theirs: str, ours: str) -> Iterator[Entry]:
  yield Entry(f"{theirs}.probe", (f"{ours}/queries",), None, "leading")
  for kind, part, how in (("weight", "kernel", "transposed"), ("bias", "bias", "same")):
    paths = tuple(f"{ours}/attention/{x}/{part}" for x in ("query", "key", "value"))
    yield Entry(f"{theirs}.attention.in_proj_{kind}", paths, None, how)
  yield from linear(f"{theirs}.attention.out_proj", f"{ours}/attention/out")
  yield from norm(f"{theirs}.layernorm", f"{ours}/norm")
  yield from linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
  yield from linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")


def _data(preprocess: dict, size: int, is_clip: bool) -> Data:
  """The preparation of images. Raises ValueError: one that does not exist here."""
  filters: dict[int, Any] = {3: "bicubic", 2: "bilinear"}
  resample = entry(preprocess, "resample", 3)
  if resample not in filters:
    raise ValueError(f"the image processor: resample is {resample}; supported: 3 (bicubic), 2 (bilinear)")
  for key, supported in (("do_resize", True), ("do_rescale", True), ("do_normalize", True), ("do_pad", False)):
    if preprocess.get(key, supported) not in (supported, None):
      raise ValueError(f"the image processor: {key} is {preprocess[key]!r:.80}; supported: {supported}")
  check_rescaling(preprocess)
  for key in ("size", "crop_size"):
    said = preprocess.get(key)
    sides = set(said.values()) if isinstance(said, dict) else {said}
    if sides - {size, None}:
      raise ValueError(f"the image processor: {key} is {said!r:.80}, and vision_config.image_size {size}")
  said = preprocess.get("size")
  squash = not entry(preprocess, "do_center_crop", is_clip) or (isinstance(said, dict) and "height" in said)
  return Data(squash=squash, filter=filters[resample])


def _differ(key: str, pair: list):
  raise ValueError(f"{key} is {pair[0]} in vision_config and {pair[1]} in text_config; here it is one")
