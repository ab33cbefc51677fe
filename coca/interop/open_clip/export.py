"""The settings of a model of ours as open_clip's, where it has such a model."""

from coca.config import Config
from coca.config.special import PAD, Tokenizer
from coca.data.tokenizers.json_file import JsonTokenizer
from coca.interop.differing import check_same
from coca.interop.open_clip import timm
from coca.interop.open_clip.settings import to_config


def from_config(config: Config, tokens: Tokenizer | None = None) -> dict:
  """The means for open_clip to build the same model: the contents of open_clip_config.json.

  Args:
    config: of the model.
    tokens: its tokenizer; None: CLIP's.

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
  if config.data.resize not in (0, image.size):
    raise ValueError(
      f"open_clip resizes images to the model's size, and config.data.resize is {config.data.resize}; to have them "
      "prepared otherwise there, set it to 0 in config.json"
    )
  is_timm = (poolers.kind == "parallel" and poolers.mlp > 0 and not poolers.n_query) or poolers.projection_bias
  if poolers.kind not in ("openclip", "class_token", "mean") and not is_timm:
    raise ValueError(
      f"open_clip has no such model: config.model.poolers.kind is {poolers.kind!r}; there, it is "
      "'openclip', 'class_token', 'mean', or 'parallel' with the head of SigLIP or PE"
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
  for cfg, eps in ((text_cfg, config.model.norm_eps), (vision_cfg, image.norm_eps or config.model.norm_eps)):
    if eps == 1e-6:
      cfg["norm_kwargs"] = {"eps": eps}
  if not image.norm_pre:
    vision_cfg["no_ln_pre"] = True
  if poolers.kind == "mean":
    vision_cfg |= {"pool_type": "avg", "final_ln_after_pool": not image.norm_post}
  if is_timm:
    vision_cfg = {"image_size": image.size, "timm_model_name": timm.name_of(config), "timm_model_pretrained": False}
    tower = timm.tower(vision_cfg["timm_model_name"])
    vision_cfg |= {"timm_pool": tower.pool, "timm_proj": tower.proj}
  if text.pool == "last":
    text_cfg["pool_type"] = "last"
  if text.mask == "full":
    text_cfg["no_causal_mask"] = True
  if text.projection_bias:
    text_cfg["proj_bias"] = True
  if (config.model.activation if text.activation == "model" else text.activation) == "gelu_tanh":
    text_cfg["act_kwargs"] = {"approximate": "tanh"}
  if isinstance(tokens, JsonTokenizer):
    text_cfg["hf_tokenizer_name"] = "."  # beside the settings
    strips = tokens.eos == PAD
    text_cfg["tokenizer_kwargs"] = {"strip_sep_token": True} if strips else {"clean": tokens.frame.clean}
    if text.pool == "eos":
      text_cfg |= {"pool_type": "eos", "eos_id": tokens.eos}
  if image.patch_dropout:
    vision_cfg["patch_dropout"] = image.patch_dropout
  model = {"embed_dim": config.model.embed_dim or text.width, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
  if config.model.activation == "quick_gelu":
    model["quick_gelu"] = True
  if is_timm:
    model["custom_text"] = True
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
      "interpolation": config.data.filter,
      "resize_mode": "squash" if config.data.squash else "shortest",
    },
  }
  try:
    again = to_config(settings)
  except ValueError as e:
    raise ValueError(f"open_clip has no such model: {e}") from None
  check_same(config, again, "open_clip")
  return settings
