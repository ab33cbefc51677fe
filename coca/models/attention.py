"""Multi-head attention, over a text or an image, and over a cache.

Shapes: B batch, T tokens (queries), S tokens (keys), D width, H heads, K width of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray

from coca.devices.hardware import platform
from coca.models.dropout import dropout
from coca.models.linear import KERNEL_INIT, linear, spread, stacked
from coca.models.rngs import Rngs

# Of wider layers the copies that the gradient of one product wants on TPUs take longer than one product saves: 6 % of
# the cycles of CoCa-Giant's image layers (tests/benchmarks/RESULTS.md). CoCa-Large is slower without.
WIDE = 1024

KeysValues = tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]
CachedKeysValues = tuple[Float[Array, "B H S K"], Float[Array, "B H S K"]]
Mask = Bool[Array, "#B #H #T #S"] | Float[Array, "#B #H #T #S"]  # True may be attended; or what is added to the logits
LOWEST = jnp.finfo(jnp.float32).min  # the logit of what may not be attended


class Dropout(NamedTuple):
  """That of the softmax' weights."""

  rate: float
  key: PRNGKeyArray


def _one_by_one(q, k) -> bool:
  """True if examples take turns: on CPU, the logits of one with many tokens stay in its caches."""
  mesh = jax.sharding.get_abstract_mesh()
  alone = mesh.empty or mesh.size == 1
  return alone and platform() == "cpu" and k.shape[0] > 1 and q.shape[1] * k.shape[1] >= 2**16


def _kernel(setting: str, t: int, s: int, heads: int, width: int, dtype, mask, drop: Dropout | None) -> str:
  """The kernel that `setting` comes to here: a model goes from the devices that it was trained on to others."""
  if setting == "cudnn":
    # A mask becomes a bias there, one of all queries, and its gradient wants even lengths.
    fits = drop is None and (mask is None or (mask.shape[2] == t and t % 2 == s % 2 == 0))
    fits &= platform() in ("gpu", "cuda") and jnp.dtype(dtype).itemsize == 2 and width % 8 == 0 and width <= 128
    return "cudnn" if fits else "xla"
  if setting in ("auto", "flash") and platform() == "tpu" and (mask is None or mask.shape[1] == 1):
    from coca.models.flash import fits  # Pallas is slow to import

    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    return "flash" if heads % tensor == 0 and fits(t, s, width, mask is not None) else "xla"
  return "xla"


def dot_product_attention(
  q: Float[Array, "#B T H K"],
  k: Float[Array, "B S H K"],
  v: Float[Array, "B S H K"],
  mask: Mask | None = None,
  implementation: str = "xla",
  drop: Dropout | None = None,
) -> Float[Array, "B T H K"]:
  """Softmax attention.

  Args:
    q: the queries; those of one example where k and v have more are shared.
    k: the keys.
    v: the values.
    mask: True may be attended. Each row must allow something. Numbers are added to the logits, by 'xla' alone.
    implementation: 'xla'; 'cudnn', on NVIDIA GPUs in half precision; 'flash', on TPUs; 'auto': 'flash' there.
      Elsewhere, and where a kernel does not fit, all are as 'xla'; and 'cudnn' is where weights are dropped out.
    drop: dropout of the softmax' weights; which are dropped, differs between 'flash' and the others. None: none.
  """
  if q.shape[0] != k.shape[0]:
    q = spread(q, (k.shape[0], *q.shape[1:]), q.dtype)
  _, t, heads, width = q.shape
  kernel = _kernel(implementation, t, k.shape[1], heads, width, q.dtype, mask, drop)
  if kernel == "flash":
    from coca.models.flash import flash

    parts = tuple(x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    return flash(parts, q.shape[-1], mask, drop).reshape(q.shape)
  if kernel == "cudnn":
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
  if mask is None and drop is None and _one_by_one(q, k):

    def attend(x):
      return dot_product_attention(*(y[None] for y in x))[0]

    return jax.lax.map(attend, (q, k, v))
  # Explicit [B, H, T, K] operands are a few percent faster on CPU than an einsum over the given layout.
  q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
  return _attend(q, k, v, mask, drop).transpose(0, 2, 1, 3)


def _attend(q, k, v, mask, drop=None):
  """`dot_product_attention` with the heads in front: q [B, H, T, K], k and v [B, H, S, K] -> [B, H, T, K]."""
  weights = _attention_weights(q, k, mask).astype(v.dtype)
  weights = dropout(weights, *drop) if drop else weights
  return jnp.einsum("bhts,bhsk->bhtk", weights, v)


def _attention_weights(q, k, mask=None):
  """q [B, H, T, K] and k [B, H, S, K] -> fp32 [B, H, T, S], rows sum to 1."""
  logits = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  if mask is not None:
    logits = jnp.where(mask, logits, LOWEST) if mask.dtype == bool else logits + mask
  return jax.nn.softmax(logits, axis=-1)


def turned(x: Float[Array, "B T H K"], turn: Float32[Array, "2 #B T half"]) -> Float[Array, "B T H K"]:
  """Neighbours of a head's width are the coordinates of a point, which turns by an angle of given cosine and sine."""
  cos, sin = turn[:, :, :, None]
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  a, b = pairs[..., 0], pairs[..., 1]
  return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape).astype(x.dtype)


