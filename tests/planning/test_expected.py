"""What the compiler's text says of a program's time, and what a step computes."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from coca.devices.hardware import peak_flops, tpu
from coca.devices.sharding import make_mesh
from coca.planning.collectives import Collective
from coca.planning.compiled import compile_step
from coca.planning.expected import KINDS, costs, kernel_cycles, part_of
from coca.planning.topology import open_topology
from coca.training.flops import SCOPES, flops_per_pair, products, total
from coca.training.state import Setup
from coca.training.step import TrainStep, batch_shapes
from support.common import tiny
from support.processes import ROOT

# As libtpu writes it, with all else left out.
PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/home/a/coca/models/linear.py"
2 "/usr/lib/site-packages/flax/nnx/norm.py"
3 "/home/a/coca/models/layers.py"

FunctionNames
1 "Linear.__call__"
2 "LayerNorm.__call__"
3 "Stack.__call__.<locals>.body"

FileLocations
1 {file_name_id=1 function_name_id=1 line=67 end_line=67 column=1 end_column=9}
2 {file_name_id=2 function_name_id=2 line=8 end_line=8 column=1 end_column=9}
3 {file_name_id=3 function_name_id=3 line=214 end_line=214 column=1 end_column=9}

StackFrames
1 {file_location_id=3 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=2 parent_frame_id=2}

%products (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %convolution.1 = f32[8,4]{1,0} convolution(%p, %p), dim_labels=bf_io->bf
  ROOT %convert.1 = bf16[8,4]{1,0} convert(%convolution.1)
}

%sums (p: bf16[8,4]) -> f32[8] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %reduce.1 = f32[8]{0} reduce(%p, %p), dimensions={1}, to_apply=%add
}

%cut (p: bf16[3,8,4]) -> bf16[8,4] {
  %p = bf16[3,8,4]{2,1,0} parameter(0)
  ROOT %dynamic-slice.1 = bf16[1,8,4]{2,1,0} dynamic-slice(%p, %p), dynamic_slice_sizes={1,8,4}
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %fusion.1 = bf16[8,4]{1,0} fusion(%x), kind=kOutput, calls=%products, metadata={op_name="jit(step)/transpose(jvp(image_encoder))/while/body/dot_general" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %fusion.2 = f32[8]{0} fusion(%x), kind=kLoop, calls=%sums, metadata={op_name="jit(step)/jvp(unimodal_decoder)/while/body/reduce_sum" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"10"}}
  %fusion.3 = bf16[8,4]{1,0} fusion(%x), kind=kLoop, calls=%cut, metadata={op_name="while"}, backend_config={"window_config":{"estimated_cycles":"7"}}
  %copy.1 = bf16[8,4]{0,1} copy(%fusion.1), backend_config={"estimated_cycles":"5"}
  %kernel.1 = bf16[256,128]{1,0} custom-call(bf16[256,128]{1,0} %x), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/jvp(image_encoder)/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"1310720","transcendentals":"1024","bytes_accessed":"8"}}}
}

%condition (p: (s32[], bf16[8,4])) -> pred[] {
  %limit = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {
  %fill = bf16[8,4]{1,0} broadcast(%zero), dimensions={}, backend_config={"estimated_cycles":"2"}
  ROOT %while.1 = (s32[], bf16[8,4]) while(%t), condition=%condition, body=%body
}
"""  # noqa: E501


def test_costs_are_those_of_the_text_times_its_loops():
  v5e = tpu("TPU v5 lite")
  sent = [
    Collective("all-gather", ("fsdp",), "bf16", (8, 4), 3, 10**6, True, True),  # hidden
    Collective("all-reduce", ("data",), "f32", (8,), 2, 10**5, True),
  ]
  found = {cost.name: cost for cost in costs(PROGRAM, v5e, sent)}
  assert [cost.cycles for cost in costs(PROGRAM, v5e, sent)] == sorted((c.cycles for c in found.values()), reverse=True)
  assert {
    name: (c.cycles, c.times, c.kind, c.part, c.backward) for name, c in found.items() if c.kind != "kernels"
  } == {
    "fusion.1": (300, 3, "products", "image_encoder", True),
    "fusion.2": (30, 3, "reductions", "unimodal_decoder", False),
    "fusion.3": (21, 3, "slices of loops", "image_encoder", True),  # as most of the loop
    "copy.1": (15, 3, "copies", "image_encoder", True),
    "fill": (2, 1, "fills", "", False),
    "all-reduce f32[8]": (pytest.approx(10**5 / 100e9 * v5e.clock), 2, "collectives", "", False),
  }
  assert found["kernel.1"].cycles == pytest.approx(
    3 * 10 / 0.75
  )  # 1.31 MFLOPs at 131,072 a cycle, and what kernels reach of it
  assert found["fusion.1"].source == "linear.py:67 Linear.__call__ < layers.py:214 Stack.__call__.body"
  assert found["fusion.2"].source == "layers.py:214 Stack.__call__.body"  # the library that it called is left out
  assert {cost.kind for cost in found.values()} <= set(KINDS)


def test_a_kernel_takes_its_products_or_its_exponentials_or_its_bytes():
  v5e, call = tpu("TPU v5 lite"), 'custom-call(f32[4]{0} %x), custom_call_target="tpu_custom_call"'
  stated = '{{"cost_estimate":{{"flops":"{}","transcendentals":"{}","bytes_accessed":"{}"}}}}'
  line = f"%k = f32[1024,1024]{{1,0}} {call}, backend_config="
  assert kernel_cycles(line + stated.format(197 * 10**6, 1, 1), v5e) == pytest.approx(1e-6 / 0.75 * v5e.clock)
  assert kernel_cycles(line + stated.format(1, 2048, 1), v5e) == 2
  assert kernel_cycles(line + stated.format(1, 1, 819 * 10**3), v5e) == pytest.approx(1e-6 * v5e.clock)
  assert kernel_cycles(line + "{}", v5e) == pytest.approx((4 * 2**20 + 16) / 819e9 * v5e.clock)


