"""timm's ViTs by their names, which are all that open_clip's settings say of them."""

import re
from dataclasses import replace
from typing import NamedTuple

from coca.config import Config, ImageEncoder, Poolers

SIZES = {  # of SigLIP's: layers, width, heads, width of the feed-forwards
  "base": (12, 768, 12, 3072),
  "large": (24, 1024, 16, 4096),
  "so400m": (27, 1152, 16, 4304),
  "giantopt": (40, 1536, 16, 6144),
}
OTHERS = {  # starts of names
  "convnext": "a ConvNeXt",
  "vitamin": "a ViTamin, which begins with convolutions",
  "fastvit": "a FastViT, which is made of convolutions for the most part",
  "vit_base_mci": "a ViT behind convolutions and batch norms",
  "eva02": "an EVA-02 with gated feed-forwards and LayerNorms inside",
}
_NAME = re.compile(r"vit_([a-z0-9]+)_patch(\d+)_siglip_(\d+)")


class Tower(NamedTuple):
  """A ViT of timm's as ours."""

  image: ImageEncoder
  poolers: Poolers
  activation: str  # which open_clip's settings do not change
  eps: float
  pool: str  # open_clip's timm_pool
  proj: str | None  # open_clip's timm_proj


def _clip(size: int, patch: int, layers: int, width: int, heads: int, mlp: int) -> Tower:
  """CLIP's ViT, but for a bias on its projection."""
  image = ImageEncoder(size=size, patch=patch, layers=layers, width=width, heads=heads, mlp=mlp)
  image = replace(image, class_token=True, patch_bias=False, norm_pre=True)
  return Tower(image, Poolers(kind="class_token", n_query=0, projection_bias=True), "gelu", 1e-5, "token", None)


def _pe(*sizes: int, class_token: bool = True) -> Tower:
  """The Perception Encoder's: RoPE, and a MAP head of 8 heads over class token and patches."""
  tower = _clip(*sizes)
  image = replace(tower.image, class_token=class_token, rope=tower.image.size // tower.image.patch)
  poolers = Poolers(kind="parallel", n_query=0, heads=8, width=image.width, mlp=4 * image.width, projection_bias=True)
  return tower._replace(image=image, poolers=poolers, pool="map")


def _eva(*sizes: int, norm_after: bool = False) -> Tower:
  """EVA-CLIP's: no bias on the keys, no LayerNorm before the first layer."""
  tower = _clip(*sizes)
  return tower._replace(image=replace(tower.image, patch_bias=True, norm_pre=False, norm_after=norm_after), eps=1e-6)


TOWERS = {
  "vit_large_patch14_clip_224": _clip(224, 14, 24, 1024, 16, 4096),
  "vit_pe_core_tiny_patch16_384": _pe(384, 16, 12, 192, 3, 768),
  "vit_pe_core_small_patch16_384": _pe(384, 16, 12, 384, 6, 1536),
  "vit_pe_core_base_patch16_224": _pe(224, 16, 12, 768, 12, 3072),
  "vit_pe_core_large_patch14_336": _pe(336, 14, 24, 1024, 16, 4096),
  "vit_pe_core_gigantic_patch14_448": _pe(448, 14, 50, 1536, 16, 8960, class_token=False),
  "eva_giant_patch14_224": _eva(224, 14, 40, 1408, 16, 6144),
  "eva02_enormous_patch14_clip_224": _eva(224, 14, 64, 1792, 16, 15360, norm_after=True),
}


def tower(name: str) -> Tower:
  """The image tower of that name.

  Of SigLIP's with a patch of 14 and 384 pixels the last 6 rows and columns go into no patch: here it has 378, as the
  same weights have under that name.

  Raises:
    ValueError: another image tower.
  """
  if name in TOWERS:
    return TOWERS[name]
  match = _NAME.fullmatch(name)
  if not match or match[1] not in SIZES:
    what = next((what for start, what in OTHERS.items() if name.startswith(start)), "a timm image tower")
    raise ValueError(
      f"timm_model_name is {name!r:.80}: {what}, which is not supported; of timm's, SigLIP's "
      f"(vit_SIZE_patch16_siglip_224; SIZE: {', '.join(SIZES)}) are, and {', '.join(TOWERS)}"
    )
  patch, size = int(match[2]), int(match[3])
  layers, width, heads, mlp = SIZES[match[1]]
  image = ImageEncoder(size=size // patch * patch, patch=patch, layers=layers, width=width, heads=heads, mlp=mlp)
  activation = "gelu_tanh" if match[1] == "giantopt" or (match[1], patch) == ("so400m", 16) else "gelu"
  return Tower(image, Poolers(kind="parallel", n_query=0, mlp=mlp, width=width), activation, 1e-6, "map", "none")


def name_of(config: Config) -> str:
  """The inverse of `tower`, by what sets the towers apart. Raises ValueError: timm has no such ViT."""
  image, model = config.model.image, config.model
  for name in (*TOWERS, *(f"vit_{size}_patch{image.patch}_siglip_{image.size}" for size in SIZES)):
    found = tower(name)
    if _shape(found.image) == _shape(image) and found.activation == model.activation:
      return name
  raise ValueError(
    f"config.model.image has {image.layers} layers of width {image.width}, and config.model.activation is "
    f"{model.activation!r}; timm's ViTs that open_clip has have others"
  )


def _shape(image: ImageEncoder) -> tuple:
  sizes = image.size, image.patch, image.layers, image.width, image.heads, image.mlp, image.rope
  return *sizes, image.class_token, image.norm_pre, image.norm_after
