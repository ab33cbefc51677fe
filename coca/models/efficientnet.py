"""EfficientNet (arXiv 1905.11946): inverted bottlenecks with squeeze-and-excite, and batch norms.

Without the classification head and the 1x1 convolution before it, as in ALIGN. What the paper leaves open is as in the
authors' tensorflow/tpu, models/official/efficientnet.

Batch norms go by the statistics of the global batch where there is a random key, which means training; those are
returned, and `coca.training.step` moves the ones of the model by them. Without a key they go by the model's own.

Shapes: B batch, S side in pixels, H rows and columns, C and D channels, N = H * H of the last stage.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from coca import config
from coca.devices.hardware import platform
from coca.devices.sharding import constrain_batch
from coca.models.image_encoder import normalized
from coca.models.layers import REMAT
from coca.models.linear import linear
from coca.models.rngs import Rngs

Statistics = dict | None  # 'mean' and 'variance' [C] of a batch norm, by the names of the modules; None: no training


class BatchNorm(nnx.Module):
  """Statistics are fp32; the variance is that of the batch, with no correction."""

  def __init__(self, width: int, eps: float):
    self.eps = eps
    self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
    self.mean, self.variance = nnx.BatchStat(jnp.zeros(width)), nnx.BatchStat(jnp.ones(width))

  def __call__(self, x: Float[Array, "B H H C"], train: bool) -> tuple[Float[Array, "B H H C"], Statistics]:
    wide, stats = x.astype(jnp.float32), None
    mean, variance = self.mean[...], self.variance[...]
    if train:
      mean = wide.mean((0, 1, 2))
      variance = jnp.maximum((wide * wide).mean((0, 1, 2)) - mean * mean, 0)
      stats = {"mean": mean, "variance": variance}
    by = self.scale[...] * jax.lax.rsqrt(variance + self.eps)
    return (wide * by + (self.bias[...] - mean * by)).astype(x.dtype), stats


class Conv(nnx.Module):
  """A convolution without bias, padded as TensorFlow's 'SAME'; `depthwise`: of each channel for itself."""

  def __init__(
    self, size: int, n_in: int, n_out: int, stride: int, dtype: DTypeLike, rngs: Rngs, depthwise: bool = False
  ):
    self.stride, self.groups, self.dtype = stride, n_in if depthwise else 1, dtype
    init = nnx.initializers.normal(math.sqrt(2 / (size**2 * (1 if depthwise else n_out))))
    self.kernel = nnx.Param(init(rngs.params(), (size, size, n_in // self.groups, n_out)))

  def __call__(self, x: Float[Array, "B H H C"]) -> Float[Array, "B h h D"]:
    if self.groups > 1 and platform() == "cpu":
      return self._by_rows(x)
    return jax.lax.conv_general_dilated(
      x,
      self.kernel[...].astype(self.dtype),
      (self.stride, self.stride),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=self.groups,
    )

  def _by_rows(self, x):
    """Depthwise as a sum over the kernel's places: on CPU up to ten times as fast as XLA's grouped convolution."""
    kernel, stride, side = self.kernel[...].astype(self.dtype)[:, :, 0], self.stride, x.shape[1]
    out = -(-side // stride)
    last = (out - 1) * stride + 1  # of the places that the kernel's first row comes to, and one more
    before, after = (max(last + len(kernel) - 1 - side, 0) + i for i in (0, 1))
    x = jnp.pad(x, ((0, 0), (before // 2, after // 2), (before // 2, after // 2), (0, 0)))

    @jax.checkpoint
    def add(y, row):
      i, weights = row
      rows = jax.lax.dynamic_slice_in_dim(x, i, last, 1)[:, ::stride]
      return y + sum(rows[:, :, j : j + last : stride] * w for j, w in enumerate(weights)), None

    y = jnp.zeros((x.shape[0], out, out, x.shape[3]), x.dtype)
    return jax.lax.scan(add, y, (jnp.arange(len(kernel)), kernel))[0]


class MBConv(nnx.Module):
  """Expand, convolve each channel, squeeze and excite, reduce; the input is added where the shape stays."""

  def __init__(self, stage: config.ConvStage, n_in: int, stride: int, eps: float, dtype: DTypeLike, rngs: Rngs):
    hidden, squeezed = n_in * stage.expansion, max(1, n_in // 4)
    self.has_skip = stride == 1 and n_in == stage.n_out
    expands = stage.expansion > 1
    self.expand = linear(n_in, hidden, dtype, rngs, bias=False) if expands else None
    self.norm_expand = BatchNorm(hidden, eps) if expands else None
    self.depthwise = Conv(stage.kernel, hidden, hidden, stride, dtype, rngs, depthwise=True)
    self.norm_depthwise = BatchNorm(hidden, eps)
    self.squeeze, self.excite = linear(hidden, squeezed, dtype, rngs), linear(squeezed, hidden, dtype, rngs)
    self.reduce, self.norm_reduce = linear(hidden, stage.n_out, dtype, rngs, bias=False), BatchNorm(stage.n_out, eps)

  def __call__(
    self, x: Float[Array, "B H H C"], drop: Float[Array, ""], key: PRNGKeyArray | None
  ) -> tuple[Float[Array, "B h h D"], dict[str, Statistics]]:
    """`drop`: the probability that an example goes past the block (stochastic depth), in training."""
    y, stats, train = x, {}, key is not None
    if self.expand is not None and self.norm_expand is not None:
      y, stats["norm_expand"] = self.norm_expand(self.expand(y), train)
      y = jax.nn.silu(y)
    y, stats["norm_depthwise"] = self.norm_depthwise(self.depthwise(y), train)
    y = jax.nn.silu(y)
    gate = self.excite(jax.nn.silu(self.squeeze(y.mean((1, 2)))))
    y, stats["norm_reduce"] = self.norm_reduce(self.reduce(y * jax.nn.sigmoid(gate)[:, None, None]), train)
    if self.has_skip:
      if key is not None:
        kept = jax.random.uniform(key, (len(y), 1, 1, 1)) >= drop
        y = jnp.where(kept, y / (1 - drop).astype(y.dtype), 0)
      y += x
    return constrain_batch(y), stats


class Blocks(nnx.Module):
  """The blocks of a stage: the first, which changes the shape, and the others, which are equal, by one scan."""

  def __init__(self, stage: config.ConvStage, model: config.Model, dtype: DTypeLike, rngs: Rngs):
    eps = model.efficientnet.norm_eps
    self.remat, self.unroll = REMAT[model.remat], model.unroll
    self.first = MBConv(stage, stage.n_in, stage.stride, eps, dtype, rngs)
    keys = jax.random.split(rngs.params(), stage.layers - 1) if stage.layers > 1 else None
    others = jax.vmap(lambda key: MBConv(stage, stage.n_out, 1, eps, dtype, Rngs(key)))
    self.layers = None if keys is None else others(keys)

  def __call__(
    self, x: Float[Array, "B H H C"], drops: Float[Array, " L"], key: PRNGKeyArray | None
  ) -> tuple[Float[Array, "B h h D"], dict]:
    keys = None if key is None else jax.random.split(key, len(drops))

    def run(block, x, drop, key):
      graphdef, state = nnx.split(block)
      return self.remat(lambda x, state: nnx.merge(graphdef, state)(x, drop, key))(x, state)

    x, first = run(self.first, x, drops[0], None if keys is None else keys[0])
    if self.layers is None:
      return x, {"first": first}
    graphdef, state = nnx.split(self.layers)

    def body(x, inputs):
      state, *rest = inputs
      return run(nnx.merge(graphdef, state), x, *rest)

    inputs = state, drops[1:], None if keys is None else keys[1:]
    x, others = jax.lax.scan(body, x, inputs, unroll=min(self.unroll, len(drops) - 1))
    return x, {"first": first, "layers": others}


class EfficientNet(nnx.Module):
  """The stages of `config.model.efficientnet.stages` are the modules stage_1, stage_2, ..."""

  def __init__(self, model: config.Model, dtype: DTypeLike, rngs: Rngs):
    settings, image = model.efficientnet, model.image
    self.mean, self.std, self.dtype, self.drop_connect = image.mean, image.std, dtype, settings.drop_connect
    self.depths = tuple(stage.layers for stage in settings.stages)
    width = settings.stages[0].n_in
    self.stem, self.norm_stem = Conv(3, 3, width, 2, dtype, rngs), BatchNorm(width, settings.norm_eps)
    for i, stage in enumerate(settings.stages, 1):
      setattr(self, f"stage_{i}", Blocks(stage, model, dtype, rngs))

  @jax.named_scope("image_encoder")
  def __call__(
    self, image: UInt8[Array, "B S S 3"], key: PRNGKeyArray | None = None
  ) -> tuple[Float[Array, "B N D"], dict]:
    """Image tokens, and in training the statistics of all batch norms, named as the model's own are."""
    x, stats = normalized(image, self.mean, self.std, self.dtype), {}
    x, stats["norm_stem"] = self.norm_stem(self.stem(x), key is not None)
    x, done, total = jax.nn.silu(x), 0, sum(self.depths)
    for i, layers in enumerate(self.depths, 1):
      drops = self.drop_connect * (done + jnp.arange(layers, dtype=jnp.float32)) / total
      own = None if key is None else jax.random.fold_in(key, i)
      x, stats[f"stage_{i}"] = getattr(self, f"stage_{i}")(x, drops, own)
      done += layers
    return x.reshape(x.shape[0], -1, x.shape[-1]), stats
