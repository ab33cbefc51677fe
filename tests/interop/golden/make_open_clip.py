"""Makes the golden files of test_open_clip.py and test_clip.py: run it on a Python with torch and open_clip.

    PYTHONPATH=tests/benchmarks python tests/interop/golden/make_open_clip.py [NAME ...]

Per model a folder that open_clip loads (random weights, all parts of the layout in small, all widths different where
they may be) and `outputs.npz`: what open_clip computes in fp32 from the pictures and texts in it. For the tokenizer a
file of merges, made here from a few words, and the ids that open_clip's own tokenizer gives with it.
"""

import functools
import gzip
import json
import sys
from pathlib import Path

import numpy as np
from peer_open_clip import import_open_clip

open_clip, torch = import_open_clip()
timm = open_clip.timm_model.timm  # whose import needs what open_clip's does
eva = timm.models.eva

HERE = Path(__file__).parent
TOKENIZERS = HERE.parents[1] / "data" / "tokenizers" / "golden"
TEXT = {"context_length": 9, "vocab_size": 560, "width": 24, "heads": 2, "layers": 2}
VISION = {"image_size": 24, "patch_size": 8, "layers": 2, "width": 48, "head_width": 12}
MULTIMODAL = {"context_length": 9, "vocab_size": 560, "width": 24, "heads": 2, "layers": 2}
POOLED = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 6, "output_tokens": True}
CAPTIONING = {
  "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
  "multimodal_cfg": MULTIMODAL,
  "custom_text": True,
}
EPS = {"norm_kwargs": {"eps": 1e-6}}
MODELS = {
  "coca": {"embed_dim": 24, "vision_cfg": VISION | POOLED, **CAPTIONING},
  # As coca_base: no pooler, the decoder sees all patches.
  "coca_patches": {"embed_dim": 40, "vision_cfg": VISION | {"width": 24, "output_tokens": True}, **CAPTIONING},
  "clip": {"embed_dim": 40, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
  # As ViT-L-14-CLIPA, with OpenVision's epsilon and text activation.
  "openvision": {
    "embed_dim": 40,
    "vision_cfg": VISION | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True} | EPS,
    "text_cfg": TEXT | {"pool_type": "last", "no_causal_mask": True, "act_kwargs": {"approximate": "tanh"}} | EPS,
  },
  # As ViT-H-14-worldwide (MetaCLIP 2), whose EOS is not its tokenizer's last id.
  "metaclip2": {"embed_dim": 40, "vision_cfg": VISION, "text_cfg": TEXT | {"pool_type": "eos", "eos_id": 2}},
  # As ViT-gopt-16-SigLIP2-256: the towers' widths differ. Its ViT is registered below.
  "siglip": {
    "embed_dim": 48,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 24, "timm_pool": "map", "timm_proj": "none"}
    | {"timm_model_name": "vit_test_patch8_siglip_24", "timm_model_pretrained": False},
    "text_cfg": TEXT
    | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "act_kwargs": {"approximate": "tanh"}}
    | EPS,
  },
  # As PE-Core-L-14-336, PE-Core-bigG-14-448, MobileCLIP2-L-14, EVA01-g-14 and EVA02-E-14, with ViTs as below.
  **{
    name: {
      "embed_dim": 40,
      "custom_text": True,
      "vision_cfg": {"image_size": 24, "timm_pool": pool, "timm_proj": None}
      | {"timm_model_name": f"vit_test_{name}", "timm_model_pretrained": False},
      "text_cfg": TEXT,
    }
    for name, pool in [
      ("pe", "map"),
      ("pe_no_class", "map"),
      ("timm_clip", "token"),
      ("eva", "token"),
      ("eva_e", "token"),
    ]
  },
}
PREPROCESS = {
  "mean": [0.48145466, 0.4578275, 0.40821073],
  "std": [0.26862954, 0.26130258, 0.27577711],
  "interpolation": "bicubic",
  "resize_mode": "shortest",
}
MERGES = """c a|ca t</w>|d o|do g</w>|a n|an d</w>|t h|th e</w>|o n|o f</w>|p h|ph o|pho t|phot o</w>|i n|in g</w>
! !</w>|r e|re d</w>|' s</w>|i t</w>|o r|e r</w>|1 0|b l|u e</w>|bl ue</w>|Ã ©|Ã ©</w>|ð Ł|ðŁ ĺ"""
TEXTS = [
  "a photo of the cat and dog",
  "  A  PHOTO\tof\n the Cat's   dog!!",
  "caf\u00e9 caf\u00c3\u00a9 cafe\u0301",
  "&amp;lt;b&amp;gt; tom &amp; jerry",
  "red, blue; 10 (or 2010) reds!?",
  "\u201ccurly\u201d \u2018quotes\u2019 \ufb01ne \uff26ull \u2026",
  "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
  "\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0939\u093f\u0928\u094d\u0926\u0940",
  "it's I'D we'LL 's don't",
  "",
  "   ",
  "! !! !!! ?!",
  "__under_score__ #tag @me 50%",
  "\u00bd \u00b2 \u0664 \u0130stanbul stra\u00dfe",
  "thing " * 40,
  "\u200bzero\u00a0width\u3000space",
]


