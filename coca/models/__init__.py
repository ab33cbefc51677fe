"""The models: CoCa, which configured otherwise is CLIP and more, BLIP, ALBEF and LEMON."""

from jaxtyping import PRNGKeyArray

from coca.config import Config
from coca.models.albef import Albef
from coca.models.blip import Blip
from coca.models.coca import CoCa
from coca.models.lemon import Lemon
from coca.models.rngs import Rngs


def make_model(config: Config, key: PRNGKeyArray) -> CoCa | Blip | Albef | Lemon:
  """A new model of `config.model.kind`, its parameters drawn by `key`."""
  return {"coca": CoCa, "blip": Blip, "albef": Albef, "lemon": Lemon}[config.model.kind](config, Rngs(key))
