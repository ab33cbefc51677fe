"""The image encoder: a ViT without class token (CoCa section 3.2, sizes in Table 1).

Shapes: B batch, S side in pixels, N patches, D width.
"""

import jax.numpy as jnp
from flax import nnx

from coca.config import Model
from coca.models.layers import EMBED_INIT, Layer, Stack, layer_norm, linear
from coca.sharding import constrain_batch, gather


class ImageEncoder(nnx.Module):
  def __init__(self, model: Model, dtype, rngs: nnx.Rngs):
    image = model.image
    self.patch, self.dtype = image.patch, dtype
    self.keep = max(1, round(image.tokens * (1 - image.patch_dropout)))
    self.patches = linear(image.patch**2 * 3, image.width, dtype, rngs)
    self.positions = nnx.Param(EMBED_INIT(rngs.params(), (image.tokens, image.width)))
    self.stack = Stack(image.layers, lambda r: Layer(image, model, dtype, r), model, dtype, rngs)
    self.norm = layer_norm(image.width, model.norm_eps, dtype, rngs)

  def __call__(self, image, patch_noise=None):
    """Image tokens.

    Args:
      image: uint8 [B, S, S, 3].
      patch_noise: float [B, N] or None. With noise, the patches with the smallest values stay, as many as the config's
        `patch_dropout` leaves (FLIP section 3).

    Returns:
      [B, N, D], or [B, kept, D].
    """
    x = image.astype(self.dtype) / 127.5 - 1
    batch, side = x.shape[0], x.shape[1] // self.patch
    x = x.reshape(batch, side, self.patch, side, self.patch, 3).swapaxes(2, 3).reshape(batch, side**2, -1)
    x = self.patches(x) + gather("positions", self.positions[...], self.dtype)
    if patch_noise is not None and self.keep < x.shape[1]:
      kept = jnp.sort(jnp.argsort(patch_noise, axis=1)[:, : self.keep], axis=1)
      x = jnp.take_along_axis(x, kept[..., None], axis=1)
    return self.norm(self.stack(constrain_batch(x)))
