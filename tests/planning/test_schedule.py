"""Times by the compiler's finished schedules."""

import os
import subprocess
import sys

import pytest

from coca.devices.hardware import tpu
from coca.planning import schedule
from coca.planning.expected import costs
from support.processes import ROOT

# As libtpu writes it, with most left out: two bundles, a loop of 26 iterations with one of 4 within, and an end; where
# a loop's end is tested says nothing of where it is.
SCHEDULE = """= control target key start
LH: loop header
LB: loop body
= control target key end

     0   :  { %s1 = sld [smem:[#allocation19]] } /* Start region 0 */
   0x1   :  { %s2 = smov.u32 0  ;;  %s3 = smov.u32 0 /* copy for cssa */ }
   0x2 LB: > { %s4 = sphi %s2, %s5 /* phi copy :: iteration index, stage = 0 */ }
   0x3   : > { %v1 = vld [vmem:[%s4] sm:$0xff]
 /* a comment that goes on */ }
   0x4 LB: >> { %v2 = vmatmul.bf16.gmra.mxu0 %v1  ;;  %p1 = scmp.ge.s32.totalorder %s6, 4 /* loop exit test */ }
   0x5   : >> { %v3 = vpop.f32.mrf.mxu0  ;;  %7 = sbr.rel (!%p1) target = $region2 } /* End region 2 */
   0x6 PF: > { %p2 = scmp.ge.s32.totalorder %s5, 26 /* loop exit test */  ;;  %8 = sbr.rel (%p9) target = $region7 }
   0x7   : > { %13 = sbr.rel (!%p2) target = $region1 }
   0x8   :  { %14 = vsyncadd [#allocation5], 0 }
"""

# A product of 2**20 rows by [8, 4], for which libtpu expected 9 M cycles before it made a schedule.
PRODUCT = """HloModule jit_step, is_scheduled=true

%product (x: bf16[1048576,8], w: bf16[8,4]) -> bf16[1048576,4] {
  %x = bf16[1048576,8]{1,0} parameter(0)
  %w = bf16[8,4]{1,0} parameter(1)
  ROOT %convolution.1 = bf16[1048576,4]{1,0} convolution(%x, %w)WINDOW, dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[1048576,8], w: bf16[8,4]) -> bf16[1048576,4] {
  %x.1 = bf16[1048576,8]{1,0} parameter(0)
  %w.1 = bf16[8,4]{1,0} parameter(1)
  ROOT %fusion.1 = bf16[1048576,4]{1,0} fusion(%x.1, %w.1), kind=kOutput, calls=%product, backend_config={"window_config":{"estimated_cycles":"9000000"}}
}
"""  # noqa: E501


def test_bundles_count_as_often_as_their_loops_run(tmp_path):
  assert schedule.cycles(SCHEDULE) == 2 + 26 * (2 + 4 * 2 + 2) + 1
  (tmp_path / "1796067180-fusion.1-71-final_bundles.txt").write_text(SCHEDULE)
  (tmp_path / "1796067180-fusion.1-70-schedule-analysis_final_bundles.txt").write_text("total scheduled bundles: 8")
  assert schedule.read(tmp_path) == {"fusion.1": schedule.cycles(SCHEDULE)}
  schedule.clear(tmp_path)
  with pytest.raises(ValueError, match="leave out --schedule"):
    schedule.read(tmp_path)


def test_a_product_takes_its_schedule_or_its_bytes_or_its_flops():
  def cycles(scheduled, bandwidth=1e30, flops=1e30, window=""):
    chip = tpu("TPU v5 lite")._replace(memory=bandwidth, flops=flops, clock=1e9)
    (product,) = costs(PRODUCT.replace("WINDOW", window), chip, [], scheduled)
    assert product.kind == "products"
    return product.cycles

  assert cycles(None) == cycles({"fusion.2": 5}) == 9e6
  assert cycles({"fusion.1": 5000}) == 5000
  rows = 2**20
  assert cycles({"fusion.1": 5000}, bandwidth=1e12) == pytest.approx((rows * 12 + 32) * 2 / 1e12 * 1e9)
  assert cycles({"fusion.1": 5000}, flops=1e13) == pytest.approx(2 * rows * 8 * 4 / 1e13 * 1e9)
  assert cycles({"fusion.1": 5000}, flops=1e13, window=", window={size=3}") == pytest.approx(2 * rows * 96 / 1e4)
  assert cycles({"fusion.1": 5000}, flops=1e13, window=", window={size=3 pad=2_2}") == 5000  # most of it meets nothing
  assert cycles({"fusion.1": 5000}, flops=1.0) == 9e6  # as libtpu expected, and no longer


def test_cards_have_no_schedules():
  command = [sys.executable, "-m", "coca.plan", "--config=configs/coca_tiny.py", "--topology=h100-8", "--schedule"]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert run.returncode and "only the compiler for TPUs writes its schedules" in run.stderr.splitlines()[-1]


PROGRAM = """
import jax, jax.numpy as jnp
from coca.planning import schedule
from coca.planning.topology import open_topology
with schedule.written() as folder:
  topology = open_topology("v6e-1")
  schedule.clear(folder)
  device = jax.sharding.SingleDeviceSharding(topology.devices[0])
  x, w = jax.ShapeDtypeStruct((16384, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16)
  jax.jit(lambda x, w: x @ w, in_shardings=device, out_shardings=device).lower(x, w).compile()
  print(max(schedule.read(folder).values()))
"""


def test_a_product_on_v6e_is_scheduled_near_the_peak(libtpu):
  """libtpu 0.0.52 expects twice as long beforehand; its own static profile has 282,011 cycles."""
  environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
  run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
  chip = tpu("TPU v6 lite")
  peak = 2 * 16384 * 1024 * 4096 / chip.flops * chip.clock
  assert peak < int(run.stdout.split()[-1]) < 1.2 * peak
