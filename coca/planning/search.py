"""The search for meshes, remat policies and batches with which a config fits on a topology."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from coca.config import Config, checks
from coca.planning import arithmetic
from coca.planning.advice import GIB, POLICIES, meshes, saved_bytes, with_batch
from coca.planning.compiled import DoesNotFit, Program, compile_step, for_topology, progress
from coca.planning.topology import Topology


class Found(NamedTuple):
  config: Config
  program: Program

  @property
  def order(self):
    """Best first: the least computed again, then the fewest bytes sent for a pair."""
    sent = sum(row.sent for row in self.program.collectives)
    return POLICIES.index(self.config.model.remat), sent / self.config.data.batch


def search(config: Config, topology: Topology, batches: list[int], say: Callable[[str], None]) -> list[Found]:
  """Compiles meshes, remat policies and batches; says each result, and returns those that fit, best first.

  For each mesh and batch: the policy that computes least again and fits. What cannot fit by arithmetic is left out; so
  is a batch larger than one that does not fit. Meshes: the smallest fsdp that can fit, 4 and 16 times it.
  """
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
        name = f"data={mesh.data} fsdp={mesh.fsdp} remat={policy} batch={batch:,}"
        compiled += 1
        try:
          with progress(name):
            found.append(Found(one, compile_step(one, topology)))
        except DoesNotFit as e:
          say(f"{name}: does not fit, {e}")
          policies.remove(policy)
          continue
        say(f"{name}: fits, {found[-1].program.peak / GIB:,.2f} GiB; compiled in {found[-1].program.seconds:.0f} s")
        break
  say(f"{compiled} programs compiled")
  return sorted(found, key=lambda f: f.order)


def search_table(found: list[Found], topology: Topology) -> list[str]:
  if not found:
    return ["nothing that was tried fits; there are smaller batches (--batches), --config.mesh.tensor, more devices"]
  lines = [
    "what fits, best first: the least computed again, then the fewest bytes sent for a pair",
    f"{'mesh':<24}{'remat':<7}{'batch':>9}{'GiB':>8}{'GiB left':>10}{'MB sent a pair':>16}",
  ]
  for f in found:
    mesh = f"data={f.config.mesh.data},fsdp={f.config.mesh.fsdp}" + f",tensor={f.config.mesh.tensor}" * (
      f.config.mesh.tensor > 1
    )
    left = f"{(topology.memory - f.program.peak) / GIB:.2f}" if topology.memory else ""
    lines.append(
      f"{mesh:<24}{f.config.model.remat:<7}{f.config.data.batch:>9,}{f.program.peak / GIB:>8.2f}{left:>10}"
      f"{f.order[1] * len(topology.devices) / 1e6:>16,.2f}"
    )
  return lines
