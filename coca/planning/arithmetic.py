"""The costs of a config by arithmetic and shapes alone: parameters, batch, bytes of state."""

import math

import jax
from jax.sharding import AbstractMesh

from coca.config import Config
from coca.config.stages import spans
from coca.devices.batch import batch_arithmetic
from coca.devices.sharding import AXES, mesh_shape
from coca.models.abstract import abstract_model
from coca.objectives.terms import terms
from coca.training.flops import flops_per_pair
from coca.training.state import Setup

PARTS = (  # in the order in which a pair goes through them
  "stem",
  "positions",
  "image_encoder",
  "region_projection",
  "region_norm",
  "segments",
  "generative_pooler",
  "contrastive_pooler",
  "image_projection",
  "embedding",
  "words",
  "encoder",
  "norm",
  "decoder",
  "unimodal",
  "multimodal",
  "text_encoder",
  "fusion",
  "text_projection",
  "text_decoder",
  "caption_head",
  "masked_head",
  "softmax",
  "temperature",
  "matching_pooler",
  "matching_head",
  "frame_positions",
  "class_pooler",
  "class_head",
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
  state = Setup(config, mesh).planned

  def size(x):
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

  held = {name: getattr(state, name) for name in ("params", "opt", "ema", "momentum", "queue")}
  return {name: sum(map(size, jax.tree.leaves(tree))) for name, tree in held.items() if tree is not None}


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

  steps, whole, stages = config.total_steps, 0.0, []
  for first, last, stage in spans(config):
    flops_there = flops_per_pair(stage)["total"]
    whole += (last - first) * batch.total * flops_there
    stages.append(
      f"stage: steps {first + 1:,} to {last:,}, images of {stage.model.image.size} pixels, {flops_there / 1e6:,.2f} "
      f"MFLOPs a pair, learning rate up to {stage.optim.lr:g}"
    )
  stages = stages if config.stages else []
  mesh = " x ".join(f"{axis} {n}" for axis, n in zip(AXES, mesh_shape(config.mesh, n_devices), strict=True))
  mib = {name: f"{size / 2**20:,.1f} MiB" for name, size in memory.items()}
  starts = [(term, *term.at_start()) for term in terms(config)]
  losses = [f"{term.name} {term.weight:g} x {size:.2f} ({why})" for term, size, why in starts]
  more = {"ema": "moving average", "momentum": "momentum encoders", "queue": "queue"}
  rest = "".join(f", {name} {mib[part]}" for part, name in more.items() if part in mib)
  lines += [
    "",
    f"mesh: {mesh} = {n_devices} devices",
    f"batch: {batch.per_device:,} per device x {batch.shards:,} devices x {batch.accumulate} accumulated = "
    f"{batch.total:,} pairs a step",
    f"losses at the start, by their weights: {', '.join(losses)}",
    *stages,
    f"run: {steps:,} steps, {steps * batch.total:,} pairs, {whole:.3g} FLOPs (forward and "
    "backward; causal attention in full, nothing that is computed again)",
    f"on each device: parameters {mib['params']}, gradients {mib['params']}, optimizer {mib['opt']}{rest}; activations "
    "come on top",
  ]
  return "\n".join(lines)
