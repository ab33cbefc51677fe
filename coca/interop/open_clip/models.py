"""open_clip's settings of the models that convert by their names alone."""


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
