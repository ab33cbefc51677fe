"""JAX's flash attention kernel for TPUs (Pallas), for any number of tokens and a mesh that splits whole heads."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, SegmentIds, flash_attention
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from coca.devices.sharding import BATCH

TILE, MOST = 128, 512  # tokens of a block: a multiple of the first, and no more than the second


def flash(
  q: Float[Array, "B T H K"], k: Float[Array, "B S H K"], v: Float[Array, "B S H K"]
) -> Float[Array, "B T H K"]:
  """Softmax attention without a mask; the logits of all tokens are never held at once."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return _local(q, k, v)
  heads = P(BATCH, None, "tensor", None)  # the partitioner can't look into a kernel
  return jax.shard_map(_local, in_specs=(heads,) * 3, out_specs=heads, check_vma=False)(q, k, v)


def _local(q, k, v):
  (t, s), scale = (q.shape[1], k.shape[1]), q.shape[-1] ** -0.5
  block_q, blocks_q = _blocks(t)
  block_k, blocks_k = _blocks(s)
  q, k, v = (
    jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, n - x.shape[1]), (0, 0)))
    for x, n in ((q, block_q * blocks_q), (k, block_k * blocks_k), (v, block_k * blocks_k))
  )
  segments = None
  if k.shape[2] > s:  # what is filled up is of another segment, which no query looks at
    of_k = jnp.broadcast_to((jnp.arange(k.shape[2]) >= s).astype(jnp.int32), (len(k), k.shape[2]))
    segments = SegmentIds(jnp.zeros((len(q), q.shape[2]), jnp.int32), of_k)
  sizes = BlockSizes(
    block_q=block_q,
    block_k_major=block_k,
    block_k=block_k,
    block_b=1,
    block_q_major_dkv=block_q,
    block_q_dkv=block_q,
    block_k_major_dkv=block_k,
    block_k_dkv=block_k,
    block_q_dq=block_q,
    block_k_major_dq=block_k,
    block_k_dq=block_k,
  )
  y = flash_attention(q, k, v, segment_ids=segments, sm_scale=scale, block_sizes=sizes)
  return y[:, :, :t].transpose(0, 2, 1, 3)


def _blocks(tokens: int) -> tuple[int, int]:
  """Tokens of a block, and how many: as few as `MOST` allows, filled up as little as whole tiles allow."""
  count = -(-tokens // MOST)
  return -(-tokens // (count * TILE)) * TILE, count
