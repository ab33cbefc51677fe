"""Layer-wise learning-rate decay, as BEiT fine-tunes (arXiv 2106.08254, and unilm/beit/optim_factory.py).

L layers of a tower, the lowest first, have the rate times decay^L to decay^1, what comes before them times
decay^(L + 1), and all others (last norms, poolers, projections, heads) the rate itself.
"""

import re

import numpy as np

from coca.config import Config
from coca.devices.trees import flat

LAYERS = re.compile(r"(?P<tower>\w+)/(stack/)?layers/(before/(?P<place>\d+)/|(?P<last>last/))?")
# One stack in two halves, the second of which reads the states of the first.
HALVES = {"unimodal": "multimodal", "text_encoder": "fusion"}
# What comes before the first layer. The norm of a `Bert` is that of its embeddings.
INPUTS = re.compile(
  r"(image_encoder/(patches|positions|class_token|norm_pre)|(text_encoder|text_decoder|encoder)/(embedding|norm)"
  r"|unimodal/cls|stem|positions|embedding|words|segments|image_order|(region|box)_(projection|norm))(/|$)"
)
READERS = ("encoder", "text_decoder", "unimodal", "multimodal")  # of inputs that are parts for themselves


def layer_factors(config: Config, params, idle: list[str]) -> dict[str, np.ndarray]:
  """The factors of the learning rate, by the parameters' paths: a number, or [L, 1, ...] of a stack of L layers.

  Args:
    config: `optim.layer_decay` and `model.text.cross_every` are read.
    params: tree of parameters.
    idle: the beginnings of the paths of those that no loss reads: an upper half among them does not count.
  """
  leaves, decay = flat(params), config.optim.layer_decay
  layers = {}
  for path, x in leaves.items():
    if found := LAYERS.match(path):
      tower = found["tower"]
      layers[tower] = x.shape[0] * (config.model.text.cross_every if tower == "multimodal" else 1)

  def depth(tower):
    """Layers from the first of this one to the end of what it belongs to."""
    upper = HALVES.get(tower, "")
    return layers[tower] + (0 if f"{upper}/" in idle else layers.get(upper, 0))

  def factor(path, x):
    if found := LAYERS.match(path):
      tower = found["tower"]
      group = layers[tower] // x.shape[0]  # layers in a step of the scan
      place = group - 1 if found["last"] else int(found["place"] or 0)
      below = place + group * np.arange(x.shape[0])
      return np.asarray(decay ** (depth(tower) - below), np.float32).reshape(-1, *[1] * (x.ndim - 1))
    if INPUTS.match(path):
      tower = next(t for t in (path.split("/")[0], *READERS) if t in layers)
      return np.asarray(decay ** (depth(tower) + 1), np.float32)
    return np.ones((), np.float32)

  return {path: factor(path, x) for path, x in leaves.items()}
