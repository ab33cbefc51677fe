"""Chips that are nowhere."""

import dataclasses

from coca.planning.topology import Topology


@dataclasses.dataclass(frozen=True)
class Chip:
  device_kind: str = "TPU v5 lite"
  slice_index: int = 0
  platform: str = "tpu"


def chips(n, memory, slices=1):
  return Topology("v5e:2x4", [Chip(slice_index=i * slices // n) for i in range(n)], n, memory, {})
