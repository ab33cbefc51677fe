"""open_clip's settings (`open_clip_config.json`: "model_cfg" and "preprocess_cfg") as ours, and back.

Read here: CoCa as its coca_ViT-* models are built (a ViT with class token, one pooler or none, an appended [CLS]), and
plain CLIP with a ViT. Whatever else a config asks for is refused by name, because its weights would mean another model.
"""

import dataclasses

from coca.config import Captioning, Config, Contrastive, ImageEncoder, Model, Poolers, TextDecoder, parse, to_dict
from coca.config.differing import differing, flat
from coca.config.model import MEAN, STD
from coca.config.typed import entry

LAYERS, RATIO, PIXELS = 1000, 64, 1 << 14  # at most: of a tower, of a feed-forward to its width, of an image's side

# What these settings have to be, where a config has them at all; None stands for any value.
_BLOCKS = {
  "block_type": (None, "default"),
  "ls_init_value": (None,),
  "act_kwargs": (None, {}),
  "norm_kwargs": (None, {}),
  **dict.fromkeys(
    ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), (False,)
  ),
}
_VISION = {"pos_embed_type": ("learnable",), "pool_type": ("tok",), "final_ln_after_pool": (False,), **_BLOCKS}
_TEXT = {
  "pad_id": (0,),
  "no_causal_mask": (False,),
  "pool_type": ("argmax",),
  "proj_type": ("linear",),
  "proj_bias": (False,),
  "final_ln_after_pool": (False,),
  "tokenizer_kwargs": (None, {}, {"clean": "lower"}),
  "tokenizer_mode": (None, "clean"),
  **_BLOCKS,
}
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


def _clip(layers: int, width: int, patch: int, text_width: int, size: int = 224, **more) -> dict:
  return {
    "embed_dim": text_width,
    "vision_cfg": {"image_size": size, "layers": layers, "width": width, "patch_size": patch},
    "text_cfg": {
      "context_length": 77,
      "vocab_size": 49408,
      "width": text_width,
      "heads": text_width // 64,
      "layers": 12,
    },
    **more,
  }


def _coca(layers: int, width: int, patch: int, text_width: int) -> dict:
  c = _clip(layers, width, patch, text_width, custom_text=True)
  c["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 8, "output_tokens": True}
  c["text_cfg"] |= {"context_length": 76, "embed_cls": True, "output_tokens": True}
  c["multimodal_cfg"] = {k: c["text_cfg"][k] for k in ("context_length", "vocab_size", "width", "heads", "layers")}
  return c


MODELS = {  # by open_clip's names
  "coca_ViT-B-32": _coca(12, 768, 32, 512),
  "coca_ViT-L-14": _coca(24, 1024, 14, 768),
  "ViT-B-32": _clip(12, 768, 32, 512),
  "ViT-B-16": _clip(12, 768, 16, 512),
  "ViT-L-14": _clip(24, 1024, 14, 768),
  "ViT-L-14-336": _clip(24, 1024, 14, 768, 336),
}
MODELS |= {f"{name}-quickgelu": c | {"quick_gelu": True} for name, c in MODELS.items() if name.startswith("ViT")}


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
  size, patch = (_square(vision, f"vision_cfg.{key}", n) for key, n in (("image_size", 224), ("patch_size", 16)))
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
    norm_post=not has_pooler,
    mean=_colours(preprocess, "mean", MEAN),
    std=_colours(preprocess, "std", STD),
  )
  poolers = Poolers(kind="class_token", n_query=0)
  if has_pooler:
    poolers = Poolers(
      kind="openclip",
      n_query=entry(vision, "vision_cfg.attn_pooler_queries", 256),
      heads=entry(vision, "vision_cfg.attn_pooler_heads", 8, 1),
      norm_inputs=True,
    )
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
    decoder = dataclasses.replace(decoder, pool="eos")
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
          norm_eps=1e-5,
          activation="quick_gelu" if entry(model, "model_cfg.quick_gelu", False) else "gelu",
        ),
        contrastive=Contrastive(loss="sigmoid", bias=bias) if biased else Contrastive(),
        captioning=Captioning() if has_decoder else Captioning(weight=0.0),
      )
    )
  )


