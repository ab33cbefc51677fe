"""The split of a batch over devices and micro-batches."""

from typing import NamedTuple

from coca.config import Config
from coca.devices.sharding import mesh_shape


class Batch(NamedTuple):
  """per_device x shards x accumulate = total."""

  per_device: int  # pairs that one device sees at once
  shards: int  # devices that split the batch: data x fsdp; those along tensor share their rows
  accumulate: int  # micro-batches a step
  total: int  # pairs a step


def batch_arithmetic(config: Config, n_devices: int) -> Batch:
  """The split of the batch over devices and micro-batches.

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
