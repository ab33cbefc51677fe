"""Regions that a detector found, with their features, in the columns of Parquet files."""

import math

import numpy as np
import pyarrow as pa

from coca.data.records import BadRecord, Detected

FEATURES = "features"  # the column, where `image_key` is at its default
COLUMNS = ("boxes", "tags", "shape", "width", "height")  # beside it
_PIXELS = 1.01  # boxes with a larger number than this are in pixels


def from_row(values: dict, features, place: str) -> Detected:
  """The regions of a row.

  Args:
    values: of `COLUMNS`, as far as the file has them; arrays as `numbers` has them.
    features: likewise.
    place: file and row.

  Raises:
    BadRecord: something is missing, not finite, or of another number.
  """

  def need(ok, problem: str) -> None:
    if not ok:
      raise BadRecord(f"{place}: {problem}")

  boxes, shape = values.get("boxes"), values.get("shape")
  need(isinstance(boxes, np.ndarray) and boxes.ndim == 2 and boxes.shape[1] == 4, "column 'boxes' needs 4 numbers each")
  assert isinstance(boxes, np.ndarray)
  if isinstance(features, bytes):
    shape = [int(n) for n in (() if shape is None else shape)]
    need(len(shape) == 2, "features in bytes need a column 'shape': regions and width")
    size = len(features) / max(math.prod(shape), 1)
    need(size in (2, 4), f"{len(features)} bytes of features are no {shape} numbers of 16 or 32 bits")
    features = np.frombuffer(features, np.float16 if size == 2 else np.float32).reshape(shape)
  need(isinstance(features, np.ndarray) and features.ndim == 2, "no features, or of different widths")
  need(len(features) == len(boxes), f"{len(features)} features and {len(boxes)} boxes")
  boxes = boxes.astype(np.float32)
  if boxes.size and boxes.max() > _PIXELS:
    width, height = values.get("width"), values.get("height")
    need(width and height, "boxes in pixels need columns 'width' and 'height', of the image")
    boxes = boxes / np.array([width, height, width, height], np.float32)
  need(np.isfinite(boxes).all() and np.isfinite(features).all(), "a box or a feature is no finite number")
  need(boxes.min(initial=0) > -0.05 and boxes.max(initial=0) < 1.05, "a box lies outside of the image")
  tags = tuple(str(tag) for tag in values.get("tags") or ())
  return Detected(np.clip(boxes, 0, 1), features.astype(np.float32), tags, place)


def numbers(value: pa.Scalar):
  """A value of Arrow: lists of lists of numbers as an array, which Python's own would take milliseconds for."""
  if not isinstance(value, (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)) or not value.is_valid:
    return value.as_py()
  rows = value.values
  if not hasattr(rows, "flatten") or pa.types.is_struct(rows.type) or not len(rows):
    return value.as_py()
  flat, n = rows.flatten(), len(rows)
  if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
    return value.as_py()
  lengths = {len(row) for row in rows if row.is_valid}
  return flat.to_numpy(zero_copy_only=False).reshape(n, -1) if {len(flat) / n} == lengths else None


def holds_features(kind: pa.DataType) -> bool:
  """True for bytes and for lists of lists of numbers."""
  if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
    return True
  inner = kind
  for _ in range(2):
    if not (pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner)):
      return False
    inner = inner.value_type
  return pa.types.is_floating(inner)
