"""An ALIGN that compiles in seconds: one of its stages has a block to scan over."""

import jax
import numpy as np

from coca.config import Config
from coca.devices.trees import path_name
from support.common import random_params, tiny


def tiny_align(**changes) -> Config:
  """ALIGN without dropout and stochastic depth."""
  return tiny(
    **(
      {
        "model__kind": "align",
        "model__activation": "gelu",
        "model__embed_dim": 160,
        "model__efficientnet__width": 0.5,
        "model__efficientnet__depth": 0.3,
        "model__efficientnet__drop_connect": 0.0,
        "model__image__size": 64,
        "model__med__cls": 3,
        "model__med__encode": 4,
        "model__med__positions": 11,
        "model__med__dropout": 0.0,
        "model__text__multimodal_layers": 0,
        "captioning__weight": 0.0,
        "contrastive__temperature": 1.0,
        "contrastive__max_scale": 0.0,
        "contrastive__label_smoothing": 0.1,
        "optim__name": "adamw",
      }
      | changes
    )
  )


def align_params(settings: Config, seed: int = 0):
  """As `random_params`, with variances above 0."""

  def one(path, x):
    return 0.5 + np.abs(x) if path_name(path).endswith("/variance") else x

  return jax.tree_util.tree_map_with_path(one, random_params(settings, seed))
