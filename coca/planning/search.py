"""The search for meshes, remat policies, batches and kernels with which a config fits on a topology and is fast."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

from coca.config import Config, checks
from coca.config.stages import spans
from coca.devices import hardware
from coca.devices.sharding import AXES
from coca.planning import arithmetic
from coca.planning.advice import GIB, POLICIES, meshes, saved_bytes, with_batch
from coca.planning.compiled import DoesNotFit, Program, compile_step, for_topology, progress
from coca.planning.topology import Topology
from coca.training.flops import flops_per_pair

# Of config.model: what is tried, one setting after the other, with the fastest mesh and batch.
TRIED = {"remat": POLICIES, "attention": ("auto", "xla"), "unroll": (1, 2, 3)}


class Found(NamedTuple):
  """A config that fits, and its compiled step."""

  config: Config
  program: Program

  @property
  def sent(self) -> float:
    """Bytes that a device sends for a pair."""
    return sum(row.sent for row in self.program.collectives) / self.config.data.batch

  @property
  def order(self):
    """Best first: the least time for a pair; where it is not known the least computed again, then the fewest bytes."""
    return self.program.step_seconds / self.config.data.batch, POLICIES.index(self.config.model.remat), self.sent


def search(config: Config, topology: Topology, batches: list[int], say: Callable[[str], None]) -> list[Found]:
  """Compiles meshes, remat policies and batches; says each result, and returns those that fit, best first.

  For each mesh and batch: the policy that computes least again and fits. What cannot fit by arithmetic is left out; so
  is a batch larger than one that does not fit. Meshes: the smallest fsdp that can fit, 4 and 16 times it. Where the
  compiler says how long a step takes, other policies, kernels and loops (`TRIED`) are then tried with the fastest.
  Of a run in stages, the one with the largest images stands for all.
  """
  if config.stages:
    config = max((stage.config for stage in spans(config)), key=lambda stage: stage.model.image.size)
    say(f"of the run's stages, that of the largest images, {config.model.image.size} pixels")
  found, compiled, smallest = [], 0, None
  unit = len(topology.devices) // max(config.mesh.tensor, 1) * config.optim.accumulate
  possible = []
  for batch in sorted(batches):
    try:
      if batch % unit:
        raise ValueError(f"it has to be a multiple of {unit}")
      checks.check(with_batch(config, batch))
      possible.append(batch)
    except ValueError as e:
      say(f"batch={batch:,} is left out: {e}")
  for mesh in meshes(with_batch(config, possible[0]), topology) if possible else ():
    if smallest and mesh.fsdp not in (4 * smallest, 16 * smallest):
      continue
    state = arithmetic.state_bytes(dataclasses.replace(config, mesh=mesh), len(topology.devices))
    policies = list(POLICIES)
    for batch in possible:
      per_device = batch // unit
      for policy in tuple(policies):
        kept = saved_bytes(for_topology(config), per_device, policy)
        # What no compiler can do without: the state, and the gradients or what is kept for the backward pass.
        if topology.memory and sum(state.values()) + max(state["params"], kept) > topology.memory:
          policies.remove(policy)  # for more pairs too
          continue
        smallest = smallest or mesh.fsdp
        one = dataclasses.replace(
          with_batch(config, batch), mesh=mesh, model=dataclasses.replace(config.model, remat=policy)
        )
        compiled += 1
        if fits := _compiled(one, topology, say):
          found.append(fits)
          break
        policies.remove(policy)
  if any(f.program.step_seconds for f in found):
    fastest = min(found, key=lambda f: f.order)
    for setting, values in TRIED.items():
      for value in values:
        other = _with(fastest.config, setting, value)
        if other is None or other in [f.config for f in found]:
          continue
        compiled += 1
        if fits := _compiled(other, topology, say):
          found.append(fits)
      fastest = min(found, key=lambda f: f.order)
  say(f"{compiled} programs compiled")
  return sorted(found, key=lambda f: f.order)


def _with(config: Config, setting: str, value) -> Config | None:
  """With another setting of the model; None where there is no such config."""
  other = dataclasses.replace(config, model=dataclasses.replace(config.model, **{setting: value}))
  try:
    checks.check(other)
  except ValueError:
    return None
  return other


def _compiled(config: Config, topology: Topology, say: Callable[[str], None]) -> Found | None:
  """Compiles a step and says what came of it; None: it does not fit."""
  mesh, model = config.mesh, config.model
  name = f"data={mesh.data} fsdp={mesh.fsdp} remat={model.remat} batch={config.data.batch:,}"
  name += f" attention={model.attention}" * (model.attention != "auto") + f" unroll={model.unroll}" * (model.unroll > 1)
  try:
    with progress(name):
      program = compile_step(config, topology)
  except DoesNotFit as e:
    say(f"{name}: does not fit, {e}")
    return None
  time = f"{program.step_seconds:.3f} s a step expected; " if program.step_seconds else ""
  say(f"{name}: fits, {program.peak / GIB:,.2f} GiB; {time}compiled in {program.seconds:.0f} s")
  return Found(config, program)


def search_table(found: list[Found], topology: Topology) -> list[str]:
  if not found:
    return ["nothing that was tried fits; there are smaller batches (--batches), --config.mesh.tensor, more devices"]
  is_timed = any(f.program.step_seconds for f in found)
  order = "the least time expected for a pair" if is_timed else "the least computed again, then the fewest bytes sent"
  lines = [
    f"what fits, best first: {order}",
    f"{'mesh':<24}{'remat':<7}{'attention':<11}{'unroll':>6}{'batch':>9}{'GiB':>8}{'GiB left':>10}"
    f"{'MB sent a pair':>16}" + f"{'pairs/s':>12}{'MFU, %':>8}" * is_timed,
  ]
  of_batch = {f.config.data.batch: f.config for f in found}  # what else differs changes no model FLOPs
  flops = {batch: flops_per_pair(config)["total"] for batch, config in of_batch.items() if is_timed}
  for f in found:
    mesh, model = f.config.mesh, f.config.model
    axes = f"data={mesh.data},fsdp={mesh.fsdp}" + f",tensor={mesh.tensor}" * (mesh.tensor > 1)
    left = f"{(topology.memory - f.program.peak) / GIB:.2f}" if topology.memory else ""
    line = f"{axes:<24}{model.remat:<7}{model.attention:<11}{model.unroll:>6}{f.config.data.batch:>9,}"
    line += f"{f.program.peak / GIB:>8.2f}{left:>10}{f.sent * len(topology.devices) / 1e6:>16,.2f}"
    if is_timed:
      rate = f.config.data.batch / f.program.step_seconds
      peak = (hardware.peak_flops(topology.kind) or math.nan) * len(topology.devices)
      line += f"{rate:>12,.0f}{100 * rate * flops[f.config.data.batch] / peak:>8.1f}"
    lines.append(line)
  return lines


def flags_of(found: Found, config: Config) -> list[str]:
  """Those that make the config that was searched for into the one found."""
  new, old = found.config, config
  pairs = {
    **{f"mesh.{axis}": (getattr(new.mesh, axis), getattr(old.mesh, axis)) for axis in AXES},
    "data.batch": (new.data.batch, old.data.batch),
    **{f"model.{name}": (getattr(new.model, name), getattr(old.model, name)) for name in TRIED},
  }
  return [f"--config.{name}={value}" for name, (value, before) in pairs.items() if value != before]
