"""What is said of a compiled step, what would help, and the search; the compiler itself stands aside for most of it."""

import dataclasses
import re
import runpy

import jax
import pytest

from coca import plan
from coca.capfilt.settings import NUCLEUS
from coca.config import Stage, parse
from coca.models.flash import flash
from coca.planning import advice, arithmetic, report, search, topology
from coca.planning.collectives import Collective
from coca.planning.compiled import DoesNotFit, Program, compile_capfilt, compile_step, for_topology
from coca.planning.expected import Cost
from coca.planning.topology import Topology, open_topology
from coca.training.flops import flops_per_pair
from support.common import tiny
from support.processes import ROOT, run_here
from support.topologies import chips

MIB = 2**20
ROWS = [
  Collective("all-gather", ("fsdp",), "bf16", (48, 80), 8, 3 * 10**6, True),
  *(Collective("all-reduce", ("data", "fsdp"), "f32", (n,), 2, 10**5, n != 3) for n in range(14)),
]


@pytest.mark.slow
def test_what_is_said(monkeypatch):
  config, topology = tiny(data__batch=64, mesh__fsdp=4), chips(8, 100 * MIB)
  program = Program(60 * MIB, 20 * MIB, ROWS, [], 0.0, 1e9, 1.0)
  monkeypatch.setattr(report, "compile_step", lambda *_: program)
  text, fits = report.fit(config, topology, 0.25)
  assert fits
  assert "mesh: data 2 x fsdp 4 x tensor 1" in text and "8 per device x 8 x 1 accumulated = 64 pairs" in text
  assert re.search(r"all +0\.06\nit fits: 0\.04 GiB of 0\.10 are left", text)
  assert re.search(r"all-gather +fsdp +8 +bf16\[48,80\] +3\.0", text) and re.search(r"\n3 more +0\.3\n", text)
  assert "2+" in text and "counted once" in text
  rate = 0.25 * 197e12 * 8 / flops_per_pair(config)["total"]
  assert f"{rate:,.0f} pairs/s" in text
  assert f"{20 * 64 / rate / 3600 * 8:,.0f} chip-hours" in text
  assert "published" not in text


@pytest.mark.slow
def test_what_is_said_of_time(monkeypatch):
  config, topology = tiny(data__batch=64, mesh__fsdp=4), chips(8, 100 * MIB)
  useful = flops_per_pair(config)["total"] * 8
  cycles = useful / (131_072 * 0.3)  # at 131,072 FLOPs a cycle: an MFU of 30 %
  costs = [
    Cost(0.6 * cycles, 12, "products", "image_encoder", True, "fusion.1", "linear.py:67 Linear.__call__"),
    Cost(0.3 * cycles, 3, "copies", "image_encoder", False, "copy.1", ""),
    Cost(0.0996 * cycles, 1, "products", "captioning_loss", False, "fusion.2", "captioning.py:147 step"),
    Cost(0.0004 * cycles, 1, "fills", "ema", False, "fill", ""),
  ]
  program = Program(60 * MIB, 20 * MIB, ROWS, costs, 197e12 / 131_072, 1.5 * useful, 1.0)
  monkeypatch.setattr(report, "compile_step", lambda *_: program)
  text, _ = report.fit(config, topology, None)
  assert "an MFU of 30.0 %, 45.0 % with what is computed again" in text
  assert "took 0.73 to 0.83 on v5e, 0.89 to 0.98 on v5p times as long as is expected of them" in text
  assert f"{0.3 * 197e12 * 8 / flops_per_pair(config)['total']:,.0f} pairs/s" in text
  table = dict(re.findall(r"^([a-z][a-z_ ]*?)  +((?:\d+\.\d +)*\d+\.\d)$", text, re.MULTILINE))
  assert {name: [float(x) for x in row.split()] for name, row in table.items() if name != "optimizer"} == {
    "image_encoder": [60.0, 30.0, 0.0, 90.0],
    "captioning_loss": [10.0, 0.0, 0.0, 10.0],
    "the rest": [0.0, 0.0, 0.0, 0.0],
    "all": [70.0, 30.0, 0.0, 100.0],
  }
  assert re.search(r" 60.0 +12  products +image_encoder \(backward\): linear.py:67 Linear.__call__\n", text)
  assert re.search(r" 30.0 +3  copies +image_encoder: copy.1\n", text)


