"""open_clip's settings (`open_clip_config.json`: "model_cfg" and "preprocess_cfg") as ours.

Read here: CoCa as its coca_ViT-* models are built (a ViT with class token, one pooler or none, an appended [CLS]);
plain CLIP with a ViT, MetaCLIP 2's among them; CLIPA's and OpenVision's, which take the mean of the patches; those
whose ViT is timm's (`coca/interop/open_clip/timm.py`). Whatever else a config asks for is refused by name, because its
weights would mean another model.
"""

import dataclasses
from typing import Any

from coca.config import Captioning, Config, Contrastive, Data, ImageEncoder, Model, Poolers, TextDecoder, parse, to_dict
from coca.config.model import MEAN, STD
from coca.config.typed import entry
from coca.interop.open_clip import timm

CLEANERS = "whitespace", "lower", "canonicalize"
LAYERS, RATIO, PIXELS = 1000, 64, 1 << 14  # at most: of a tower, of a feed-forward to its width, of an image's side

# What these settings have to be, where a config has them at all; None stands for any value.
_BLOCKS = {
  "block_type": (None, "default"),
  "ls_init_value": (None,),
  **dict.fromkeys(
    ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), (False,)
  ),
}
_KWARGS = {"act_kwargs": (None, {}), "norm_kwargs": (None, {}, {"eps": 1e-5}, {"eps": 1e-6}), **_BLOCKS}
_VISION = {
  # Sines and cosines are among the weights, as what is learned is.
  "pos_embed_type": ("learnable", "sin_cos_2d"),
  "pool_type": ("tok", "avg"),
  "final_ln_after_pool": (False, True),
  **_KWARGS,
}
_TEXT = {
  "pad_id": (0,),
  "no_causal_mask": (False, True),
  "pool_type": ("argmax", "eos", "last"),
  "proj_type": ("linear", "none"),
  "proj_bias": (False, True),
  "final_ln_after_pool": (False,),
  "tokenizer_kwargs": (
    None,
    {},
    *({"clean": c} for c in ("whitespace", "lower", "canonicalize")),
    {"strip_sep_token": True},
  ),
  "tokenizer_mode": (None, "clean"),
  **_KWARGS,
  "act_kwargs": (None, {}, {"approximate": "tanh"}),
}
_CLIP_TOKENS = (None, {}, {"clean": "lower"})  # `tokenizer_kwargs` of CLIP's own
_READ = {
  "model_cfg": {
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "multimodal_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
  },
  "vision_cfg": {
    "image_size",
    "patch_size",
    "layers",
    "width",
    "head_width",
    "mlp_ratio",
    "patch_dropout",
    "attentional_pool",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "no_ln_pre",
    "output_tokens",
    *_VISION,
  },
  "text_cfg": {
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "embed_cls",
    "output_tokens",
    "eos_id",
    "hf_tokenizer_name",
    *_TEXT,
  },
  # The last four are there in released configs, and read by nobody.
  "multimodal_cfg": {
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "dim_head",
    "n_queries",
    "attn_pooler_heads",
  },
}


