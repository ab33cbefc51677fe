"""The least time of a program on a card, from its text."""

import pytest

from coca.planning.roofline import costs

# As XLA writes it for GPUs, with all else left out.
PROGRAM = """HloModule jit_step, is_scheduled=true

%cut (p: f32[3,8,4], i: s32[]) -> f32[8,4] {
  %p = f32[3,8,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %dynamic-slice.1 = f32[1,8,4]{2,1,0} dynamic-slice(%p, %i, %i, %i), dynamic_slice_sizes={1,8,4}
  ROOT %multiply.1 = f32[8,4]{1,0} multiply(%dynamic-slice.1, %dynamic-slice.1)
}

%put (p: f32[3,8,4], i: s32[], x: f32[8,4]) -> f32[3,8,4] {
  %p.1 = f32[3,8,4]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %x.1 = f32[1,8,4]{1,0} parameter(2)
  ROOT %dynamic-update-slice.1 = f32[3,8,4]{2,1,0} dynamic-update-slice(%p.1, %x.1, %i.1, %i.1, %i.1)
}

%body (t: (s32[], f32[3,8,4])) -> (s32[], f32[3,8,4]) {
  %t = (s32[], f32[3,8,4]{2,1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%t), index=0
  %kept = f32[3,8,4]{2,1,0} get-tuple-element(%t), index=1
  %fusion.1 = f32[8,4]{1,0} fusion(%kept, %i.2), kind=kLoop, calls=%cut, metadata={op_name="jit(step)/jvp(image_encoder)/while/body/mul"}
  %fusion.2 = f32[3,8,4]{2,1,0} fusion(%kept, %i.2, %fusion.1), kind=kLoop, calls=%put
  %gemm.1 = (f32[8,16]{1,0}, s8[1024]{0}) custom-call(%fusion.1, %weights), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  ROOT %done = (s32[], f32[3,8,4]{2,1,0}) tuple(%i.2, %fusion.2)
}

%condition (t: (s32[], f32[3,8,4])) -> pred[] {
  %limit = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[3,8,4]) -> f32[3,8,4] {
  %p.3 = f32[3,8,4]{2,1,0} parameter(0)
  %while.1 = (s32[], f32[3,8,4]) while(%t), condition=%condition, body=%body
  %all-gather-start.1 = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), dimensions={0}
  ROOT %copy.1 = f32[3,8,4]{0,1,2} copy(%p.3)
}
"""  # noqa: E501


CONVOLVED = {"x": "2,8,8,5", "kernel": "6,3,3,5", "y": "2,4,4,6"}


def test_a_kernel_takes_as_long_as_its_bytes_or_its_products():
  def seconds(flops, bandwidth):
    return {cost.name: cost.cycles / 1e9 for cost in costs(PROGRAM, flops, bandwidth, 1e9) if cost.name != "less"}

  of_bytes = seconds(float("inf"), 1.0)
  assert of_bytes == {
    "fusion.1": pytest.approx(3 * (128 + 4 + 128)),  # the slice, its number, what is written
    "fusion.2": pytest.approx(3 * (4 + 128 + 128)),  # the slice that is put in is read and written
    "gemm.1": pytest.approx(3 * (128 + 512)),  # the second array is room to work in
    "copy.1": pytest.approx(2 * 384),
  }
  of_products = seconds(1.0, float("inf"))
  assert of_products["gemm.1"] == 3 * 2 * 8 * 16 * 4 and not of_products["fusion.1"]
  found = {cost.name: (cost.kind, cost.part) for cost in costs(PROGRAM, 1.0, 1.0, 1.0)}
  assert found["gemm.1"] == ("products", "image_encoder")  # as most of the loop
  assert found["fusion.1"] == ("element-wise", "image_encoder") and found["copy.1"] == ("copies", "")


def test_convolutions_and_their_gradients_are_the_same_products():
  def line(result, inputs, direction):
    return (
      f"  %{direction} = (bf16[{result}], u8[0]) custom-call({inputs}), window={{size=3x3 stride=2x2}}, "
      f'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{direction}"'
    )

  lines = (
    *(f"  %{name} = bf16[{shape}] parameter({i})" for i, (name, shape) in enumerate(CONVOLVED.items())),
    line(CONVOLVED["y"], "%x, %kernel", "Forward"),
    line(CONVOLVED["x"], "%y, %kernel", "BackwardInput"),
    line(CONVOLVED["kernel"], "%x, %y", "BackwardFilter"),
  )
  program = "\n".join(["HloModule jit_step, is_scheduled=true", "", "ENTRY %main (x: bf16[]) -> bf16[] {", *lines, "}"])
  found = {cost.name: (cost.cycles, cost.kind) for cost in costs(program, 1.0, float("inf"), 1.0)}
  assert found == dict.fromkeys(
    ("Forward", "BackwardInput", "BackwardFilter"), (2.0 * (2 * 4 * 4 * 6) * (3 * 3 * 5), "products")
  )