@pytest.mark.slow
def test_a_program_that_cannot_be_read_is_told(monkeypatch):
  program = Program(60 * MIB, 20 * MIB, [], [], 0.0, 1e9, 1.0, "INTERNAL: RET_CHECK failure")
  monkeypatch.setattr(report, "compile_step", lambda *_: program)
  text, fits = report.fit(tiny(data__batch=64, mesh__fsdp=4), chips(8, 100 * MIB), None)
  assert fits and "it fits: 0.04 GiB" in text
  assert "can't read the program that the compiler made (INTERNAL: RET_CHECK" in text


@pytest.mark.slow
def test_what_would_help(monkeypatch):
  def refuse(*_):
    raise DoesNotFit("temporaries alone take 0.3 GiB")

  monkeypatch.setattr(report, "compile_step", refuse)
  text, fits = report.fit(tiny(data__batch=64, model__remat="dots"), chips(8, MIB), 0.5)
  assert not fits
  for line in (
    "alone take 0.3 GiB, 0.00 GiB are there",
    "--mesh=data=4,fsdp=2",
    "remat=lean",
    "remat=full",
    "accumulate=2",
    "batch=32",
    "captioning.chunk=32",
  ):
    assert line in text
  assert "remat=none" not in text
  text, _ = report.fit(tiny(data__batch=64, model__remat="full", matching__weight=1.0), chips(8, 2**34), 0.5)
  assert "accumulate=" not in text and "--mesh" not in text and "remat=" not in text  # refused; small; the last


def test_bounds_are_ordered():
  config = tiny()
  kept = [advice.saved_bytes(config, 4, policy) for policy in advice.POLICIES]
  assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4
  assert advice.saved_bytes(config, 8, "full") == 2 * kept[-1]
  # The layers' inputs in bfloat16: 2 layers of 16 patches, 4 of 8 words.
  assert kept[-1] == 4 * 2 * (2 * 16 * 32 + 4 * 8 * 48)
  assert advice.saved_bytes(tiny(model__attention="xla"), 4, "none") > kept[0]  # the softmax
  assert kept[-1] < advice.saved_bytes(tiny(mesh__tensor=2), 4, "dots") < kept[1]


def test_bounds_of_other_kinds():
  def kept(name, policy="full"):
    config = parse(runpy.run_path(str(ROOT / "configs" / f"{name}_base.py"))["get_config"]())
    return advice.saved_bytes(for_topology(config), 1, policy) // 2 // 768  # bfloat16, and the width of all

  assert kept("lemon") == 12 * (40 + 30 + 50)
  assert kept("simvlm") == 12 * (196 + 64) + 12 * 64
  assert kept("simvlm", "dots") - kept("simvlm", "lean") == 12 * 2 * (196 + 64)  # keys and values of what is read
  assert kept("vl_t5") == 12 * (20 + 36) + 12 * 21
  assert kept("albef") == 12 * 257 + (6 + 6) * 25
  assert kept("mammut", "dots") - kept("mammut", "lean") == 6 * 2 * 196
  frozen = tiny(optim__lr_scale={"image_encoder": 0.0})
  assert advice.saved_bytes(tiny(), 4, "full") - advice.saved_bytes(frozen, 4, "full") == 4 * 2 * 2 * 16 * 32


def test_meshes_are_those_that_can_be():
  def sizes(config, n, slices=1):
    return [(mesh.data, mesh.fsdp) for mesh in advice.meshes(config, chips(n, None, slices))]

  assert sizes(tiny(data__batch=64), 8) == [(8, 1), (4, 2), (2, 4), (1, 8)]
  assert sizes(tiny(data__batch=64), 8, slices=2) == [(8, 1), (4, 2), (2, 4)]
  assert sizes(tiny(data__batch=64, mesh__tensor=2), 8) == [(4, 1), (2, 2), (1, 4)]
  assert sizes(tiny(data__batch=64), 64) == [(64, 1), (32, 2), (16, 4), (8, 8)]  # 24 is split in 8, not in 16


