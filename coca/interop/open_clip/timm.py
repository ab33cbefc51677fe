"""timm's ViTs of SigLIP and SigLIP 2 by their names, which are all that open_clip's settings say of them."""

import re
from typing import Any

from coca.config import Config, ImageEncoder

SIZES = {  # layers, width, heads, width of the feed-forwards
  "base": (12, 768, 12, 3072),
  "large": (24, 1024, 16, 4096),
  "so400m": (27, 1152, 16, 4304),
  "giantopt": (40, 1536, 16, 6144),
}
_NAME = re.compile(r"vit_([a-z0-9]+)_patch(\d+)_siglip_(\d+)")


def image_tower(name: str, **colours: Any) -> tuple[ImageEncoder, Any]:
  """Our image encoder of that name, and its activation, which the settings in open_clip do not change.

  Of a patch of 14 and 384 pixels the last 6 rows and columns go into no patch: here it has 378, as the same weights
  have under that name.

  Raises:
    ValueError: another image tower.
  """
  match = _NAME.fullmatch(name)
  if not match or match[1] not in SIZES:
    raise ValueError(
      f"timm_model_name is {name!r:.80}: a timm image tower, which is not supported; of timm's, SigLIP's are "
      f"(vit_SIZE_patch16_siglip_224; SIZE: {', '.join(SIZES)}), and open_clip's own towers"
    )
  patch, size = int(match[2]), int(match[3])
  layers, width, heads, mlp = SIZES[match[1]]
  image = ImageEncoder(
    size=size // patch * patch, patch=patch, layers=layers, width=width, heads=heads, mlp=mlp, **colours
  )
  return image, "gelu_tanh" if match[1] == "giantopt" or (match[1], patch) == ("so400m", 16) else "gelu"


def name_of(config: Config) -> str:
  """The inverse of `image_tower`. Raises ValueError: timm has no such ViT."""
  image, model = config.model.image, config.model
  for size, sizes in SIZES.items():
    name = f"vit_{size}_patch{image.patch}_siglip_{image.size}"
    if sizes == (image.layers, image.width, image.heads, image.mlp) and image_tower(name)[1] == model.activation:
      return name
  raise ValueError(
    f"config.model.image has {image.layers} layers of width {image.width}, and config.model.activation is "
    f"{model.activation!r}; timm's ViTs with SigLIP's head have others"
  )
