"""The step time that libtpu's compiler expects of public models, beside the one that was measured and published.

    python tests/benchmarks/calibration.py                         # all rows, one after the other
    python tests/benchmarks/calibration.py --rows=v5e-32b,v5p-32b
    python tests/benchmarks/calibration.py --schedule              # by the compiler's finished schedules

A stand-in of MaxText's Llama-style decoder is compiled for the published chips: its sizes, batch, mesh, remat policy
and attention kernel. FLOPs are those that MaxText counts. Needs libtpu (`pip install -e '.[plan]'`).

Splash attention states no work to count its kernels by, and its schedule has the blocks, too, that it skips when it
runs; so that is counted here: the products over the blocks that the causal mask leaves, at the share of the peak that
`coca.planning.expected` takes kernels to reach.

Shapes: B batch, T tokens, D width, H heads, G heads of keys and values, K width of a head, F hidden, V vocabulary.
"""

import argparse
import contextlib
import functools
import math
import os
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from coca.devices import hardware
from coca.planning import schedule
from coca.planning.collectives import collectives
from coca.planning.expected import IN_KERNELS, costs
from coca.planning.topology import open_topology

BATCH = ("fsdp",)
# On v5e: of the published commands' LIBTPU_INIT_ARGS. On others libtpu hides all-gathers by itself, and refuses these.
OPTIONS = (
  "xla_tpu_enable_data_parallel_all_reduce_opt",
  "xla_tpu_data_parallel_opt_different_sized_ops",
  "xla_tpu_enable_async_collective_fusion",
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
  "xla_tpu_enable_async_collective_fusion_multiple_steps",
  "xla_tpu_overlap_compute_collective_tc",
  "xla_enable_async_all_gather",
)


class Row(NamedTuple):
  """A published run."""

  topology: str
  tflops: float  # a second and chip, as published
  width: int
  heads: int
  kv_heads: int
  hidden: int
  layers: int
  vocab: int
  batch: int  # sequences a chip
  length: int
  remat: str
  tensor: int  # chips that share each layer's products
  blocks: tuple[int, int, int]  # of splash attention's queries: forward, backward for keys and values, for queries


# MaxText's default model (MaxText/configs/base.yml) scaled by `global_parameter_scale` (MaxText/pyconfig.py), as in
# MaxText/configs/v5e/*.sh and v5p/*.sh; measured: the README.md beside these, of one slice.
V5 = {"vocab": 32_000, "length": 2048, "blocks": (512, 512, 512)}
ROWS = {
  "v5e-16b": Row("v5e-256", 120, 4096, 64, 64, 28672, 32, batch=6, remat="full", tensor=1, **V5),
  "v5e-32b": Row("v5e-256", 132, 8192, 64, 64, 28672, 32, batch=4, remat="full", tensor=1, **V5),
  "v5e-64b": Row("v5e-256", 118, 8192, 64, 64, 28672, 64, batch=2, remat="full", tensor=1, **V5),
  # Published with 7; here 98.9 GiB would be needed for these.
  "v5p-32b": Row("v5p-128", 328, 8192, 64, 64, 28672, 32, batch=6, remat="minimal", tensor=4, **V5),
  "v5p-64b": Row("v5p-128", 323, 8192, 64, 64, 28672, 64, batch=3, remat="minimal", tensor=4, **V5),
}
REMAT = {"full": None, "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def shapes(row: Row) -> dict[str, tuple]:
  """Parameters: shape and sharding; those of layers are stacked."""
  d, h, g, f, v, k, n = row.width, row.heads, row.kv_heads, row.hidden, row.vocab, 128, row.layers
  into, out = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")
  return {
    "embedding": ((v, d), P("tensor", "fsdp")),
    "q": ((n, d, h * k), into),
    "k": ((n, d, g * k), into),
    "v": ((n, d, g * k), into),
    "o": ((n, h * k, d), out),
    "gate": ((n, d, f), into),
    "up": ((n, d, f), into),
    "down": ((n, f, d), out),
    "norm1": ((n, d), P(None, "fsdp")),
    "norm2": ((n, d), P(None, "fsdp")),
    "norm": ((d,), P("fsdp")),
    "head": ((d, v), P("fsdp", "tensor")),
  }


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(w, spec: P):
  """A weight in bfloat16, all of it but for what tensor parallelism splits; its gradient is scattered at once."""
  left = P(*("tensor" if axis == "tensor" else None for axis in spec[-w.ndim :]))
  return jax.lax.with_sharding_constraint(w.astype(jnp.bfloat16), left)


def _gathered_bwd(spec, _, g):
  return (jax.lax.with_sharding_constraint(g, P(*spec[-g.ndim :])).astype(jnp.float32),)


gathered.defvjp(lambda w, spec: (gathered(w, spec), None), _gathered_bwd)


def rms_norm(x, scale):
  x32 = x.astype(jnp.float32)
  return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + 1e-5)).astype(jnp.bfloat16) * scale