def test_the_search(monkeypatch):
  """A device with room for state and twice what is kept for the backward pass."""
  config, compiled, lines = tiny(), [], []

  def compile_one(config, topology):
    batch = config.data.batch // 8
    peak = 2 * advice.saved_bytes(config, batch, config.model.remat)
    compiled.append((config.mesh.fsdp, config.model.remat, config.data.batch))
    if peak > topology.memory:
      raise DoesNotFit(f"it takes {peak}")
    return Program(peak, 0, [ROWS[0]._replace(sent=config.mesh.fsdp * 10**6)], [], 0.0, 0.0, 1.0)

  memory = 2 * advice.saved_bytes(config, 64, "dots")
  monkeypatch.setattr(search, "compile_step", compile_one)
  found = search.search(config, chips(8, memory), [1024, 100, 256, 512], lines.append)
  assert lines[0] == "batch=100 is left out: it has to be a multiple of 8"
  assert [(f.config.mesh.fsdp, f.config.model.remat, f.config.data.batch) for f in found[:2]] == [
    (1, "none", 256),
    (4, "none", 256),
  ]
  assert {(f.config.model.remat, f.config.data.batch) for f in found} == {("none", 256), ("dots", 512), ("full", 1024)}
  assert {fsdp for fsdp, _, _ in compiled} == {1, 4}
  assert (1, "none", 1024) not in compiled  # half as many did not fit
  assert any("remat=none batch=512: does not fit" in line for line in lines)
  table = search.search_table(found, chips(8, memory))
  assert re.search(r"data=8,fsdp=1 +none +auto +1 +256", table[2])
  assert search.flags_of(found[0], config) == ["--config.mesh.data=8", "--config.data.batch=256"]
  assert not search.search(config, chips(8, 1000), [256], lines.append)


@pytest.mark.slow
def test_the_search_goes_by_the_expected_time(monkeypatch):
  """A chip on which half of the mesh's bytes cost time, what is computed again saves some, and loops are unrolled."""
  config, lines = tiny(), []

  def compile_one(config, topology):
    if config.model.unroll == 3:
      raise DoesNotFit("it takes more")
    model = config.model
    per_pair = 10 + config.mesh.fsdp - 3 * (model.remat == "lean") + (model.attention == "xla") - model.unroll
    cost = Cost(1e6 * per_pair * config.data.batch, 1, "products", "", False, "", "")
    return Program(MIB, 0, [], [cost], 1.5e9, 0.0, 1.0)

  monkeypatch.setattr(search, "compile_step", compile_one)
  found = search.search(config, chips(8, 100 * MIB), [128, 256], lines.append)
  best, model = found[0], found[0].config.model
  assert (best.config.mesh.fsdp, model.remat, model.attention, model.unroll) == (1, "lean", "auto", 2)
  times = [f.program.step_seconds / f.config.data.batch for f in found]
  assert times == sorted(times)
  assert any("unroll=3: does not fit" in line for line in lines)
  assert search.flags_of(best, config)[-2:] == ["--config.model.remat=lean", "--config.model.unroll=2"]
  table = search.search_table(found, chips(8, 100 * MIB))
  assert "least time" in table[0] and f"{best.config.data.batch / best.program.step_seconds:,.0f}" in table[2]


def test_the_search_goes_by_the_stage_of_the_largest_images(monkeypatch):
  stages = {"wide": Stage(size=32, until="50%"), "small": Stage(size=8, until="20%")}
  config, compiled, lines = dataclasses.replace(tiny(), stages=stages), set(), []

  def compile_one(config, topology):
    compiled.add(config.model.image.size)
    return Program(MIB, 0, [], [], 0.0, 0.0, 1.0)

  monkeypatch.setattr(search, "compile_step", compile_one)
  found = search.search(config, chips(8, 100 * MIB), [64], lines.append)
  assert compiled == {32} and "largest images, 32 pixels" in lines[0]
  assert search.flags_of(found[0], config) == ["--config.mesh.data=8", "--config.data.batch=64"]


