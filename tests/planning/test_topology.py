"""Names of devices that are not here, and what is said where their compiler is missing."""

import importlib.util

import jax
import pytest

from coca.config import Mesh
from coca.devices import hardware
from coca.devices.sharding import make_mesh
from coca.planning import topology
from coca.planning.topology import open_topology, parse


@pytest.mark.parametrize(
  ("name", "shape"),
  [
    ("v5e-1", (1, 1)),
    ("v5e-8", (2, 4)),
    ("v5e-16", (4, 4)),
    ("v5litepod-16", (4, 4)),
    ("v6e-256", (16, 16)),
    ("v4-8", (2, 2, 1)),
    ("v4-16", (2, 2, 2)),
    ("v4-64", (2, 4, 4)),
    ("v4-128", (4, 4, 4)),
    ("v4-4096", (8, 16, 16)),
    ("v5p-1536", (8, 8, 12)),
    ("v5p-12288", (16, 16, 24)),
    ("v3-32", (4, 4)),
    ("V4:8x16x16", (8, 16, 16)),
    ("v5e:4x8", (4, 8)),
    ("tpu7x:2x2x1", (2, 2, 1)),
    ("h100-4", (1, 4)),
    ("h100-256", (32, 8)),
    ("a100:4x2", (4, 2)),
  ],
)
def test_names(name, shape):
  """The sizes of slices are those of Google Cloud's documentation."""
  version = name.lower().replace("litepod", "e").replace(":", "-").split("-")[0]
  assert parse(name) == (version, shape)


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("v5e-7", r"no slice has 7 chips; .* v5e-8, v5e-16, \.\.\. up to 256\. .* v5e:4x12"),
    ("v5e-512", "no slice has 512 chips"),
    ("v4-24", r"24 TensorCores, two a chip; .* up to 8192"),
    ("v4-7", "7 TensorCores"),
    ("h100-12", "hosts have 8 GPUs; 12 is no multiple"),
    ("v5e", "not known: TPUs v2-N, .*, GPUs a100-N"),
    ("v9-3", "not known"),
    ("", "not known"),
  ],
)
def test_names_that_are_none(name, says):
  with pytest.raises(ValueError, match=says):
    parse(name)


@pytest.mark.parametrize(("name", "extra"), [("v5e-4", "plan"), ("h100-8", "plan_gpu")])
def test_a_compiler_that_is_missing_is_named(name, extra, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError, match=rf"pip install -e '\.\[{extra}\]'"):
    open_topology(name)


def test_memory_of_every_device_that_has_a_name():
  for card in topology.GPUS.values():
    assert hardware.memory(card["name"]) and hardware.peak_flops(card["name"])
  assert hardware.memory("TPU v5 lite") == 15.75 * 2**30
  assert hardware.memory("TPU v5") == int(95.74 * 2**30)
  assert hardware.memory("cpu") is None


def test_tpus(libtpu):
  for name, chips, devices, kind in (
    ("v5e-16", 16, 16, "TPU v5 lite"),
    ("v4-4096", 2048, 2048, "TPU v4"),
    ("v5e-1", 1, 1, "TPU v5 lite"),
    ("v3-8", 4, 8, "TPU v3"),
  ):
    found = open_topology(name)
    assert (found.chips, len(found.devices), found.kind) == (chips, devices, kind)
    assert found.memory == hardware.memory(kind)
  two = open_topology("v5e-16", slices=2)
  assert (two.chips, {d.slice_index for d in two.devices}) == (32, {0, 1})
  with pytest.raises(ValueError, match=r"--topology v5e:3x3: .*not divisible"):
    open_topology("v5e:3x3")


def test_gpus(monkeypatch):
  if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
    pytest.skip("JAX's CUDA plugin is not installed (pip install -e '.[plan_gpu]')")
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  found = open_topology("h100-16", slices=2)
  assert (len(found.devices), found.kind) == (32, "NVIDIA H100 80GB HBM3")
  assert found.memory == pytest.approx(0.75 * 79.1 * 2**30, rel=1e-6)


def test_options_that_the_compiler_does_not_know_or_the_environment_sets_are_left_out(monkeypatch):
  mesh, known = make_mesh(Mesh(), jax.devices()), hardware.OPTIONS["cpu"]
  odd = {"xla_cpu_was_dropped": True, "xla_backend_optimization_level": "much"}
  monkeypatch.setattr(hardware, "OPTIONS", {"cpu": known | odd})
  assert hardware.compiler_options(mesh) == known
  small, order = hardware.SMALL - 1, {"xla_cpu_scheduler_type"}
  assert hardware.compiler_options(mesh, small) == known
  alone = hardware.compiler_options(make_mesh(Mesh(), jax.devices()[:1]), small)
  assert alone == {name: value for name, value in known.items() if name not in order}
  monkeypatch.setenv("XLA_FLAGS", " ".join(f"--{name}={value}" for name, value in known.items()))
  assert hardware.compiler_options(mesh) == {}