def rope(x):
  """Rotates [B, T, H, K] by position."""
  t, half = x.shape[1], x.shape[-1] // 2
  angle = jnp.arange(t)[:, None] / 10_000.0 ** (jnp.arange(half) / half)
  sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def attention(row: Row, q, k, v):
  """Causal, by the kernel on each chip's sequences and heads. [B, T, H, K] -> the same."""
  forward, dkv, dq = (min(block, row.length) for block in row.blocks)
  sizes = splash.splash_attention_kernel.BlockSizes(
    block_q=forward, block_kv=forward, block_kv_compute=min(forward, 512), block_q_dkv=dkv, block_kv_dkv=min(dkv, 512),
    block_kv_dkv_compute=min(dkv, 512), block_q_dq=dq, block_kv_dq=min(dq, 512),
  )  # fmt: skip
  causal = splash.CausalMask((row.length, row.length))
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([causal] * (row.heads // row.tensor)), head_shards=1, q_seq_shards=1, block_sizes=sizes
  )
  spec = P("fsdp", "tensor", None, None)
  local = jax.shard_map(jax.vmap(kernel), in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
  q, k, v = (x.swapaxes(1, 2) for x in (q * 128**-0.5, k, v))
  return local(q, k, v).swapaxes(1, 2)


def loss(row: Row, params, tokens, targets):
  specs, keep = {name: spec for name, (_, spec) in shapes(row).items()}, P(BATCH, None, "tensor")
  constrain = functools.partial(jax.lax.with_sharding_constraint, shardings=keep)

  def layer(x, w):
    w = {name: gathered(value, specs[name]) for name, value in w.items()}
    y = rms_norm(x, w["norm1"])
    q, k, v = (jnp.einsum("btd,de->bte", y, w[name]).reshape(*y.shape[:2], -1, 128) for name in "qkv")
    y = attention(row, rope(q), rope(k), v).reshape(*y.shape[:2], -1)
    x = constrain(x + jnp.einsum("bte,ed->btd", y, w["o"]))
    y = rms_norm(x, w["norm2"])
    y = jax.nn.silu(jnp.einsum("btd,df->btf", y, w["gate"])) * jnp.einsum("btd,df->btf", y, w["up"])
    return constrain(x + jnp.einsum("btf,fd->btd", y, w["down"])), None

  one_hot = jax.nn.one_hot(tokens, row.vocab, dtype=jnp.bfloat16)  # use_iota_embed
  x = constrain(jnp.einsum("btv,vd->btd", one_hot, gathered(params["embedding"], specs["embedding"])))
  stacked = {name: params[name] for name, spec in specs.items() if spec[0] is None}
  x, _ = jax.lax.scan(jax.checkpoint(layer, policy=REMAT[row.remat], prevent_cse=False), x, stacked)
  x = rms_norm(x, gathered(params["norm"], specs["norm"]))
  head = gathered(params["head"], specs["head"])
  logits = jnp.einsum("btd,dv->btv", x, head, preferred_element_type=jnp.float32)
  logits = jax.lax.with_sharding_constraint(logits, P(BATCH, None, "tensor"))
  return jnp.mean(optax.softmax_cross_entropy(logits, jax.nn.one_hot(targets, row.vocab)))


def step(row: Row, optimizer, state, tokens, targets):
  params, opt = state
  value, grads = jax.value_and_grad(functools.partial(loss, row))(params, tokens, targets)
  updates, opt = optimizer.update(grads, opt, params)
  return (optax.apply_updates(params, updates), opt), value


def compile_row(row: Row):
  """The compiled step, the topology and the mesh's sizes."""
  topology = open_topology(row.topology)
  sizes = {"fsdp": len(topology.devices) // row.tensor, "tensor": row.tensor}
  mesh = jax.sharding.Mesh(
    np.array(topology.devices).reshape(*sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2
  )
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-5, b2=0.95, weight_decay=0.1))
  of_name = {name: NamedSharding(mesh, spec) for name, (_, spec) in shapes(row).items()}
  params = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=of_name[name]) for name, (shape, _) in shapes(row).items()
  }

  def placed(path, x):  # the optimizer's arrays lie as the parameters that they are of
    name = getattr(path[-1], "key", None)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=of_name.get(name, NamedSharding(mesh, P())))

  opt = jax.tree_util.tree_map_with_path(placed, jax.eval_shape(optimizer.init, params))
  tokens = jax.ShapeDtypeStruct(
    (row.batch * sizes["fsdp"] * row.tensor, row.length), jnp.int32, sharding=NamedSharding(mesh, P(BATCH))
  )
  out = jax.tree.map(lambda x: x.sharding, ((params, opt), None))
  given = dict.fromkeys(OPTIONS if row.topology.startswith("v5e") else (), True)
  options = hardware.known_options(given, topology.devices[0])
  with jax.set_mesh(mesh):
    run = jax.jit(functools.partial(step, row, optimizer), donate_argnums=0, out_shardings=out)
    return run.lower((params, opt), tokens, tokens).compile(compiler_options=options), topology, sizes