def test_the_mesh_on_the_command_line():
  assert plan.mesh_setting("fsdp=64,data=-1") == {"data": -1, "fsdp": 64, "tensor": 1}
  for wrong in ("data", "data=0", "data=a", "fsdp=2,model=4"):
    with pytest.raises(ValueError, match=f"--mesh={wrong}: it takes devices along data, fsdp, tensor"):
      plan.mesh_setting(wrong)


@pytest.mark.parametrize(
  ("memory", "status", "said"),
  [
    (MIB * 1000, 0, r"data=8,fsdp=1 +none +auto +4 +64 +0.00 +0.98"),
    (1000, plan.NO_FIT, "nothing that was tried fits"),
  ],
)
def test_the_search_on_the_command_line(memory, status, said, monkeypatch, capsys):
  monkeypatch.setattr(topology, "open_topology", lambda name, slices: chips(8, memory, slices))
  monkeypatch.setattr(search, "compile_step", lambda config, topology: Program(0, 0, [], [], 0.0, 0.0, 1.0))
  config = f"--config={ROOT}/configs/coca_tiny.py:runlocal"
  assert run_here(ROOT / "coca/plan.py", config, "--topology=v5e-8", "--search", "--batches=16,64") == status
  told = capsys.readouterr().out
  assert re.search(said, told)
  assert status or re.search(
    r"coca.train --config=\S+coca_tiny.py:runlocal --config.mesh.data=8 .*batch=\d+$", told.strip()
  )


@pytest.mark.parametrize("name", ["lemon_base", "vit_base"])
def test_capfilt_has_no_use_for_some(name):
  config = parse(runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]())
  with pytest.raises(ValueError, match=f"--capfilt: {name} reads no images, or neither writes"):
    report.fit_capfilt(config, chips(1, None), 4)


@pytest.mark.slow
def test_capfilt_compiles_the_functions_of_a_worker():
  topology = Topology("cpu", jax.devices(), 8, None, {})
  config = tiny(matching__weight=1.0)
  programs = compile_capfilt(config, topology, 4, NUCLEUS)
  assert set(programs) == {"encode", "writer", "caption", "score"}
  assert not any(program.collectives for program in programs.values())
  assert programs["encode"].peak > 4 * dict(arithmetic.parameter_table(config))["image_encoder"]
  text, fits = report.fit_capfilt(tiny(captioning__weight=0.0), topology, 4)
  assert fits and "parameters of the filter" in text and "captioner " not in text


# --- With libtpu ----------------------------------------------------------------------------------------------------


def test_a_step_for_four_tpu_chips(libtpu, monkeypatch):
  """With the Pallas kernel in the image encoder, of 144 tokens."""
  topology, called = open_topology("v5e-4"), []
  monkeypatch.setattr("coca.models.flash.flash", lambda *x, flash=flash, **drop: called.append(x) or flash(*x, **drop))
  config = tiny(
    data__batch=64, mesh__data=2, mesh__fsdp=2, model__remat="full", model__image__size=48, model__attention="flash"
  )
  program = compile_step(config, topology)
  assert called
  state = sum(arithmetic.state_bytes(config, 4).values())
  assert state < program.arguments < program.peak < topology.memory
  assert {"all-gather", "reduce-scatter"} <= {row.kind for row in program.collectives}
  assert all(row.counted for row in program.collectives)
  assert {"products", "copies", "reductions", "kernels"} <= {cost.kind for cost in program.costs}
  assert {"image_encoder", "multimodal_decoder", "captioning_loss"} <= {cost.part for cost in program.costs}
  assert any("attention.py" in cost.source for cost in program.costs)
  large = dataclasses.replace(config, data=dataclasses.replace(config.data, batch=2**20))
  with pytest.raises(DoesNotFit, match=r"temporaries alone take \d"):
    compile_step(large, topology)
