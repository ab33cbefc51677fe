"""Advice on a config that does not fit on a topology, by arithmetic."""

import contextlib
import dataclasses
from collections.abc import Iterator

from jax.sharding import AbstractMesh

from coca.config import Config, Mesh, Model, checks
from coca.config.settings import frozen_parts
from coca.devices.batch import batch_arithmetic
from coca.devices.sharding import AXES, mesh_shape, param_shardings, slices_of
from coca.models.abstract import abstract_model
from coca.planning import arithmetic
from coca.planning.compiled import for_topology
from coca.planning.topology import Topology

GIB = 2**30
POLICIES = ("none", "dots", "lean", "full")  # config.model.remat, by how much is computed again


def saved_bytes(config: Config, per_device: int, policy: str) -> int:
  """The least bytes that a device keeps for the backward pass: the layers' inputs, and what the remat policy leaves."""
  model, tensor = config.model, max(config.mesh.tensor, 1)
  itemsize = 4 if model.dtype == "float32" else 2

  def layer(t, tower, crosses):
    kept, split = t * tower.width, 0  # split: over the tensor axis
    if policy != "full":
      kept += t * tower.width * (2 if crosses else 1)  # what the attentions add
      split += t * (3 * tower.width + tower.mlp) + (t * tower.width if crosses else 0)
    if policy in ("none", "dots"):
      split += 2 * crosses * tower.width
    if policy == "none":
      split += t * tower.mlp
      split += tower.heads * t * (t + crosses) if model.attention == "xla" else 0  # kernels hold no softmax
    return kept + split // tensor

  elements = sum(layers * layer(*stack) for layers, *stack in _stacks(config))
  elements += _convolved(model, policy) if model.kind == "align" else 0
  return per_device * elements * itemsize


def _stacks(config: Config) -> list[tuple]:
  """The stacks that are trained, each once: layers, tokens, tower, and tokens that the cross-attention looks at."""
  model, regions = config.model, config.model.regions
  image, text = model.image, model.text
  if model.kind == "lemon":
    return [(text.multimodal_layers, text.length + regions.tags + regions.count, text, 0)]
  if model.kind == "simvlm" or model.poses_tasks:
    reads_image = model.kind == "simvlm"
    read = image.tokens + text.length if reads_image else regions.tags + regions.count
    encoder = (image.layers, read, image, 0) if reads_image else (text.unimodal_layers, read, text, 0)
    return [encoder, (text.multimodal_layers, text.length, text, read)]
  tokens = image.kept + image.class_token
  has_tower = model.kind != "align" and "image_encoder" not in frozen_parts(config)
  reads = config.learns_to_write or any(x.weight for x in (config.matching, config.masked, config.answering))
  crossing = text.multimodal_layers // text.cross_every
  return [
    (image.layers * has_tower, tokens, image, 0),
    (text.unimodal_layers, text.length, text, 0),
    (crossing * reads, text.length, text, (model.poolers.n_query if model.kind == "coca" else 0) or tokens),
    ((text.multimodal_layers - crossing) * reads, text.length, text, 0),
  ]


def _convolved(model: Model, policy: str) -> int:
  """Numbers that EfficientNet's blocks keep of an image: their inputs, and the results of their matrices."""
  side, kept = -(-model.image.size // 2), 0
  for stage in model.efficientnet.stages:
    for block in range(stage.layers):
      n_in, stride = (stage.n_out, 1) if block else (stage.n_in, stage.stride)
      kept += side**2 * n_in * (1 if policy == "full" or stage.expansion == 1 else 1 + stage.expansion)
      side = -(-side // stride)
      kept += 0 if policy == "full" else side**2 * stage.n_out
  return kept


def meshes(config: Config, topology: Topology) -> Iterator[Mesh]:
  """Meshes with fsdp 1, 2, 4, ... that the devices, the batch and the parameters' sizes allow."""
  n = len(topology.devices) // max(config.mesh.tensor, 1)
  slices = slices_of(topology.devices)
  for fsdp in (2**i for i in range(n.bit_length())):
    mesh = Mesh(data=n // fsdp, fsdp=fsdp, tensor=config.mesh.tensor)
    if n % fsdp == 0 and mesh.data % slices == 0:
      with contextlib.suppress(ValueError):
        batch_arithmetic(dataclasses.replace(config, mesh=mesh), len(topology.devices))
        param_shardings(abstract_model(config)[1], AbstractMesh((mesh.data, fsdp, mesh.tensor), AXES))
        yield mesh


def advice(config: Config, topology: Topology) -> list[str]:
  """Changes that would make it smaller, those that cost least first."""
  n, config = len(topology.devices), for_topology(config)
  batch, state = batch_arithmetic(config, n), arithmetic.state_bytes(config, n)
  held = sum(state.values()) + state["params"]
  lines = ["what would help:"]
  fsdp = mesh_shape(config.mesh, n)[1]
  larger = [mesh for mesh in meshes(config, topology) if mesh.fsdp > fsdp]
  if larger and held > 0.1 * (topology.memory or 0):
    better = arithmetic.state_bytes(dataclasses.replace(config, mesh=larger[0]), n)
    lines.append(
      f"  --mesh=data={larger[0].data},fsdp={larger[0].fsdp}: state and gradients "
      f"{(sum(better.values()) + better['params']) / GIB:.2f} GiB instead of {held / GIB:.2f}"
    )
  kept = saved_bytes(config, batch.per_device, config.model.remat)
  for policy in POLICIES[POLICIES.index(config.model.remat) + 1 :]:
    lines.append(
      f"  --config.model.remat={policy}: at least {saved_bytes(config, batch.per_device, policy) / GIB:.2f} "
      f"GiB kept for the backward pass instead of {kept / GIB:.2f}"
    )
  k = 2 * batch.accumulate
  if batch.per_device % 2 == 0:
    with contextlib.suppress(ValueError):  # not with every loss
      checks.check(dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=k)))
      lines.append(f"  --config.optim.accumulate={k}: half the activations, the same loss, one more forward pass")
    with contextlib.suppress(ValueError):
      checks.check(with_batch(config, batch.total // 2))
      negatives = ", fewer negatives" * (config.contrastive.weight > 0)
      lines.append(f"  --config.data.batch={batch.total // 2}: half the activations; another recipe{negatives}")
  samples = config.self_critical.samples if config.self_critical.weight else 1
  words = samples * batch.per_device * config.model.text.length
  logits = 12 * min(config.captioning.chunk, words) * config.model.text.vocab // max(config.mesh.tensor, 1)
  if config.learns_to_write and logits > 0.05 * (topology.memory or 0):
    lines.append(
      f"  --config.captioning.chunk={min(config.captioning.chunk, words) // 2}: half of about "
      f"{logits / GIB:.2f} GiB for logits"
    )
  return [*lines, "  more devices; --search tries meshes, remat and batches"]


def with_batch(config: Config, batch: int) -> Config:
  return dataclasses.replace(config, data=dataclasses.replace(config.data, batch=batch))
