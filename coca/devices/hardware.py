"""Abilities of the devices, and what they have to be told: peak rates for MFU, memory, compiler options."""

import contextlib
import ctypes
import gc
import glob
import os
import re
from typing import NamedTuple

import jax

# (device_kind, FLOP/s of one jax device): dense bfloat16 matrix products from the vendors' data sheets; where these
# state the rate with 2:4 sparsity only, half of it. The first pattern found in the kind counts.
PEAKS = (
  # Google Cloud's TPU documentation, "system architecture" of each version, per chip. A chip of v2, v3 and 7x is two
  # jax devices, one of v4 and v5p is a single one (megacore).
  (r"^TPU v2$", 45e12 / 2),
  (r"^TPU v3$", 123e12 / 2),
  (r"^TPU v4$", 275e12),
  (r"^TPU v5 ?(lite|e)$", 197e12),
  (r"^TPU v5p?$", 459e12),
  (r"^TPU v6 ?(lite|e)$", 918e12),
  (r"^TPU7x$", 2307e12 / 2),
  # NVIDIA's data sheets of each card.
  (r"\bMIG\b", None),  # a slice of a card: its share is not in the name's first part
  (r"\bGB200\b", 2500e12),
  (r"\bB200\b", 2250e12),
  (r"\bH200 NVL\b", 835.5e12),
  (r"\b(H200|GH200)\b", 989.4e12),
  (r"\bH100 PCIe\b", 756e12),
  (r"\bH100 NVL\b", 835.5e12),
  (r"\b(H100|H800)\b", 989.4e12),  # SXM
  (r"\b(A100|A800)\b", 312e12),
  (r"\bA30\b", 165e12),
  (r"\bA10\b", 125e12),
  (r"\bA40\b", 149.7e12),
  (r"\bL40S\b", 362e12),
  (r"\bL40\b", 181e12),
  (r"\bL4\b", 121e12),
  (r"\bV100-PCIE", 112e12),  # V100 and T4 have no bfloat16 units: their float16 rate
  (r"\bV100\b", 125e12),
  (r"\bT4\b", 65e12),
)


def peak_flops(kind: str) -> float | None:
  """Peak dense bfloat16 FLOP/s of one jax device of this `device_kind`; None where it is not known, as on CPUs."""
  return next((peak for pattern, peak in PEAKS if re.search(pattern, kind)), None)


# (device_kind, GiB that a program may use on one jax device). TPUs: what libtpu's compiler says it has; it keeps a
# quarter to half a GiB of the chip for itself. GPUs: about what is free on such cards, not measured here.
MEMORY = (
  (r"^TPU v2$", 7.48),
  (r"^TPU v3$", 15.48),
  (r"^TPU v4$", 30.75),
  (r"^TPU v5 ?(lite|e)$", 15.75),
  (r"^TPU v5p?$", 95.74),
  (r"^TPU v6 ?(lite|e)$", 31.25),
  (r"^TPU7x$", 94.75),
  (r"\bH200\b", 139.8),
  (r"\bH100 80GB\b", 79.1),
  (r"\bA100.*80GB\b", 79.1),
  (r"\bA100.*40GB\b", 39.4),
)


def memory(kind: str) -> int | None:
  """Bytes of one jax device of this `device_kind` that a program may use; None where it is not known."""
  return next((int(gib * 2**30) for pattern, gib in MEMORY if re.search(pattern, kind)), None)


class Tpu(NamedTuple):
  """Rates of a TPU in a second, or in a cycle; of one jax device."""

  flops: float
  clock: float  # cycles
  memory: float  # bytes read and written
  ring: float  # bytes sent both ways along one axis of the torus
  exponentials: int  # in a cycle: assumed to be a vector of 8 x 128 for each TensorCore


# (device_kind, multiply-adds in a cycle, GB/s of memory, GB/s both ways along an axis of the torus, TensorCores):
# Google Cloud's documentation of each version, the links by its "interchip interconnect bandwidth" over the axes.
# v6e's multiply-adds: those with which its peak is at a clock like v5p's, 1.75 GHz.
TPUS = (
  (r"^TPU v4$", 8 * 128**2, 1228, 100, 2),
  (r"^TPU v5 ?(lite|e)$", 4 * 128**2, 819, 100, 1),
  (r"^TPU v5p?$", 8 * 128**2, 2765, 200, 2),
  (r"^TPU v6 ?(lite|e)$", 4 * 256**2, 1640, 224, 1),
)


def tpu(kind: str) -> Tpu | None:
  """The rates of this `device_kind`; None: not known. The clock is the one at which its units reach its peak."""
  peak = peak_flops(kind)
  for pattern, multiply_adds, memory_rate, ring, tensor_cores in TPUS:
    if peak and re.search(pattern, kind):
      return Tpu(peak, peak / multiply_adds / 2, memory_rate * 1e9, ring * 1e9, 1024 * tensor_cores)
  return None