def to_config(settings: dict, name: str = "open_clip") -> Config:
  """Our config of open_clip's settings.

  Args:
    settings: of open_clip_config.json, or its "model_cfg" alone.
    name: what the config is to be called.

  Raises:
    ValueError: no such settings, or those of a model that cannot be expressed here; what is in the way is named.
  """
  model, preprocess = entry(settings, "model_cfg", settings), entry(settings, "preprocess_cfg", {})
  vision, text = (entry(model, name, dict) for name in ("vision_cfg", "text_cfg"))
  multimodal = entry(model, "multimodal_cfg", {})
  _refuse_others(model, vision, text, multimodal)
  has_decoder = model.get("multimodal_cfg") is not None
  embed_dim = entry(model, "model_cfg.embed_dim", int, 1)
  width, text_width = entry(vision, "vision_cfg.width", 768, 1), entry(text, "text_cfg.width", 512, 1)
  has_pooler = entry(vision, "vision_cfg.attentional_pool", False)
  is_timm, is_mean = vision.get("timm_model_name") is not None, vision.get("pool_type") == "avg"
  after = entry(vision, "vision_cfg.final_ln_after_pool", False)
  if (after and not is_mean) or (is_mean and has_pooler):
    raise ValueError("vision_cfg.final_ln_after_pool needs pool_type 'avg', which goes without attentional_pool")
  size, patch = (_square(vision, f"vision_cfg.{key}", n) for key, n in (("image_size", 224), ("patch_size", 16)))
  colours: Any = {key: _colours(preprocess, key, default) for key, default in (("mean", MEAN), ("std", STD))}
  activation: Any = "quick_gelu" if entry(model, "model_cfg.quick_gelu", False) else "gelu"
  tower = timm.tower(entry(vision, "vision_cfg.timm_model_name", str)) if is_timm else None
  eps, image_eps = (_eps(cfg) for cfg in (text, vision))
  image_eps = tower.eps if tower else image_eps
  text_activation = "gelu_tanh" if text.get("act_kwargs") else activation
  if tower:
    image, activation = dataclasses.replace(tower.image, **colours), tower.activation
  else:
    image = ImageEncoder(
      size=size,
      patch=patch,
      layers=entry(vision, "vision_cfg.layers", 12, most=LAYERS),
      width=width,
      mlp=int(width * entry(vision, "vision_cfg.mlp_ratio", 4.0, most=RATIO)),
      heads=width // entry(vision, "vision_cfg.head_width", 64, 1),
      patch_dropout=entry(vision, "vision_cfg.patch_dropout", 0.0, most=1),
      class_token=True,
      patch_bias=False,
      norm_pre=not entry(vision, "vision_cfg.no_ln_pre", False),
      norm_post=not (has_pooler or after),
      **colours,
    )
  poolers = Poolers(kind="mean", n_query=0, norm=after) if is_mean else Poolers(kind="class_token", n_query=0)
  if tower:
    poolers = tower.poolers
    if embed_dim != image.width and not poolers.projection_bias:
      raise ValueError(f"model_cfg.embed_dim is {embed_dim}; beside this image tower it has to be {image.width}")
  if has_pooler:
    poolers = Poolers(
      kind="openclip",
      n_query=entry(vision, "vision_cfg.attn_pooler_queries", 256),
      heads=entry(vision, "vision_cfg.attn_pooler_heads", 8, 1),
      norm_inputs=True,
    )
  if image_eps != eps:
    if poolers.kind != "class_token":  # whose norms are the model's
      raise ValueError(f"norm_kwargs.eps is {image_eps} in the image tower and {eps} in the text tower; here it is one")
    image = dataclasses.replace(image, norm_eps=image_eps)
  decoder = TextDecoder(
    vocab=entry(text, "text_cfg.vocab_size", 49408),
    length=entry(text, "text_cfg.context_length", 77),
    unimodal_layers=entry(text, "text_cfg.layers", 12, most=LAYERS),
    width=text_width,
    multimodal_layers=entry(multimodal, "multimodal_cfg.layers", 12, most=LAYERS) if has_decoder else 0,
    mlp=int(text_width * entry(text, "text_cfg.mlp_ratio", 4.0, most=RATIO)),
    heads=entry(text, "text_cfg.heads", 8),
  )
  if has_decoder:
    decoder = dataclasses.replace(decoder, cls_position=True, cls_mask="legacy", feedforwards=2, norm_context=True)
    _check_decoder(embed_dim, image, poolers, decoder, text, multimodal)
  else:
    decoder = dataclasses.replace(
      decoder,
      pool="last" if text.get("pool_type") == "last" else "eos",
      mask="full" if entry(text, "text_cfg.no_causal_mask", False) else "causal",
      projection_bias=entry(text, "text_cfg.proj_bias", False) and text.get("proj_type") != "none",
      activation="model" if text_activation == activation else text_activation,
    )
    if text.get("proj_type") == "none" and text_width != embed_dim:
      raise ValueError(f"text_cfg.proj_type is 'none', and text_cfg.width {text_width} not embed_dim, {embed_dim}")
    if has_pooler or text.get("embed_cls"):
      raise ValueError("a pooler or a [CLS] without a multimodal decoder (no 'multimodal_cfg') is no known layout")
  biased = model.get("init_logit_bias") is not None
  bias = entry(model, "model_cfg.init_logit_bias", 0.0, -1000, 1000)
  return parse(
    to_dict(
      Config(
        name=name,
        model=Model(
          image=image,
          poolers=poolers,
          text=decoder,
          embed_dim=embed_dim,
          norm_eps=eps,
          activation=activation,
        ),
        data=_data(preprocess),
        contrastive=Contrastive(loss="sigmoid", bias=bias, max_scale=0.0) if biased else Contrastive(),
        captioning=Captioning() if has_decoder else Captioning(weight=0.0),
      )
    )
  )


def tokenizer(settings: dict) -> dict | None:
  """Arguments of `coca.data.tokenizers.json_file.find`. None: CLIP's tokenizer is the model's."""
  text = entry(entry(settings, "model_cfg", settings), "text_cfg", dict)
  kwargs = entry(text, "text_cfg.tokenizer_kwargs", {})
  if not text.get("hf_tokenizer_name") or (text.get("pool_type", "argmax") == "argmax" and kwargs in _CLIP_TOKENS):
    return None
  # Padding is seen where there is no mask.
  options = {"fills": entry(text, "text_cfg.no_causal_mask", False), "strip_eos": kwargs.get("strip_sep_token", False)}
  if text.get("pool_type") == "eos":
    options["eos"] = entry(text, "text_cfg.eos_id", 2)
  return {"clean": kwargs.get("clean", "whitespace"), **options}


