"""FLOPs of the training step, counted in the traced program: 2 for each multiply-add of a product or a convolution.

Norms, softmaxes and other elementwise work do not count. Causal attention counts in full: the whole matrix is computed
and masked.
"""

import math
import re
from collections import defaultdict
from dataclasses import replace

import jax
from jax.extend.core import Jaxpr

from coca.config import Config, Mesh
from coca.devices.sharding import absent_device
from coca.training.state import Setup
from coca.training.step import batch_shapes, make_step

# Scopes of the step (`jax.named_scope`); beside these each loss has one, NAME_loss.
SCOPES = (
  "momentum",
  "image_encoder",
  "conv_stem",
  "encoder",
  "decoder",
  "regions",
  "generative_pooler",
  "contrastive_pooler",
  "unimodal_decoder",
  "multimodal_decoder",
  "text_encoder",
  "fusion_encoder",
  "image_grounded_encoder",
  "image_grounded_decoder",
  "text_decoder",
  "matching_pooler",
  "class_head",
  "batch_norm",
  "optimizer",
  "ema",
)
# Those whose parameters have another name. All products of these losses are of a head.
PARTS = {
  "conv_stem": "stem",
  "regions": "region_projection",
  "unimodal_decoder": "unimodal",
  "multimodal_decoder": "multimodal",
  "fusion_encoder": "fusion",
  "image_grounded_encoder": "text_encoder",
  "image_grounded_decoder": "text_decoder",
  "captioning_loss": "softmax",
  "answering_loss": "softmax",
  "self_critical_loss": "softmax",
  "masked_loss": "softmax",
  "matching_loss": "matching_head",
}


def flops_per_pair(config: Config) -> dict[str, float]:
  """Model FLOPs of the training step for one pair, by part of the model, losses, 'rest' and 'total', as MFU wants them.

  Neither what remat, gradient accumulation, a chunked vocabulary head or a kernel computes again, nor the optimizer.
  To trace the step takes about two seconds.
  """
  model, text = replace(config.model, remat="none", attention="xla"), config.model.text
  captioning = replace(config.captioning, chunk=max(config.captioning.chunk, 8 * config.data.batch * text.length))
  optim = replace(config.optim, accumulate=1, name="adamw")  # which is traced the soonest, and does not count
  config = replace(config, model=model, captioning=captioning, optim=optim, mesh=Mesh())
  # Of no platform for which a model has another program: all products are products there.
  mesh = absent_device("gpu")
  setup = Setup(config, mesh)
  with jax.sharding.use_abstract_mesh(mesh):
    step = jax.make_jaxpr(make_step(setup))(setup.planned, batch_shapes(config, mesh))
  counted = products(step.jaxpr)
  counted.pop("optimizer", None)
  flops: dict[str, float] = defaultdict(float)
  for scope, n in counted.items():
    flops[PARTS.get(scope, scope) or "rest"] += n / config.data.batch
  return {**flops, "total": total(flops)}


def products(jaxpr: Jaxpr, within: str = "") -> dict[str, float]:
  """FLOPs of a traced function over all devices, loops included, by scope (`scope_of`); all that it computes.

  A Pallas kernel counts what its author states (`cost_estimate`); of a condition's branches the largest counts.

  Args:
    jaxpr: of the function.
    within: names of the scopes that it is called in.
  """
  found: dict[str, float] = defaultdict(float)
  for eqn in jaxpr.eqns:
    name, params, names = eqn.primitive.name, eqn.params, f"{within}/{eqn.source_info.name_stack}"
    inner = [products(sub, names) for value in params.values() for sub in _jaxprs(value)]
    if name == "pallas_call":
      found[scope_of(names)] += params["cost_estimate"].flops if params["cost_estimate"] else 0
    elif inner:
      inner = [max(inner, key=total)] if name == "cond" else inner
      for part in inner:
        for scope, n in part.items():
          found[scope] += _times(name, params) * n
    elif name in ("dot_general", "conv_general_dilated"):
      found[scope_of(names)] += _flops(eqn)
  return found


def total(counted: dict[str, float]) -> float:
  return sum(counted.values())


def scope_of(names: str) -> str:
  """The first of `SCOPES` in the names of an instruction's scopes, or else the first loss, or else ''."""
  found = re.findall(r"\w+", names)
  losses = (name for name in found if name.endswith("_loss"))
  return next((name for name in found if name in SCOPES), next(losses, ""))


def _flops(eqn) -> float:
  if eqn.primitive.name == "dot_general":
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
  kernel = eqn.invars[1].aval.shape
  # Zeros between the inputs, in the gradient of a convolution with strides, are no work.
  size = eqn.outvars[0].aval.size / math.prod(eqn.params["lhs_dilation"])
  return 2.0 * size * math.prod(kernel) / kernel[eqn.params["dimension_numbers"].rhs_spec[0]]


def _times(name: str, params: dict) -> int:
  """The number of times that its inner functions run, over all devices."""
  if name == "shard_map":  # its shapes are those of one device
    axes = params["manual_axes" if "manual_axes" in params else "newly_manual_axes"]  # before jax 0.10.2, and since
    return math.prod(params["mesh"].shape[axis] for axis in axes)
  return params["length"] if name == "scan" else 1


def _jaxprs(value):
  for x in value if isinstance(value, tuple | list) else (value,):
    x = getattr(x, "jaxpr", x)
    if isinstance(x, Jaxpr):
      yield x
