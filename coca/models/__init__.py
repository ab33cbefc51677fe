"""The models: CoCa, which configured otherwise is CLIP and more, and BLIP."""

from flax import nnx

from coca.config import Config
from coca.models.blip import Blip
from coca.models.coca import CoCa


def make_model(config: Config, rngs: nnx.Rngs) -> CoCa | Blip:
  """A new model of `config.model.kind`."""
  return {"coca": CoCa, "blip": Blip}[config.model.kind](config, rngs)
