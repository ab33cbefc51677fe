"""The real programs of a config, compiled for devices that are not here: what they hold and what they send."""

import contextlib
import dataclasses
import math
import re
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from coca.config import Config, Mesh
from coca.config.special import Special
from coca.decoding.settings import Decoding
from coca.devices import hardware
from coca.devices.sharding import batch_sharding, make_mesh
from coca.inference.forward import Forward
from coca.planning import expected, roofline, schedule
from coca.planning.collectives import Collective, collectives
from coca.planning.expected import Cost
from coca.planning.topology import GPUS, Topology
from coca.training.flops import products, total
from coca.training.state import Setup
from coca.training.step import TrainStep, batch_shapes


class Program(NamedTuple):
  """A compiled program; all bytes and FLOPs are those of one device."""

  peak: int  # most that is held at any time, arguments included
  arguments: int
  collectives: list[Collective]
  costs: list[Cost]  # what takes time: on TPUs as the compiler expects, on GPUs by a roofline; empty: not known
  clock: float  # cycles a second in which the costs are told
  executed: float  # FLOPs of matrix products, those that are computed again included
  seconds: float  # that compiling took
  unread: str = ""  # the reason why this jaxlib can't read the compiled program: collectives and costs are not known
  beforehand: float = 0.0  # seconds of a step as it was expected before the schedules, where costs are by these

  @property
  def step_seconds(self) -> float:
    """The time of a step by `costs`; 0: not known."""
    return sum(row.cycles for row in self.costs) / self.clock if self.costs else 0.0


class DoesNotFit(RuntimeError):
  """The program needs more memory than a device has; the message says how much."""


def for_topology(config: Config) -> Config:
  """`config` as an accelerator reads it: `config.model.dtype` 'auto' is bfloat16 there."""
  if config.model.dtype == "auto":
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
  return config


def compile_step(config: Config, topology: Topology, size: int = 0) -> Program:
  """The training step of the config over all devices of the topology; `size`: of its images, if not the config's.

  Raises:
    ValueError: the mesh does not fit the devices, or does not divide a parameter; or cuDNN is needed and not there.
    DoesNotFit: it needs more memory than a device has.
  """
  mesh, config = make_mesh(config.mesh, topology.devices), for_topology(config)
  setup = Setup(config, mesh)
  try:
    traced = TrainStep(setup).trace(setup.planned, batch_shapes(config, mesh, size))
  except RuntimeError as e:
    if "cuDNN" not in str(e):
      raise
    raise ValueError(
      f"config.model.attention={config.model.attention} can be planned only where cuDNN is installed: plan with xla, "
      "which holds and sends more"
    ) from None
  return _compile(traced, topology, dict(mesh.shape))


def compile_capfilt(config: Config, topology: Topology, batch: int, decoding: Decoding) -> dict[str, Program]:
  """The functions of a CapFilt worker on one device, of the model of a config: those that it has the heads for.

  Args:
    config: of captioner or filter, as it is trained.
    topology: its first device counts.
    batch: images at once.
    decoding: how texts are written.

  Returns:
    by the names of `Forward.programs`.

  Raises:
    ValueError: CapFilt has no use for the model.
    DoesNotFit: as `compile_step`.
  """
  if config.model.reads_regions or not (config.model.writes or config.contrastive.heads):
    raise ValueError(
      f"--capfilt: {config.name} reads no images, or neither writes texts nor compares them with an image"
    )
  mesh, config = make_mesh(Mesh(), topology.devices[:1]), for_topology(config)
  forward, sharding = Forward(config, mesh), batch_sharding(mesh)
  params, text, side = forward.abstract_params, config.model.text, config.model.image.size
  functions = forward.programs(decoding, Special(bos=1, eos=2))
  args = {}

  def shape(dtype, *dims):
    return jax.ShapeDtypeStruct((batch, *dims), dtype, sharding=sharding)

  with jax.set_mesh(mesh):
    args["encode"] = params, shape(jnp.uint8, side, side, 3)
    encoded = jax.eval_shape(functions["encode"], *args["encode"])
    if text.multimodal_layers and config.learns_to_write:
      args["writer"] = (params,)
      weights = jax.eval_shape(functions["writer"], params)
      inputs = {"ids": shape(jnp.uint32), "prompt": None, "lengths": None}
      args["caption"] = params, weights, encoded, np.uint32(0), inputs
    if config.contrastive.heads or config.matching.weight:
      args["score"] = params, encoded, shape(jnp.int32, decoding.n, text.length)
    return {name: _compile(functions[name].trace(*given), topology, dict(mesh.shape)) for name, given in args.items()}


def _compile(traced, topology: Topology, mesh: dict[str, int]) -> Program:
  start = time.monotonic()
  if topology.schedules:
    schedule.clear(topology.schedules)
  try:
    compiled = traced.lower().compile(compiler_options=topology.options or None)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    # libtpu says how much it would take beside the arguments, and no more.
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGTP])\)", str(e))
    raise DoesNotFit(f"temporaries alone take {found[1]} {found[2]}iB" if found else str(e).splitlines()[0]) from None
  memory = compiled.memory_analysis()
  if topology.memory and memory.peak_memory_in_bytes > topology.memory:  # on GPUs the compiler does not look
    raise DoesNotFit(f"it takes {memory.peak_memory_in_bytes / 2**30:.2f} GiB")
  try:
    text, unread = compiled.as_text(), ""
  except jax.errors.JaxRuntimeError as e:  # seen with jaxlib 0.10 and libtpu 0.0.52 for v6e
    text, unread = "", str(e).splitlines()[0]
  sent = collectives(text, mesh)
  scheduled = schedule.read(topology.schedules) if topology.schedules else None
  costs, clock = _costs(text, topology.kind, sent, scheduled)
  expected_before = _costs(text, topology.kind, sent)[0] if scheduled else []
  return Program(
    memory.peak_memory_in_bytes,
    memory.argument_size_in_bytes,
    sent,
    costs,
    clock,
    total(products(traced.jaxpr.jaxpr)) / math.prod(mesh.values()),
    time.monotonic() - start,
    unread,
    sum(row.cycles for row in expected_before) / (clock or 1.0),
  )


def _costs(text: str, kind: str, sent: list[Collective], scheduled: dict | None = None) -> tuple[list[Cost], float]:
  """`Program.costs` and `Program.clock`."""
  if tpu := hardware.tpu(kind):
    return expected.costs(text, tpu, sent, scheduled), tpu.clock
  peak, card = hardware.peak_flops(kind), next((card for card in GPUS.values() if card["name"] == kind), None)
  if peak and card:
    clock = card["ghz"] * 1e9
    return roofline.costs(text, peak, card["bandwidth"], clock), clock
  return [], 0.0


@contextlib.contextmanager
def progress(what: str):
  """Says on stderr what is being done, on a terminal for how many seconds."""
  if not sys.stderr.isatty():
    print(f"{what} ...", file=sys.stderr, flush=True)
    yield
    return
  done, start = threading.Event(), time.monotonic()

  def tick():
    while not done.wait(1):
      print(f"\r{what}: {time.monotonic() - start:.0f} s ", end="", file=sys.stderr, flush=True)

  thread = threading.Thread(target=tick, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