def _check_decoder(embed_dim, image, poolers, decoder, text, multimodal) -> None:
  """A multimodal decoder fits the rest only in this way, in open_clip as here."""
  for key, default in (("no_causal_mask", False), ("proj_bias", False), ("pool_type", "argmax"), ("act_kwargs", {})):
    if (value := text.get(key) or default) != default:
      raise ValueError(f"text_cfg.{key} is {value!r:.80}; beside the rest of this CoCa it has to be {default!r}")
  for what, value, expected in (
    ("image tokens without a class token or a pooler in front", poolers.kind in ("openclip", "class_token"), True),
    ("text_cfg.embed_cls", entry(text, "text_cfg.embed_cls", False), True),
    ("multimodal_cfg.width", entry(multimodal, "multimodal_cfg.width", 512), decoder.width),
    ("multimodal_cfg.heads", entry(multimodal, "multimodal_cfg.heads", 8), decoder.heads),
    ("multimodal_cfg.vocab_size", entry(multimodal, "multimodal_cfg.vocab_size", decoder.vocab), decoder.vocab),
    ("text_cfg.mlp_ratio", entry(text, "text_cfg.mlp_ratio", 4.0), 4.0),
    ("the decoder's image tokens' width", embed_dim if poolers.kind == "openclip" else image.width, decoder.width),
  ):
    if value != expected:
      raise ValueError(f"{what} is {value}; beside the rest of this CoCa it has to be {expected}")


def _refuse_others(model: dict, vision: dict, text: dict, multimodal: dict) -> None:
  if isinstance(vision.get("layers"), list):
    raise ValueError("vision_cfg.layers is a list: a ResNet image tower, which is not supported; ViT towers are")
  if value := text.get("hf_model_name"):
    raise ValueError(
      f"hf_model_name is {value!r:.80}: a Hugging Face text tower, which is not supported; open_clip's own towers are"
    )
  fixed_vision = _VISION
  if vision.get("timm_model_name") is not None:
    tower = timm.tower(entry(vision, "vision_cfg.timm_model_name", str))  # by name, before its settings
    # Dropout and its like are of a training that is over.
    fixed_vision = {"timm_pool": (tower.pool,), "timm_proj": (tower.proj,), **_KWARGS}
    vision = {"timm_pool": "avg", "timm_proj": "linear", **vision}
  if isinstance(vision.get("attentional_pool"), str):
    raise ValueError(
      f"vision_cfg.attentional_pool is {vision['attentional_pool']!r:.80}: the layout of CoCa2, which "
      "is not supported; CoCa's (true) is"
    )
  if any(k in multimodal for k in ("cross_attn_ratio", "does_full_decoding")):
    raise ValueError("multimodal_cfg is that of MaMMUT, whose layout is not supported")
  for part, values in (
    ("model_cfg", model),
    ("vision_cfg", vision),
    ("text_cfg", text),
    ("multimodal_cfg", multimodal),
  ):
    ignored = {k for k in values if k.startswith(("timm_", "hf_"))}  # read elsewhere, or unused without their names
    unknown = sorted(set(values) - _READ[part] - ignored)
    if unknown:
      raise ValueError(
        f"{part} has settings that are not known here: {', '.join(unknown)}; CoCa2 and newer layouts are not supported"
      )
  if not text.get("hf_tokenizer_name") and text.get("tokenizer_kwargs") not in _CLIP_TOKENS:
    raise ValueError(f"text_cfg.tokenizer_kwargs is {text['tokenizer_kwargs']!r:.80}; CLIP's tokenizer has none here")
  for part, values, fixed in (("vision_cfg", vision, fixed_vision), ("text_cfg", text, _TEXT)):
    for key, allowed in fixed.items():
      if key in values and values[key] not in allowed:
        raise ValueError(f"{part}.{key} is {values[key]!r:.80}; supported: {', '.join(map(repr, allowed))}")


def _square(cfg: dict, name: str, default: int) -> int:
  key = name.rpartition(".")[2]
  value = cfg.get(key)
  if isinstance(value, list):
    if not value or any(side != value[0] for side in value):
      raise ValueError(f"{name} is {value!r:.80}; only squares are supported")
    cfg = {key: value[0]}
  return entry(cfg, name, default, 1, PIXELS)


def _data(preprocess: dict) -> Data:
  for setting, allowed in (
    ("interpolation", ("bicubic", "bilinear", "random")),
    ("resize_mode", ("shortest", "squash")),
  ):
    if preprocess.get(setting, allowed[0]) not in allowed:
      raise ValueError(
        f"preprocess_cfg.{setting} is {preprocess[setting]!r:.80}; images are prepared here with {allowed[0]!r} or "
        f"{allowed[1]!r}"
      )
  is_bilinear = preprocess.get("interpolation") == "bilinear"
  return Data(squash=preprocess.get("resize_mode") == "squash", filter="bilinear" if is_bilinear else "bicubic")


def _eps(cfg: dict) -> float:
  return entry(cfg, "norm_kwargs", {}).get("eps", 1e-5)


def _colours(preprocess: dict, key: str, default: tuple) -> tuple[float, float, float]:
  return entry(preprocess, f"preprocess_cfg.{key}", default, most=1)