def test_a_number_that_says_that_there_is_none_is_not_counted():
  line = (
    "ENTRY %m (x: f32[]) -> f32[4096] {\n  ROOT %f = f32[4096]{0} fusion(%x), kind=kLoop, calls=%c, backend_config="
  )
  (cost,) = costs(line + '{"estimated_cycles":"9223372036854775807"}\n}', tpu("TPU v6 lite"), [])
  assert cost.cycles == pytest.approx(4 * 4096 / 1640e9 * tpu("TPU v6 lite").clock)


def test_clocks_are_as_published():
  for kind, gigahertz in (("TPU v4", 1.05), ("TPU v5 lite", 1.5), ("TPU v5", 1.75)):
    assert tpu(kind).clock == pytest.approx(gigahertz * 1e9, rel=0.005)
  assert tpu("NVIDIA H100 80GB HBM3") is None and tpu("cpu") is None


def test_each_scope_of_the_code_is_a_part():
  code = "".join(path.read_text() for path in (ROOT / "coca").rglob("*.py"))
  assert set(re.findall(r'named_scope\("(\w+)"\)', code)) == set(SCOPES)


@pytest.mark.slow
def test_a_step_computes_its_flops_and_what_it_computes_again():
  flops, again = {}, {}
  for remat in ("none", "full"):
    config = tiny(model__remat=remat)
    setup = Setup(config, make_mesh(devices=jax.devices()[:1]))
    traced = TrainStep(setup).trace(setup.planned, batch_shapes(config, setup.mesh))
    flops[remat] = total(products(traced.jaxpr.jaxpr)) / config.data.batch
    again[remat] = flops[remat] / flops_per_pair(config)["total"]
  assert again["none"] == pytest.approx(1.0, rel=0.01)
  assert 1.2 < again["full"] < 4 / 3


def test_a_part_of_the_model_within_a_loss_keeps_its_name():
  scope = 'op_name="jit(step)/transpose(jvp({}))/dot"'
  assert part_of(scope.format("masked_loss/text_decoder")) == ("text_decoder", True)
  assert part_of(scope.format("masked_loss")) == ("masked_loss", True)
  assert part_of(scope.format("momentum/image_encoder")) == ("momentum", True)


def test_products_of_all_kinds_are_counted():
  def f(x, w, image):
    x = jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]
    return jax.lax.cond(x[0, 0] > 0, lambda: x, lambda: (x @ w) @ w), jax.lax.conv_general_dilated(
      image, jnp.ones((3, 3, 4, 8)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  args = jnp.ones((6, 8)), jnp.ones((8, 8)), jnp.ones((2, 5, 5, 4))
  assert total(products(jax.make_jaxpr(f)(*args).jaxpr)) == 7 * 2 * 6 * 8 * 8 + 2 * (2 * 5 * 5 * 8) * (3 * 3 * 4)
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
  assert total(products(jax.make_jaxpr(split)(jnp.ones((8, 8)), args[1]).jaxpr)) == 2 * 8 * 8 * 8


def test_zeros_between_the_inputs_of_a_convolution_are_no_work():
  def f(kernel, image):
    args = {"window_strides": (2, 2), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return jax.lax.conv_general_dilated(image, kernel, **args).sum()

  step = jax.make_jaxpr(jax.grad(f, (0, 1)))(jnp.ones((3, 3, 4, 8)), jnp.ones((2, 6, 6, 4)))
  assert total(products(step.jaxpr)) == 3 * 2 * (2 * 3 * 3 * 8) * (3 * 3 * 4)


def test_a_product_is_no_faster_than_the_peak_and_not_much_slower(libtpu):
  topology = open_topology("v5e-1")
  chip, x = tpu(topology.kind), jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
  device = jax.sharding.SingleDeviceSharding(topology.devices[0])
  text = jax.jit(lambda a, b: a @ b, in_shardings=device, out_shardings=device).lower(x, x).compile().as_text()
  (product,) = [cost for cost in costs(text, chip, []) if cost.kind == "products"]
  assert 2 / 3 < 2 * 4096**3 / (product.cycles / chip.clock) / chip.flops < 1


@pytest.mark.slow
def test_a_small_step_is_expected_to_be_as_fast_as_it_was(libtpu):
  """18.4 % with libtpu 0.0.52 and jax 0.10; 14.8 % with XLA's attention."""
  topology = open_topology("v5e-4")
  image = {"size": 256, "patch": 16, "width": 384, "heads": 6, "mlp": 1536}
  text = {"width": 384, "heads": 6, "mlp": 1536, "length": 64, "vocab": 4096}
  sizes = {f"model__image__{k}": v for k, v in image.items()} | {f"model__text__{k}": v for k, v in text.items()}
  poolers = {"model__poolers__n_query": 128, "model__poolers__heads": 6}
  config = tiny(**sizes, **poolers, data__batch=64, mesh__data=2, mesh__fsdp=2, model__remat="full")
  program = compile_step(config, topology)
  assert flops_per_pair(config)["total"] * 16 / program.step_seconds / peak_flops(topology.kind) > 0.17
