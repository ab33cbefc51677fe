"""The costs of a config by arithmetic and shapes alone: parameters, batch, bytes of state."""

import math

import jax
import numpy as np
from jax.sharding import AbstractMesh

from coca.config import Config
from coca.devices.batch import batch_arithmetic
from coca.devices.sharding import AXES, mesh_shape
from coca.models.abstract import abstract_model
from coca.models.flops import flops_per_pair
from coca.training.state import planned_state

PARTS = (  # in the order in which a pair goes through them
  "image_encoder", "generative_pooler", "contrastive_pooler", "image_projection", "embedding", "unimodal", "multimodal",
  "text_encoder", "text_projection", "text_decoder", "caption_head", "softmax", "temperature", "matching_pooler",
  "matching_head",
)


def parameter_table(config: Config) -> list[tuple[str, int]]:
  """Parameters of each part of the model, and ('total', ...) last. Nothing is computed."""
  _, params = abstract_model(config)
  counts = {part: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for part, tree in params.items()}
  parts = sorted(counts, key=lambda part: PARTS.index(part) if part in PARTS else len(PARTS))
  return [*((part, counts[part]) for part in parts), ("total", sum(counts.values()))]


def state_bytes(config: Config, n_devices: int) -> dict[str, int]:
  """Bytes on each device of 'params', 'opt' and, where there are any, 'ema', 'momentum' and 'queue'.

  The gradients take as much as 'params'.

  Raises:
    ValueError: the mesh does not fit the devices, or does not divide a parameter.
  """
  mesh = AbstractMesh(mesh_shape(config.mesh, n_devices), AXES)
  state = planned_state(config, config.total_steps, mesh)

  def size(x):
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

  parts = ("params", "opt", "ema", "momentum", "queue")
  return {k: sum(map(size, jax.tree.leaves(state[k]))) for k in parts if k in state}


def first_losses(config: Config) -> dict[str, tuple[float, str]]:
  """The size of the losses at the start, in nats, without their weights: a new model tells nothing apart.

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

  steps = config.total_steps
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
