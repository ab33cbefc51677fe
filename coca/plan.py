"""What a config costs, before anyone pays.

By arithmetic and shapes alone: parameters, batch, bytes of state; `python -m coca.train --dry_run` prints it. And by
compiling the training step itself for devices that are not here:

    python -m coca.plan --config=configs/coca_giant.py --topology=v4:8x16x16 --mesh=data=32,fsdp=64

says whether it fits, what a device holds at the peak, what the devices send each other in a step, and how long the
config's steps take at an assumed MFU. No accelerator is used. For TPUs `pip install -e '.[plan]'`, for GPUs
`'.[plan_gpu]'`.

    --topology     v5e-256 (chips); v4-4096, v5p-12288 (TensorCores, two a chip, as Google Cloud counts); h100-256
                   (GPUs); or a shape: v4:8x16x16 chips along each axis, h100:32x8 hosts x GPUs
    --slices=2     so many of them, joined along the data axis
    --search       which meshes, remat policies and batches fit, best first
    --capfilt      captioner and filter of the config's model in place of training, on one device

The exit status is 0 where it fits and 3 where it does not. What is compiled is the program alone, without the options
of `coca.devices.hardware` by which transfers run beside computation; these take some memory too.
"""

import math
import re
import sys
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import AbstractMesh
from ml_collections import config_flags

from coca.config import Config, parse
from coca.config.command_line import one_line, parse_flags
from coca.config.durations import in_steps
from coca.devices.sharding import AXES, mesh_shape
from coca.inference.forward import abstract_model
from coca.models.flops import flops_per_pair
from coca.training.step import planned_state

PARTS = (  # in the order in which a pair goes through them
  "image_encoder", "generative_pooler", "contrastive_pooler", "image_projection", "embedding", "unimodal", "multimodal",
  "text_encoder", "text_projection", "text_decoder", "caption_head", "softmax", "temperature", "matching_pooler",
  "matching_head",
)


class Batch(NamedTuple):
  """per_device x shards x accumulate = total."""

  per_device: int  # pairs that one device sees at once
  shards: int  # devices that split the batch: data x fsdp; those along tensor share their rows
  accumulate: int  # micro-batches a step
  total: int  # pairs a step


def parameter_table(config: Config) -> list[tuple[str, int]]:
  """Parameters of each part of the model, and ('total', ...) last. Nothing is computed."""
  _, params = abstract_model(config)
  counts = {part: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for part, tree in params.items()}
  parts = sorted(counts, key=lambda part: PARTS.index(part) if part in PARTS else len(PARTS))
  return [*((part, counts[part]) for part in parts), ("total", sum(counts.values()))]


