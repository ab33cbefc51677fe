"""Attention on TPUs (Pallas) that reads and writes [B, T, H K], as products leave and take it: no head is cut out or
turned, and logits stay in the core.

The lanes of other heads are masked with zeros: a product over 64 lanes takes as long as one over 128, and to move lanes
takes longer. A head sees all keys at once. Backward, the logits are turned, [S, T]: sums over keys then move no lanes,
and one product in five wants a turned operand.

Shapes: B batch, T queries, S keys, H heads, K width of a head, D = H K.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from coca.devices.sharding import BATCH
from coca.models.dropout import GOLDEN, is_kept, mixed

LANES, SUBLANES = 128, 16  # of a tile, in bfloat16
LOGITS = 2**18  # of a head at a time: 1 MiB, and a few arrays of that are held
BLOCK = 2**18  # numbers of q, k or v at a time, if there are so many: the backward pass holds seven such blocks twice


def fits(t: int, s: int, width: int, masked: bool) -> bool:
  """True if there are keys enough for whole tiles, and not so many that they or their logits can't be held."""
  rows = _rows(t, s)
  # Of 4,096 keys with 128 lanes the backward pass would hold 17.9 of 16 MiB, as libtpu says.
  held = rows * s <= 2 * LOGITS and s * math.lcm(width, LANES) <= 3 * BLOCK // 2
  return held and width <= 2 * LANES and s >= SUBLANES and (not masked or t == rows >= SUBLANES)


