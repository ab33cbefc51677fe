"""Devices of machines that are not here, to compile for: TPUs by libtpu, GPUs by JAX's CUDA plugin.

v5e-16, v6e-256       TPU chips
v4-4096, v5p-12288    TensorCores, two a chip, as Google Cloud names these versions: 2,048 and 6,144 chips
v4:8x16x16            the chips along each axis of the torus; with any version libtpu knows, such as tpu7x:2x2x1
h100-256, h100:32x8   GPUs, eight a host; hosts x GPUs of each. h100, h200, a100
"""

import importlib.util
import itertools
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from coca.devices import hardware

# Version -> axes of its torus, and the TensorCores of a chip that Google Cloud counts in a name.
TPUS = {"v2": (2, 2), "v3": (2, 2), "v4": (3, 2), "v5p": (3, 2), "v5e": (2, 1), "v6e": (2, 1)}
LARGEST = {"v2": 256, "v3": 1024, "v4": 4096, "v5p": 8960, "v5e": 256, "v6e": 256}  # chips of a slice

# What XLA has to know of a card: NVIDIA's data sheets and CUDA's table of compute capabilities.
GPUS = {
  "a100": {
    "name": "NVIDIA A100-SXM4-80GB",
    "capability": (8, 0),
    "cores": 108,
    "shared": 163,
    "l2": 40,
    "ghz": 1.41,
    "bandwidth": 2039e9,
  },
  "h100": {
    "name": "NVIDIA H100 80GB HBM3",
    "capability": (9, 0),
    "cores": 132,
    "shared": 227,
    "l2": 50,
    "ghz": 1.98,
    "bandwidth": 3352e9,
  },
  "h200": {
    "name": "NVIDIA H200",
    "capability": (9, 0),
    "cores": 132,
    "shared": 227,
    "l2": 50,
    "ghz": 1.98,
    "bandwidth": 4800e9,
  },
}


class Topology(NamedTuple):
  """Devices to compile for."""

  name: str  # as the compiler has it: 'v4:8x16x16'
  devices: list  # compile-only
  chips: int
  memory: int | None  # bytes of a device that a program may use; None: not known
  options: dict[str, bool | str]  # of the compiler
  schedules: Path | None = None  # the folder to which the compiler writes its own (`coca.planning.schedule`)

  @property
  def kind(self) -> str:
    return self.devices[0].device_kind


def open_topology(name: str, slices: int = 1) -> Topology:
  """The devices of a friendly name or a topology, `slices` times.

  This process then uses the CPU alone, whatever the machine has.

  Raises:
    ValueError: no such topology; names some.
    ModuleNotFoundError: the compiler is not installed; names the extra.
  """
  jax.config.update("jax_platforms", "cpu")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # not that there is no GPU
  version, shape = parse(name)
  return _gpus(version, shape, slices) if version in GPUS else _tpus(version, shape, slices)