def batch_arithmetic(config: Config, n_devices: int) -> Batch:
  """How the batch is split over devices and micro-batches.

  Raises:
    ValueError: the mesh does not fit the devices, or the batch cannot be split evenly; the message names one that can.
  """
  data, fsdp, _ = mesh_shape(config.mesh, n_devices)
  total, accumulate, shards = config.data.batch, config.optim.accumulate, data * fsdp
  unit = shards * accumulate
  if total % unit:
    fitting = max(round(total / unit), 1) * unit
    raise ValueError(
      f"config.data.batch {total} cannot be split over {shards} devices (data {data} x fsdp {fsdp}) x "
      f"config.optim.accumulate {accumulate}: it has to be a multiple of {unit}, such as {fitting}"
    )
  return Batch(total // unit, shards, accumulate, total)


def state_bytes(config: Config, n_devices: int) -> dict[str, int]:
  """Bytes on each device of 'params', 'opt' and, where there are any, 'ema', 'momentum' and 'queue'.

  The gradients take as much as 'params'.

  Raises:
    ValueError: the mesh does not fit the devices, or does not divide a parameter.
  """
  mesh = AbstractMesh(mesh_shape(config.mesh, n_devices), AXES)
  state = planned_state(config, in_steps(config.steps, config.data.batch), mesh)

  def size(x):
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

  parts = ("params", "opt", "ema", "momentum", "queue")
  return {k: sum(map(size, jax.tree.leaves(state[k]))) for k in parts if k in state}


def first_losses(config: Config) -> dict[str, tuple[float, str]]:
  """What the losses are at the start, in nats, without their weights: a new model tells nothing apart.

  Returns:
    by name, the size and how it comes about. A loss that is a sum over tokens is given for one.
  """
  c, vocab, out = config.contrastive, config.model.text.vocab, {}
  if c.weight and c.loss == "softmax":
    keys, directions = config.data.batch + (c.queue if c.momentum else 0), 2 if c.directions == "sum" else 1
    out["contrastive"] = directions * math.log(keys), f"{'2 ' if directions == 2 else ''}ln {keys:,}"
  elif c.weight:
    others = config.data.batch - 1
    size = np.logaddexp(0, -c.bias) + others * np.logaddexp(0, c.bias)
    out["contrastive"] = size, f"a pair's and {others:,} others' with bias {c.bias:g}"
  if config.captioning.weight:
    each = " for each token of a text" if config.captioning.tokens == "sum" else ""
    out["captioning"] = math.log(vocab), f"ln {vocab:,}{each}"
  if config.matching.weight:
    out["matching"] = math.log(2), "ln 2"
  if config.answering.weight:
    out["answering"] = math.log(vocab), f"ln {vocab:,} for each token of an answer"
  return out


def describe(config: Config, n_devices: int) -> str:
  """All of this as text.

  Raises:
    ValueError: as `batch_arithmetic` and `state_bytes`.
  """
  batch, memory, flops = batch_arithmetic(config, n_devices), state_bytes(config, n_devices), flops_per_pair(config)
  parameters = dict(parameter_table(config))
  total_flops, total_parameters = flops.pop("total"), parameters.pop("total")
  lines = [config.name, "", f"{'part':<20}{'parameters':>15}{'MFLOPs a pair':>18}"]
  for part in [*parameters, *(p for p in flops if p not in parameters)]:
    lines.append(f"{part:<20}{parameters.get(part, 0):>15,}{flops.get(part, 0) / 1e6:>18,.2f}")
  lines.append(f"{'total':<20}{total_parameters:>15,}{total_flops / 1e6:>18,.2f}")

  steps = in_steps(config.steps, batch.total)
  mesh = " x ".join(f"{axis} {n}" for axis, n in zip(AXES, mesh_shape(config.mesh, n_devices), strict=True))
  mib = {name: f"{size / 2**20:,.1f} MiB" for name, size in memory.items()}
  losses = [f"{name} {getattr(config, name).weight:g} x {size:.2f} ({why})"
            for name, (size, why) in first_losses(config).items()]
  more = {"ema": "moving average", "momentum": "momentum encoders", "queue": "queue"}
  rest = "".join(f", {name} {mib[part]}" for part, name in more.items() if part in mib)
  lines += [
    "",
    f"mesh: {mesh} = {n_devices} devices",
    f"batch: {batch.per_device:,} per device x {batch.shards:,} devices x {batch.accumulate} accumulated = "
    f"{batch.total:,} pairs a step",
    f"losses at the start, by their weights: {', '.join(losses)}",
    f"run: {steps:,} steps, {steps * batch.total:,} pairs, {steps * batch.total * total_flops:.3g} FLOPs (forward and "
    "backward; causal attention in full, nothing that is computed again)",
    f"on each device: parameters {mib['params']}, gradients {mib['params']}, optimizer {mib['opt']}{rest}; activations "
    "come on top",
  ]
  return "\n".join(lines)


# --- Command line ---

NO_FIT = 3  # exit status


def mesh_setting(text: str) -> dict[str, int]:
  """'data=32,fsdp=64' -> {'data': 32, 'fsdp': 64}; axes that are not named are 1. Raises ValueError."""
  sizes = dict(item.partition("=")[::2] for item in text.split(","))
  if set(sizes) - set(AXES) or not all(re.fullmatch(r"-1|[1-9]\d*", size) for size in sizes.values()):
    raise ValueError(f"--mesh={text}: it takes devices along {', '.join(AXES)}, as data=32,fsdp=64; one may be -1")
  return dict.fromkeys(AXES, 1) | {axis: int(size) for axis, size in sizes.items()}


def main(argv) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  with one_line(ValueError, FileNotFoundError, ModuleNotFoundError):
    from coca.planning import (  # training takes its arithmetic from this file and needs none of these
      report,
      search,
      topology,
    )

    if FLAGS.mesh and FLAGS.search:
      raise ValueError("--search tries meshes itself: leave out --mesh; --config.mesh.tensor stays as it is")
    if FLAGS.mesh:
      FLAGS.config.mesh.update(mesh_setting(FLAGS.mesh))
    config = parse(FLAGS.config)
    devices = topology.open_topology(FLAGS.topology, FLAGS.slices)
    if FLAGS.capfilt:
      text, fits = report.fit_capfilt(config, devices, FLAGS.capfilt_batch)
    elif FLAGS.search:
      batches = [int(n) for n in FLAGS.batches] or [config.data.batch // 2, config.data.batch, 2 * config.data.batch]
      found = search.search(config, devices, batches, lambda line: print(line, flush=True))
      text, fits = "\n".join(search.search_table(found, devices)), bool(found)
    else:
      text, fits = report.fit(config, devices, FLAGS.mfu)
    print(text)
  sys.exit(0 if fits else NO_FIT)


FLAGS = flags.FLAGS

if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "a file in configs/, as configs/coca_giant.py")
  flags.DEFINE_string("topology", None, "devices to plan for: v5e-256, v4:8x16x16, h100-256")
  flags.DEFINE_integer("slices", 1, "so many such slices, joined along the data axis", lower_bound=1)
  flags.DEFINE_string("mesh", "", "devices along each axis, as data=32,fsdp=64; empty: config.mesh")
  flags.DEFINE_float("mfu", 0.5, "share of the peak FLOP/s that the run is assumed to reach", 0.01, 1.0)
  flags.DEFINE_bool("search", False, "try meshes, remat policies and batches")
  flags.DEFINE_list("batches", [], "batches that --search tries; empty: the config's, half and twice that")
  flags.DEFINE_bool("capfilt", False, "plan CapFilt with the config's model, on one device")
  flags.DEFINE_integer("capfilt_batch", 64, "images at once on a device", lower_bound=1)
  flags.mark_flags_as_required(["config", "topology"])
  app.run(main, flags_parser=parse_flags)