def flash(
  parts: tuple[Array, ...],
  width: int,
  mask: Bool[Array, "#B 1 #T #S"] | None = None,
  drop: tuple[float, PRNGKeyArray] | None = None,
) -> Float[Array, "B T D"]:
  """Softmax attention of what `fits`.

  Args:
    parts: queries [B, T, D], keys and values [B, S, D]. Neighbours may be stacked as one product leaves them: (q, kv)
      with kv [2, B, S, D], or (qkv,).
    width: of a head.
    mask: True may be attended; each row must allow something.
    drop: the share of the softmax' weights that becomes 0, while the others are scaled up, and the key of its choice:
      each example's head has a number of its own, and what becomes of a weight is a hash of that and its place
      (`_kept`), the same on any mesh, forward and backward. None: none.
  """
  bias, (batch, t, d) = None, parts[0].shape[-3:]
  missing = 0 if len(parts) == 1 or mask is not None else SUBLANES - t
  if missing > 0:  # such as the one query of a pooler
    padded = jnp.pad(parts[0], ((0, 0), (0, missing), (0, 0)))
    return flash((padded, *parts[1:]), width, drop=drop)[:, :t]
  if mask is not None:
    bias = jnp.where(mask[:, 0], jnp.float32(0), jnp.finfo(jnp.float32).min)
    bias = jnp.broadcast_to(bias, (len(bias), t, parts[-1].shape[-2]))
  rate, seeds = (
    (0.0, None) if drop is None else (drop[0], jax.random.bits(drop[1], (batch, d // width)).view(jnp.int32))
  )
  local = functools.partial(_attention, width, rate)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1:
    heads = BATCH, None, "tensor"  # the partitioner can't look into a kernel
    specs = tuple(P(*[None] * (x.ndim - 3), *heads) for x in parts)
    of_bias = P() if bias is None or len(bias) < batch else P(BATCH)
    in_specs = specs, of_bias, P(BATCH, "tensor")
    local = jax.shard_map(local, in_specs=in_specs, out_specs=P(*heads), check_vma=False)
  return local(parts, bias, seeds)


def _rows(t: int, s: int) -> int:
  """Queries at a time."""
  cuts = [n for n in range(SUBLANES, t, SUBLANES) if t % n == 0 and n * s <= LOGITS]
  return cuts[-1] if cuts and t * s > LOGITS else t


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(width, rate, parts, bias, seeds):
  like = jax.ShapeDtypeStruct(parts[0].shape[-3:], parts[0].dtype)
  return _call(_forward, width, rate, [like], parts, bias, seeds)[0]


def _attention_fwd(width, rate, parts, bias, seeds):
  return _attention(width, rate, parts, bias, seeds), (parts, bias, seeds)


def _attention_bwd(width, rate, given, g):
  parts, bias, seeds = given
  turned = None if bias is None else bias.swapaxes(1, 2)
  return tuple(_call(_backward, width, rate, parts, (*parts, g), turned, seeds)), None, None


_attention.defvjp(_attention_fwd, _attention_bwd)


def _call(kernel, width, rate, outputs, inputs, bias, seeds):
  """The kernel over blocks of some examples and some heads; `outputs`: what each output is like."""
  batch, _, d = inputs[0].shape[-3:]
  tokens = max(x.shape[-2] for x in inputs)
  lanes, step = d, math.lcm(width, LANES)
  if d % step == 0:
    lanes = max((n for n in range(step, d, step) if d % n == 0 and n * tokens <= BLOCK), default=step)
    lanes = d if d * tokens <= BLOCK else lanes
  examples = max((n for n in range(1, batch + 1) if batch % n == 0 and n * tokens * lanes <= BLOCK), default=1)

  def block(x):
    stack = x.shape[:-3]
    return pl.BlockSpec((*stack, examples, x.shape[-2], lanes), lambda b, h: (*(0 for _ in stack), b, 0, h))

  def apart(refs):
    return [part for ref in refs for part in ([ref] if ref.ndim == 3 else [ref.at[i] for i in range(ref.shape[0])])]

  specs = [block(x) for x in inputs]
  if bias is not None:
    one = len(bias) == 1 < batch
    specs.append(pl.BlockSpec((1 if one else examples, *bias.shape[1:]), lambda b, h: (0 if one else b, 0, 0)))

  if seeds is not None:
    specs.append(pl.BlockSpec(memory_space=pltpu.SMEM))  # all of them: one a head

  def body(*refs):
    ins, outs = apart(refs[: len(inputs)]), apart(refs[len(specs) :])
    mask = refs[len(inputs)] if bias is not None else None
    first = pl.program_id(0) * examples * (d // width) + pl.program_id(1) * (lanes // width)

    def example(i, _):
      def drop(head, weights, query, turned=False):
        """The weights of a head from a query on, with some of them 0 and the others scaled up."""
        if seeds is None:
          return weights
        seed = refs[len(specs) - 1][first + i * (d // width) + head]
        kept = _kept(seed, rate, weights.shape, query, turned)
        return jnp.where(kept, weights / (1 - rate), 0)

      kernel(width, i, *ins, mask, drop, *outs)

    jax.lax.fori_loop(0, examples, example, None)

  return pl.pallas_call(
    body,
    grid=(batch // examples, d // lanes),
    in_specs=specs,
    out_specs=[block(x) for x in outputs],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
    cost_estimate=_cost(kernel, width, outputs, inputs),
    # On chips of two cores each takes half of the blocks.
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    name=kernel.__name__.strip("_"),
  )(*inputs, *([] if bias is None else [bias]), *([] if seeds is None else [seeds.reshape(-1)]))


def _cost(kernel, width, outputs, inputs):
  """The work of a kernel for those who plan: lanes that are zeroed are multiplied, too."""
  (batch, t, d), products = inputs[0].shape[-3:], 2 if kernel is _forward else 5
  s = inputs[-1 if kernel is _forward else -2].shape[-2]  # backward, the gradient comes behind the values
  lanes = sum(window.stop - window.start for window, _ in _heads(d, width))
  return pl.CostEstimate(
    flops=2 * products * batch * t * s * lanes,
    transcendentals=batch * d // width * t * s,
    bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs)),
  )


def _kept(seed, rate, shape, query, turned):
  """True where a weight is not dropped; [T, S] from a query on, or, turned, [S, T].

  A hash of the weight's number and the seed, which is drawn for each example's head.
  """
  t, s = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in ((1, 0) if turned else (0, 1)))
  return is_kept(mixed(((query + t) * shape[not turned] + s) * GOLDEN ^ seed), rate)


def _forward(width, i, q_ref, k_ref, v_ref, mask_ref, drop, y_ref):
  """One example's heads."""
  (t, lanes), s = q_ref.shape[1:], k_ref.shape[1]
  rows = _rows(t, s)

  def some_rows(n, _):
    some, tiles = slice(None) if rows == t else pl.ds(pl.multiple_of(n * rows, SUBLANES), rows), {}
    for head, (window, mine) in enumerate(_heads(lanes, width)):
      k, v = mine(k_ref[i, :, window]), mine(v_ref[i, :, window])
      logits = _masked(_dot(q_ref[i, some, window], k, 1, 1) * width**-0.5, mask_ref, i)
      p = jnp.exp(logits - logits.max(1, keepdims=True))
      kept = drop(head, p, n * rows)
      _add(tiles, window, _dot(kept.astype(v.dtype), v, 1, 0) / p.sum(1, keepdims=True))
    _store(y_ref, i, some, tiles)

  jax.lax.fori_loop(0, t // rows, some_rows, None)  # unrolled, all of them would be held at once


def _backward(width, i, q_ref, k_ref, v_ref, g_ref, mask_ref, drop, dq_ref, dk_ref, dv_ref):
  """One example's heads; mask_ref, and logits and what is like them, are turned."""
  (t, lanes), s = q_ref.shape[1:], k_ref.shape[1]
  rows = _rows(t, s)
  dk, dv = {}, {}
  for first in range(0, t, rows):
    some, dq = slice(first, first + rows), {}
    for head, (window, mine) in enumerate(_heads(lanes, width)):
      q, g = mine(q_ref[i, some, window]), mine(g_ref[i, some, window])
      k, v = mine(k_ref[i, :, window]), v_ref[i, :, window]
      logits = _masked(_dot(k, q, 1, 1) * width**-0.5, mask_ref, i)
      p = jnp.exp(logits - logits.max(0, keepdims=True))
      p /= p.sum(0, keepdims=True)
      dp = drop(head, _dot(v, g, 1, 1), first, turned=True)
      d_logits = (p * (dp - (p * dp).sum(0, keepdims=True)) * width**-0.5).astype(q.dtype)
      _add(dq, window, _dot(d_logits, k, 0, 0))
      _add(dk, window, _dot(d_logits, q, 1, 0))
      _add(dv, window, _dot(drop(head, p, first, turned=True).astype(g.dtype), g, 1, 0))
    _store(dq_ref, i, some, dq)
  _store(dk_ref, i, slice(None), dk)
  _store(dv_ref, i, slice(None), dv)


def _heads(lanes, width):
  """For each head the tiles that it is in, as a slice of lanes, and what zeroes the lanes of others there."""
  for first in range(0, lanes, width):
    start = first // LANES * LANES
    stop = min(-(-(first + width) // LANES) * LANES, lanes)

    def mine(x, first=first - start):
      lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
      return x if x.shape[1] == width else jnp.where((lane >= first) & (lane < first + width), x, jnp.zeros_like(x))

    yield slice(start, stop), mine


def _dot(a, b, axis_a, axis_b):
  return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)


def _masked(logits, mask_ref, i):
  return logits if mask_ref is None else logits + mask_ref[jnp.minimum(i, mask_ref.shape[0] - 1)]


def _add(tiles, window, x):
  """Adds to the sums of the tiles of a window."""
  for start in range(window.start, window.stop, LANES):
    part = x[:, start - window.start : min(start + LANES, window.stop) - window.start]
    tiles[start] = tiles[start] + part if start in tiles else part


def _store(ref, i, rows, tiles):
  for start, x in tiles.items():
    ref[i, rows, start : start + x.shape[1]] = x.astype(ref.dtype)
