"""Settings of a run. `from coca.config import ...` is what configs and users write."""

from coca.config.data import Data, Eval, SceneNoise, Scenes, Source
from coca.config.decoding import Decoding
from coca.config.losses import (
  Answering,
  Captioning,
  Classification,
  Contrastive,
  Dialog,
  Masked,
  Matching,
  SelfCritical,
)
from coca.config.model import ConvStage, EfficientNet, ImageEncoder, Med, Model, Poolers, TextDecoder
from coca.config.optim import Lora, Optim
from coca.config.parsing import Draft, default, parse, to_dict
from coca.config.settings import Checkpoint, Config, Mesh
from coca.config.stages import Stage

__all__ = [
  "Answering",
  "Captioning",
  "Checkpoint",
  "Classification",
  "Config",
  "Contrastive",
  "ConvStage",
  "Data",
  "Decoding",
  "Dialog",
  "Draft",
  "EfficientNet",
  "Eval",
  "ImageEncoder",
  "Lora",
  "Masked",
  "Matching",
  "Med",
  "Mesh",
  "Model",
  "Optim",
  "Poolers",
  "SceneNoise",
  "Scenes",
  "SelfCritical",
  "Source",
  "Stage",
  "TextDecoder",
  "default",
  "parse",
  "to_dict",
]
