"""The regions of a record as a model reads them."""

import numpy as np

from coca.config import Model
from coca.config.regions import Regions
from coca.config.special import Tokenizer
from coca.data import tasks
from coca.data.records import BadRecord, Detected


def padded(record: Detected | None, model: Model, tokenizer: Tokenizer, question: str = "", text: str = "") -> Regions:
  """A record's regions as a model reads them: the first ones, as many as it takes, and zeros in all other places.

  `question`, `text`: of a model that poses tasks, as in `tasks.read`.

  Raises:
    BadRecord: there are none.
    ValueError: the features have another width than the model's; the message names file and setting.
  """
  settings, out = model.regions, blank(model)
  if record is None or not len(record.boxes):
    raise BadRecord("no regions")
  if record.features.shape[1] != settings.width:
    raise ValueError(
      f"{record.place or 'the regions'}: the features are {record.features.shape[1]} wide, and "
      f"config.model.regions.width is {settings.width}; set it to that, or take other features"
    )
  n = min(len(record.boxes), settings.count)
  out.features[:n], out.boxes[:n], out.mask[:n] = record.features[:n], record.boxes[:n], True
  if model.poses_tasks:
    return out._replace(tags=tasks.read(tokenizer, model, question, text))
  # BOS of the tags is cut off: they go on where the caption ends.
  tags = tokenizer.encode(" ".join(record.tags), settings.tags + 1)[1:] if settings.tags else out.tags
  return out._replace(tags=tags)


def blank(model: Model) -> Regions:
  """No regions."""
  r = model.regions
  shapes = ((r.count, r.width), np.float32), ((r.count, 4), np.float32), (r.count, bool), (r.tags, np.int32)
  return Regions(*(np.zeros(shape, dtype) for shape, dtype in shapes))