class Attention(nnx.Module):
  """Multi-head attention; queries of width `width`, keys and values from tokens of width `kv_width`.

  With `unscaled`, logits are not divided by the root of K, and the queries begin that much smaller (T5).
  """

  def __init__(
    self,
    width: int,
    heads: int,
    dtype: DTypeLike,
    rngs: Rngs,
    *,
    kv_width: int | None = None,
    inner: int | None = None,
    out: int | None = None,
    implementation: str = "xla",
    bias: bool = True,
    unscaled: bool = False,
  ):
    inner = inner or width
    self.heads, self.implementation, self.unscaled = heads, implementation, unscaled
    smaller = nnx.initializers.variance_scaling(heads / inner, "fan_avg", "uniform")
    self.query = linear(width, inner, dtype, rngs, bias, init=smaller if unscaled else KERNEL_INIT)
    keep = "context" if kv_width else "matmul"
    self.key = linear(kv_width or width, inner, dtype, rngs, bias, keep)
    self.value = linear(kv_width or width, inner, dtype, rngs, bias, keep)
    self.out = linear(inner, out or width, dtype, rngs, bias)

  def keys_values(self, x: Float[Array, "B S kv_width"]) -> KeysValues:
    return self._split(self.key(x)), self._split(self.value(x))

  def __call__(
    self,
    x: Float[Array, "#B T D"],
    kv: KeysValues,
    mask: Mask | None = None,
    drop: Dropout | None = None,
    turn: Float32[Array, "2 #B T half"] | None = None,
  ) -> Float[Array, "B T out"]:
    """x attends to `kv`, a pair as `keys_values` returns it; `turn`: of queries and keys (`turned`)."""
    q, (k, v) = self._queries(x), kv
    if turn is not None:
      q, k = turned(q, turn), turned(k, turn)
    y = dot_product_attention(q, k, v, mask, self.implementation, drop)
    return self.out(y.reshape(*y.shape[:2], -1))

  def over(
    self,
    x: Float[Array, "B T D"],
    context: Float[Array, "B S kv_width"] | None = None,
    mask: Mask | None = None,
    drop: Dropout | None = None,
    turn: Float32[Array, "2 #B T half"] | None = None,
  ) -> Float[Array, "B T out"]:
    """x attends to `context`, or to itself.

    On TPUs what is projected from the same tokens is one product, unless they are `WIDE`.
    """
    tokens, width = x if context is None else context, self.query.out_features // self.heads
    t, s = x.shape[1], tokens.shape[1]
    kernel = _kernel(self.implementation, t, s, self.heads, width, self.query.dtype, mask, drop)
    if kernel != "flash" or turn is not None:
      return self(x, self.keys_values(tokens), mask, drop, turn)
    from coca.models.flash import flash

    if self.query.out_features > WIDE:
      parts = self.query(x), self.key(tokens), self.value(tokens)
    elif context is None:
      parts = (stacked([self.query, self.key, self.value], x),)
    else:
      parts = self.query(x), stacked([self.key, self.value], context)
    return self.out(flash(parts, width, mask, drop))

  def weights(self, x: Float[Array, "#B T D"], context: Float[Array, "B S kv_width"]) -> Float32[Array, "B T S"]:
    """The weights with which x attends to the context, the mean over the heads."""
    q, k = (self._split(y).transpose(0, 2, 1, 3) for y in (self.query(x), self.key(context)))
    return _attention_weights(jnp.broadcast_to(q, (k.shape[0], *q.shape[1:])), k).mean(axis=1)

  def cached_keys_values(self, x: Float[Array, "B S kv_width"]) -> CachedKeysValues:
    """Keys and values in the layout that is read without a copy in each step of decoding."""
    k, v = self.keys_values(x)
    return k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

  def over_cache(
    self, x: Float[Array, "B T D"], kv: CachedKeysValues, mask: Mask | None = None
  ) -> Float[Array, "B T D"]:
    """x attends to `kv`, a pair as `cached_keys_values` returns it."""
    y = _attend(self._queries(x).transpose(0, 2, 1, 3), *kv, mask)
    return self.out(y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))

  def over_tokens(
    self,
    x: Float[Array, "B T D"],
    tokens: Float[Array, "B S kv_width"],
    mask: Bool[Array, "#B #H #T #S"] | None = None,
  ) -> Float[Array, "B T D"]:
    """As `over_cache`, but from tokens without their keys and values; with kernels turned [E, D].

    The projections are moved to the few queries: q (k W) = (q W) k, and the sum of weighted tokens is projected once.
    The key's bias adds the same to all of a query's logits.
    """
    key, value = (y.kernel[...].reshape(self.heads, -1, tokens.shape[2]) for y in (self.key, self.value))
    q = jnp.einsum("bthk,hkd->bhtd", self._queries(x), key) * (key.shape[2] / key.shape[1]) ** 0.5
    y = _attend(q.reshape(x.shape[0], 1, -1, key.shape[2]), tokens[:, None], tokens[:, None], mask)
    y = jnp.einsum("bhtd,hkd->bthk", y.reshape(q.shape), value).reshape(*x.shape[:2], -1)
    bias = self.value.bias
    return self.out(y if bias is None else y + bias[...].astype(y.dtype))

  def _queries(self, x):
    """Queries [B, T, H, K] for what divides their logits by the root of K."""
    q = self._split(self.query(x))
    return q * q.shape[-1] ** 0.5 if self.unscaled else q

  def _split(self, x):
    return x.reshape(*x.shape[:2], self.heads, -1)