@timm.models.register_model
def vit_test_patch8_siglip_24(num_classes=0, **_):
  sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
  return timm.models.VisionTransformer(**sizes, class_token=False, global_pool="map", num_classes=num_classes)


def register(name: str, make, **settings) -> None:
  def entrypoint(num_classes, global_pool, **_):
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
    return make(**sizes, **settings, num_classes=num_classes, global_pool=global_pool)

  entrypoint.__name__ = f"vit_test_{name}"
  timm.models.register_model(entrypoint)


EPS_5 = {"norm_layer": functools.partial(timm.layers.LayerNorm, eps=1e-5)}
PE = {"attn_type": "rope", "use_pre_transformer_norm": True, "use_rot_pos_emb": True, "ref_feat_shape": (3, 3), **EPS_5}
PE |= {"rope_grid_indexing": "xy", "attn_pool_num_heads": 8, "attn_pool_mlp_ratio": 4.0, "mlp_ratio": 1.5}
register("pe", eva.Eva, **PE, rope_grid_offset=1.0)
register("pe_no_class", eva.Eva, **PE, class_token=False)
register("timm_clip", timm.models.VisionTransformer, mlp_ratio=1.5, pre_norm=True, **EPS_5)
register("eva", eva.Eva, mlp_ratio=1.5)
register("eva_e", eva.Eva, mlp_ratio=2.0, use_post_norm=True)


def make_model(name: str, settings: dict) -> None:
  folder = HERE / name
  folder.mkdir(exist_ok=True)
  (folder / "open_clip_config.json").write_text(
    json.dumps({"model_cfg": settings, "preprocess_cfg": PREPROCESS}, indent=2) + "\n"
  )
  torch.manual_seed(sum(map(ord, name)))
  model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
  with torch.no_grad():
    for key, x in model.named_parameters():  # nothing at a value that would hide it
      scale = x.shape[-1] ** -0.5 if x.ndim > 1 else 0.3
      is_norm = key.split(".")[-2:][0].startswith(("ln", "norm")) and key.endswith("weight")
      x.copy_(torch.randn(x.shape) * scale + is_norm)
    model.logit_scale.fill_(2.5)

  from safetensors.torch import save_file

  save_file(model.state_dict(), folder / "open_clip_model.safetensors")
  rng, length = np.random.default_rng(0), TEXT["context_length"]
  image = rng.integers(0, 256, (4, 24, 24, 3), np.uint8)
  eos = settings["text_cfg"].get("eos_id", 559)
  text = rng.integers(1 if eos > 558 else 3, 558, (4, length)).astype(np.int64)
  text[:, 0] = 558
  for row, end in enumerate((3, 5, 7, 8)):
    text[row, end], text[row, end + 1 :] = eos, 0
  mean, std = (torch.tensor(PREPROCESS[k]) for k in ("mean", "std"))
  pixels = ((torch.tensor(image) / 255 - mean) / std).permute(0, 3, 1, 2)
  with torch.no_grad():
    outputs = {
      "image_latent": model.encode_image(pixels, normalize=True),
      "text_latent": model.encode_text(torch.tensor(text), normalize=True),
    }
    if "multimodal_cfg" in settings:
      outputs["logits"] = model(pixels, torch.tensor(text), output_labels=False)["logits"]
    if name.startswith("pe"):  # at another size, without the learned positions, which are resized otherwise here
      model.visual.trunk.set_input_size(img_size=40)
      model.visual.trunk.pos_embed.zero_()
      larger = rng.integers(0, 256, (2, 40, 40, 3), np.uint8)
      latent = model.encode_image(((torch.tensor(larger) / 255 - mean) / std).permute(0, 3, 1, 2), normalize=True)
      outputs |= {"larger": torch.tensor(larger), "larger_latent": latent}
  np.savez_compressed(
    folder / "outputs.npz", image=image, text=text.astype(np.int32), **{k: v.numpy() for k, v in outputs.items()}
  )


def make_tokenizer() -> None:
  from open_clip.tokenizer import SimpleTokenizer

  folder = TOKENIZERS / "tokenizer"
  folder.mkdir(exist_ok=True)
  merges = [m for line in MERGES.splitlines() for m in line.split("|")]
  with gzip.GzipFile(folder / "bpe_simple_vocab_16e6.txt.gz", "wb", mtime=0) as f:
    f.write("\n".join(["heading", *merges]).encode())
  tokenizer = SimpleTokenizer(str(folder / "bpe_simple_vocab_16e6.txt.gz"))
  cases = [
    {"text": t, "ids": tokenizer(t, 20)[0].tolist(), "decoded": tokenizer.decode(tokenizer.encode(t)).strip()}
    for t in TEXTS
  ]
  (folder / "cases.json").write_text(json.dumps({"vocab": tokenizer.vocab_size, "cases": cases}) + "\n")


if __name__ == "__main__":
  names = sys.argv[1:] or [*MODELS, "tokenizer"]
  for name in names:
    make_tokenizer() if name == "tokenizer" else make_model(name, MODELS[name])