def parse(name: str) -> tuple[str, tuple[int, ...]]:
  """'v4-4096' or 'v4:8x16x16' -> 'v4', (8, 16, 16). Raises ValueError."""
  match = re.fullmatch(r"(\w+)(?:-(\d+)|:(\d+(?:x\d+)*))", name.strip().lower())
  version = match[1].replace("litepod", "e") if match else ""
  if match and match[3]:
    return version, tuple(int(n) for n in match[3].split("x"))
  if match and version in TPUS:
    axes, cores = TPUS[version]
    chips = int(match[2]) // cores
    if chips * cores == int(match[2]) and (shape := _torus(chips, axes)) and chips <= LARGEST[version]:
      return version, shape
    unit = "TensorCores, two a chip" if cores == 2 else "chips"
    raise ValueError(
      f"--topology {name}: no slice has {match[2]} {unit}; sizes double: {version}-{8 * cores}, "
      f"{version}-{16 * cores}, ... up to {LARGEST[version] * cores}. Any other is a topology, as "
      f"{version}:{'4x4x12' if axes == 3 else '4x12'}"
    )
  if match and version in GPUS:
    n = int(match[2])
    if 0 < n < 8 or n % 8 == 0 < n:
      return version, (max(n // 8, 1), min(n, 8))
    raise ValueError(
      f"--topology {name}: hosts have 8 GPUs; {n} is no multiple of that, say hosts x GPUs as {version}:{n}x1"
    )
  raise ValueError(
    f"--topology {name!r} is not known: TPUs {', '.join(f'{v}-N' for v in TPUS)}, GPUs "
    f"{', '.join(f'{v}-N' for v in GPUS)}, or a topology such as v5e:4x8, v4:8x16x16, h100:32x8"
  )


def _torus(chips: int, axes: int) -> tuple[int, ...] | None:
  """The usual shape of a slice: as near to a cube or a square as multiples of four (below 64 chips: of two) allow."""
  if chips == 4 and axes == 3:
    return 2, 2, 1
  sides = range(4, 65, 4) if chips >= 4**axes else (1, 2, 4)
  shapes = [s for s in itertools.combinations_with_replacement(sides, axes) if math.prod(s) == chips]
  return min(shapes, key=lambda s: (s[-1], -s[0]), default=None)


def _tpus(version: str, shape: tuple[int, ...], slices: int) -> Topology:
  if importlib.util.find_spec("libtpu") is None:
    raise ModuleNotFoundError(
      "to plan for TPUs their compiler has to be installed, no TPU: pip install -e '.[plan]' (libtpu, 0.7 GB)"
    )
  # Without these libtpu looks for a machine around it, writes logs to /tmp, and lets one process use it at a time.
  for variable, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
  }.items():
    os.environ.setdefault(variable, value)
  chips = math.prod(shape)
  name = f"{version}:{'x'.join(map(str, shape))}"
  options = {"num_slices": slices} if slices > 1 else {}
  if version in ("v4", "v5p"):
    options["chip_config_name"] = "megacore"  # one device a chip, as jax has it there
  if chips < 4:  # otherwise a host with four chips is looked for
    options["chips_per_host_bounds"] = (*shape, *(1,) * (3 - len(shape)))
  try:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
  except jax.errors.JaxRuntimeError as e:
    raise ValueError(f"--topology {name}: {str(e).splitlines()[0].removeprefix('INVALID_ARGUMENT: ')}") from None
  kind = devices[0].device_kind
  return Topology(name, devices, chips * slices, hardware.memory(kind), hardware.step_options(devices[0]))


def _gpus(version: str, shape: tuple[int, ...], slices: int) -> Topology:
  if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
    raise ModuleNotFoundError(
      "to plan for GPUs JAX's CUDA plugin has to be installed, no GPU: pip install -e '.[plan_gpu]'"
    )
  if len(shape) != 2:
    raise ValueError(f"--topology {version}: a shape of GPUs is hosts x GPUs of each, as {version}:4x8")
  card, layout = GPUS[version], f"{slices}x{shape[0]}x{shape[1]}"
  topology = topologies.get_topology_desc(
    platform="cuda", topology_name=version, topology=layout, target_config=_target(card)
  )
  # JAX takes three quarters of a card unless told otherwise.
  share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))
  # What needs the card itself: timing kernels, and Triton's, which are chosen by that.
  options = hardware.known_options(
    {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}, topology.devices[0]
  )
  return Topology(
    f"{version}:{layout}",
    topology.devices,
    math.prod(shape) * slices,
    int(share * hardware.memory(card["name"])),
    options,
  )


def _target(card: dict) -> str:
  """A GPU as a text proto of XLA's GpuTargetConfig."""
  major, minor = card["capability"]
  info = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "fpus_per_core": 128,
    "shared_memory_per_block": 48 * 2**10,
    "shared_memory_per_block_optin": card["shared"] * 2**10,
    "shared_memory_per_core": (card["shared"] + 1) * 2**10,
    "core_count": card["cores"],
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "l2_cache_size": card["l2"] * 2**20,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "memory_bandwidth": int(card["bandwidth"]),
    "clock_rate_ghz": card["ghz"],
    "device_memory_size": hardware.memory(card["name"]),
  }
  lines = [
    *(f"  {name}: {value}" for name, value in info.items()),
    f"  cuda_compute_capability {{ major: {major} minor: {minor} }}",
  ]
  return "\n".join(
    [
      "gpu_device_info {",
      *lines,
      "}",
      'platform_name: "CUDA"',
      "dnn_version_info { major: 9 minor: 8 }",
      "runtime_version { major: 12 minor: 9 }",
      f'device_description_str: "{card["name"]}"',
    ]
  )