def counted(row: Row) -> float:
  """TFLOPs of a chip and step as MaxText counts them: six a parameter and token, and half of attention's square."""
  parameters = sum(math.prod(shape) for shape, _ in shapes(row).values())
  causal = 6 * row.heads * row.layers * 128 * row.length**2 * row.batch
  return (6 * parameters * row.length * row.batch + causal) / 1e12


def kernel_seconds(row: Row, peak: float) -> float:
  """Of a chip: two products forward, four and three backward, over the blocks that are not masked whole."""
  runs = zip((2 if row.remat == "full" else 1.0, 1, 1), (2, 4, 3), row.blocks, strict=True)
  blocks = sum(times * products * (row.length + min(block, row.length)) / 2 for times, products, block in runs)
  return 2 * 128 * row.heads * row.length * blocks * row.batch * row.layers / peak / IN_KERNELS


def measure(name: str, by_schedule: bool) -> str:
  row, start = ROWS[name], time.monotonic()
  with schedule.written() if by_schedule else contextlib.nullcontext() as folder:
    compiled, topology, sizes = compile_row(row)
    scheduled = schedule.read(folder) if folder else None
  tpu, text = hardware.tpu(topology.kind), compiled.as_text()
  found = costs(text, tpu, collectives(text, sizes), scheduled)
  of_kind = {}
  for cost in found:
    of_kind[cost.kind] = of_kind.get(cost.kind, 0.0) + cost.cycles / tpu.clock
  of_kind["kernels"] = kernel_seconds(row, tpu.flops)
  expected, tflops = sum(of_kind.values()), counted(row)
  measured = tflops / row.tflops
  shares = ", ".join(f"{kind} {s / expected:.1%}" for kind, s in sorted(of_kind.items(), key=lambda x: -x[1]))
  print(shares, f"peak {compiled.memory_analysis().peak_memory_in_bytes / 2**30:.2f} GiB", file=sys.stderr, flush=True)
  mfu, known = tflops * 1e12 / expected / tpu.flops, tflops * 1e12 / measured / tpu.flops
  return (
    f"| {name} | {row.topology} | {expected:.2f} s | {tflops / expected:.0f} | {mfu:.1%} | {measured:.2f} s | "
    f"{tflops / measured:.0f} | {known:.1%} | {measured / expected:.2f} | "
    f"{measured / (expected - of_kind.get('collectives', 0.0)):.2f} | {time.monotonic() - start:.0f} s |"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", default=",".join(ROWS), help="names, with commas")
  parser.add_argument("--schedule", action="store_true", help="products by the finished schedules")
  args = parser.parse_args()
  names = args.rows.split(",")
  if len(names) == 1:
    print(measure(names[0], args.schedule), flush=True)
    return
  columns = (
    "run",
    "chips",
    "expected",
    "TFLOP/s",
    "MFU",
    "measured",
    "TFLOP/s",
    "MFU",
    "ratio",
    "without collectives",
    "compiled in",
  )
  print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|", flush=True)
  for name in names:  # each in a process of its own, which gives its memory back
    command = [sys.executable, __file__, f"--rows={name}", *["--schedule"] * args.schedule]
    subprocess.run(command, check=True, env=os.environ)


if __name__ == "__main__":
  main()
