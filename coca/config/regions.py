"""Regions of images as models read them."""

from typing import Any, NamedTuple


class Regions(NamedTuple):
  """A detector's findings in images; in a batch they are its 'image'. Those of a single image are without B.

  Shapes: B batch, R regions, F width of a feature, G tags' tokens.
  """

  features: Any  # fp32 [B, R, F]
  boxes: Any  # fp32 [B, R, 4]: left, top, right, bottom, as shares of the image's width and height
  mask: Any  # bool [B, R], False where there is no region
  tags: Any  # int32 [B, G], the tokens of the regions' names, or of the text of a task, EOS, padding
