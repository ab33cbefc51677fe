"""The models: CoCa, which configured otherwise is CLIP and more, BLIP, ALBEF, LEMON, VL-T5, VL-BART, SimVLM, ALIGN."""

from jaxtyping import PRNGKeyArray

from coca.config import Config
from coca.models.albef import Albef
from coca.models.align import Align
from coca.models.blip import Blip
from coca.models.coca import CoCa
from coca.models.lemon import Lemon
from coca.models.rngs import Rngs
from coca.models.simvlm import SimVlm
from coca.models.vl_bart import VlBart
from coca.models.vl_t5 import VlT5

KINDS = dict(coca=CoCa, blip=Blip, albef=Albef, lemon=Lemon, vl_t5=VlT5, vl_bart=VlBart, simvlm=SimVlm, align=Align)


def make_model(config: Config, key: PRNGKeyArray) -> CoCa | Blip | Albef | Lemon | VlT5 | VlBart | SimVlm | Align:
  """A new model of `config.model.kind`, its parameters drawn by `key`."""
  return KINDS[config.model.kind](config, Rngs(key))
