"""The matrix products that a traced function computes, whatever for: what is computed again counts again."""

import math

from jax.extend.core import Jaxpr


def executed_flops(jaxpr: Jaxpr) -> float:
  """FLOPs of all matrix products, convolutions and kernels of a function over all devices, loops included.

  A Pallas kernel counts what its author states (`cost_estimate`); of a condition's branches the largest counts.
  """
  return sum(_flops(eqn) for eqn in jaxpr.eqns)


def _flops(eqn) -> float:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    return 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval.shape
    # Zeros between the inputs, in the gradient of one with strides, are no work.
    size = eqn.outvars[0].aval.size / math.prod(params["lhs_dilation"])
    return 2.0 * size * math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
  if name == "pallas_call":
    return float(params["cost_estimate"].flops) if params["cost_estimate"] else 0.0
  inner = [executed_flops(sub) for value in params.values() for sub in _jaxprs(value)]
  if name == "cond":
    return max(inner)
  times = params["length"] if name == "scan" else 1
  if name == "shard_map":  # its shapes are those of one device
    axes = params["manual_axes" if "manual_axes" in params else "newly_manual_axes"]  # before jax 0.10.2, and since
    times = math.prod(params["mesh"].shape[axis] for axis in axes)
  return times * sum(inner)


def _jaxprs(value):
  for x in value if isinstance(value, tuple | list) else (value,):
    x = getattr(x, "jaxpr", x)
    if isinstance(x, Jaxpr):
      yield x