def from_config(config: Config) -> dict:
  """The means for open_clip to build the same model: the contents of open_clip_config.json.

  Raises:
    ValueError: open_clip has no such model; the settings that are in the way are listed.
  """
  if config.model.kind != "coca":
    raise ValueError(f"open_clip has no model like that of config.model.kind {config.model.kind!r}; transformers has")
  if config.model.text.two_passes or config.model.text.cross_every > 1:
    raise ValueError("open_clip has no model like MaMMUT: config.model.text.two_passes and cross_every are set")
  if not config.contrastive.heads:
    raise ValueError("open_clip's models have a contrastive side; this one has none (config.contrastive.weight is 0)")
  image, text, poolers = config.model.image, config.model.text, config.model.poolers
  if poolers.kind not in ("openclip", "class_token"):
    raise ValueError(
      f"open_clip has no such model: config.model.poolers.kind is {poolers.kind!r}; there, it is "
      "'openclip' or 'class_token'"
    )
  vision_cfg = {
    "image_size": image.size,
    "layers": image.layers,
    "width": image.width,
    "patch_size": image.patch,
    "head_width": image.width // image.heads,
    "mlp_ratio": image.mlp / image.width,
  }
  text_cfg = {
    "context_length": text.length,
    "vocab_size": text.vocab,
    "width": text.width,
    "heads": text.heads,
    "layers": text.unimodal_layers,
    "mlp_ratio": text.mlp / text.width,
  }
  if not image.norm_pre:
    vision_cfg["no_ln_pre"] = True
  if image.patch_dropout:
    vision_cfg["patch_dropout"] = image.patch_dropout
  model = {"embed_dim": config.model.embed_dim or text.width, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
  if config.model.activation == "quick_gelu":
    model["quick_gelu"] = True
  if config.contrastive.loss != "softmax":
    model["init_logit_bias"] = config.contrastive.bias
  if poolers.kind == "openclip":
    vision_cfg |= {
      "attentional_pool": True,
      "attn_pooler_queries": poolers.n_query,
      "attn_pooler_heads": poolers.heads or image.heads,
    }
  if text.multimodal_layers:
    vision_cfg["output_tokens"] = True
    text_cfg |= {"embed_cls": True, "output_tokens": True}
    model["multimodal_cfg"] = {k: text_cfg[k] for k in ("context_length", "vocab_size", "width", "heads")}
    model["multimodal_cfg"]["layers"] = text.multimodal_layers
    model["custom_text"] = True
  settings = {
    "model_cfg": model,
    "preprocess_cfg": {
      "mean": list(image.mean),
      "std": list(image.std),
      "interpolation": "bicubic",
      "resize_mode": "shortest",
    },
  }
  try:
    again = to_config(settings)
  except ValueError as e:
    raise ValueError(f"open_clip has no such model: {e}") from None
  _check_same(config, again)
  return settings


def _check_same(config: Config, again: Config) -> None:
  """`again` is what open_clip would build from what was written for `config`."""
  here, there = (flat(dataclasses.asdict(c.model)) for c in (config, again))
  for side, model in ((here, config.model), (there, again.model)):
    side["embed_dim"] = model.embed_dim or model.text.width
    side["poolers.heads"] = model.poolers.heads or model.image.heads
  if config.model.poolers.kind == again.model.poolers.kind == "class_token":  # no pooler: these mean nothing
    here |= {k: v for k, v in there.items() if k.startswith("poolers.") and not here["poolers.n_query"]}
  free = ("dtype", "remat", "attention", "unroll")
  lines = [
    f"  config.model.{name}: {ours!r} here, {theirs!r} there"
    for name, (ours, theirs) in differing(here, there).items()
    if name not in free
  ]
  if lines:
    raise ValueError("open_clip has no such model:\n" + "\n".join(lines))


def _check_decoder(embed_dim, image, poolers, decoder, text, multimodal) -> None:
  """A multimodal decoder fits the rest only in this way, in open_clip as here."""
  for what, value, expected in (
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
  for key, what in (("timm_model_name", "a timm image tower"), ("hf_model_name", "a Hugging Face text tower")):
    if value := vision.get(key) or text.get(key):
      raise ValueError(f"{key} is {value!r:.80}: {what}, which is not supported; open_clip's own towers are")
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
    ignored = {k for k in values if k.startswith(("timm_", "hf_"))}  # without their names, set above, they are unused
    unknown = sorted(set(values) - _READ[part] - ignored)
    if unknown:
      raise ValueError(
        f"{part} has settings that are not known here: {', '.join(unknown)}; CoCa2 and newer layouts are not supported"
      )
  for part, values, fixed in (("vision_cfg", vision, _VISION), ("text_cfg", text, _TEXT)):
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


def _colours(preprocess: dict, key: str, default: tuple) -> tuple[float, float, float]:
  for setting, allowed in (("interpolation", ("bicubic", "random")), ("resize_mode", ("shortest",))):
    if preprocess.get(setting, allowed[0]) not in allowed:
      raise ValueError(
        f"preprocess_cfg.{setting} is {preprocess[setting]!r:.80}; images are prepared here with {allowed[0]!r} only"
      )
  return entry(preprocess, f"preprocess_cfg.{key}", default, most=1)
