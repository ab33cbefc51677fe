"""Mesh and rules: which mesh axis splits which dimension of which array.

The mesh is ("data", "fsdp", "tensor") with Auto axes. The batch is split over data and fsdp. A parameter's dimensions
have logical names (`PARAMETERS`, by the end of its path), and one rule per logical name (`RULES`) says which mesh axis
splits it. Optimizer state and moving averages follow their parameter.
"""

import fnmatch
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from coca import config as settings

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that split a batch

RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor", None: None}

# End of the path -> logical name of each dimension; parameters of scanned layers have one more dimension in front.
PARAMETERS = {
  "query/kernel": ("embed", "heads"),
  "key/kernel": ("embed", "heads"),
  "value/kernel": ("embed", "heads"),
  "out/kernel": ("heads", "embed"),
  "mlp/up/kernel": ("embed", "mlp"),
  "mlp/down/kernel": ("mlp", "embed"),
  "patches/kernel": (None, "embed"),
  "projection/kernel": ("embed", None),
  "softmax/kernel": ("embed", "vocab"),
  "embedding/tokens": ("vocab", "embed"),
  "positions": (None, "embed"),
  "queries": (None, "embed"),
  "cls": (None,),
  "bias": (None,),
  "scale": (None,),
  "log_scale": (),
  "logit_bias": (),
}


def make_mesh(mesh: settings.Mesh | None = None, devices=None) -> Mesh:
  """The device mesh; several TPU slices are joined along the data axis, over the slow links.

  Raises:
    ValueError: the axes' product is not the number of devices.
  """
  mesh = mesh or settings.Mesh()
  devices = jax.devices() if devices is None else devices
  shape = [mesh.data, mesh.fsdp, mesh.tensor]
  known = math.prod(n for n in shape if n != -1)
  if shape.count(-1) == 1 and len(devices) % known == 0:
    shape[shape.index(-1)] = len(devices) // known
  if math.prod(shape) != len(devices) or min(shape) < 1:
    raise ValueError(
      f"config.mesh data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor} does not fit {len(devices)} devices: "
      "the product must be that number; one axis may be -1"
    )
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  if slices > 1:
    if shape[0] % slices:
      raise ValueError(f"config.mesh.data {shape[0]} is no multiple of the {slices} slices")
    grid = mesh_utils.create_hybrid_device_mesh((shape[0] // slices, *shape[1:]), (slices, 1, 1), devices)
  else:
    grid = mesh_utils.create_device_mesh(shape, devices)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def path_name(path) -> str:
  """A key path of jax.tree_util as text: 'unimodal/stack/layers/mlp/up/kernel'."""
  if path and path[-1] == jax.tree_util.GetAttrKey("value"):  # inside a variable of nnx
    path = path[:-1]
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh | None = None) -> P:
  """The partition of one parameter.

  Args:
    path: as `path_name` writes it; 'layers' in it means a leading dimension of scanned layers unless the shape lacks it.
    shape: of the parameter.
    mesh: to check that the sizes divide.

  Raises:
    ValueError: no rule names the parameter, two dimensions claim one mesh axis, or a size does not divide.
  """
  found = [names for end, names in PARAMETERS.items() if fnmatch.fnmatch("/" + path, "*/" + end)]
  if not found:
    raise ValueError(f"coca/sharding.py: no rule in PARAMETERS names the parameter {path} {shape}")
  names = found[0]
  if len(shape) == len(names) + 1 and "layers" in path.split("/"):
    names = (None, *names)
  if len(shape) != len(names):
    raise ValueError(f"coca/sharding.py: the rule for {path} has dimensions {names}, the parameter {shape}")
  axes = [RULES[name] for name in names]
  used = [a for a in axes if a]
  if len(used) != len(set(used)):
    raise ValueError(f"coca/sharding.py: two dimensions of {path} {names} claim one mesh axis: {axes}")
  for size, axis in zip(shape, axes, strict=True):
    if mesh is not None and axis and size % mesh.shape[axis]:
      raise ValueError(
        f"{path} {shape}: dimension {size} cannot be split over {mesh.shape[axis]} devices; "
        f"choose a config.mesh.{axis} that divides it"
      )
  return P(*axes)


def param_shardings(params, mesh: Mesh):
  """A tree of NamedShardings for a tree of parameters (arrays or ShapeDtypeStructs)."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: NamedSharding(mesh, param_spec(path_name(path), x.shape, mesh)), params
  )


def state_shardings(state, params, mesh: Mesh):
  """Shardings of a training state: a leaf whose path ends as a parameter's and has its shape is split like it.

  Everything else (counters, Adafactor's factors, a thousandth of the parameters' size) is replicated.
  """
  by_path = {path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(params)}

  def sharding(path, x):
    names = path_name(path).split("/")
    for start in range(len(names)):
      end = "/".join(names[start:])
      if by_path.get(end) == x.shape:
        return NamedSharding(mesh, param_spec(end, x.shape, mesh))
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(sharding, state)


def gather_layer(params, dtype):
  """The parameters of one scanned layer in the compute dtype, gathered over fsdp (tensor stays split).

  Called inside the scanned body: left to the partitioner, all layers are gathered at once. Gradients go back to the
  fsdp shards at once too (a reduce-scatter). Without a mesh in context this is only the cast. Vectors (norms, biases)
  keep fp32: the modules cast them where they are used.
  """
  mesh = jax.sharding.get_abstract_mesh()

  def one(path, x):
    cast = dtype if x.ndim > 1 else x.dtype
    if mesh.empty or mesh.size == 1:
      return x.astype(cast)
    return _gather(x, param_spec(path_name(path), x.shape), cast)

  return jax.tree_util.tree_map_with_path(one, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, spec, dtype):
  return jax.lax.with_sharding_constraint(x.astype(dtype), P(*(None if a == "fsdp" else a for a in spec)))


def _gather_fwd(x, spec, dtype):
  return _gather(x, spec, dtype), jnp.zeros((), x.dtype)


def _gather_bwd(spec, dtype, like, grad):
  return (jax.lax.with_sharding_constraint(grad.astype(like.dtype), spec),)


_gather.defvjp(_gather_fwd, _gather_bwd)


def constrain_batch(x):
  """Keeps the leading dimension split over the batch axes; nothing without a mesh in context."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, P(BATCH, *(None,) * (x.ndim - 1)))
