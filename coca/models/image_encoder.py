"""The image encoder: a ViT, without class token in the paper (CoCa section 3.2, sizes in Table 1).

Shapes: B batch, S side in pixels, N patches, D width.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray, UInt8

from coca.config import Model
from coca.devices.sharding import constrain_batch, gather
from coca.models.layers import Layer, Stack
from coca.models.linear import EMBED_INIT, gathered, layer_norm, linear, spread
from coca.models.positions import resize_positions, rope_angles
from coca.models.rngs import Rngs


def sincos2d(key: PRNGKeyArray, shape: tuple[int, int]) -> Float32[Array, "positions D"]:
  """Sines and cosines of column and row, a quarter of the width each, with wavelengths from 2 pi to 10,000 times that.

  As big_vision's posemb_sincos_2d; MoCo v3's stop one short of the longest. What comes before the grid, the position of
  a class token, is 0, as in MAE.
  """
  del key  # nothing is drawn
  positions, width = shape
  side = math.isqrt(positions)
  frequencies = 10_000 ** -np.linspace(0, 1, width // 4)
  row, column = (x[:, None] * frequencies for x in np.divmod(np.arange(side**2), side))
  grid = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)
  return jnp.pad(jnp.asarray(grid, jnp.float32), ((positions - side**2, 0), (0, 0)))


def first_positions(model: Model, rngs: Rngs) -> nnx.Param:
  """Position embeddings [N, D] as they begin, one more where there is a class token."""
  image = model.image
  init = sincos2d if image.position_init == "sincos2d" else EMBED_INIT
  return nnx.Param(image.position_scale * init(rngs.params(), (image.tokens + image.class_token, image.width)))


def normalized(image: UInt8[Array, "B S S 3"], mean: tuple, std: tuple, dtype: DTypeLike) -> Float[Array, "B S S 3"]:
  """Pixels of 0 to 255: minus the mean, by the deviation of each colour, which are given between 0 and 1."""
  off, scale = (255 * np.array(x, np.float32) for x in (mean, std))
  if len(set(mean)) == len(set(std)) == 1:
    off, scale = off[0], scale[0]
  return ((image.astype(jnp.float32) - off) / scale).astype(dtype)


class ImageEncoder(nnx.Module):
  def __init__(self, model: Model, dtype: DTypeLike, rngs: Rngs):
    image = model.image
    model = replace(model, norm_eps=image.norm_eps or model.norm_eps)
    self.patch, self.dtype, self.mean, self.std = image.patch, dtype, image.mean, image.std
    self.settings = image
    self.patches = linear(image.patch**2 * 3, image.width, dtype, rngs, bias=image.patch_bias)
    self.positions = first_positions(model, rngs)
    self.class_token = nnx.Param(EMBED_INIT(rngs.params(), (image.width,))) if image.class_token else None
    self.norm_pre = layer_norm(image.width, model.norm_eps, dtype, rngs) if image.norm_pre else None
    self.stack = Stack(image.layers, lambda r: Layer(image, model, dtype, r), model, dtype, rngs)
    self.norm = layer_norm(image.width, model.norm_eps, dtype, rngs) if image.norm_post else None

  @jax.named_scope("image_encoder")
  def __call__(
    self, image: UInt8[Array, "B S S 3"], patch_noise: Float[Array, "B N"] | None = None
  ) -> Float[Array, "B kept D"]:
    """Image tokens: all N, or those kept; the class token, where there is one, comes before them.

    The images may be of another size than the config's: the grid of positions is resampled to theirs.

    With noise, the patches with the smallest values stay, as many as the config's `patch_dropout` leaves (FLIP
    section 3).
    """
    x = normalized(image, self.mean, self.std, self.dtype)
    batch, side = x.shape[0], x.shape[1] // self.patch
    # A row of a patch as one dimension: what is turned has many numbers in a row, not three.
    x = x.reshape(batch, side, self.patch, side, self.patch * 3).swapaxes(2, 3).reshape(batch, side**2, -1)
    positions = gather("positions", self.positions[...], self.dtype)
    positions = resize_positions(positions, side**2, int(self.class_token is not None))
    x = gathered(self.patches, self.dtype, "patches/")(x)
    x += spread(positions if self.class_token is None else positions[None, 1:], x.shape, self.dtype)
    keep, kept = self.settings.at(image.shape[1]).kept, None
    if patch_noise is not None and keep < x.shape[1]:
      kept = jnp.sort(jnp.argsort(patch_noise, axis=1)[:, :keep], axis=1)
      x = jnp.take_along_axis(x, kept[..., None], axis=1)
    if self.class_token is not None:
      first = self.class_token[...].astype(self.dtype) + positions[0]
      x = jnp.concatenate([spread(first, (batch, 1, x.shape[2]), self.dtype), x], axis=1)
    x = self.norm_pre(x) if self.norm_pre else x
    turn = {"turn": self._turn(side, kept)} if self.settings.rope else {}
    x = self.stack(constrain_batch(x), **turn)
    return self.norm(x) if self.norm else x

  def _turn(self, side: int, kept: Int[Array, "B kept"] | None) -> Float32[Array, "2 #B T half"]:
    """Cosines and sines for `attention.turned`; those of the class token turn nothing."""
    image, first = self.settings, int(self.class_token is not None)
    angles = jnp.asarray(rope_angles(side, image.rope, first, image.width // image.heads))
    angles = angles[None] if kept is None else angles[kept]
    angles = jnp.pad(angles, ((0, 0), (first, 0), (0, 0)))
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])