def cores() -> int:
  """Those that this process may use: on a cluster its share of the host's."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def platform() -> str:
  """The platform of what is being traced: the mesh in context, which may be of devices that are not there."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def device_memory() -> int | None:
  """Most bytes in use so far on any device of this process; None where the backend does not say (CPU)."""
  peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
  return max((p for p in peaks if p is not None), default=None)


# Of XLA's compiler, for a training step, by platform, or by `device_kind` where that has its own.
OPTIONS = {
  # By default what can start is started, such as zeroing all gradients before the forward pass: 36 % more memory for
  # temporaries than in the order that holds least. `compiler_options` leaves it so for small models.
  # Its vectors have 256 bits where the processor has 512: 5 % of a small step's time.
  "cpu": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED", "xla_cpu_prefer_vector_width": "512"},
  # All-gathers of fsdp's parameters run while the matrix products of the layer before do, instead of before them.
  "tpu": {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_overlap_compute_collective_tc": True,
  },
  # On v4 libtpu fuses none, and refuses to where gathers may run beside other work, as they can there without that:
  # 14 % of what is expected of a step of coca_giant.
  "TPU v4": {"xla_enable_async_all_gather": True, "xla_tpu_enable_async_collective_fusion": False},
  # The same on GPUs, where it is off by default: collectives are scheduled as early as their inputs allow.
  "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
}


SMALL = 2**24  # parameters


def compiler_options(mesh, parameters: int = SMALL) -> dict[str, bool | str]:
  """For `jax.jit` of a training step on the mesh's devices; what XLA_FLAGS or LIBTPU_INIT_ARGS set stays as it is.

  On a CPU that is one device, a step of less than `SMALL` parameters is as fast as it can be, not as small:
  its products leave cores idle, on which others run. With several devices collectives would have no order.
  """
  here = jax.local_devices()
  device = next((d for d in mesh.devices.flat if d in here), None)
  if device is None:  # only compiled for: `coca.planning.topology` has options for that
    return {}
  options = step_options(device)
  if mesh.size == 1 and parameters < SMALL:
    options.pop("xla_cpu_scheduler_type", None)
  return options


def step_options(device) -> dict[str, bool | str]:
  """`compiler_options` of a device."""
  given = os.environ.get("XLA_FLAGS", "") + os.environ.get("LIBTPU_INIT_ARGS", "")
  options = OPTIONS.get(device.device_kind, OPTIONS.get(device.platform, {}))
  return known_options({name: value for name, value in options.items() if f"{name}=" not in given}, device)


def known_options(options: dict, device) -> dict:
  """Those that the device's compiler knows: it refuses a program with others, and a newer one may have dropped some."""
  empty = jax.jit(lambda: 0, out_shardings=jax.sharding.SingleDeviceSharding(device)).lower()
  known = {}
  for name, value in options.items():
    try:
      empty.compile(compiler_options={name: value})
      known[name] = value
    except jax.errors.JaxRuntimeError as e:
      if name not in str(e):  # 'No such compile option', 'While setting option'
        raise
  return known


# What jax finds accelerators by.
ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")
# Of malloc.h, with no limit to what is kept: one arena, none of a thread's own, which can't grow as large; nothing by
# mmap; nothing given back.
KEEP_FREED = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}


def keep_memory() -> None:
  """Has malloc keep what is freed, on a machine without accelerators; before jax starts threads. Only on glibc.

  XLA on CPU takes the memory of a program's temporaries anew in every call. As malloc is, it comes from the kernel each
  time, which clears it page by page: 0.25 of 0.85 CPU seconds of a step of coca_tiny's size. A call is made when
  the one before has ended, since each in flight has its own temporaries: 2.5 GiB in place of 1.2 there.
  """
  if os.environ.get("JAX_PLATFORMS") != "cpu" and any(glob.glob(pattern) for pattern in ACCELERATORS):
    return
  with contextlib.suppress(AttributeError, OSError, TypeError):
    for option, value in KEEP_FREED.values():
      ctypes.CDLL(None).mallopt(option, value)
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def collect_seldom() -> None:
  """Has Python's garbage collector run seldom: what is traced lives on, and to walk it each time takes long.

  Of the 21 CPU seconds of five steps of `coca_tiny:web,runlocal` it took 2, with Python 3.13 one of 27.
  """
  gc.set_threshold(20_000, 20, 20)


def release_memory() -> None:
  """Gives back what this process has freed and malloc kept: compiling a step leaves 0.4 GiB. Nothing but on glibc."""
  with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).malloc_trim(0)
