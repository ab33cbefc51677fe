"""Settings of a run. `from coca.config import ...` is what configs and users write."""

from coca.config.parsing import default, parse, to_dict
from coca.config.settings import (
  Answering,
  Captioning,
  Checkpoint,
  Config,
  Contrastive,
  Data,
  Eval,
  ImageEncoder,
  Matching,
  Med,
  Mesh,
  Model,
  Optim,
  Poolers,
  Source,
  TextDecoder,
)

__all__ = [
  "Answering", "Captioning", "Checkpoint", "Config", "Contrastive", "Data", "Eval", "ImageEncoder", "Matching",
  "Med", "Mesh", "Model", "Optim", "Poolers", "Source", "TextDecoder", "default", "parse", "to_dict",
]
