"""A config on devices that are not here, and if it fits: what it holds, what it sends, how long it takes.

`python -m coca.plan` prints what is written here.
"""

from collections import defaultdict
from dataclasses import replace

from coca.capfilt.settings import NUCLEUS
from coca.config import Config
from coca.config.stages import spans
from coca.devices import hardware
from coca.devices.batch import batch_arithmetic
from coca.devices.sharding import AXES, mesh_shape
from coca.planning.advice import GIB, advice, saved_bytes
from coca.planning.arithmetic import parameter_table, state_bytes
from coca.planning.compiled import DoesNotFit, Program, compile_capfilt, compile_step, for_topology, progress
from coca.planning.expected import BY_SCHEDULE, KINDS, PUBLISHED
from coca.planning.topology import Topology
from coca.training.flops import flops_per_pair

HELD = {
  "params": "parameters",
  "opt": "optimizer",
  "ema": "moving average",
  "momentum": "momentum encoders",
  "queue": "queue",
}


def fit(config: Config, topology: Topology, mfu: float | None) -> tuple[str, bool]:
  """Compiles the training step: what there is to say of it, and whether it fits.

  Raises:
    ValueError: batch or mesh cannot be split over the devices.
  """
  lines = [heading(config, topology)]
  stages = [replace(stage.config, steps=str(stage.last - stage.first)) for stage in spans(config)]
  state_bytes(config, len(topology.devices))  # raises what is wrong with the mesh at once
  try:
    with progress(f"compiling the training step of {config.name} for {topology.name}"):
      *before, program = (compile_step(config, topology, stage.model.image.size) for stage in stages)
  except DoesNotFit as e:
    return "\n".join([*lines, "", refusal(e, topology), "", *advice(config, topology)]), False
  lines += [
    "",
    *memory_table(config, topology, program),
    "",
    *(unread(program) if program.unread else collective_table(program)),
    "",
    *cost(stages[-1], topology, mfu, program),
  ]
  if program.costs:
    lines += ["", *share_table(program), "", *costliest_table(program)]
  for stage, program in zip(stages, before, strict=False):
    size, peak = stage.model.image.size, program.peak / GIB
    lines += [
      "",
      f"before that, images of {size} pixels: {peak:.2f} GiB at the peak",
      *cost(stage, topology, mfu, program),
    ]
  return "\n".join(lines), True


def heading(config: Config, topology: Topology) -> str:
  n = len(topology.devices)
  batch, shape = batch_arithmetic(config, n), mesh_shape(config.mesh, n)
  limit = f", {topology.memory / GIB:.2f} GiB each" if topology.memory else ""
  return (
    f"{config.name} ({dict(parameter_table(config))['total'] / 1e6:,.0f}M parameters) on {topology.name}: "
    f"{topology.chips:,} chips, {n:,} devices ({topology.kind}{limit})\n"
    f"mesh: {' x '.join(f'{axis} {k}' for axis, k in zip(AXES, shape, strict=True))}; remat "
    f"{config.model.remat}; batch: {batch.per_device:,} per device x {batch.shards:,} x {batch.accumulate} "
    f"accumulated = {batch.total:,} pairs"
  )


def memory_table(config: Config, topology: Topology, program: Program) -> list[str]:
  state = state_bytes(config, len(topology.devices))
  rows = [(HELD[name], size) for name, size in state.items()]
  rows.append(("batch, and what padding adds", program.arguments - sum(state.values())))
  per_device = batch_arithmetic(config, len(topology.devices)).per_device
  rows.append(("gradients, activations, all else at the peak", program.peak - program.arguments))
  kept = saved_bytes(for_topology(config), per_device, config.model.remat)
  rows.append(("  kept for the backward pass, at least", kept))
  rows.append(("all", program.peak))
  lines = [f"{'memory of a device at the peak':<46}{'GiB':>8}"]
  lines += [f"{name:<46}{size / GIB:>8.2f}" for name, size in rows]
  if topology.memory:
    left = topology.memory - program.peak
    lines.append(f"it fits: {left / GIB:.2f} GiB of {topology.memory / GIB:.2f} are left")
  return lines


def unread(program: Program) -> list[str]:
  return [
    "neither what it sends nor how long it takes can be told: this jaxlib can't read the program that the compiler "
    f"made ({program.unread}); a newer jax may: pip install -U jax jaxlib"
  ]


def collective_table(program: Program, most: int = 12) -> list[str]:
  """The collectives that send most, a line each, and the rest in one."""
  lines = [f"{'collective':<19}{'along':<12}{'times':>7}  {'largest array on a device':<30}{'MB sent a step':>15}"]
  rest = program.collectives[most:]
  for row in program.collectives[:most]:
    array = f"{row.dtype}[{','.join(map(str, row.shape))}]"
    times = f"{row.times:,}" + "+" * (not row.counted)
    lines.append(f"{row.kind:<19}{','.join(row.axes):<12}{times:>7}  {array:<30}{row.sent / 1e6:>15,.1f}")
  if rest:
    lines.append(f"{len(rest)} more{'':<50}{'':>13}{sum(row.sent for row in rest) / 1e6:>15,.1f}")
  lines.append(f"{'all':<70}{sum(row.sent for row in program.collectives) / 1e6:>15,.1f}")
  if not all(row.counted for row in program.collectives):
    lines.append("+: in a loop of unknown length, counted once")
  return lines


