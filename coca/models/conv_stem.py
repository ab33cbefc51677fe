"""The convolutional stem in place of patches: the first three blocks of a ResNet (arXiv 1512.03385), as SimVLM's.

A ResNet's batch norm looks at the whole batch in training and at running statistics after it; SimVLM's paper does not
say what its stem has. Here it is group norm (arXiv 1803.08494), the same in both and on any mesh.

Shapes: B batch, S side in pixels, h and w sides of a map, C channels, N tokens, D width.
"""

import math
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from coca.config import Model
from coca.devices.sharding import constrain_batch
from coca.models.layers import Stack
from coca.models.linear import linear
from coca.models.rngs import Rngs

STRIDE = 16  # pixels a token, a side
GROUPS = 32


class Conv(nnx.Module):
  """A convolution without bias, and group norm."""

  def __init__(self, width: int, out: int, side: int, stride: int, dtype: DTypeLike, rngs: Any):
    conv = partial(nnx.Conv, width, out, (side, side), strides=stride, padding="SAME", use_bias=False)
    self.conv = conv(dtype=dtype, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
    # Of one channel a group, nothing would be left of a colour.
    groups = math.gcd(GROUPS, out) if out > GROUPS else out // 2
    self.norm = nnx.GroupNorm(out, num_groups=groups, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C2"]:
    return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
  """1x1, 3x3 and 1x1 convolutions, with four times the channels after the last, added to the input."""

  def __init__(self, width: int, channels: int, stride: int, dtype: DTypeLike, rngs: Rngs):
    self.reduce = Conv(width, channels, 1, 1, dtype, rngs)
    self.middle = Conv(channels, channels, 3, stride, dtype, rngs)
    self.expand = Conv(channels, 4 * channels, 1, 1, dtype, rngs)
    self.shortcut = Conv(width, 4 * channels, 1, stride, dtype, rngs) if width != 4 * channels else None

  def __call__(self, x: Float[Array, "B h w C"], key: PRNGKeyArray | None = None) -> Float[Array, "B h2 w2 C2"]:
    """`key` is for layers with dropout; not looked at."""
    del key
    y = jax.nn.relu(self.middle(jax.nn.relu(self.reduce(x))))
    return jax.nn.relu(self.expand(y) + (self.shortcut(x) if self.shortcut else x))


class ConvStem(nnx.Module):
  """7x7 convolution and max pool, both with stride 2, three blocks of bottlenecks, the last two of which halve the
  sides, and a projection to the transformer's width."""

  def __init__(self, model: Model, dtype: DTypeLike, rngs: Rngs):
    base = model.stem.width
    self.first = Conv(3, base, 7, 2, dtype, rngs)
    width, heads, rests = base, [], []
    for i, depth in enumerate(model.stem.blocks):
      channels = base * 2**i
      heads.append(Bottleneck(width, channels, 1 if i == 0 else 2, dtype, rngs))
      width = 4 * channels
      make = partial(Bottleneck, width, channels, 1, dtype)
      rests.append(Stack(depth - 1, make, model, dtype, rngs) if depth > 1 else None)
    self.heads, self.rests = nnx.List(heads), nnx.List(rests)
    self.projection = linear(width, model.image.width, dtype, rngs)

  @jax.named_scope("conv_stem")
  def __call__(self, x: Float[Array, "B S S 3"]) -> Float[Array, "B N D"]:
    x = jax.nn.relu(self.first(x))
    x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
    for head, rest in zip(self.heads, self.rests, strict=True):
      x = constrain_batch(head(x))
      x = rest(x) if rest else x
    return constrain_batch(self.projection(x.reshape(x.shape[0], -1, x.shape[-1])))
