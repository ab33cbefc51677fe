"""Mesh and rules: which mesh axis splits which dimension of which array.

The mesh is ("data", "fsdp", "tensor") with Auto axes. The batch is split over data and fsdp. A parameter's dimensions
have logical names (`PARAMETERS`, by the end of its path), and one rule per logical name (`RULES`) says which mesh axis
splits it. Optimizer state and moving averages follow their parameter.
"""

import fnmatch
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from coca import config
from coca.devices.trees import path_name

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that split a batch

RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor", None: None}

# End of the path -> logical name of each dimension; parameters of scanned layers have one more dimension in front.
PARAMETERS = {
  "query/kernel": ("embed", "heads"),
  "key/kernel": ("embed", "heads"),
  "value/kernel": ("embed", "heads"),
  "out/kernel": ("heads", "embed"),
  "up/kernel": ("embed", "mlp"),
  "down/kernel": ("mlp", "embed"),
  "patches/kernel": (None, "embed"),
  "conv/kernel": (None, None, None, None),
  "projection/kernel": ("embed", None),
  "image_projection/kernel": ("embed", None),
  "text_projection/kernel": ("embed", None),
  "transform/kernel": ("embed", None),
  "softmax/kernel": ("embed", "vocab"),
  "matching_head/kernel": ("embed", None),
  "class_head/kernel": ("embed", None),
  "class_hidden/kernel": ("embed", None),
  "merge*/kernel": ("embed", None),
  "stem/kernel": (None, None, None, None),
  "depthwise/kernel": (None, None, None, None),
  # Widths of EfficientNet are multiples of 8 alone, which most meshes do not divide.
  "expand/kernel": (None, None),
  "squeeze/kernel": (None, None),
  "excite/kernel": (None, None),
  "reduce/kernel": (None, None),
  "embedding/tokens": ("vocab", "embed"),
  "region_projection/kernel": (None, "embed"),
  "box_projection/kernel": (None, "embed"),
  "words": ("vocab", "embed"),
  "image_order": (None,),
  "*_distances": (None, None),
  "positions": (None, "embed"),
  "frame_positions": (None, "embed"),
  "segments": (None, "embed"),
  "queries": (None, "embed"),
  "cls": (None,),
  "class_token": (None,),
  "mask": (None,),
  "bias": (None,),
  "scale": (None,),
  "mean": (None,),
  "variance": (None,),
  "log_scale": (),
  "logit_bias": (),
}


def make_mesh(mesh: config.Mesh | None = None, devices=None) -> Mesh:
  """The device mesh; several TPU slices are joined along the data axis, over the slow links.

  Raises:
    ValueError: the axes' product is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(mesh or config.Mesh(), len(devices))
  slices = slices_of(devices)
  if slices > 1:
    if shape[0] % slices:
      raise ValueError(f"config.mesh.data {shape[0]} is no multiple of the {slices} slices")
    shape = shape[0] // slices, *shape[1:]
    grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1, 1), devices, allow_split_physical_axes=True)
  else:  # an axis may be a part of one of the torus: 64 of 8 x 16 x 16
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def absent_device(platform: str) -> AbstractMesh:
  """A mesh of one device that is not there, of a platform: what is traced over it is what such a device would run."""
  kinds, device = (AxisType.Auto,) * len(AXES), AbstractDevice("", None, platform)
  return AbstractMesh((1,) * len(AXES), AXES, axis_types=kinds, abstract_device=device)


def slices_of(devices) -> int:
  """The number of TPU slices that there are. jax calls the hosts of a GPU cluster slices too: they are none here."""
  return 1 if devices[0].platform in ("gpu", "cuda") else len({getattr(d, "slice_index", 0) for d in devices})


def mesh_shape(mesh: config.Mesh, n_devices: int) -> tuple[int, int, int]:
  """Devices along data, fsdp and tensor. Raises ValueError if their product is not the number of devices."""
  shape = [mesh.data, mesh.fsdp, mesh.tensor]
  known = math.prod(n for n in shape if n != -1)
  if shape.count(-1) == 1 and known > 0 and n_devices % known == 0:
    shape[shape.index(-1)] = n_devices // known
  if math.prod(shape) != n_devices or min(shape) < 1:
    raise ValueError(
      f"config.mesh data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor} does not fit {n_devices} devices: "
      "the product must be that number; one axis may be -1"
    )
  data, fsdp, tensor = shape
  return data, fsdp, tensor


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh | None = None) -> P:
  """The partition of one parameter.

  Args:
    path: as `path_name` writes it; with 'layers' in it there may be a leading dimension of scanned layers.
    shape: of the parameter.
    mesh: to check that the sizes divide.

  Raises:
    ValueError: no rule names the parameter, two dimensions claim one mesh axis, or a size does not divide.
  """
  found = [names for end, names in PARAMETERS.items() if fnmatch.fnmatch("/" + path, "*/" + end)]
  if not found:
    raise ValueError(f"coca/devices/sharding.py: no rule in PARAMETERS names the parameter {path} {shape}")
  names = found[0]
  if len(shape) == len(names) + 1 and "layers" in path.split("/"):
    names = (None, *names)
  if len(shape) != len(names):
    raise ValueError(f"coca/devices/sharding.py: the rule for {path} has dimensions {names}, the parameter {shape}")
  axes = [RULES[name] for name in names]
  used = [a for a in axes if a]
  if len(used) != len(set(used)):
    raise ValueError(f"coca/devices/sharding.py: two dimensions of {path} {names} claim one mesh axis: {axes}")
  for size, axis in zip(shape, axes, strict=True):
    if mesh is not None and axis and size % mesh.shape[axis]:
      raise ValueError(
        f"{path} {shape}: dimension {size} cannot be split over {mesh.shape[axis]} devices; "
        f"choose a config.mesh.{axis} that divides it"
      )
  return P(*axes)


def param_shardings(params, mesh: Mesh | AbstractMesh):
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


def gather(path: str, x, dtype) -> Any:  # an array: a custom_vjp made by `partial` has no type
  """A parameter in the compute dtype, gathered over fsdp (tensor stays split); its gradient goes back to the shards.

  Without it the partitioner may move activations instead, or gather all scanned layers at once. Without a mesh in
  context this is only the cast.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x.astype(dtype)
  return _gather(x, param_spec(path, x.shape), dtype)


def gather_layer(params, dtype, prefix: str = ""):
  """`gather` for the parameters of one scanned layer, called inside the scanned body; `prefix`: of their paths.

  Vectors (norms, biases) keep their dtype: the modules cast them where they are used.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: gather(prefix + path_name(path), x, dtype if x.ndim > 1 else x.dtype), params
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, spec, dtype):
  return jax.lax.with_sharding_constraint(x.astype(dtype), P(*(None if a == "fsdp" else a for a in spec)))


def _gather_fwd(x, spec, dtype):
  return _gather(x, spec, dtype), jnp.zeros((), x.dtype)


def _gather_bwd(spec, dtype, like, grad):
  return (jax.lax.with_sharding_constraint(grad.astype(like.dtype), spec),)


_gather.defvjp(_gather_fwd, _gather_bwd)


def along_width(x):
  """Rows [B, ..., D] split over fsdp by their width in place of the batch, as a table's shards are."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, P("data", *(None,) * (x.ndim - 2), "fsdp"))


def batch_devices() -> int:
  """The number of devices that the mesh in context splits a batch over."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape.get(axis, 1) for axis in BATCH)


def constrain_batch(x):
  """Keeps the leading dimension split over the batch axes; nothing without a mesh in context."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, P(BATCH, *(None,) * (x.ndim - 1)))