def cost(config: Config, topology: Topology, mfu: float | None, program: Program) -> list[str]:
  """The time that a step and the run take: as the compiler expects, or at the MFU that is given."""
  flops, peak = flops_per_pair(config)["total"], hardware.peak_flops(topology.kind)
  lines = [f"{flops / 1e9:,.1f} GFLOPs a pair, forward and backward"]
  per_device = flops * config.data.batch / len(topology.devices)
  if mfu and peak:
    seconds = per_device / peak / mfu
    lines.append(f"at an MFU of {mfu:g} (--mfu): {seconds:.3f} s a step")
  elif program.costs and peak:
    seconds = program.step_seconds
    useful, all_of_it = (100 * x / seconds / peak for x in (per_device, program.executed))
    shares = f"an MFU of {useful:.1f} %, {all_of_it:.1f} % with what is computed again"
    if hardware.tpu(topology.kind):
      cycles = f"{seconds * program.clock / 1e6:,.1f}M cycles at {program.clock / 1e9:.2f} GHz"
      published = BY_SCHEDULE if program.beforehand else PUBLISHED
      factors = ", ".join(f"{least:g} to {most:g} on {chip}" for chip, (least, most) in published.items())
      if before := program.beforehand:
        lines.append(
          f"before it scheduled them the compiler expected {before:.3f} s a step, an MFU of "
          f"{100 * per_device / before / peak:.1f} %"
        )
      lines += [
        f"{'by its schedules ' * bool(before)}the compiler expects {seconds:.3f} s a step ({cycles}): {shares}",
        f"published runs of language models took {factors} times as long as is expected of them "
        "(tests/benchmarks/RESULTS.md)",
      ]
    else:
      lines.append(
        f"a roofline, each kernel as long as its products at the peak or its bytes take: {seconds:.3f} s a step, "
        f"{shares}; a card takes longer"
      )
  else:
    return lines
  steps, batch = config.total_steps, config.data.batch
  hours = steps * seconds / 3600
  sent = sum(row.sent for row in program.collectives)
  lines += [
    f"{batch / seconds:,.0f} pairs/s; {steps:,} steps take {hours / 24:,.1f} days, "
    f"{hours * topology.chips:,.0f} chip-hours",
    f"to hide what it sends behind that, a device has to send {sent / seconds / 1e9:,.1f} GB/s",
  ]
  return lines


def share_table(program: Program, least: float = 0.001) -> list[str]:
  """The expected time by parts of the model and kinds of work, in percent of the step.

  Parts that take less than `least` of it are in the row of the rest.
  """
  whole = sum(row.cycles for row in program.costs)
  of_part, found = defaultdict(float), defaultdict(float)
  for row in program.costs:
    of_part[row.part] += row.cycles
  for row in program.costs:
    found[row.part if of_part[row.part] > least * whole else "", row.kind] += row.cycles
  kinds = [kind for kind in KINDS if any(k == kind for _, k in found)]
  parts = sorted({part for part, _ in found}, key=lambda part: -of_part[part] * bool(part))
  lines = [f"{'% of the step':<24}" + "".join(f"{kind:>{len(kind) + 2}}" for kind in [*kinds, "  all"])]
  for name in [*parts, "all"]:
    of = {kind: sum(found[part, kind] for part in parts if name in (part, "all")) for kind in kinds}
    cells = [(kind, of[kind]) for kind in kinds] + [("  all", sum(of.values()))]
    lines.append(
      f"{name or 'the rest':<24}" + "".join(f"{100 * cycles / whole:>{len(kind) + 2}.1f}" for kind, cycles in cells)
    )
  return lines


def costliest_table(program: Program, most: int = 10) -> list[str]:
  """The instructions that take longest, a line each, with the lines of code that they come from."""
  whole = sum(row.cycles for row in program.costs)
  lines = [f"{'% of the step':<15}{'times':>5}  {'costliest instructions':<20} of"]
  for row in program.costs[:most]:
    part = f"{row.part}{' (backward)' * row.backward}" or row.name
    lines.append(f"{100 * row.cycles / whole:>13.1f}{row.times:>7}  {row.kind:<20} {part}: {row.source or row.name}")
  return lines


def refusal(error: DoesNotFit, topology: Topology) -> str:
  there = f", {topology.memory / GIB:.2f} GiB are there" if topology.memory else ""
  return f"it DOES NOT FIT: {error}{there}"


def fit_capfilt(config: Config, topology: Topology, batch: int) -> tuple[str, bool]:
  """Captioner and filter of the config's model on one device: what there is to say, and whether they fit."""
  parameters = 4 * dict(parameter_table(config))["total"]
  head = f"{config.name} in CapFilt: {batch} images at once on one {topology.kind}, nucleus sampling"
  try:
    with progress(f"compiling captioner and filter of {config.name} for one device of {topology.name}"):
      programs = compile_capfilt(config, topology, batch, NUCLEUS)
  except DoesNotFit as e:
    return f"{head}\n{refusal(e, topology)}; --capfilt_batch: fewer images at once", False
  rows = [
    (f"parameters of the {name}", parameters)
    for name, part in (("captioner", "caption"), ("filter", "score"))
    if part in programs
  ]
  if "caption" in programs:
    rows.append(("decoder, made ready for writing, and images", programs["caption"].arguments))
  part = max(programs, key=lambda name: programs[name].peak - programs[name].arguments)
  rows.append((f"temporaries, most of them in {part}", programs[part].peak - programs[part].arguments))
  total = sum(size for _, size in rows)
  fits = not topology.memory or total <= topology.memory
  lines = [head, "", *(f"{name:<46}{size / GIB:>8.2f} GiB" for name, size in [*rows, ("all", total)])]
  if topology.memory:
    lines.append(f"it {'fits' if fits else 'DOES NOT FIT'}: {topology.memory / GIB:.2f} GiB are there")
  return "\n".join(lines), fits
