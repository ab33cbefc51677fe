"""What compiled programs send: counted on eight devices, and read from the ways in which XLA writes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from coca.objectives.contrastive import everyone
from coca.planning.collectives import Collective, _axes, _group, collectives
from coca.planning.compiled import compile_step
from coca.planning.topology import Topology
from support.common import make_mesh, tiny

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


def test_a_program_in_a_loop_is_counted_to_the_byte():
  mesh = make_mesh(2, 4)

  def local(x):  # fp32 [3, 5] on each device
    def body(x, _):
      whole = jax.lax.all_gather(x, "fsdp", tiled=True)  # [12, 5]
      return x + jax.lax.psum_scatter(jnp.sin(whole), "fsdp", tiled=True), None

    x, _ = jax.lax.scan(body, x, None, length=7)
    x = jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
    return x, jax.lax.psum(x.astype(jnp.bfloat16), ("data", "fsdp"))

  batch = P(("data", "fsdp"))
  function = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=batch, out_specs=(batch, P())))
  text = function.lower(jax.ShapeDtypeStruct((24, 5), jnp.float32)).compile().as_text()
  rows = {row.kind: row for row in collectives(text, MESH)}
  gathered = 12 * 5 * 4 * 3 / 4  # each device has a quarter of it
  assert rows["all-gather"] == Collective("all-gather", ("fsdp",), "f32", (12, 5), 7, 7 * gathered, True)
  assert rows["reduce-scatter"] == Collective("reduce-scatter", ("fsdp",), "f32", (12, 5), 7, 7 * gathered, True)
  assert rows["collective-permute"] == Collective("collective-permute", ("data",), "f32", (3, 5), 1, 3 * 5 * 4, True)
  reduced = rows["all-reduce"]  # XLA on CPU adds bfloat16 up in float32
  assert (reduced.axes, reduced.shape, reduced.times) == (("data", "fsdp"), (3, 5), 1)
  assert reduced.sent == round(2 * 7 / 8 * 3 * 5 * (2 if reduced.dtype == "bf16" else 4))
  assert len(rows) == 4


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
    ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
    ("replica_groups={}", ("data", "fsdp")),
    ("replica_groups=[2,4]<=[8]", ("fsdp",)),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("fsdp",)),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", ("data", "fsdp")),
    ("replica_groups=mesh['a'=8] {'a':(2)4}", ("fsdp",)),
    ("replica_groups=mesh['a'=8] {'a':(1)2}", ("data",)),
    ("source_target_pairs={{0,0},{1,5},{5,1}}, x={}", ("data",)),
  ],
)
def test_groups_lie_along_axes_of_the_mesh(groups, axes):
  line = f"%x = f32[4] all-gather(%y), channel_id=1, {groups}, dimensions={{0}}"
  assert _axes(_group(line, 8), MESH) == axes


TPU = """HloModule jit_step
%all-reduce-scatter.1 (input: bf16[64,8]) -> bf16[16,8] {
  %all-reduce.1 = bf16[64,8]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=3, replica_groups=[2,4]<=[8]
}
%begin (p: bf16[2,8]) -> (bf16[2,8], bf16[8,8]) {
  %all-gather.1 = bf16[8,8]{1,0:T(8,128)} all-gather(%p), channel_id=4, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %start = (bf16[2,8], bf16[8,8]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}
%async_collective_fusion.1 (p: bf16[2,8]) -> bf16[8,8] {
  %all-gather.2 = bf16[8,8]{1,0:T(8,128)} all-gather(%p), channel_id=4, replica_groups=[2,4]<=[8], dimensions={0}
}
%end (p: bf16[2,8]) -> bf16[8,8] {
  %all-gather.3 = bf16[8,8]{1,0:T(8,128)} all-gather(%p), channel_id=4, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %done = bf16[8,8] custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}
%body (x: (s32[], bf16[64,8])) -> (s32[], bf16[64,8]) {
  %fusion.1 = (bf16[2,8], bf16[8,8]) fusion(%x), kind=kCustom, calls=%begin
  %fusion.2 = bf16[8,8] fusion(%x), kind=kOutput, calls=%async_collective_fusion.1
  %fusion.3 = bf16[8,8] fusion(%x), kind=kCustom, calls=%end
  %fusion.4 = bf16[16,8] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
%condition (x: (s32[], bf16[64,8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}
%unknown (x: (s32[], bf16[64,8])) -> pred[] {
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}
%other (x: f32[]) -> f32[] {
  %all-reduce.2 = (f32[]{:T(128)}, s32[6]{0:T(128)S(1)}) all-reduce(%a, %b), replica_groups={{0,4}}
}
ENTRY %main (x: bf16[64,8]) -> bf16[64,8] {
  %while.1 = (s32[], bf16[64,8]) while(%t), condition=%condition, body=%body
  %while.2 = f32[] while(%t), condition=%unknown, body=%other
}
"""


def test_how_tpus_write_it():
  assert collectives(TPU, MESH) == [
    Collective("reduce-scatter", ("fsdp",), "bf16", (64, 8), 12, 12 * 64 * 8 * 2 * 3 // 4, True),
    Collective("all-gather", ("fsdp",), "bf16", (8, 8), 12, 12 * 8 * 8 * 2 * 3 // 4, True, hidden=True),
    Collective("all-reduce", ("data",), "s32", (6,), 1, 7 * 4, False),
  ]


# --- The training step ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program():
  """The step of 128 pairs on 2 x 4 devices, 16 pairs each."""
  config = tiny(data__batch=128, mesh__data=2, mesh__fsdp=4, model__dtype="float32", model__remat="full")
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", 1e9
  )  # one from the cache tells no names of parameters
  found = config, compile_step(config, Topology("cpu", jax.devices(), 8, None, {}))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
  return found


@pytest.mark.slow
def test_the_step_gathers_each_layer_twice_and_scatters_its_gradient_once(program):
  config, rows = program[0], program[1].collectives
  layers = config.model.text.unimodal_layers + config.model.text.multimodal_layers

  def times(kinds, shape):
    return sum(
      row.times
      for row in rows
      if row.kind in kinds and row.axes == ("fsdp",) and tuple(n for n in row.shape if n > 1) == shape
    )

  up = (config.model.text.width, config.model.text.mlp)
  assert times(("all-gather",), up) == 2 * layers  # forward, and again backward
  assert times(("reduce-scatter", "all-reduce"), up) == layers
  assert all(row.counted for row in rows)


@pytest.mark.slow
def test_the_step_scatters_the_gradient_of_the_softmax(program):
  """All devices would otherwise sum all of it, one of the two largest matrices."""
  config, rows = program[0], program[1].collectives
  shape = config.model.text.width, config.model.text.vocab
  assert sorted((row.kind, row.axes) for row in rows if row.shape == shape) == [
    ("all-gather", ("fsdp",)),
    ("reduce-scatter", ("fsdp",)),
  ]


@pytest.mark.slow
def test_the_step_sends_no_pictures_no_activations_and_no_matrix_of_all_pairs(program):
  """Weights, their gradients and embeddings are the largest: all else would be larger."""
  config, rows = program[0], program[1].collectives
  batch, image, text = config.data.batch, config.model.image, config.model.text
  largest = max(text.width * text.vocab, batch * config.model.embed_dim)
  assert largest < min(batch // 8 * image.size**2 * 3, batch // 8 * image.tokens * image.width, batch**2)
  for row in rows:
    assert np.prod(row.shape) <= largest, row


@pytest.mark.slow
def test_a_step_holds_its_state_and_more(program):
  config, found = program
  assert found.peak > found.arguments > 128 * config.model.image.size**2 * 3 // 8


def test_the_losses_embeddings_are_gathered_axis_by_axis():
  mesh = make_mesh(2, 4)
  batch = P(("data", "fsdp"))
  with jax.set_mesh(mesh):
    gather = jax.jit(jax.shard_map(everyone, in_specs=batch, out_specs=P(), check_vma=False))
    x = jax.device_put(np.arange(48.0).reshape(16, 3), NamedSharding(mesh, batch))
    np.testing.assert_array_equal(gather(x), np.arange(48.0).reshape(16, 3))
    rows = collectives(gather.lower(x).compile().as_text(), MESH)
  assert {(row.kind, row.axes) for row in rows} == {("all-gather", ("fsdp",)), ("all-gather", ("data",))}
