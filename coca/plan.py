"""What a config costs, by arithmetic and shapes alone: parameters, batch, FLOPs, bytes of state. `--dry_run` prints it.

Model FLOPs, as MFU wants them: 2 for each multiply-add of a matrix product; norms, softmaxes and other elementwise work
do not count, nor does what remat, gradient accumulation or the ring loss compute again, nor the pooler's query
projection (once a batch). Causal attention counts in full: the whole matrix is computed and masked.
"""

import math
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh

from coca.config import Config
from coca.durations import in_steps
from coca.forward import abstract_model
from coca.optim import frozen_parts
from coca.sharding import AXES, mesh_shape
from coca.train_step import planned_state

PARTS = (  # in the order in which a pair goes through them
  "image_encoder", "generative_pooler", "contrastive_pooler", "image_projection", "embedding", "unimodal", "multimodal",
  "softmax", "temperature", "matching_pooler", "matching_head",
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


def flops_per_pair(config: Config) -> dict[str, float]:
  """Model FLOPs of the training step for one pair, by part, with the contrastive loss and 'total'.

  A product with a weight counts once forward, once for the weight's gradient unless its part is frozen, and once for
  the input's gradient unless nothing before it is trained; usually that is three times forward. The contrastive loss
  compares a pair with the whole batch, the softmax once in each direction. The matching loss takes three texts and two
  pictures through the multimodal half for each pair; the draw of its negatives compares the pair with its group,
  forward only, and is counted with the head. A trained LayerNorm counts as something trained before what it feeds.
  """
  model, image, text = config.model, config.model.image, config.model.text
  contrasts, captions = config.contrastive.weight > 0, config.captioning.weight > 0
  matches = config.matching.weight > 0
  decodes = captions or matches
  kind = model.poolers.kind
  pools = text.multimodal_layers > 0 and model.poolers.n_query > 0
  cascades = pools and kind == "cascade"
  frozen = frozen_parts(config)
  embed_dim = model.embed_dim or text.width
  flops = {}

  learns = "image_encoder" not in frozen
  tokens, width = max(1, round(image.tokens * (1 - image.patch_dropout))) + image.class_token, image.width
  # All patches are embedded, and dropped after that; pixels want no gradient.
  flops["image_encoder"] = _product(image.tokens * 3 * image.patch**2 * width, learns, False) + (
    image.layers * _layer(image, tokens, learns, learns)
  )
  encoded = (tokens, width, learns)

  def pool(part, n_query, out, tokens, width, live):
    learns = part not in frozen
    flops[part] = (
      _product(2 * tokens * width * text.width, learns, live or (learns and model.poolers.norm_inputs))
      + _product(n_query * (text.width * out + 2 * out * model.poolers.mlp), learns, live or learns)
      + _attention(n_query * tokens * text.width, live or learns)
    )
    return n_query, out, live or learns

  def project(width, live):
    learns = "image_projection" not in frozen
    flops["image_projection"] = _product(width * embed_dim, learns, live)
    return live or learns

  image_tokens = encoded
  if kind == "openclip":
    first, last = 0 if contrasts else 1, model.poolers.n_query if decodes else 1
    n, out, live = pool("generative_pooler", last - first, text.width, *encoded)
    image_tokens = (n - contrasts, out, live)
    image_live = project(text.width, live) if contrasts else None
  else:
    if kind == "class_token":
      image_live = project(width, encoded[2]) if contrasts else None
      image_tokens = encoded = (tokens - 1, width, encoded[2])
    if pools and (decodes or cascades):
      image_tokens = pool("generative_pooler", model.poolers.n_query, text.width, *encoded)
    if contrasts and kind != "class_token":
      _, _, image_live = pool("contrastive_pooler", 1, embed_dim, *(image_tokens if cascades else encoded))

  learns = text.unimodal_layers > 0 and "unimodal" not in frozen
  live = learns or "embedding" not in frozen
  has_cls = contrasts and text.pool == "cls"
  if text.unimodal_layers:
    flops["unimodal"] = text.unimodal_layers * _layer(text, text.length + has_cls, learns, live)
  if contrasts:
    flops["unimodal"] += _product(text.width * embed_dim, learns, live)
    matrices = 2 if config.contrastive.loss == "softmax" else 1
    flops["contrastive_loss"] = matrices * 2 * config.data.batch * embed_dim * (1 + image_live + live)

  if decodes:
    learns = "multimodal" not in frozen
    live |= learns
    texts, images = (3, 2) if matches else (1, 1)
    flops["multimodal"] = text.multimodal_layers * _layer(
      text, text.length, learns, live, *image_tokens, texts=texts, contexts=images
    )
  if matches:
    _, _, pooled_live = pool("matching_pooler", 1, text.width, text.length, text.width, live)
    flops["matching_pooler"] *= 3
    flops["matching_head"] = 3 * _product(text.width * 2, "matching_head" not in frozen, pooled_live) + (
      2 * 2.0 * (config.matching.group or config.data.batch) * embed_dim
    )
  if captions:
    learns = ("embedding" if text.tied_softmax else "softmax") not in frozen
    flops["softmax"] = _product(text.length * text.width * text.vocab, learns, live)

  return flops | {"total": sum(flops.values())}


def _layer(tower, tokens, learns, live, context=0, context_width=0, context_live=False, *, texts=1, contexts=1):
  """A transformer layer over `tokens`, with cross-attention to `context` tokens if there are any.

  `learns`: its weights want gradients; `live`: its input does; `texts` of so many tokens look at `contexts`.
  """
  d = tower.width
  live |= context_live
  feedforwards = tower.feedforwards if context else 1
  flops = _product(tokens * (4 * d * d + feedforwards * 2 * d * tower.mlp), learns, live)
  flops += _attention(tokens * tokens * d, live)
  if context:
    flops += _product(2 * tokens * d * d, learns, live) + _attention(tokens * context * d, live)
    context_live |= learns and tower.norm_context
    flops = texts * flops + contexts * _product(2 * context * context_width * d, learns, context_live)
  return flops


def _product(multiply_adds, learns, live):
  return 2.0 * multiply_adds * (1 + learns + live)


def _attention(multiply_adds, live):
  """Query times key, and weights times value."""
  return 2 * 2.0 * multiply_adds * (1 + 2 * live)


def state_bytes(config: Config, n_devices: int) -> dict[str, int]:
  """Bytes on each device of 'params', 'opt' and, where there is one, 'ema'. The gradients take as much as 'params'.

  Raises:
    ValueError: the mesh does not fit the devices, or does not divide a parameter.
  """
  mesh = AbstractMesh(mesh_shape(config.mesh, n_devices), AXES)
  state = planned_state(config, in_steps(config.steps, config.data.batch), mesh)

  def size(x):
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

  return {k: sum(map(size, jax.tree.leaves(state[k]))) for k in ("params", "opt", "ema") if k in state}


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
  ema = f", moving average {mib['ema']}" if "ema" in mib else ""
  lines += [
    "",
    f"mesh: {mesh} = {n_devices} devices",
    f"batch: {batch.per_device:,} per device x {batch.shards:,} devices x {batch.accumulate} accumulated = "
    f"{batch.total:,} pairs a step",
    f"run: {steps:,} steps, {steps * batch.total:,} pairs, {steps * batch.total * total_flops:.3g} FLOPs (forward and "
    "backward; causal attention in full, nothing that is computed again)",
    f"on each device: parameters {mib['params']}, gradients {mib['params']}, optimizer {mib['opt']}{ema}; activations "
    "come on top",
  ]
  return "\n".join(lines)
